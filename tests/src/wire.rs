//! One connection of the native protocol, frame by frame: for tests that do several things at once, or wrong ones.
//!
//! Blocking. Rules are those of the session in `dfstore-proto`; what that would refuse to send can be sent as plain
//! bytes. PINGs are answered in passing. Reads time out, so a peer that does not answer fails a test.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use dfstore_proto::decoder::Need;
use dfstore_proto::error::ErrorCode;
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::limits::PIECE_BYTES_MAX;
use dfstore_proto::message::{Hello, HelloAck, Message, PutReady, Role, Route, Token};
use dfstore_proto::preface::Versions;
use dfstore_proto::session::{Event, Session};

const READ_BYTES: usize = 64 << 10;
const TIMEOUT: Duration = Duration::from_secs(40);

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few live at once, and tests match on events")]
pub enum Arrival {
    /// Anything but a piece.
    Event(Event),
    /// A piece, whole.
    Piece {
        /// The request it answers.
        request: RequestId,
        /// Its header.
        head: PieceHead,
        /// Its bytes.
        bytes: Vec<u8>,
    },
}

/// An open session.
pub struct Wire {
    stream: TcpStream,
    session: Session,
    /// Read and not yet given to the session.
    unused: Vec<u8>,
    /// Came in while something else was waited for.
    early: VecDeque<Arrival>,
    /// What the peer said.
    pub ack: HelloAck,
}

/// The usual HELLO of a client.
pub fn hello(route: Route, credits: u32) -> Hello {
    Hello {
        versions: Versions::OURS,
        role: Role::Client,
        route,
        token: Token::default(),
        agent: "dfstore-tests".to_owned(),
        piece_bytes_max: PIECE_BYTES_MAX,
        credits,
    }
}

impl Wire {
    /// Connects and says hello.
    pub fn open(address: SocketAddr, route: Route, credits: u32) -> Result<Wire> {
        Wire::open_as(address, hello(route, credits))
    }

    /// As [`open`](Self::open), with another hello. A refusal is an error with the peer's text.
    pub fn open_as(address: SocketAddr, hello: Hello) -> Result<Wire> {
        let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut out = BytesMut::new();
        let mut session = Session::connecting(hello, &mut out)?;
        stream.write_all(&out)?;
        let mut unused = Vec::new();
        let ack = loop {
            let mut input = unused.as_slice();
            match session.receive(&mut input)? {
                Some(Event::Accepted(ack)) => {
                    let used = unused.len() - input.len();
                    unused.drain(..used);
                    break ack;
                }
                Some(Event::Closed(error)) => bail!("refused: {:?}: {} {}", error.code, error.message, error.detail),
                Some(other) => bail!("no HELLO_ACK but {other:?}"),
                None => unused = read_some(&mut stream)?.context("closed instead of HELLO_ACK")?,
            }
        };
        Ok(Wire { stream, session, unused, early: VecDeque::new(), ack })
    }

    /// How long it waits for bytes from now on.
    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))
    }

    /// Makes a request.
    pub fn request(&mut self, message: impl Into<Message>) -> Result<RequestId> {
        let mut out = BytesMut::new();
        let request = self.session.request(message, &mut out)?;
        self.raw(&out)?;
        Ok(request)
    }

    /// Sends a further message of a request.
    pub fn follow(&mut self, request: RequestId, message: impl Into<Message>) -> Result<()> {
        let mut out = BytesMut::new();
        self.session.send(request, message, &mut out)?;
        Ok(self.raw(&out)?)
    }

    /// Cancels a request.
    pub fn cancel(&mut self, request: RequestId) -> Result<()> {
        let mut out = BytesMut::new();
        self.session.cancel(request, &mut out)?;
        Ok(self.raw(&out)?)
    }

    /// Lets the peer send more pieces.
    pub fn grant(&mut self, pieces: u32) -> Result<()> {
        let mut out = BytesMut::new();
        self.session.grant(pieces, &mut out)?;
        Ok(self.raw(&out)?)
    }

    /// Asks for a PONG.
    pub fn ping(&mut self, nonce: u64) -> Result<()> {
        let mut out = BytesMut::new();
        self.session.ping(nonce, &mut out)?;
        Ok(self.raw(&out)?)
    }

    /// Sends a piece of an upload, once the peer has granted a credit for it.
    pub fn piece(
        &mut self,
        request: RequestId,
        ready: &PutReady,
        number: u32,
        (bytes, crc32): (&[u8], u32),
    ) -> Result<()> {
        while self.session.credits_to_send() == 0 {
            let arrival = self.receive()?.context("closed while waiting for credit")?;
            self.early.push_back(arrival);
        }
        let head = PieceHead {
            task: ready.task,
            generation: ready.generation,
            offset: u64::from(number) * u64::from(ready.piece_bytes),
            number,
            length: u32::try_from(bytes.len()).context("a piece")?,
            crc32,
        };
        let front = self.session.send_piece(request, &head)?;
        self.raw(&front)?;
        Ok(self.raw(bytes)?)
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next thing that comes in, credits and PIECE_ACKs apart; `None` when the peer closed.
    pub fn next_arrival(&mut self) -> Result<Option<Arrival>> {
        loop {
            let arrival = match self.early.pop_front() {
                Some(arrival) => Some(arrival),
                None => self.receive()?,
            };
            match arrival {
                Some(Arrival::Event(Event::Credit(_) | Event::Message { message: Message::PieceAck(_), .. })) => {}
                other => return Ok(other),
            }
        }
    }

    /// The next message of this request that is no PIECE_ACK; other arrivals are kept for later.
    pub fn answer(&mut self, request: RequestId) -> Result<Message> {
        let of_request = |arrival: &Arrival| match arrival {
            Arrival::Event(Event::Message { request: of, message, .. }) if *of == request => {
                (!matches!(message, Message::PieceAck(_))).then(|| message.clone())
            }
            _ => None,
        };
        if let Some((index, message)) = self.early.iter().enumerate().find_map(|(i, a)| Some((i, of_request(a)?))) {
            self.early.remove(index);
            return Ok(message);
        }
        loop {
            let arrival = self.receive()?.context("closed instead of an answer")?;
            if let Some(message) = of_request(&arrival) {
                return Ok(message);
            }
            if let Arrival::Event(Event::Closed(error)) = arrival {
                bail!("the session was closed: {error}");
            }
            self.early.push_back(arrival);
        }
    }

    /// Makes a request and waits for its answer.
    pub fn ask(&mut self, message: impl Into<Message>) -> Result<Message> {
        let request = self.request(message)?;
        self.answer(request)
    }

    /// The code of the ERROR that ends this request; an error when it ends otherwise.
    pub fn refusal(&mut self, request: RequestId) -> Result<ErrorCode> {
        match self.answer(request)? {
            Message::Error(reply) => Ok(reply.code),
            other => bail!("no ERROR but {other:?}"),
        }
    }

    fn receive(&mut self) -> Result<Option<Arrival>> {
        let begun = Instant::now();
        loop {
            // A peer that waits for us sends PINGs for ever: no read would time out.
            ensure!(begun.elapsed() < TIMEOUT, "nothing but PINGs came");
            let mut input = self.unused.as_slice();
            let event = self.session.receive(&mut input)?;
            let used = self.unused.len() - input.len();
            self.unused.drain(..used);
            match event {
                Some(Event::Ping(nonce)) => {
                    let mut out = BytesMut::new();
                    self.session.pong(nonce, &mut out)?;
                    self.raw(&out)?;
                }
                Some(Event::Piece { request, head, .. }) => {
                    let bytes = self.piece_bytes(head.length as usize)?;
                    return Ok(Some(Arrival::Piece { request, head, bytes }));
                }
                Some(event) => return Ok(Some(Arrival::Event(event))),
                None => match read_some(&mut self.stream)? {
                    Some(more) => self.unused = more,
                    None => return Ok(None),
                },
            }
        }
    }

    fn piece_bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        while let Need::Raw(_) = self.session.need() {
            if self.unused.is_empty() {
                self.unused = read_some(&mut self.stream)?.context("closed within a piece")?;
            }
            let mut input = self.unused.as_slice();
            bytes.extend_from_slice(self.session.take_raw(&mut input));
            let used = self.unused.len() - input.len();
            self.unused.drain(..used);
        }
        Ok(bytes)
    }
}

/// Some bytes; `None` at the end. A reset is an end as well: the peer closed with bytes of ours unread.
fn read_some(stream: &mut TcpStream) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; READ_BYTES];
    match stream.read(&mut buffer) {
        Ok(0) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Ok(count) => {
            buffer.truncate(count);
            Ok(Some(buffer))
        }
        Err(error) => Err(error).context("reading from the peer"),
    }
}
