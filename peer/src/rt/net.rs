//! Sockets of the shards: listeners that share a port, and connections before it is known who serves them.
//!
//! Every shard has a listener of its own on the same port (`SO_REUSEPORT`), so the kernel spreads connections without
//! a lock. The first bytes of a [`Connection`] are read into its `prefix` until they say which shard owns the task;
//! then the connection stays or moves there as a [`Handed`], once, with the bytes already read. Whoever serves it
//! replays the prefix first. Nothing here knows a protocol: the caller's function decides when enough was read, and
//! what it means to have come in by one [`Door`] or another is its business too.

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
use crate::rt::time::{Elapsed, sleep, timeout};

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

/// Which listener a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The one for clients.
    Api,
    /// The one for the other peers of the cluster.
    Peer,
    /// The one for peers that want the backend's configuration.
    Manager,
}

/// A listener on this shard.
pub struct Listener {
    listener: monoio::net::TcpListener,
    door: Door,
}

impl Listener {
    /// Takes over a bound listener on this shard.
    pub fn new(listener: TcpListener, door: Door) -> io::Result<Listener> {
        let listener = monoio::net::TcpListener::from_std(listener)?;
        Ok(Listener { listener, door })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Gives each new connection to `accepted` until `stop` completes. `accepted` must not wait: it spawns.
    ///
    /// Then no connection comes in any more: one that was accepted meanwhile is still given to `accepted`, and the
    /// kernel resets those that wait in its queue.
    pub async fn accept_until(self, stop: impl Future<Output = ()>, mut accepted: impl FnMut(Connection)) {
        let mut stop = std::pin::pin!(stop);
        let mut accept = std::pin::pin!(self.listener.accept());
        let (mut stopped, mut fails) = (false, false);
        loop {
            // An accept is never dropped while it runs: one that completes then would leave a connection that nobody
            // serves and nobody closes (monoio 0.2.4). Shut down, the listener ends it.
            let result = if stopped {
                accept.as_mut().await
            } else {
                match select(accept.as_mut(), stop.as_mut()).await {
                    Either::Left((result, _)) => result,
                    Either::Right(_) => {
                        stopped = true;
                        self.refuse();
                        continue;
                    }
                }
            };
            match result {
                Ok((stream, remote)) => {
                    fails = false;
                    accepted(Connection::new(stream, remote, Some(self.door)));
                }
                Err(_) if stopped => {}
                Err(error) => {
                    if !fails {
                        tracing::warn!(%error, door = ?self.door, "cannot accept connections: trying until it works");
                    }
                    fails = true;
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
            if stopped {
                return;
            }
            accept.set(self.listener.accept());
        }
    }

    /// Takes no connections any more; an accept that runs ends with an error.
    fn refuse(&self) {
        // SAFETY: the descriptor stays open while `self.listener` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(self.listener.as_raw_fd()) };
        if let Err(error) = rustix::net::shutdown(fd, rustix::net::Shutdown::Both) {
            tracing::warn!(%error, "cannot stop listening");
        }
    }
}

/// A connection on this shard, with what was read from it and not yet served.
pub struct Connection {
    stream: monoio::net::TcpStream,
    prefix: BytesMut,
    remote: SocketAddr,
    door: Option<Door>,
}

/// A connection on its way to another shard.
pub struct Handed {
    stream: TcpStream,
    prefix: BytesMut,
    remote: SocketAddr,
    door: Option<Door>,
}

/// Connects to `address` within `limit`.
pub async fn connect(address: SocketAddr, limit: Duration) -> io::Result<Connection> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let stream = monoio::net::TcpStream::from_std(socket.into())?;
    finish_connecting(&stream, limit).await?;
    Ok(Connection::new(stream, address, None))
}

async fn finish_connecting(stream: &monoio::net::TcpStream, limit: Duration) -> io::Result<()> {
    // SAFETY: the descriptor stays open while `stream` is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    let mut ready = std::pin::pin!(stream.writable(false));
    match timeout(limit, ready.as_mut()).await {
        Ok(ready) => ready?,
        Err(Elapsed) => {
            // Shut down, the socket gives up connecting, and the operation ends by itself: none is dropped half done,
            // because monoio 0.2.4 is not to be trusted with that.
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
            let _ = ready.await;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis())));
        }
    }
    let socket = socket2::SockRef::from(&fd);
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    // io_uring does not wait for a socket that does not block: it says at once that nothing is there.
    socket.set_nonblocking(false)
}

impl Connection {
    fn new(stream: monoio::net::TcpStream, remote: SocketAddr, door: Option<Door>) -> Connection {
        let connection = Connection { stream, prefix: BytesMut::new(), remote, door };
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

    /// The other side's address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Which listener it came in by; `None` when this side connected.
    pub fn door(&self) -> Option<Door> {
        self.door
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
        Handed { stream, prefix: self.prefix, remote: self.remote, door: self.door }
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
        Ok(Connection { stream, prefix: self.prefix, remote: self.remote, door: self.door })
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
        let listener = Listener::new(listener, Door::Api).expect("taken over");
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
    fn connects_both_ways_and_waits_for_bytes() {
        on_shard(async {
            let listener = TcpListener::bind((LOOPBACK, 0)).expect("a free port");
            let address = listener.local_addr().expect("bound");
            let other = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("connected");
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a byte comes");
                stream.write_all(b"answer").expect("sent");
            });
            let mut connection = connect(address, Duration::from_secs(5)).await.expect("it listens");
            assert_eq!((connection.remote(), connection.door()), (address, None));
            let (result, _) = monoio::io::AsyncWriteRent::write(&mut connection.stream, b"x".to_vec()).await;
            assert_eq!(result.expect("sent"), 1);
            let answer = connection.read_until(64, |bytes| (bytes == b"answer").then_some(())).await;
            assert_eq!(answer.expect("read"), Some(()));
            other.join().expect("no panic");
        });
    }

    #[test]
    fn connecting_fails_at_once_or_in_time() {
        // The real driver: cancelling is where the two differ.
        crate::rt::shard::block_on(async {
            let listener = TcpListener::bind((LOOPBACK, 0)).expect("a free port");
            let address = listener.local_addr().expect("bound");
            drop(listener);
            let refused = connect(address, Duration::from_secs(5)).await.err().expect("nobody listens");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

            // A listener whose queue is full leaves further connections without an answer.
            let socket = socket_for((LOOPBACK, 0).into()).expect("a socket");
            socket.bind(&SocketAddr::from((LOOPBACK, 0)).into()).expect("a free port");
            socket.listen(0).expect("it listens");
            let address = TcpListener::from(socket.try_clone().expect("cloned")).local_addr().expect("bound");
            let limit = Duration::from_millis(100);
            let mut queued = Vec::new();
            let error = loop {
                match connect(address, limit).await {
                    Ok(connection) => queued.push(connection),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        })
        .expect("a runtime");
    }

    #[test]
    fn a_connection_that_comes_as_the_listener_stops_is_not_left_open() {
        let mut clients = crate::rt::shard::block_on(async {
            let mut clients = Vec::new();
            for _ in 0..20 {
                let listener = bind_shared(LOOPBACK, 0..=0, 1).expect("a free port").remove(0);
                let address = listener.local_addr().expect("bound");
                let listener = Listener::new(listener, Door::Api).expect("taken over");
                let mut polls = 0;
                // The kernel has the accept by the second poll. A connection is there by then, and this side is not
                // told of it before it stops.
                let stop = std::future::poll_fn(|cx| {
                    polls += 1;
                    if polls == 1 {
                        cx.waker().wake_by_ref();
                        return std::task::Poll::Pending;
                    }
                    clients.push(TcpStream::connect(address).expect("it listens"));
                    clients.push(TcpStream::connect(address).expect("it listens"));
                    std::task::Poll::Ready(())
                });
                listener.accept_until(stop, drop).await;
                assert!(TcpStream::connect(address).is_err(), "it does not listen any more");
            }
            clients
        })
        .expect("a runtime");
        for client in &mut clients {
            client.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
            match client.read(&mut [0]) {
                Ok(0) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => panic!("neither closed nor reset: {other:?}"),
            }
        }
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
