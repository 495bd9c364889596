//! The sending half of a session: every call checks the rules first and then appends whole frames to `out`.

use bytes::BytesMut;

use super::request::{Progress, Request};
use super::rules::{Credits, SendError, SessionError, Violation};
use super::{Phase, Session, Side};
use crate::error::{EncodeError, ErrorCode, ErrorReply};
use crate::frame::{PieceHead, RequestId};
use crate::limits::PIECE_FRAME_HEAD_BYTES;
use crate::message::{Cancel, Credit, FrameType, GoAway, Hello, HelloAck, Message, Ping};
use crate::preface;

impl Session {
    /// The side that connects: appends preface and HELLO.
    pub fn connecting(hello: Hello, out: &mut BytesMut) -> Result<Session, EncodeError> {
        let mut session = Session::new(Side::Connecting, Phase::AwaitAck(hello.versions));
        session.role = hello.role;
        let mut frame = BytesMut::new();
        session.piece_in_max = hello.piece_bytes_max;
        let (versions, credits) = (hello.versions, hello.credits);
        Message::from(hello).encode(RequestId::CONNECTION, &mut frame)?;
        session.credits_in = Credits::new(credits);
        out.extend_from_slice(&preface::encode(versions));
        out.extend_from_slice(&frame);
        Ok(session)
    }

    /// Accepts the HELLO that came: appends HELLO_ACK. The version is the session's choice; what `ack` says is not
    /// looked at.
    pub fn accept(&mut self, mut ack: HelloAck, out: &mut BytesMut) -> Result<(), SendError> {
        if self.phase != Phase::HelloPending {
            return Err(SendError::NotOpen);
        }
        ack.version = self.version;
        let (piece_bytes_max, credits, requests_max) = (ack.piece_bytes_max, ack.credits, ack.requests_max);
        Message::from(ack).encode(RequestId::CONNECTION, out)?;
        self.piece_in_max = piece_bytes_max;
        self.credits_in = Credits::new(credits);
        self.requests_max = requests_max;
        self.open();
        Ok(())
    }

    /// Makes a request. Only the connecting side does.
    pub fn request(&mut self, message: impl Into<Message>, out: &mut BytesMut) -> Result<RequestId, SendError> {
        let message = message.into();
        self.check_open()?;
        let new = Request::opened_by(&message).filter(|_| self.side == Side::Connecting);
        let new = new.ok_or(SendError::NotNow(Violation::NotNow(message.frame_type())))?;
        self.check_spoken(message.frame_type()).map_err(SendError::NotNow)?;
        if self.request_last.is_some() {
            return Err(SendError::GoingAway);
        }
        if self.requests.len() >= usize::from(self.requests_max) {
            return Err(SendError::TooManyRequests);
        }
        let number = if self.request_highest == 0 { 1 } else { self.request_highest + 2 };
        message.encode(RequestId(number), out)?;
        self.request_highest = number;
        self.requests.insert(number, new);
        Ok(RequestId(number))
    }

    /// Sends a further message of a request in flight: PUT_COMMIT and its like from the side that asks, answers from
    /// the side that answers. `true` when the request has ended with it.
    pub fn send(
        &mut self,
        request: RequestId,
        message: impl Into<Message>,
        out: &mut BytesMut,
    ) -> Result<bool, SendError> {
        let message = message.into();
        self.check_open()?;
        let open = self.requests.get_mut(&request.0).ok_or(SendError::UnknownRequest(request))?;
        let mut next = *open;
        let ended = match self.side {
            Side::Connecting => {
                next.follow(&message).map_err(SendError::NotNow)?;
                false
            }
            Side::Accepting => next.answer(&message).map_err(SendError::NotNow)? == Progress::Ended,
        };
        message.encode(request, out)?;
        *open = next;
        if ended {
            self.requests.remove(&request.0);
        }
        Ok(ended)
    }

    /// Takes one credit and returns what goes in front of the raw bytes of a piece. The driver sends it and then
    /// exactly `head.length` raw bytes, with nothing between.
    pub fn send_piece(
        &mut self,
        request: RequestId,
        head: &PieceHead,
    ) -> Result<[u8; PIECE_FRAME_HEAD_BYTES], SendError> {
        self.check_open()?;
        if head.length == 0 {
            return Err(SendError::NotNow(Violation::PieceNotAsked));
        }
        if head.length > self.piece_out_max {
            return Err(SendError::PieceTooLong { length: head.length, max: self.piece_out_max });
        }
        let open = self.requests.get_mut(&request.0).ok_or(SendError::UnknownRequest(request))?;
        if self.credits_out.pieces() == 0 {
            return Err(SendError::NoCredit);
        }
        let allowed = match self.side {
            Side::Connecting => open.piece_up(head),
            Side::Accepting => open.piece_down(head),
        };
        allowed.map_err(SendError::NotNow)?;
        self.credits_out.take().expect("counted above");
        Ok(head.frame(request))
    }

    /// Ends interest in a request of ours. It stays in flight until the other side ends it; its pieces come marked
    /// `discard`.
    pub fn cancel(&mut self, request: RequestId, out: &mut BytesMut) -> Result<(), SendError> {
        self.check_open()?;
        if self.side != Side::Connecting {
            return Err(SendError::NotNow(Violation::NotNow(FrameType::Cancel)));
        }
        let open = self.requests.get_mut(&request.0).ok_or(SendError::UnknownRequest(request))?;
        if !open.cancelled {
            Message::from(Cancel {}).encode(request, out)?;
            open.cancelled = true;
        }
        Ok(())
    }

    /// Grants the other side more pieces: as many buffers must be free for them.
    pub fn grant(&mut self, pieces: u32, out: &mut BytesMut) -> Result<(), SendError> {
        self.check_open()?;
        let mut next = self.credits_in;
        next.add(pieces).map_err(SendError::NotNow)?;
        Message::from(Credit { pieces }).encode(RequestId::CONNECTION, out)?;
        self.credits_in = next;
        Ok(())
    }

    /// Asks for a PONG with the same number.
    pub fn ping(&mut self, nonce: u64, out: &mut BytesMut) -> Result<(), SendError> {
        self.check_open()?;
        Ok(Message::Ping(Ping { nonce }).encode(RequestId::CONNECTION, out)?)
    }

    /// Answers a PING.
    pub fn pong(&mut self, nonce: u64, out: &mut BytesMut) -> Result<(), SendError> {
        self.check_open()?;
        Ok(Message::Pong(Ping { nonce }).encode(RequestId::CONNECTION, out)?)
    }

    /// Takes no new request from here on; those in flight are finished. Only the accepting side has anything to
    /// refuse.
    pub fn go_away(
        &mut self,
        code: ErrorCode,
        message: impl Into<String>,
        out: &mut BytesMut,
    ) -> Result<(), SendError> {
        self.check_open()?;
        if self.side != Side::Accepting {
            return Err(SendError::NotNow(Violation::NotNow(FrameType::GoAway)));
        }
        let last_request = self.request_last.unwrap_or(self.request_highest);
        let text = ErrorReply::new(code, message).message;
        Message::from(GoAway { code, message: text, last_request }).encode(RequestId::CONNECTION, out)?;
        self.request_last = Some(last_request);
        Ok(())
    }

    /// Ends the session with an error about the connection. Also after a failure of [`Session::receive`]. The driver
    /// writes `out` and closes.
    pub fn close(&mut self, error: ErrorReply, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.phase = Phase::Closed(SessionError::Closed);
        self.requests.clear();
        Message::from(error).encode(RequestId::CONNECTION, out)
    }

    fn check_open(&self) -> Result<(), SendError> {
        if self.phase == Phase::Open { Ok(()) } else { Err(SendError::NotOpen) }
    }
}
