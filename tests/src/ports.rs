//! Free ports, for programs that cannot be told to choose one themselves.
//!
//! Between the choice and the use another process may take the port: callers retry with fresh ones. Our own programs
//! listen on port 0 and say what they got, which has no such gap.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::Mutex;

use anyhow::{Result, ensure};

/// Ports that this process has given out: the same one is free twice before anybody listens on it.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Where ports are looked for: up to those that the system gives to connections, unless it gives nearly all.
const FIRST: u16 = 10_000;
/// See [`FIRST`].
const FEW: u16 = 2_000;

/// `count` different free TCP ports on both loopbacks, none of which this process was given before. If possible they are not of
/// those that the system gives to connections: a program that is stopped and started again finds its port free.
pub fn free(count: usize) -> Result<Vec<u16>> {
    let mut given = GIVEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let end = first_for_connections().filter(|first| *first >= FIRST + FEW).unwrap_or(32_768);
    let span = u32::from(end - FIRST);
    // Other test programs begin elsewhere.
    let begin = std::process::id().wrapping_mul(7919) % span;
    let all = (0..span).filter_map(|index| u16::try_from(u32::from(FIRST) + (begin + index) % span).ok());
    let is_free = |port: &u16| !given.contains(port) && nobody_listens(*port);
    let ports: Vec<u16> = all.filter(is_free).take(count).collect();
    ensure!(ports.len() == count, "less than {count} ports from {FIRST} to {end} are free on loopback");
    given.extend(&ports);
    Ok(ports)
}

/// Whether a port is free on both loopbacks. A machine without IPv6 has nobody there.
fn nobody_listens(port: u16) -> bool {
    let taken = |error: &std::io::Error| error.kind() == ErrorKind::AddrInUse;
    let bound = [TcpListener::bind((Ipv4Addr::LOCALHOST, port)), TcpListener::bind((Ipv6Addr::LOCALHOST, port))];
    bound[0].is_ok() && !bound[1].as_ref().is_err_and(taken)
}

/// The first of the ports that the system gives to connections.
fn first_for_connections() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_between_calls() {
        let mut ports = free(8).expect("ports");
        ports.extend(free(8).expect("ports"));
        let different: BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(different.len(), 16);
    }
}
