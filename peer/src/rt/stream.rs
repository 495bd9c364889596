//! A connection as a protocol with frames sees it: bytes come in through a small buffer or straight into an arena
//! slot, go out as vectors of counted bytes, and a third handle sees when they last moved.
//!
//! The three handles of [`split`] share one socket of this shard. No operation is dropped half done: timeouts work by
//! [`Pulse::cut`], which shuts the socket down so that pending operations end by themselves. What can fail is the
//! socket; after an error, or the end of the stream, a handle is of no further use.

use std::cell::{Cell, UnsafeCell};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use monoio::buf::{IoBufMut, IoVecBuf};
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf};
use monoio::net::TcpStream;

use crate::limits::OPENING_READ_BYTES;
use crate::rt::arena::SlotMut;
use crate::rt::net::Connection;

/// Parts of one vectored write: the kernel's `UIO_MAXIOV`.
const VECTORS_MAX: usize = 1024;

/// Splits a connection. The bytes already read from it come first.
pub fn split(connection: Connection) -> (Incoming, Outgoing, Pulse) {
    let (stream, prefix) = connection.into_parts();
    let fd = stream.as_raw_fd();
    let socket = Rc::new(UnsafeCell::new(stream));
    let moved = Rc::new(Moved { read_at: Cell::new(Instant::now()), write_since: Cell::new(None) });
    let incoming = Incoming {
        half: OwnedReadHalf(socket.clone()),
        prefix,
        buffer: Vec::with_capacity(OPENING_READ_BYTES),
        start: 0,
        moved: moved.clone(),
    };
    let outgoing = Outgoing { half: OwnedWriteHalf(socket.clone()), moved: moved.clone() };
    (incoming, outgoing, Pulse { fd, moved, _socket: socket })
}

/// When bytes last moved.
struct Moved {
    read_at: Cell<Instant>,
    /// Set while a write waits; the last moment it made progress.
    write_since: Cell<Option<Instant>>,
}

/// The reading end.
pub struct Incoming {
    half: OwnedReadHalf<TcpStream>,
    /// What was read before the split. Consumed before `buffer`.
    prefix: Bytes,
    /// `buffer[start..]` was read and not yet consumed. Its capacity never grows.
    buffer: Vec<u8>,
    start: usize,
    moved: Rc<Moved>,
}

impl Incoming {
    /// Bytes that were read and not yet consumed. Empty does not mean that none will come.
    pub fn buffered(&self) -> &[u8] {
        if self.prefix.is_empty() { &self.buffer[self.start..] } else { &self.prefix }
    }

    /// Consumes the first `count` of [`buffered`](Self::buffered).
    pub fn consume(&mut self, count: usize) {
        if !self.prefix.is_empty() {
            self.prefix.advance(count);
            return;
        }
        assert!(count <= self.buffer.len() - self.start);
        self.start += count;
    }

    /// Waits for more bytes once all are consumed. `false` at the end of the stream.
    pub async fn fill(&mut self) -> io::Result<bool> {
        assert!(self.buffered().is_empty(), "what is buffered is consumed first");
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.start = 0;
        let (result, buffer) = self.half.read(buffer).await;
        self.buffer = buffer;
        let count = result?;
        self.moved.read_at.set(Instant::now());
        Ok(count > 0)
    }

    /// Receives `len` bytes into the beginning of `slot`, without a copy but for what is buffered already.
    pub async fn read_slot(&mut self, mut slot: SlotMut, len: usize) -> io::Result<SlotMut> {
        slot.set_len(len);
        let mut filled = 0;
        while filled < len {
            let count;
            (count, slot) = self.read_part(slot, filled..len).await?;
            filled += count;
        }
        Ok(slot)
    }

    /// Receives what is there, at least a byte, into this part of `slot`, which must lie within its length; tells how
    /// many bytes came. Without a copy but for what is buffered already.
    pub async fn read_part(&mut self, mut slot: SlotMut, part: Range<usize>) -> io::Result<(usize, SlotMut)> {
        assert!(part.start < part.end && part.end <= slot.len(), "a part of the slot, not empty");
        if !self.buffered().is_empty() {
            let count = self.buffered().len().min(part.len());
            slot[part.start..part.start + count].copy_from_slice(&self.buffered()[..count]);
            self.consume(count);
            return Ok((count, slot));
        }
        let (result, view) = self.half.read(slot.slice_mut(part)).await;
        let count = result?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.moved.read_at.set(Instant::now());
        Ok((count, view.into_inner()))
    }

    /// Receives `len` bytes and forgets them.
    pub async fn skip(&mut self, mut len: usize) -> io::Result<()> {
        while len > 0 {
            if self.buffered().is_empty() && !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = self.buffered().len().min(len);
            self.consume(count);
            len -= count;
        }
        Ok(())
    }
}

/// The writing end.
pub struct Outgoing {
    half: OwnedWriteHalf<TcpStream>,
    moved: Rc<Moved>,
}

impl Outgoing {
    /// Sends all parts, in order, without copying them.
    pub async fn write_all(&mut self, parts: Vec<Bytes>) -> io::Result<()> {
        let mut vectors = Vectors::new(parts);
        self.moved.write_since.set(Some(Instant::now()));
        while !vectors.is_empty() {
            let (result, back) = self.half.writev(vectors).await;
            vectors = back;
            match result? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => vectors.advance(count),
            }
            self.moved.write_since.set(Some(Instant::now()));
        }
        self.moved.write_since.set(None);
        Ok(())
    }

    /// Tells the other side that nothing more comes. It may still send.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.half.shutdown().await
    }
}

/// Sees when bytes last moved, and can end everything.
pub struct Pulse {
    fd: RawFd,
    moved: Rc<Moved>,
    /// Keeps `fd` open.
    _socket: Rc<UnsafeCell<TcpStream>>,
}

impl Pulse {
    /// How long nothing came in.
    pub fn read_idle(&self) -> Duration {
        self.moved.read_at.get().elapsed()
    }

    /// How long a write waits without progress; zero when none does.
    pub fn write_stalled(&self) -> Duration {
        self.moved.write_since.get().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Shuts the socket down in both directions: pending reads end, pending writes fail.
    pub fn cut(&self) {
        // SAFETY: `_socket` keeps the descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd) };
        // An error means that the other side has gone already.
        let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
    }
}

/// Parts of a vectored write that are not yet sent.
struct Vectors {
    parts: Vec<Bytes>,
    /// Points into `parts`, from `next` on. Rebuilt by `advance` only.
    vectors: Vec<libc::iovec>,
    next: usize,
}

impl Vectors {
    fn new(parts: Vec<Bytes>) -> Vectors {
        let vectors = parts.iter().filter(|part| !part.is_empty()).map(|part| vector(part)).collect();
        Vectors { parts, vectors, next: 0 }
    }

    fn is_empty(&self) -> bool {
        self.next == self.vectors.len()
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let front = &mut self.vectors[self.next];
            if count < front.iov_len {
                // SAFETY: the result lies within the part that `front` points into.
                front.iov_base = unsafe { front.iov_base.cast::<u8>().add(count) }.cast();
                front.iov_len -= count;
                return;
            }
            count -= front.iov_len;
            self.next += 1;
        }
        debug_assert!(!self.parts.is_empty());
    }
}

fn vector(part: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }
}

// SAFETY: the vectors point into `parts`, whose bytes stay in place while `self` lives, moved or not; both lists are
// on the heap and not changed while an operation owns `self`. The kernel only reads.
unsafe impl IoVecBuf for Vectors {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.vectors[self.next..].as_ptr()
    }
    fn read_iovec_len(&self) -> usize {
        (self.vectors.len() - self.next).min(VECTORS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::io::{Read, Write};
    use std::net::Ipv4Addr;

    use super::*;
    use crate::rt::arena::{Arena, Holder};
    use crate::rt::net::{Door, Listener, bind_shared};

    fn on_shard<F: Future>(future: F) -> F::Output {
        monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    async fn pair() -> (Connection, std::net::TcpStream) {
        let listener = bind_shared(Ipv4Addr::LOCALHOST.into(), 0..=0, 1).expect("a free port").remove(0);
        let client = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (stop, stopped) = crate::rt::mailbox::oneshot::channel::<()>();
        let (mut stop, mut accepted) = (Some(stop), None);
        let stopped = async {
            let _ = stopped.await;
        };
        let listener = Listener::new(listener, Door::Api).expect("taken over");
        listener
            .accept_until(stopped, |connection| {
                accepted = Some(connection);
                let _ = stop.take().map(|stop| stop.send(()));
            })
            .await;
        (accepted.expect("the client connected"), client)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|index| u8::try_from(index % 251).expect("below 251")).collect()
    }

    #[test]
    fn bytes_come_through_the_buffer_then_straight_into_a_slot() {
        on_shard(async {
            let (mut connection, mut client) = pair().await;
            let sent = pattern(10 + (1 << 20) + 5);
            let copy = sent.clone();
            let sender = std::thread::spawn(move || client.write_all(&copy).map(|()| client).expect("sent"));
            connection.read_until(1, |bytes| (!bytes.is_empty()).then_some(())).await.expect("read");
            let (mut incoming, _outgoing, pulse) = split(connection);
            incoming.skip(10).await.expect("there is more");
            let arena = Arena::new(48 << 20).expect("mapped");
            let slot = arena.try_take(1 << 20, Holder::Ingest).expect("free");
            let slot = incoming.read_slot(slot, 1 << 20).await.expect("received");
            assert!(slot[..] == sent[10..10 + (1 << 20)]);
            incoming.skip(5).await.expect("received");
            drop(sender.join().expect("no panic"));
            assert!(!incoming.fill().await.expect("closed"));
            assert_eq!(pulse.write_stalled(), Duration::ZERO);
        });
    }

    #[test]
    fn parts_go_out_in_order_whatever_the_socket_takes_at_once() {
        on_shard(async {
            let (connection, mut client) = pair().await;
            let (_incoming, mut outgoing, _pulse) = split(connection);
            let big = Bytes::from(pattern(9 << 20));
            let receiver = std::thread::spawn(move || {
                let mut all = Vec::new();
                client.read_to_end(&mut all).expect("received");
                all
            });
            let parts = vec![Bytes::from_static(b"head"), big.clone(), Bytes::new(), Bytes::from_static(b"tail")];
            outgoing.write_all(parts).await.expect("sent");
            outgoing.finish().await.expect("finished");
            let all = receiver.join().expect("no panic");
            assert!(all.starts_with(b"head") && all.ends_with(b"tail") && all[4..4 + big.len()] == big[..]);
            assert_eq!(all.len(), big.len() + 8);
        });
    }

    #[test]
    fn cutting_ends_a_read_that_waits_and_a_write_that_stalls() {
        on_shard(async {
            let (connection, client) = pair().await;
            let (mut incoming, mut outgoing, pulse) = split(connection);
            let cut = async {
                while pulse.write_stalled() < Duration::from_millis(20) {
                    crate::rt::time::sleep(Duration::from_millis(5)).await;
                }
                pulse.cut();
            };
            let parts = vec![Bytes::from(vec![0; 64 << 20])];
            let (read, written, ()) = futures_util::join!(incoming.fill(), outgoing.write_all(parts), cut);
            assert!(!read.unwrap_or(false));
            written.expect_err("the client never reads");
            drop(client);
        });
    }
}
