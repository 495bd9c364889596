//! Whether the ports are free.
//!
//! The shards bind with `SO_REUSEPORT`, which would let two peers of one user share a port without either noticing;
//! so the port is first bound here without it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;

use super::missing::Missing;

/// The first port of the range that can be bound; 0, where the system shall choose, stays 0. `key` names it.
pub(super) fn first_free(listen: IpAddr, ports: &RangeInclusive<u16>, key: &'static str) -> Result<u16, Missing> {
    let mut tried = ports.clone().map(|port| (port, bind(SocketAddr::new(listen, port))));
    // Only a port in use is a reason to try the next one.
    let found = tried.find(|(port, result)| {
        port == ports.end() || !matches!(result, Err(error) if error.kind() == io::ErrorKind::AddrInUse)
    });
    let (port, result) = found.unwrap_or_else(|| unreachable!("the configuration refuses empty ranges"));
    let last = port;
    let address = SocketAddr::new(listen, *ports.start());
    result.map(|()| port).map_err(|error| Missing::Port { address, last, key, error })
}

/// Whether this address can be bound.
pub(super) fn try_bind(address: SocketAddr, key: &'static str) -> Result<(), Missing> {
    bind(address).map_err(|error| Missing::Port { address, last: address.port(), key, error })
}

/// Whether this address can be bound for datagrams.
pub(super) fn try_bind_udp(address: SocketAddr, key: &'static str) -> Result<(), Missing> {
    UdpSocket::bind(address).map(drop).map_err(|error| Missing::Port { address, last: address.port(), key, error })
}

fn bind(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}
