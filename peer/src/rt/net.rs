//! Sockets of the shards: listeners that share a port, and connections before it is known who serves them.
//!
//! Every shard has a listener of its own on the same port (`SO_REUSEPORT`), so the kernel spreads connections without
//! a lock. The first bytes of a [`Connection`] are read into its `prefix` until they say which shard owns the task;
//! then the connection stays or moves there as a [`Handed`], once, with the bytes already read. Whoever serves it
//! replays the prefix first. Nothing here knows a protocol: the caller's function decides when enough was read.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use monoio::io::AsyncReadRent;

use crate::limits::{ACCEPT_BACKLOG, OPENING_READ_BYTES};
use crate::rt::time::sleep;

/// Pause after a failed accept. Nearly always the process is out of descriptors, and trying again at once would spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// Congestion control for clients on this machine: the default of many kernels, BBR, costs a quarter of the rate there.
const LOOPBACK_CONGESTION: &[u8] = b"reno";

/// Binds `count` listeners to the same address: the first free port of `ports` (0: any free port).
///
/// With `SO_REUSEPORT` alone a second process of the same user would join silently, so a plain bind asks first
/// whether the port is in use. That is also the error when none of the ports is free.
pub fn bind_shared(ip: IpAddr, ports: RangeInclusive<u16>, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    for port in ports {
        let address = SocketAddr::new(ip, port);
        match bind_all(address, count) {
            Ok(listeners) => return Ok(listeners),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

fn bind_all(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 {
        let probe = socket_for(address)?;
        probe.bind(&address.into())?;
    }
    let first = listener_on(address)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    while listeners.len() < count {
        listeners.push(listener_on(address)?);
    }
    Ok(listeners)
}

fn listener_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket_for(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG)?;
    Ok(socket.into())
}

fn socket_for(address: SocketAddr) -> io::Result<socket2::Socket> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// A listener on this shard.
pub struct Listener(monoio::net::TcpListener);

impl Listener {
    /// Takes over a bound listener on this shard.
    pub fn new(listener: TcpListener) -> io::Result<Listener> {
        monoio::net::TcpListener::from_std(listener).map(Listener)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Gives each new connection to `accepted` until `stop` completes. `accepted` must not wait: it spawns.
    pub async fn accept_until(self, stop: impl Future<Output = ()>, mut accepted: impl FnMut(Connection)) {
        let mut stop = std::pin::pin!(stop);
        loop {
            // One accept lives on across wake-ups: monoio 0.2.4 leaks the descriptor of a cancelled one. Only the
            // last is cancelled, when this shard stops for good.
            let accept = std::pin::pin!(self.0.accept());
            match select(accept, stop.as_mut()).await {
                Either::Left((Ok((stream, remote)), _)) => accepted(Connection::new(stream, remote)),
                Either::Left((Err(error), _)) => {
                    tracing::warn!(%error, "cannot accept connections");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
                Either::Right(_) => return,
            }
        }
    }
}

/// A connection on this shard, with what was read from it and not yet served.
pub struct Connection {
    stream: monoio::net::TcpStream,
    prefix: BytesMut,
    remote: SocketAddr,
}

/// A connection on its way to another shard.
pub struct Handed {
    stream: TcpStream,
    prefix: BytesMut,
    remote: SocketAddr,
}

impl Connection {
    fn new(stream: monoio::net::TcpStream, remote: SocketAddr) -> Connection {
        let connection = Connection { stream, prefix: BytesMut::new(), remote };
        connection.tune();
        connection
    }

    /// Options that make a difference but never a failure.
    fn tune(&self) {
        let _ = self.stream.set_nodelay(true);
        if self.remote.ip().to_canonical().is_loopback() {
            // SAFETY: the descriptor stays open while `self.stream` is borrowed.
            let fd = unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) };
            let _ = socket2::SockRef::from(&fd).set_tcp_congestion(LOOPBACK_CONGESTION);
        }
    }

    /// The client's address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// What was read and not yet served.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Reads into the prefix until `decide` finds an answer in it. `None` when the client closed first, or when the
    /// prefix reached `bytes_max` without an answer (the prefix then has at least that length).
    pub async fn read_until<T>(
        &mut self,
        bytes_max: usize,
        mut decide: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        loop {
            if let Some(answer) = decide(&self.prefix) {
                return Ok(Some(answer));
            }
            if self.prefix.len() >= bytes_max || self.read_more().await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn read_more(&mut self) -> io::Result<usize> {
        let (result, chunk) = self.stream.read(BytesMut::with_capacity(OPENING_READ_BYTES)).await;
        if self.prefix.is_empty() {
            self.prefix = chunk;
        } else {
            self.prefix.extend_from_slice(&chunk);
        }
        result
    }

    /// Lets go of this shard. No operation is in flight on the socket, because each one borrows `self`.
    pub fn hand_over(self) -> Handed {
        let fd = self.stream.into_raw_fd();
        // SAFETY: the descriptor was just released by its only owner and is a TCP socket.
        let stream = unsafe { TcpStream::from_raw_fd(fd) };
        Handed { stream, prefix: self.prefix, remote: self.remote }
    }

    /// The socket and the bytes to replay before it, for the adapters of this layer.
    pub(in crate::rt) fn into_parts(self) -> (monoio::net::TcpStream, Bytes) {
        (self.stream, self.prefix.freeze())
    }
}

impl Handed {
    /// Takes the connection over on the shard that serves it.
    pub fn accept(self) -> io::Result<Connection> {
        let stream = monoio::net::TcpStream::from_std(self.stream)?;
        Ok(Connection { stream, prefix: self.prefix, remote: self.remote })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Ipv4Addr;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn on_shard<F: Future>(future: F) -> F::Output {
        monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    fn stream_of(stream: monoio::net::TcpStream) -> TcpStream {
        // SAFETY: the descriptor was just released by its only owner and is a TCP socket.
        unsafe { TcpStream::from_raw_fd(stream.into_raw_fd()) }
    }

    /// A connection accepted on this thread, and its client.
    async fn pair() -> (Connection, TcpStream) {
        let listener = bind_shared(LOOPBACK, 0..=0, 1).expect("a free port").remove(0);
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let listener = Listener::new(listener).expect("taken over");
        let (stop, stopped) = crate::rt::mailbox::oneshot::channel::<()>();
        let mut stop = Some(stop);
        let mut accepted = None;
        let stopped = async {
            let _ = stopped.await;
        };
        listener
            .accept_until(stopped, |connection| {
                accepted = Some(connection);
                let _ = stop.take().map(|stop| stop.send(()));
            })
            .await;
        (accepted.expect("the client connected"), client)
    }

    #[test]
    fn listeners_share_one_port_and_others_are_refused() {
        let listeners = bind_shared(LOOPBACK, 0..=0, 3).expect("a free port");
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().expect("bound").port()).collect();
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0));
        let second = bind_shared(LOOPBACK, ports[0]..=ports[0], 1).expect_err("it is in use");
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_range_gives_the_first_free_port() {
        let taken = bind_shared(LOOPBACK, 0..=0, 1).expect("a free port");
        let port = taken[0].local_addr().expect("bound").port();
        let Some(next) = port.checked_add(50) else { return };
        let found = bind_shared(LOOPBACK, port..=next, 2).expect("one of 51 is free");
        assert!(found[0].local_addr().expect("bound").port() > port);
    }

    #[test]
    fn a_connection_moves_with_the_bytes_already_read() {
        let (handover, mut client) = on_shard(async {
            let (mut connection, mut client) = pair().await;
            client.write_all(b"GET /a").expect("sent");
            let found = connection.read_until(64, |bytes| bytes.contains(&b'/').then_some(bytes.len())).await;
            assert_eq!(found.expect("read"), Some(6));
            (connection.hand_over(), client)
        });
        client.write_all(b" more").expect("sent");
        let elsewhere = std::thread::spawn(move || {
            on_shard(async {
                let mut connection = handover.accept().expect("taken over");
                let all = connection.read_until(64, |bytes| (bytes.len() == 11).then(|| bytes.to_vec())).await;
                let (stream, prefix) = connection.into_parts();
                assert_eq!(Some(&prefix[..]), all.expect("read").as_deref());
                (&stream_of(stream)).write_all(&prefix).expect("echoed");
            });
        });
        elsewhere.join().expect("no panic");
        let mut echoed = Vec::new();
        client.read_to_end(&mut echoed).expect("closed after the echo");
        assert_eq!(echoed, b"GET /a more");
    }

    #[test]
    fn reading_the_opening_stops_at_the_limit_and_at_the_end() {
        on_shard(async {
            let (mut connection, mut client) = pair().await;
            client.write_all(&[b'x'; 100]).expect("sent");
            assert_eq!(connection.read_until(100, |_| None::<()>).await.expect("read"), None);
            drop(client);
            assert_eq!(connection.read_until(1000, |_| None::<()>).await.expect("read"), None);
            assert_eq!(connection.prefix().len(), 100);
        });
    }
}
