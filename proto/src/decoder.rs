//! Bytes to frames, a few at a time, wherever the network cut them.
//!
//! Owns at most one header or one control payload of a length that was checked against its limit; raw bytes of
//! pieces never pass through here. The driver asks [`Decoder::need`], reads, pushes what it read, and takes raw bytes
//! itself, straight from the socket into its own buffer. After a failure nothing can be trusted any more: the decoder
//! keeps returning it.

use crate::error::DecodeError;
use crate::frame::{FrameHeader, FrameLimits, PieceHead, RequestId};
use crate::limits::{FRAME_HEADER_BYTES, PIECE_HEADER_BYTES, STAGING_KEPT_BYTES};
use crate::message::{FrameType, Message};

/// What the decoder waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// At least this many more bytes, to be pushed. More may be pushed at once.
    Bytes(usize),
    /// Raw bytes of the current piece, which the driver takes itself and reports with `raw_taken`.
    Raw(usize),
}

/// What came in.
#[expect(clippy::large_enum_variant, reason = "moved to its reader at once, never stored")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A control frame, whole.
    Message {
        /// The request it belongs to.
        request: RequestId,
        /// Its message.
        message: Message,
    },
    /// The head of a piece; its raw bytes come next.
    Piece {
        /// The request it belongs to.
        request: RequestId,
        /// Its header.
        head: PieceHead,
    },
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Control(FrameHeader),
    PieceHead(FrameHeader),
    /// Raw bytes still to be taken by the driver.
    Raw(usize),
    Failed(DecodeError),
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    limits: FrameLimits,
    staging: Staging,
}

impl Decoder {
    /// A decoder at the start of a frame.
    pub fn new(limits: FrameLimits) -> Decoder {
        Decoder { state: State::Header, limits, staging: Staging::default() }
    }

    /// Changes what is taken from the next frame header on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// What the decoder waits for.
    pub fn need(&self) -> Need {
        let wanted = match self.state {
            State::Header => FRAME_HEADER_BYTES,
            State::Control(header) => header.payload_bytes as usize,
            State::PieceHead(_) => PIECE_HEADER_BYTES,
            State::Raw(remaining) => return Need::Raw(remaining),
            State::Failed(_) => return Need::Bytes(0),
        };
        Need::Bytes(wanted - self.staging.len())
    }

    /// Takes bytes from the front of `input` until a frame is there or `input` is empty. `None`: read more.
    ///
    /// # Panics
    /// While raw bytes are due: the driver has to take them first.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, DecodeError> {
        assert!(!matches!(self.state, State::Raw(_)), "raw bytes of a piece are due, not frames");
        loop {
            match self.step(input) {
                Ok(Step::Frame(frame)) => return Ok(Some(frame)),
                Ok(Step::On) => {}
                Ok(Step::Hungry) => return Ok(None),
                Err(error) => {
                    self.state = State::Failed(error);
                    self.staging = Staging::default();
                    return Err(error);
                }
            }
        }
    }

    /// Takes the raw bytes that are already at the front of `input`; the driver copies them into its buffer.
    pub fn take_raw<'input>(&mut self, input: &mut &'input [u8]) -> &'input [u8] {
        let Need::Raw(remaining) = self.need() else { return &[] };
        let (raw, rest) = input.split_at(remaining.min(input.len()));
        *input = rest;
        self.raw_taken(raw.len());
        raw
    }

    /// The driver has read this many raw bytes into its own buffer.
    ///
    /// # Panics
    /// When that is more than [`Decoder::need`] said.
    pub fn raw_taken(&mut self, bytes: usize) {
        let State::Raw(remaining) = self.state else {
            assert_eq!(bytes, 0, "no raw bytes are due");
            return;
        };
        let left = remaining.checked_sub(bytes).expect("not more raw bytes than the piece has");
        self.state = if left == 0 { State::Header } else { State::Raw(left) };
    }

    /// Bytes of memory that the decoder holds for what came in so far.
    pub fn memory_bytes(&self) -> usize {
        self.staging.bytes.capacity()
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Step, DecodeError> {
        match self.state {
            State::Header => {
                let Some(bytes) = self.staging.take(input, FRAME_HEADER_BYTES) else { return Ok(Step::Hungry) };
                let header = FrameHeader::parse(bytes.try_into().expect("as many as asked"), self.limits)?;
                let is_piece = header.frame_type == FrameType::Piece;
                self.state = if is_piece { State::PieceHead(header) } else { State::Control(header) };
                Ok(Step::On)
            }
            State::Control(header) => {
                let Some(payload) = self.staging.take(input, header.payload_bytes as usize) else {
                    return Ok(Step::Hungry);
                };
                let message = Message::decode(&header, payload)?;
                self.staging.recycle();
                self.state = State::Header;
                Ok(Step::Frame(Frame::Message { request: header.request, message }))
            }
            State::PieceHead(header) => {
                let Some(bytes) = self.staging.take(input, PIECE_HEADER_BYTES) else { return Ok(Step::Hungry) };
                let head = PieceHead::parse(bytes.try_into().expect("as many as asked"), &header)?;
                self.state = State::Raw(head.length as usize);
                Ok(Step::Frame(Frame::Piece { request: header.request, head }))
            }
            State::Raw(_) => unreachable!("push refuses before"),
            State::Failed(error) => Err(error),
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "moved to its reader at once, never stored")]
enum Step {
    Frame(Frame),
    On,
    Hungry,
}

/// The part of a header or payload that has come so far. Where all of it is in one read, nothing is copied here.
#[derive(Debug, Default)]
struct Staging {
    bytes: Vec<u8>,
    /// The bytes were handed out whole; the next take starts over.
    spent: bool,
}

impl Staging {
    fn len(&self) -> usize {
        if self.spent { 0 } else { self.bytes.len() }
    }

    /// Starts over once the bytes were handed out. A connection that goes idle keeps no large buffer.
    fn recycle(&mut self) {
        if self.spent {
            self.spent = false;
            self.bytes.clear();
            self.bytes.shrink_to(STAGING_KEPT_BYTES);
        }
    }

    /// The next `wanted` bytes, once they are all there. `wanted` was checked against a limit.
    fn take<'out, 'input: 'out>(&'out mut self, input: &mut &'input [u8], wanted: usize) -> Option<&'out [u8]> {
        self.recycle();
        if self.bytes.is_empty() && input.len() >= wanted {
            let (taken, rest) = input.split_at(wanted);
            *input = rest;
            return Some(taken);
        }
        let (taken, rest) = input.split_at(input.len().min(wanted - self.bytes.len()));
        *input = rest;
        self.bytes.reserve_exact(wanted - self.bytes.len());
        self.bytes.extend_from_slice(taken);
        self.spent = self.bytes.len() == wanted;
        self.spent.then_some(&self.bytes)
    }
}
