//! The rules of a connection: who may send what when, how many requests and pieces may be on their way.
//!
//! Owns the decoder, the requests in flight and the credits of both directions; no socket and no clock. The driver
//! reads what [`Session::need`] says, calls [`Session::receive`] until it returns `None`, and writes what the sending
//! calls appended to `out`, in that order. A rule that the other side breaks is an error that stays: the driver sends
//! [`Session::close`] and closes. A rule that our own side would break is a [`SendError`], and nothing was written.
//!
//! What the common version does not have, and what only peers may say, is refused on both sides: a connection of the
//! role `Client` never carries a message between peers, so who checks the credential at HELLO has checked it for all.
//!
//! Invariants: at most `requests_max` requests are in flight; no piece is announced to the driver that was not
//! granted; memory is bounded by one control frame and `requests_max` small records.

mod request;
mod rules;
mod sending;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use rules::{SendError, SessionError, Violation};

use crate::decoder::{Decoder, Frame, Need};
use crate::error::ErrorReply;
use crate::frame::{FrameLimits, PieceHead, RequestId};
use crate::limits::{
    CONTROL_BYTES_MAX, HELLO_BYTES_MAX, PIECE_BYTES_MAX, PREFACE_BYTES, REQUESTS_MAX, VERSION_MIN, VERSION_OF_PEERS,
};
use crate::message::{FrameType, GoAway, Hello, HelloAck, Message, Role};
use crate::preface::{self, Versions};
use request::{Progress, Request};
use rules::Credits;

/// What the driver has to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Accepting side: somebody says hello. Answer with [`Session::accept`] or [`Session::close`].
    Hello(Hello),
    /// Connecting side: the connection is open.
    Accepted(HelloAck),
    /// A new request.
    Request {
        /// Its number, for the answer.
        request: RequestId,
        /// What is asked.
        message: Message,
    },
    /// A further message of a request in flight: PUT_COMMIT and its like on the side that answers, every answer on
    /// the side that asked.
    Message {
        /// Which request.
        request: RequestId,
        /// The message.
        message: Message,
        /// The request has ended with this.
        ended: bool,
    },
    /// A piece begins; its raw bytes are due next (see [`Session::need`]).
    Piece {
        /// Which request.
        request: RequestId,
        /// What comes.
        head: PieceHead,
        /// Nobody wants it any more: read the raw bytes, drop them, grant the credit again.
        discard: bool,
    },
    /// The other side has lost interest in this request of its own. End it soon, with ERROR `Cancelled` or as usual.
    Cancelled(RequestId),
    /// Answer with [`Session::pong`].
    Ping(u64),
    /// A PING was answered.
    Pong(u64),
    /// More pieces may be sent: this many in all.
    Credit(u32),
    /// The other side takes no new request.
    GoAway {
        /// Why.
        reason: GoAway,
        /// Requests of ours that were not taken and have ended: they may be made elsewhere.
        abandoned: Vec<RequestId>,
    },
    /// The other side closes the connection.
    Closed(ErrorReply),
}

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitPreface,
    AwaitHello(Versions),
    /// HELLO was handed to the driver, which has not answered yet.
    HelloPending,
    /// HELLO was sent, with these versions.
    AwaitAck(Versions),
    Open,
    Closed(SessionError),
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Connecting,
    Accepting,
}

/// One connection, seen from one end.
#[derive(Debug)]
pub struct Session {
    side: Side,
    phase: Phase,
    /// What the connecting side said it is.
    role: Role,
    /// The version that both sides speak; the lowest before they know.
    version: u8,
    /// The part of the preface that has come.
    preface: Vec<u8>,
    decoder: Decoder,
    /// Requests in flight, all made by the connecting side.
    requests: BTreeMap<u64, Request>,
    requests_max: u16,
    /// Highest request made so far; 0 before the first.
    request_highest: u64,
    /// The highest request that will be taken, once GO_AWAY was sent or has come.
    request_last: Option<u64>,
    /// Pieces that the other side may send.
    credits_in: Credits,
    /// Pieces that this side may send.
    credits_out: Credits,
    /// Longest piece that this side takes.
    piece_in_max: u32,
    /// Longest piece that the other side takes.
    piece_out_max: u32,
}

impl Session {
    /// The side that was connected to. It waits for preface and HELLO.
    pub fn accepting() -> Session {
        Session::new(Side::Accepting, Phase::AwaitPreface)
    }

    fn new(side: Side, phase: Phase) -> Session {
        let limits = FrameLimits { control_bytes_max: HELLO_BYTES_MAX, piece_bytes_max: 0 };
        Session {
            side,
            phase,
            role: Role::Client,
            version: VERSION_MIN,
            preface: Vec::new(),
            decoder: Decoder::new(limits),
            requests: BTreeMap::new(),
            requests_max: REQUESTS_MAX,
            request_highest: 0,
            request_last: None,
            credits_in: Credits::default(),
            credits_out: Credits::default(),
            piece_in_max: PIECE_BYTES_MAX,
            piece_out_max: PIECE_BYTES_MAX,
        }
    }

    /// What to read next.
    pub fn need(&self) -> Need {
        match self.phase {
            Phase::AwaitPreface => Need::Bytes(PREFACE_BYTES - self.preface.len()),
            _ => self.decoder.need(),
        }
    }

    /// Takes bytes from the front of `input` up to the next event. `None`: `input` is used up, or raw bytes are due,
    /// or the driver has a HELLO to answer.
    pub fn receive(&mut self, input: &mut &[u8]) -> Result<Option<Event>, SessionError> {
        match self.try_receive(input) {
            Err(error) => {
                self.phase = Phase::Closed(error);
                Err(error)
            }
            event => event,
        }
    }

    /// The driver has read this many raw bytes of the current piece into its own buffer.
    ///
    /// # Panics
    /// When that is more than [`Session::need`] said.
    pub fn raw_taken(&mut self, bytes: usize) {
        self.decoder.raw_taken(bytes);
    }

    /// Takes the raw bytes of the current piece that are already at the front of `input`; the driver copies them into
    /// its buffer. Empty when none are due.
    pub fn take_raw<'input>(&mut self, input: &mut &'input [u8]) -> &'input [u8] {
        self.decoder.take_raw(input)
    }

    /// Whether hello was exchanged and neither side has closed.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The version of the messages that both sides speak, once hello was exchanged.
    pub fn version(&self) -> Option<u8> {
        self.is_open().then_some(self.version)
    }

    /// What the connecting side says it is. Of a HELLO that came this is known from its event on.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether no new request can be made: GO_AWAY was sent or has come.
    pub fn is_going_away(&self) -> bool {
        self.request_last.is_some()
    }

    /// Requests in flight.
    pub fn requests_in_flight(&self) -> usize {
        self.requests.len()
    }

    /// Whether this request is in flight and was cancelled by the side that made it.
    pub fn is_cancelled(&self, request: RequestId) -> bool {
        self.requests.get(&request.0).is_some_and(|open| open.cancelled)
    }

    /// Pieces that this side may send now.
    pub fn credits_to_send(&self) -> u32 {
        self.credits_out.pieces()
    }

    /// Pieces that the other side may send: as many buffers this side has promised.
    pub fn credits_granted(&self) -> u32 {
        self.credits_in.pieces()
    }

    /// Longest piece that the other side takes, in bytes.
    pub fn piece_bytes_max_to_send(&self) -> u32 {
        self.piece_out_max
    }

    /// Bytes of memory that the session holds for what came in so far.
    pub fn memory_bytes(&self) -> usize {
        self.decoder.memory_bytes() + self.preface.capacity()
    }

    fn try_receive(&mut self, input: &mut &[u8]) -> Result<Option<Event>, SessionError> {
        loop {
            match self.phase {
                Phase::Closed(error) => return Err(error),
                Phase::HelloPending => return Ok(None),
                Phase::AwaitPreface => {
                    if !self.take_preface(input)? {
                        return Ok(None);
                    }
                }
                Phase::AwaitHello(_) | Phase::AwaitAck(_) | Phase::Open => {}
            }
            if matches!(self.decoder.need(), Need::Raw(_)) {
                return Ok(None);
            }
            let event = match self.decoder.push(input)? {
                None => return Ok(None),
                Some(Frame::Message { request, message }) => self.on_message(request, message)?,
                Some(Frame::Piece { request, head }) => Some(self.on_piece(request, head)?),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Whether the preface is complete.
    fn take_preface(&mut self, input: &mut &[u8]) -> Result<bool, SessionError> {
        let (taken, rest) = input.split_at(input.len().min(PREFACE_BYTES - self.preface.len()));
        self.preface.extend_from_slice(taken);
        *input = rest;
        let Ok(bytes) = <&[u8; PREFACE_BYTES]>::try_from(self.preface.as_slice()) else { return Ok(false) };
        let versions = preface::decode(bytes)?;
        versions.common(Versions::OURS).ok_or(Violation::NoCommonVersion(versions))?;
        self.phase = Phase::AwaitHello(versions);
        Ok(true)
    }

    fn on_message(&mut self, request: RequestId, message: Message) -> Result<Option<Event>, Violation> {
        match (self.phase, message) {
            (Phase::AwaitHello(versions), Message::Hello(hello)) if request == RequestId::CONNECTION => {
                self.on_hello(versions, hello).map(Some)
            }
            (Phase::AwaitAck(offered), Message::HelloAck(ack)) if request == RequestId::CONNECTION => {
                self.on_ack(offered, ack).map(Some)
            }
            (Phase::AwaitAck(_) | Phase::Open, Message::Error(error)) if request == RequestId::CONNECTION => {
                self.phase = Phase::Closed(SessionError::Closed);
                Ok(Some(Event::Closed(error)))
            }
            (Phase::Open, message) if request == RequestId::CONNECTION => self.on_connection(message).map(Some),
            (Phase::Open, message) if self.side == Side::Accepting => self.on_asking(request, message),
            (Phase::Open, message) => self.on_answer(request, message).map(Some),
            (_, message) => Err(Violation::NotNow(message.frame_type())),
        }
    }

    fn on_hello(&mut self, versions: Versions, hello: Hello) -> Result<Event, Violation> {
        if hello.versions != versions {
            return Err(Violation::VersionsDiffer);
        }
        let version = versions.common(Versions::OURS).ok_or(Violation::NoCommonVersion(versions))?;
        check_peer_version(hello.role, version)?;
        (self.role, self.version) = (hello.role, version);
        self.credits_out = Credits::new(hello.credits);
        self.piece_out_max = hello.piece_bytes_max;
        self.phase = Phase::HelloPending;
        Ok(Event::Hello(hello))
    }

    fn on_ack(&mut self, offered: Versions, ack: HelloAck) -> Result<Event, Violation> {
        let chosen = Versions { min: ack.version, max: ack.version };
        let version = chosen.common(offered).and_then(|_| chosen.common(Versions::OURS));
        self.version = version.ok_or(Violation::NoCommonVersion(chosen))?;
        check_peer_version(self.role, self.version)?;
        self.credits_out = Credits::new(ack.credits);
        self.piece_out_max = ack.piece_bytes_max;
        self.requests_max = ack.requests_max;
        self.open();
        Ok(Event::Accepted(ack))
    }

    fn open(&mut self) {
        self.phase = Phase::Open;
        self.decoder
            .set_limits(FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: self.piece_in_max });
    }

    fn on_connection(&mut self, message: Message) -> Result<Event, Violation> {
        match message {
            Message::Ping(ping) => Ok(Event::Ping(ping.nonce)),
            Message::Pong(pong) => Ok(Event::Pong(pong.nonce)),
            Message::Credit(credit) => {
                self.credits_out.add(credit.pieces)?;
                Ok(Event::Credit(self.credits_out.pieces()))
            }
            Message::GoAway(reason) if self.side == Side::Connecting => Ok(self.on_go_away(reason)),
            other => Err(Violation::NotNow(other.frame_type())),
        }
    }

    fn on_go_away(&mut self, reason: GoAway) -> Event {
        let last = reason.last_request.min(self.request_last.unwrap_or(u64::MAX));
        self.request_last = Some(last);
        let abandoned =
            self.requests.keys().filter(|&&number| number > last).map(|&number| RequestId(number)).collect();
        self.requests.retain(|&number, _| number <= last);
        Event::GoAway { reason, abandoned }
    }

    /// Whether a frame of this type may be on this connection at all.
    fn check_spoken(&self, frame_type: FrameType) -> Result<(), Violation> {
        let needs = frame_type.version();
        if needs > self.version {
            return Err(Violation::NotInVersion { frame_type, needs, version: self.version });
        }
        if frame_type.is_between_peers() && self.role != Role::Peer {
            return Err(Violation::NotOfThisRole(frame_type));
        }
        Ok(())
    }

    /// A frame of the side that makes the requests.
    fn on_asking(&mut self, request: RequestId, message: Message) -> Result<Option<Event>, Violation> {
        self.check_spoken(message.frame_type())?;
        if let Some(new) = Request::opened_by(&message) {
            return self.on_request(request, message, new);
        }
        let Some(open) = self.requests.get_mut(&request.0) else {
            // It ended here while this frame was on its way: the other side learns that from the frame that ended it.
            let is_late = self.is_late(request) && is_follow_up(message.frame_type());
            return if is_late { Ok(None) } else { Err(Violation::UnknownRequest(request)) };
        };
        if message.frame_type() == FrameType::Cancel {
            let again = std::mem::replace(&mut open.cancelled, true);
            return Ok((!again).then_some(Event::Cancelled(request)));
        }
        open.follow(&message)?;
        Ok(Some(Event::Message { request, message, ended: false }))
    }

    fn on_request(&mut self, request: RequestId, message: Message, new: Request) -> Result<Option<Event>, Violation> {
        if request.0.is_multiple_of(2) || request.0 <= self.request_highest {
            return Err(Violation::BadRequestId(request));
        }
        self.request_highest = request.0;
        if self.request_last.is_some() {
            // GO_AWAY has told that this one is not taken.
            return Ok(None);
        }
        if self.requests.len() >= usize::from(self.requests_max) {
            return Err(Violation::TooManyRequests);
        }
        self.requests.insert(request.0, new);
        Ok(Some(Event::Request { request, message }))
    }

    /// A frame of the side that answers.
    fn on_answer(&mut self, request: RequestId, message: Message) -> Result<Event, Violation> {
        self.check_spoken(message.frame_type())?;
        let Some(open) = self.requests.get_mut(&request.0) else {
            return Err(Violation::UnknownRequest(request));
        };
        let ended = open.answer(&message)? == Progress::Ended;
        if ended {
            self.requests.remove(&request.0);
        }
        Ok(Event::Message { request, message, ended })
    }

    fn on_piece(&mut self, request: RequestId, head: PieceHead) -> Result<Event, Violation> {
        if self.phase != Phase::Open {
            return Err(Violation::NotNow(FrameType::Piece));
        }
        self.credits_in.take().ok_or(Violation::NoCredit)?;
        let is_late = self.is_late(request);
        let discard = match (self.requests.get_mut(&request.0), self.side) {
            (Some(open), Side::Connecting) => {
                open.piece_down(&head)?;
                open.cancelled
            }
            (Some(open), Side::Accepting) => {
                open.piece_up(&head)?;
                open.cancelled
            }
            (None, Side::Accepting) if is_late => true,
            (None, _) => return Err(Violation::UnknownRequest(request)),
        };
        Ok(Event::Piece { request, head, discard })
    }

    /// Whether this request was made and has ended, so that frames about it may still be on their way.
    fn is_late(&self, request: RequestId) -> bool {
        !request.0.is_multiple_of(2) && request.0 <= self.request_highest
    }
}

/// Peers have messages for each other that earlier versions lack.
fn check_peer_version(role: Role, version: u8) -> Result<(), Violation> {
    if role == Role::Peer && version < VERSION_OF_PEERS {
        return Err(Violation::PeerTooOld { version });
    }
    Ok(())
}

/// Whether a frame of this type belongs to a request that an earlier frame opened.
fn is_follow_up(frame_type: FrameType) -> bool {
    matches!(frame_type, FrameType::Cancel | FrameType::PutCommit | FrameType::PutAbort | FrameType::PutLeave)
}
