//! The two fixed headers: one in front of every frame, one in front of the raw bytes of a piece.
//!
//! Pure functions from and to bytes, all numbers little-endian. Parsing checks the checksum first and the length
//! against its limit last, so a header that comes out of here is true and may be waited for. Nothing is allocated.

use crate::error::DecodeError;
use crate::ids::TaskId;
use crate::limits::{FRAME_HEADER_BYTES, PIECE_FRAME_HEAD_BYTES, PIECE_HEADER_BYTES};
use crate::message::FrameType;

/// Flags that may be ignored by who does not know them. The others must be understood, or the frame is refused.
/// Version 1 gives a meaning to none and sends all as zero.
pub const FLAGS_OPTIONAL: u8 = 0x0F;

/// Names a request on its connection. Zero is the connection itself; the side that connected counts in odd numbers,
/// the other side in even ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl RequestId {
    /// Frames about the connection itself.
    pub const CONNECTION: RequestId = RequestId(0);
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The longest payloads that may come in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Bytes of a control payload.
    pub control_bytes_max: u32,
    /// Raw bytes of a piece; zero refuses every piece.
    pub piece_bytes_max: u32,
}

/// What stands in front of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes that follow the header: the control payload, or the piece header and the raw bytes.
    pub payload_bytes: u32,
    /// What follows.
    pub frame_type: FrameType,
    /// See [`FLAGS_OPTIONAL`].
    pub flags: u8,
    /// The request this belongs to.
    pub request: RequestId,
    /// CRC32 of the control payload, or of the piece header.
    pub body_crc32: u32,
}

impl FrameHeader {
    /// The bytes of the header, checksum included.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[4] = self.frame_type.number();
        bytes[5] = self.flags;
        bytes[8..16].copy_from_slice(&self.request.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.body_crc32.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..20]);
        bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads and checks a header. The two reserved bytes are ignored: a later version may use them.
    pub fn parse(bytes: &[u8; FRAME_HEADER_BYTES], limits: FrameLimits) -> Result<FrameHeader, DecodeError> {
        let (expected, actual) = (u32_at(bytes, 20), crc32fast::hash(&bytes[..20]));
        if expected != actual {
            let is_http = bytes.starts_with(b"HTTP/");
            return Err(if is_http {
                DecodeError::SpeaksHttp
            } else {
                DecodeError::HeaderChecksum { expected, actual }
            });
        }
        let frame_type = FrameType::from_number(bytes[4]).ok_or(DecodeError::UnknownType(bytes[4]))?;
        if bytes[5] & !FLAGS_OPTIONAL != 0 {
            return Err(DecodeError::UnknownFlags(bytes[5]));
        }
        let header = FrameHeader {
            payload_bytes: u32_at(bytes, 0),
            frame_type,
            flags: bytes[5],
            request: RequestId(u64_at(bytes, 8)),
            body_crc32: u32_at(bytes, 16),
        };
        header.check_length(limits)?;
        Ok(header)
    }

    fn check_length(&self, limits: FrameLimits) -> Result<(), DecodeError> {
        let max = match self.frame_type {
            FrameType::Piece if limits.piece_bytes_max == 0 => 0,
            FrameType::Piece => limits.piece_bytes_max.saturating_add(HEADER_OF_PIECE),
            _ => limits.control_bytes_max,
        };
        if self.payload_bytes > max {
            return Err(DecodeError::TooLong { length: self.payload_bytes, max });
        }
        if self.frame_type == FrameType::Piece && self.payload_bytes <= HEADER_OF_PIECE {
            return Err(DecodeError::PieceLength { frame: 0, piece: 0 });
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "64 fits")]
const HEADER_OF_PIECE: u32 = PIECE_HEADER_BYTES as u32;

/// What stands in front of the raw bytes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHead {
    /// The task the piece belongs to.
    pub task: TaskId,
    /// The version of the task.
    pub generation: u64,
    /// Offset of the first byte in the object.
    pub offset: u64,
    /// Number of the piece in its version, from zero.
    pub number: u32,
    /// Raw bytes that follow.
    pub length: u32,
    /// CRC32 (IEEE) of the raw bytes.
    pub crc32: u32,
}

impl PieceHead {
    /// The bytes of the piece header.
    pub fn encode(&self) -> [u8; PIECE_HEADER_BYTES] {
        let mut bytes = [0; PIECE_HEADER_BYTES];
        bytes[0..32].copy_from_slice(self.task.as_bytes());
        bytes[32..40].copy_from_slice(&self.generation.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.offset.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.number.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.length.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.crc32.to_le_bytes());
        bytes
    }

    /// Reads a piece header and compares it with the frame header before it. The four reserved bytes are ignored.
    pub fn parse(bytes: &[u8; PIECE_HEADER_BYTES], frame: &FrameHeader) -> Result<PieceHead, DecodeError> {
        let (expected, actual) = (frame.body_crc32, crc32fast::hash(bytes));
        if expected != actual {
            return Err(DecodeError::BodyChecksum { expected, actual });
        }
        let head = PieceHead {
            task: TaskId::from_bytes(bytes[..32].try_into().expect("32 of 64 bytes")),
            generation: u64_at(bytes, 32),
            offset: u64_at(bytes, 40),
            number: u32_at(bytes, 48),
            length: u32_at(bytes, 52),
            crc32: u32_at(bytes, 56),
        };
        let raw = frame.payload_bytes - HEADER_OF_PIECE;
        if head.length != raw {
            return Err(DecodeError::PieceLength { frame: raw, piece: head.length });
        }
        Ok(head)
    }

    /// Frame header and piece header of a whole PIECE frame; the raw bytes follow from wherever they are.
    pub fn frame(&self, request: RequestId) -> [u8; PIECE_FRAME_HEAD_BYTES] {
        let body = self.encode();
        let header = FrameHeader {
            payload_bytes: HEADER_OF_PIECE + self.length,
            frame_type: FrameType::Piece,
            flags: 0,
            request,
            body_crc32: crc32fast::hash(&body),
        };
        let mut bytes = [0; PIECE_FRAME_HEAD_BYTES];
        bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        bytes[FRAME_HEADER_BYTES..].copy_from_slice(&body);
        bytes
    }

    /// Whether number, offset and length are those of a piece of an object cut into pieces of `piece_bytes`.
    /// `object_bytes` is unknown while an upload streams; then any piece may be the short last one.
    pub fn fits(&self, piece_bytes: u32, object_bytes: Option<u64>) -> bool {
        let start = u64::from(self.number) * u64::from(piece_bytes);
        if self.offset != start || self.length == 0 || self.length > piece_bytes {
            return false;
        }
        object_bytes.is_none_or(|total| {
            let rest = total.saturating_sub(start);
            u64::from(self.length) == rest.min(u64::from(piece_bytes))
        })
    }
}

fn u32_at(bytes: &[u8], start: usize) -> u32 {
    u32::from_le_bytes(bytes[start..start + 4].try_into().expect("a slice of four bytes"))
}

fn u64_at(bytes: &[u8], start: usize) -> u64 {
    u64::from_le_bytes(bytes[start..start + 8].try_into().expect("a slice of eight bytes"))
}
