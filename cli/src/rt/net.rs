//! Connections: connecting within a time, owned buffers in and out, nothing of the protocol.
//!
//! Errors are those of the system, plus `TimedOut` when no byte moves for [`IDLE_TIMEOUT`].

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::time::Duration;

use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;

use crate::rt::buffer::Fill;
use crate::rt::time::timeout;

/// An address must answer within this time.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that owes us a byte, or does not take one, may be silent this long.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Silence after which the other side is asked for a sign of life.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(15);

const _: () = assert!(IDLE_TIMEOUT.as_secs() >= 3 * PROBE_INTERVAL.as_secs());

/// The receiving end of a TCP connection.
pub struct Receiver(OwnedReadHalf<TcpStream>);

/// The sending end of a TCP connection.
pub struct Sender(OwnedWriteHalf<TcpStream>);

/// The addresses of a host. Blocks while the resolver works, so call it before a transfer.
pub fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// Connects to the first address that answers.
pub async fn connect(addresses: &[SocketAddr]) -> io::Result<(Receiver, Sender)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect_addr(*address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                tune(&stream, *address);
                let (receiver, sender) = stream.into_split();
                return Ok((Receiver(receiver), Sender(sender)));
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = timed_out("no answer to the connection request", CONNECT_TIMEOUT),
        }
    }
    Err(last)
}

impl Sender {
    /// Sends all of `bytes`, and gives them back; an error drops them.
    pub async fn send<T: IoBuf>(&mut self, bytes: T) -> io::Result<T> {
        let (mut bytes, mut sent) = (bytes, 0);
        let len = bytes.bytes_init();
        while sent < len {
            let writing = timeout(IDLE_TIMEOUT, self.0.write(bytes.slice(sent..len))).await;
            let (result, view) = writing.map_err(|_| timed_out("the other side took no byte", IDLE_TIMEOUT))?;
            bytes = view.into_inner();
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }
}

impl Receiver {
    /// Receives into `buffer[from..to]` what is there, at least one byte; zero means that the other side has closed.
    /// `silent` runs each time nothing has come for [`PROBE_INTERVAL`]; after [`IDLE_TIMEOUT`] it is an error.
    /// An error drops the buffer.
    pub async fn receive<T, S>(&mut self, buffer: T, from: usize, to: usize, mut silent: S) -> io::Result<(usize, T)>
    where
        T: Fill,
        S: AsyncFnMut() -> io::Result<()>,
    {
        let mut buffer = buffer;
        loop {
            // The operation lives across the probes: dropping it could lose bytes that have come already.
            let mut receiving = pin!(self.0.read(buffer.slice_mut(from..to)));
            let mut waited = Duration::ZERO;
            let (result, view) = loop {
                match timeout(PROBE_INTERVAL, &mut receiving).await {
                    Ok(received) => break received,
                    Err(_) => waited += PROBE_INTERVAL,
                }
                if waited >= IDLE_TIMEOUT {
                    return Err(timed_out("no byte came", IDLE_TIMEOUT));
                }
                silent().await?;
            };
            buffer = view.into_inner();
            match result {
                Ok(n) => return Ok((n, buffer)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn timed_out(what: &str, limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {} s", limit.as_secs()))
}

/// On loopback a congestion control that paces (`bbr`) costs a quarter of the speed and there is nothing to control.
/// Which ones a process may choose is up to the system, so a refusal is fine.
fn tune(stream: &TcpStream, address: SocketAddr) {
    const RENO: &[u8] = b"reno";
    if !address.ip().is_loopback() {
        return;
    }
    let length = libc::socklen_t::try_from(RENO.len()).expect("four");
    // SAFETY: the descriptor is open, pointer and length are those of a constant.
    unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, RENO.as_ptr().cast(), length);
    }
}
