//! Whether the ports are free.
//!
//! The shards bind with `SO_REUSEPORT`, which would let two peers of one user share a port without either noticing;
//! so the port is first bound here without it.
//!
//! A process that was killed keeps its ports for a moment after it has gone: the kernel closes what its rings waited on
//! later. So a port in use is tried again for a while before it is reported.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::time::Instant;

use super::missing::Missing;
use crate::limits::{PORT_PATIENCE, PORT_POLL};

/// The first port of the range that can be bound; 0, where the system shall choose, stays 0. `key` names it.
pub(super) fn first_free(listen: IpAddr, ports: &RangeInclusive<u16>, key: &'static str) -> Result<u16, Missing> {
    let try_all = || {
        let mut found = Err(io::Error::from(io::ErrorKind::AddrInUse));
        for port in ports.clone() {
            found = bind(SocketAddr::new(listen, port)).map(|()| port);
            // Only a port in use is a reason to try the next one.
            if !is_in_use(&found) {
                break;
            }
        }
        found
    };
    let (address, last) = (SocketAddr::new(listen, *ports.start()), *ports.end());
    patiently(try_all).map_err(|error| Missing::Port { address, last, key, error })
}

/// Whether this address can be bound.
pub(super) fn try_bind(address: SocketAddr, key: &'static str) -> Result<(), Missing> {
    patiently(|| bind(address)).map_err(|error| Missing::Port { address, last: address.port(), key, error })
}

/// Whether this address can be bound for datagrams.
pub(super) fn try_bind_udp(address: SocketAddr, key: &'static str) -> Result<(), Missing> {
    let bound = patiently(|| UdpSocket::bind(address).map(drop));
    bound.map_err(|error| Missing::Port { address, last: address.port(), key, error })
}

fn bind(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

fn is_in_use<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::AddrInUse)
}

/// Tries again while a port is in use, for a while.
fn patiently<T>(attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let limit = Instant::now() + PORT_PATIENCE;
    loop {
        let result = attempt();
        if !is_in_use(&result) || Instant::now() >= limit {
            return result;
        }
        std::thread::sleep(PORT_POLL);
    }
}
