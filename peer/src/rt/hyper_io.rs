//! hyper over the sockets of a shard: reading, real vectored writing, and the clock of a connection.
//!
//! [`HyperIo`] is monoio's poll-based stream with three additions. The bytes read before it was known who serves the
//! connection are replayed first. What hyper queues to write (a head and the `Bytes` of arena slots) goes out with
//! one `sendmsg`, so bodies are never flattened into a buffer. And every byte that comes in passes an [`Inspector`],
//! which sees request heads before hyper makes them unambiguous.
//!
//! [`Activity`] knows what the client owes and since when; [`drive`] gives up on a connection whose client has owed
//! it for too long. A client is never overdue while the server works.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use monoio::io::IntoPollIo;
use monoio::io::poll_io::{AsyncRead, AsyncWrite, ReadBuf};
use monoio::net::tcp::stream_poll::TcpStreamPoll;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::limits::{BODY_IDLE_TIMEOUT, HEAD_TIMEOUT, IDLE_TIMEOUT, LINGER_BYTES_MAX, LINGER_TIMEOUT};
use crate::rt::net::Connection;
use crate::rt::time::sleep;

/// What is read and dropped at once when a connection ends.
const LINGER_READ_BYTES: usize = 16 << 10;

/// What the bytes read so far say the client owes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expecting {
    /// Nothing of the next request has come.
    Request,
    /// A part of a request head has come.
    Head,
    /// A head has come whole, its body has not.
    Body,
}

/// Sees every byte of a connection before hyper does.
pub trait Inspector {
    /// Looks at the next bytes and says what is expected after them.
    fn inspect(&mut self, bytes: &[u8]) -> Expecting;
}

/// What happens on one connection, shared by its stream, its requests and its clock.
pub struct Activity {
    expecting: Cell<Expecting>,
    /// When the current head began.
    head_since: Cell<Instant>,
    /// When a byte last moved, either way.
    moved: Cell<Instant>,
    /// Since when hyper has had bytes for the client that the socket does not take.
    write_blocked: Cell<Option<Instant>>,
    /// Since when hyper has waited for bytes of a body.
    read_blocked: Cell<Option<Instant>>,
    /// Since when everything was said and the client's remaining bytes are dropped.
    lingering: Cell<Option<Instant>>,
    requests: Cell<usize>,
}

/// A request in flight: from its head to the last byte of its answer.
pub struct InFlight(Rc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
        self.0.moved.set(Instant::now());
    }
}

impl Activity {
    fn new() -> Activity {
        let now = Instant::now();
        Activity {
            expecting: Cell::new(Expecting::Request),
            head_since: Cell::new(now),
            moved: Cell::new(now),
            write_blocked: Cell::new(None),
            read_blocked: Cell::new(None),
            lingering: Cell::new(None),
            requests: Cell::new(0),
        }
    }

    /// Counts a request until the result is dropped.
    pub fn request(self: &Rc<Self>) -> InFlight {
        self.requests.set(self.requests.get() + 1);
        InFlight(self.clone())
    }

    /// When the client is overdue, if it owes anything now.
    fn deadline(&self) -> Option<Instant> {
        if let Some(since) = self.lingering.get() {
            return Some(since + LINGER_TIMEOUT);
        }
        if let Some(since) = self.write_blocked.get() {
            return Some(since + BODY_IDLE_TIMEOUT);
        }
        match self.expecting.get() {
            Expecting::Head => Some(self.head_since.get() + HEAD_TIMEOUT),
            Expecting::Request if self.requests.get() == 0 => Some(self.moved.get() + IDLE_TIMEOUT),
            Expecting::Request => None,
            Expecting::Body => self.read_blocked.get().map(|since| since + BODY_IDLE_TIMEOUT),
        }
    }

    fn read(&self, expecting: Expecting) {
        let now = Instant::now();
        if expecting == Expecting::Head && self.expecting.get() != Expecting::Head {
            self.head_since.set(now);
        }
        self.expecting.set(expecting);
        self.read_blocked.set(None);
        self.moved.set(now);
    }

    fn wrote(&self) {
        self.write_blocked.set(None);
        self.moved.set(Instant::now());
    }

    fn blocked(since: &Cell<Option<Instant>>) {
        if since.get().is_none() {
            since.set(Some(Instant::now()));
        }
    }
}

/// A connection as hyper wants it.
pub struct HyperIo<I> {
    stream: TcpStreamPoll,
    prefix: Bytes,
    inspector: I,
    activity: Rc<Activity>,
    ended: bool,
    linger_left: usize,
}

impl<I: Inspector> HyperIo<I> {
    /// Takes over a connection.
    pub fn new(connection: Connection, inspector: I) -> io::Result<HyperIo<I>> {
        let (stream, prefix) = connection.into_parts();
        Ok(HyperIo {
            stream: stream.into_poll_io()?,
            prefix,
            inspector,
            activity: Rc::new(Activity::new()),
            ended: false,
            linger_left: LINGER_BYTES_MAX,
        })
    }

    /// The connection's clock.
    pub fn activity(&self) -> Rc<Activity> {
        self.activity.clone()
    }

    fn send_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        // SAFETY: the descriptor stays open while `self.stream` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(sendmsg(fd, buffers, &mut SendAncillaryBuffer::default(), flags)?)
    }

    /// Reads and drops what the client still sends, within limits: closing a socket with unread bytes resets the
    /// connection, and the client might never see the answer.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [MaybeUninit::uninit(); LINGER_READ_BYTES];
        while !self.ended && self.linger_left > 0 {
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    self.linger_left = self.linger_left.saturating_sub(buffer.filled().len());
                }
                _ => self.ended = true,
            }
        }
        Poll::Ready(())
    }
}

impl<I: Inspector + Unpin> Read for HyperIo<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut target: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if !me.prefix.is_empty() {
            let n = me.prefix.len().min(target.remaining());
            target.put_slice(&me.prefix[..n]);
            me.activity.read(me.inspector.inspect(&me.prefix[..n]));
            me.prefix.advance(n);
            return Poll::Ready(Ok(()));
        }
        // SAFETY: the cursor's memory is only written to, by the kernel through `ReadBuf`.
        let mut buffer = ReadBuf::uninit(unsafe { target.as_mut() });
        match Pin::new(&mut me.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => {
                Activity::blocked(&me.activity.read_blocked);
                return Poll::Pending;
            }
            Poll::Ready(result) => result?,
        }
        let n = buffer.filled().len();
        if n == 0 {
            me.ended = true;
        } else {
            me.activity.read(me.inspector.inspect(buffer.filled()));
        }
        // SAFETY: `poll_read` filled exactly these bytes.
        unsafe { target.advance(n) };
        Poll::Ready(Ok(()))
    }
}

impl<I: Inspector + Unpin> Write for HyperIo<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.stream).poll_write(cx, bytes);
        match &written {
            Poll::Pending => Activity::blocked(&me.activity.write_blocked),
            Poll::Ready(_) => me.activity.wrote(),
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        match me.send_vectored(buffers) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // The socket is full. A plain write through monoio either finds that it no longer is, or clears the
                // readiness and registers the waker; the next edge then wakes this task.
                let first = buffers.iter().find(|buffer| !buffer.is_empty()).map_or(&[][..], |buffer| buffer);
                Pin::new(me).poll_write(cx, first)
            }
            result => {
                me.activity.wrote();
                Poll::Ready(result)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.activity.lingering.get().is_none() {
            // A client that has gone already is no failure here.
            let _ = ready!(Pin::new(&mut me.stream).poll_shutdown(cx));
            if me.activity.expecting.get() == Expecting::Request {
                return Poll::Ready(Ok(()));
            }
            me.activity.lingering.set(Some(Instant::now()));
        }
        me.poll_linger(cx).map(Ok)
    }
}

type Timer = Pin<Box<dyn Future<Output = ()>>>;

/// The one timer of a connection.
struct Clock {
    activity: Rc<Activity>,
    armed: Option<(Instant, Timer)>,
}

impl Clock {
    /// Ready when the client is overdue. Polled after every change of the activity, which only the connection's own
    /// task makes, so the timer needs no periodic look.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(deadline) = self.activity.deadline() {
            let now = Instant::now();
            if deadline <= now {
                return Poll::Ready(());
            }
            // A timer that is due earlier stays: when it fires, the deadline is looked at again.
            let timer = match &mut self.armed {
                Some((due, timer)) if *due <= deadline => timer,
                armed => &mut armed.insert((deadline, Box::pin(sleep(deadline - now)))).1,
            };
            ready!(timer.as_mut().poll(cx));
            self.armed = None;
        }
        Poll::Pending
    }
}

/// Polls `connection` to its end, or to `None` when its client is overdue. When `stop` completes before, `on_stop` is
/// called once and the connection goes on.
pub async fn drive<C: Future + Unpin>(
    mut connection: C,
    activity: Rc<Activity>,
    stop: impl Future<Output = ()>,
    mut on_stop: impl FnMut(Pin<&mut C>),
) -> Option<C::Output> {
    let mut clock = Clock { activity, armed: None };
    let mut stop = std::pin::pin!(stop);
    let mut stopped = false;
    std::future::poll_fn(move |cx| {
        if !stopped && stop.as_mut().poll(cx).is_ready() {
            stopped = true;
            on_stop(Pin::new(&mut connection));
        }
        if let Poll::Ready(output) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(Some(output));
        }
        clock.poll_overdue(cx).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, Shutdown, TcpStream};
    use std::time::Duration;

    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;

    use super::*;
    use crate::rt::net::{Door, Listener, bind_shared};
    use crate::rt::shard::block_on;

    struct Blind;

    impl Inspector for Blind {
        fn inspect(&mut self, _: &[u8]) -> Expecting {
            Expecting::Body
        }
    }

    const LARGE_BYTES: usize = 20 << 20;

    /// Answers `/large` with many bytes, everything else with the request's body.
    async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let large = request.uri().path() == "/large";
        let body = request.into_body().collect().await?.to_bytes();
        Ok(Response::new(Full::new(if large { Bytes::from(vec![b'x'; LARGE_BYTES]) } else { body })))
    }

    /// Serves one connection, of which `opening` bytes are read before hyper gets it, to `client`.
    fn served(opening: usize, client: impl FnOnce(TcpStream) + Send + 'static) {
        let listener = bind_shared(Ipv4Addr::LOCALHOST.into(), 0..=0, 1).expect("a free port").remove(0);
        let address = listener.local_addr().expect("bound");
        let client = std::thread::spawn(move || client(TcpStream::connect(address).expect("it listens")));
        let serve = async move {
            let (found, next) = flume::bounded(1);
            let stop = async {
                while found.is_empty() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            let accept = |connection| found.try_send(connection).unwrap_or_else(|_| panic!("one connection"));
            Listener::new(listener, Door::Api).expect("taken over").accept_until(stop, accept).await;
            let mut connection: Connection = next.recv().expect("accepted");
            connection.read_until(opening, |_| None::<()>).await.expect("the opening came");
            let io = HyperIo::new(connection, Blind).expect("taken over");
            let activity = io.activity();
            let connection = http1::Builder::new().half_close(true).serve_connection(io, service_fn(echo));
            drive(connection, activity, std::future::pending(), |_| {}).await
        };
        let ended = block_on(serve).expect("a runtime");
        client.join().expect("the client was content");
        assert!(ended.is_some(), "the client was never overdue");
    }

    fn exchange(mut stream: &TcpStream, request: &[u8]) -> Vec<u8> {
        stream.write_all(request).expect("sent");
        stream.shutdown(Shutdown::Write).expect("half closed");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answered");
        answer
    }

    #[test]
    fn replays_what_was_read_before() {
        let request = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        for opening in [1, 10, request.len()] {
            served(opening, move |stream| {
                let answer = exchange(&stream, request);
                assert!(answer.ends_with(b"\r\n\r\nhello"), "{}", String::from_utf8_lossy(&answer));
            });
        }
    }

    #[test]
    fn a_slow_reader_gets_every_byte_of_a_large_body() {
        served(1, |mut stream| {
            stream.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("sent");
            let (mut total, mut chunk) = (0, vec![0; 1 << 20]);
            loop {
                let n = stream.read(&mut chunk).expect("answered");
                if n == 0 {
                    break;
                }
                total += chunk[..n].iter().filter(|byte| **byte == b'x').count();
                std::thread::yield_now();
            }
            assert_eq!(total, LARGE_BYTES);
        });
    }

    #[test]
    fn a_client_that_still_sends_gets_to_read_the_refusal() {
        served(1, |mut stream| {
            stream.write_all(b"GET / HTTP/9.9\r\nHost: a\r\n\r\n").expect("sent");
            stream.write_all(&vec![b'y'; 1 << 20]).expect("still accepted");
            stream.shutdown(Shutdown::Write).expect("half closed");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).expect("not reset");
            assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
        });
    }

    #[test]
    fn what_the_client_owes_decides_how_long_it_may_take() {
        let activity = Rc::new(Activity::new());
        let now = Instant::now();
        activity.moved.set(now);
        assert_eq!(activity.deadline(), Some(now + IDLE_TIMEOUT));
        let request = activity.request();
        assert_eq!(activity.deadline(), None, "the server works");
        activity.read(Expecting::Head);
        assert_eq!(activity.deadline(), Some(activity.head_since.get() + HEAD_TIMEOUT));
        activity.head_since.set(now - HEAD_TIMEOUT);
        activity.read(Expecting::Head);
        assert!(activity.deadline().is_some_and(|deadline| deadline <= now), "more of the same head buys no time");
        activity.read(Expecting::Body);
        assert_eq!(activity.deadline(), None, "nobody waits for the body yet");
        activity.read_blocked.set(Some(now));
        assert_eq!(activity.deadline(), Some(now + BODY_IDLE_TIMEOUT));
        activity.read(Expecting::Request);
        activity.write_blocked.set(Some(now));
        assert_eq!(activity.deadline(), Some(now + BODY_IDLE_TIMEOUT));
        activity.wrote();
        assert_eq!(activity.deadline(), None);
        drop(request);
        assert!(activity.deadline().is_some_and(|deadline| deadline >= now + IDLE_TIMEOUT));
        activity.lingering.set(Some(now));
        assert_eq!(activity.deadline(), Some(now + LINGER_TIMEOUT));
    }

    #[test]
    fn an_overdue_client_is_given_up() {
        let activity = Rc::new(Activity::new());
        activity.expecting.set(Expecting::Head);
        activity.head_since.set(Instant::now() - HEAD_TIMEOUT + Duration::from_millis(20));
        let never = std::future::pending::<()>();
        assert_eq!(block_on(drive(never, activity, std::future::pending(), |_| {})).expect("a runtime"), None);
    }
}
