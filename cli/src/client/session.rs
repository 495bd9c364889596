//! One connection: drives the protocol's state machine with a socket.
//!
//! Used by one task, which either sends or receives. Small frames pass through a staging buffer; the raw bytes of a
//! piece go straight from the socket into the caller's buffer (but for the few that came with its head), and are
//! summed while they are still in the processor's cache. Requests may be in flight in any number the peer allows.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use dfstore_proto::decoder::Need;
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::ids::TaskId;
use dfstore_proto::limits::PIECE_BYTES_MAX;
use dfstore_proto::message::{GoAway, Hello, HelloAck, Message, Role, Route, Token};
use dfstore_proto::preface::Versions;
use dfstore_proto::session::{self, Event, SendError, SessionError, Violation};

use crate::client::error::ClientError;
use crate::rt::buffer::{Buffer, Fill};
use crate::rt::net::{Receiver, Sender};

/// Bytes asked for at once while frames are expected. More would only be copied once more if a piece follows.
const STAGING_BYTES: usize = 4096;
/// Raw bytes received at once: they are summed right after, so they should fit the second-level cache.
const RECEIVE_BYTES: usize = 512 << 10;
/// Pieces that the peer may send before we have made room again.
pub const CREDITS: u32 = 8;

/// An open connection to a peer.
pub struct Session {
    endpoint: Arc<str>,
    receiver: Receiver,
    sender: Sender,
    protocol: session::Session,
    /// Frames that wait to be sent.
    out: BytesMut,
    /// Bytes received; those from `consumed` on were not looked at yet.
    staged: Vec<u8>,
    consumed: usize,
    /// What the peer said of itself.
    ack: Option<HelloAck>,
    going_away: Option<GoAway>,
}

impl Session {
    /// Says hello on a fresh connection and waits for the answer.
    pub async fn open(
        endpoint: Arc<str>,
        (receiver, sender): (Receiver, Sender),
        task: Option<TaskId>,
    ) -> Result<Session, ClientError> {
        let hello = Hello {
            versions: Versions::OURS,
            role: Role::Client,
            route: task.map_or(Route::Any, Route::Task),
            token: Token::default(),
            agent: concat!("dfstore/", env!("CARGO_PKG_VERSION")).to_string(),
            piece_bytes_max: PIECE_BYTES_MAX,
            credits: CREDITS,
        };
        let mut out = BytesMut::new();
        let protocol = session::Session::connecting(hello, &mut out)?;
        let (staged, consumed, ack, going_away) = (Vec::new(), 0, None, None);
        let mut session = Session { endpoint, receiver, sender, protocol, out, staged, consumed, ack, going_away };
        session.flush().await?;
        match session.next().await? {
            Event::Accepted(ack) => session.ack = Some(ack),
            _ => return Err(session.violation("the first frame is no HELLO_ACK")),
        }
        Ok(session)
    }

    /// Makes a request and waits for its answer.
    pub async fn call(&mut self, message: impl Into<Message>) -> Result<Message, ClientError> {
        let request = self.request(message)?;
        self.answer(request).await
    }

    /// Waits for the next message of this request, which must be the only one in flight.
    pub async fn answer(&mut self, request: RequestId) -> Result<Message, ClientError> {
        self.flush().await?;
        loop {
            match self.next().await? {
                Event::Message { request: of, message, .. } if of == request => {
                    return match message {
                        Message::Error(reply) => Err(ClientError::Refused(reply)),
                        message => Ok(message),
                    };
                }
                Event::Credit(_) => {}
                Event::GoAway { abandoned, .. } if !abandoned.contains(&request) => {}
                Event::GoAway { .. } => return Err(self.gone()),
                _ => return Err(self.violation("a frame that nobody asked for")),
            }
        }
    }

    /// Appends a request to what will be sent.
    pub fn request(&mut self, message: impl Into<Message>) -> Result<RequestId, ClientError> {
        let made = self.protocol.request(message, &mut self.out);
        made.map_err(|error| self.unsendable(error))
    }

    /// Appends a further message of a request to what will be sent.
    pub fn follow(&mut self, request: RequestId, message: impl Into<Message>) -> Result<(), ClientError> {
        let sent = self.protocol.send(request, message, &mut self.out);
        sent.map(|_| ()).map_err(|error| self.unsendable(error))
    }

    /// Lets the peer send one more piece.
    pub fn grant(&mut self) -> Result<(), ClientError> {
        let granted = self.protocol.grant(1, &mut self.out);
        granted.map_err(|error| self.unsendable(error))
    }

    /// Pieces that may be sent now.
    pub fn credits(&self) -> u32 {
        self.protocol.credits_to_send()
    }

    /// Requests that the peer takes at once on this connection.
    pub fn requests_max(&self) -> usize {
        self.ack.as_ref().map_or(1, |ack| ack.requests_max.into())
    }

    /// Sends a piece: its head and then `buffer` from where it is.
    pub async fn send_piece(
        &mut self,
        request: RequestId,
        head: &PieceHead,
        buffer: Buffer,
    ) -> Result<Buffer, ClientError> {
        assert_eq!(head.length as usize, buffer.len());
        let front = self.protocol.send_piece(request, head).map_err(|error| self.unsendable(error))?;
        self.out.extend_from_slice(&front);
        self.flush().await?;
        self.sender.send(buffer).await.map_err(|cause| self.broken(cause))
    }

    /// Sends what waits to be sent.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let frames = std::mem::take(&mut self.out);
        let mut sent = self.sender.send(frames).await.map_err(|cause| self.broken(cause))?;
        sent.clear();
        self.out = sent;
        Ok(())
    }

    /// Asks the peer for a sign of life, so that it sees one of ours.
    pub async fn ping(&mut self) -> Result<(), ClientError> {
        let pinged = self.protocol.ping(0, &mut self.out);
        pinged.map_err(|error| self.unsendable(error))?;
        self.flush().await
    }

    /// The next event that is not about the connection itself.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            let mut rest = &self.staged[self.consumed..];
            let received = self.protocol.receive(&mut rest);
            self.consumed = self.staged.len() - rest.len();
            match received {
                Ok(None) => self.fill().await?,
                Ok(Some(Event::Pong(_))) => {}
                Ok(Some(Event::Ping(nonce))) => {
                    let answered = self.protocol.pong(nonce, &mut self.out);
                    answered.map_err(|error| self.unsendable(error))?;
                    self.flush().await?;
                }
                Ok(Some(Event::Closed(reply))) => return Err(ClientError::Refused(reply)),
                Ok(Some(Event::GoAway { reason, abandoned })) => {
                    self.going_away = Some(reason.clone());
                    return Ok(Event::GoAway { reason, abandoned });
                }
                Ok(Some(event)) => return Ok(event),
                Err(error) => return Err(self.refuse(error).await),
            }
        }
    }

    /// Receives the raw bytes of the piece that [`Session::next`] announced into `buffer`, and checks them.
    pub async fn take_piece(&mut self, head: &PieceHead, buffer: Buffer) -> Result<Buffer, ClientError> {
        let length = head.length as usize;
        if length > buffer.capacity() {
            return Err(self.violation("a piece is longer than pieces of this version are"));
        }
        let (buffer, actual) = self.receive_raw(length, buffer).await?;
        if actual != head.crc32 {
            return Err(ClientError::Damaged { number: head.number, expected: head.crc32, actual });
        }
        Ok(buffer)
    }

    async fn receive_raw(&mut self, length: usize, buffer: Buffer) -> Result<(Buffer, u32), ClientError> {
        let mut buffer = buffer;
        let mut hasher = crc32fast::Hasher::new();
        let mut rest = &self.staged[self.consumed..];
        let early = self.protocol.take_raw(&mut rest);
        let mut filled = early.len();
        buffer.set_len(filled);
        buffer.copy_from_slice(early);
        hasher.update(early);
        self.consumed = self.staged.len() - rest.len();
        while filled < length {
            let n;
            (n, buffer) = self.receive_into(buffer, filled, length.min(filled + RECEIVE_BYTES)).await?;
            hasher.update(&buffer[filled..filled + n]);
            self.protocol.raw_taken(n);
            filled += n;
        }
        buffer.set_len(length);
        Ok((buffer, hasher.finalize()))
    }

    /// Receives more bytes of frames.
    async fn fill(&mut self) -> Result<(), ClientError> {
        let Need::Bytes(wanted) = self.protocol.need() else {
            return Err(self.violation("a piece begins before the last one was taken"));
        };
        let mut staged = std::mem::take(&mut self.staged);
        staged.drain(..self.consumed);
        self.consumed = 0;
        let from = staged.len();
        staged.reserve(wanted.max(STAGING_BYTES));
        let to = from + wanted.max(STAGING_BYTES);
        (_, self.staged) = self.receive_into(staged, from, to).await?;
        Ok(())
    }

    async fn receive_into<T: Fill>(&mut self, buffer: T, from: usize, to: usize) -> Result<(usize, T), ClientError> {
        let Session { receiver, sender, protocol, out, .. } = self;
        let probe = async || {
            // Before hello is exchanged there is nothing to ask with.
            if protocol.ping(0, out).is_ok() {
                sender.send(std::mem::take(out)).await?;
            }
            Ok(())
        };
        match receiver.receive(buffer, from, to, probe).await {
            Ok((0, _)) => Err(self.broken(io::Error::from(io::ErrorKind::UnexpectedEof))),
            Ok(received) => Ok(received),
            Err(cause) => Err(self.broken(cause)),
        }
    }

    /// Tells the peer which rule it broke, and gives the error for the user.
    async fn refuse(&mut self, error: SessionError) -> ClientError {
        // What is wrong from the first bytes on was never this protocol.
        if self.ack.is_none() && matches!(error, SessionError::Decode(_)) {
            return ClientError::NotNative { endpoint: self.endpoint.to_string() };
        }
        if self.protocol.close(error.reply(), &mut self.out).is_ok() {
            let _ = self.flush().await;
        }
        self.violation(&error.to_string())
    }

    fn unsendable(&self, error: SendError) -> ClientError {
        match error {
            SendError::Encode(error) => ClientError::Unsayable(error),
            SendError::GoingAway => self.gone(),
            SendError::NotNow(Violation::NotInVersion { frame_type, needs, version }) => {
                let (endpoint, name) = (self.endpoint.to_string(), frame_type.name());
                let what = format!("it speaks version {version} of the protocol, and {name} needs version {needs}");
                ClientError::TooOld { endpoint, what }
            }
            error => self.violation(&error.to_string()),
        }
    }

    /// The error for requests that a peer that is about to stop did not take.
    pub fn gone(&self) -> ClientError {
        let (code, text) = match &self.going_away {
            Some(reason) => (reason.code, reason.message.clone()),
            None => (ErrorCode::ShuttingDown, "the peer takes no new requests".to_string()),
        };
        ClientError::Refused(ErrorReply::new(code, text))
    }

    /// The error for a rule that the peer broke.
    pub fn violation(&self, what: &str) -> ClientError {
        ClientError::Protocol { endpoint: self.endpoint.to_string(), what: what.to_string() }
    }

    fn broken(&self, cause: io::Error) -> ClientError {
        ClientError::Broken { endpoint: self.endpoint.to_string(), cause }
    }
}

/// Whether the other side closed instead of answering.
pub fn is_hangup(cause: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(cause.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}
