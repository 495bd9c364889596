//! Free ports, for programs that cannot be told to choose one themselves.
//!
//! Between the choice and the use another process may take the port: callers retry with fresh ones. Our own programs
//! listen on port 0 and say what they got, which has no such gap.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Mutex;

use anyhow::{Context, Result};

/// Ports that this process has given out: the system may offer the same one twice before anybody listens on it.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// `count` different free TCP ports on loopback, none of which this process was given before.
pub fn free(count: usize) -> Result<Vec<u16>> {
    let mut given = GIVEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut ports = Vec::with_capacity(count);
    let mut held = Vec::new();
    while ports.len() < count {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port on loopback")?;
        let port = listener.local_addr()?.port();
        if given.insert(port) {
            ports.push(port);
        }
        held.push(listener);
    }
    Ok(ports)
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
