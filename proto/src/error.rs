//! What can go wrong: the error codes that travel, and the failures of encoding and decoding.
//!
//! Pure data. Codes below 1000 are final, codes from 1000 to 1999 are retryable, so that a program that does not know
//! a code yet still knows what to do about it. A number, once given, never changes its meaning.

use serde::{Deserialize, Serialize};

use crate::limits::{ERROR_DETAIL_BYTES_MAX, ERROR_MESSAGE_BYTES_MAX};

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Why a request, or a connection, failed. Travels as a number of 16 bits.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code of a later version.
            Unknown(u16),
        }

        impl ErrorCode {
            /// All codes that this version knows.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The number that travels.
            pub const fn number(self) -> u16 {
                match self {
                    $(ErrorCode::$name => $number,)*
                    ErrorCode::Unknown(number) => number,
                }
            }

            /// The code with this number.
            pub const fn from_number(number: u16) -> ErrorCode {
                match number {
                    $($number => ErrorCode::$name,)*
                    other => ErrorCode::Unknown(other),
                }
            }

            /// The name, as the specification writes it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(ErrorCode::$name => stringify!($name),)*
                    ErrorCode::Unknown(_) => "Unknown",
                }
            }
        }
    };
}

error_codes! {
    /// The object does not exist.
    NotFound = 1,
    /// The bucket does not exist.
    NoSuchBucket = 2,
    /// The credentials do not allow this, here or at the backend.
    AccessDenied = 3,
    /// The request contradicts itself or names something that cannot be.
    InvalidArgument = 4,
    /// A condition of the request does not hold.
    PreconditionFailed = 5,
    /// The pieces asked for are beyond the end of the version.
    RangeNotSatisfiable = 6,
    /// The object is larger than this peer or the backend takes.
    TooLarge = 7,
    /// Something else is in the way: the bucket exists already, or belongs to somebody else.
    Conflict = 8,
    /// The upload is not known: it was committed, aborted or forgotten. Start the write again.
    UploadUnknown = 9,
    /// No space is left for this write, and waiting will not help.
    NoSpace = 10,
    /// This peer does not do this, or has no version in common with the other side.
    Unsupported = 11,
    /// The other side broke the rules of this protocol.
    ProtocolError = 12,
    /// Something failed that should not have.
    Internal = 13,
    /// The request was cancelled by the side that made it.
    Cancelled = 14,
    /// The version asked for is no longer there. Open the object again and start over.
    VersionChanged = 1000,
    /// Too much is going on. Wait as long as `retry_after_ms` says.
    Busy = 1001,
    /// The backend cannot be reached or answers with server errors.
    BackendUnavailable = 1002,
    /// The backend did not answer in time.
    BackendTimeout = 1003,
    /// Bytes do not match their checksum. Send or read them again.
    ChecksumMismatch = 1004,
    /// This peer is about to stop. Try another one, or later.
    ShuttingDown = 1005,
    /// The other side was silent for too long.
    Timeout = 1006,
    /// Another peer of the cluster that is needed cannot be reached, or cannot do its part now.
    PeerUnavailable = 1007,
    /// The write is durable and known, but fewer peers hold it than were asked for. More copies are being made.
    FewCopies = 1008,
}

impl ErrorCode {
    /// Whether the same request may succeed later without a change to it.
    pub const fn is_retryable(self) -> bool {
        matches!(self.number(), 1000..=1999)
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.number())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ErrorCode, D::Error> {
        u16::deserialize(deserializer).map(ErrorCode::from_number)
    }
}

/// The answer ERROR: ends the request it belongs to, or the connection when it belongs to none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({})", code.name())]
pub struct ErrorReply {
    /// What kind of failure, for programs.
    pub code: ErrorCode,
    /// What failed, where, and what to do next, for people.
    pub message: String,
    /// How long to wait before the next attempt.
    pub retry_after_ms: Option<u32>,
    /// What the backend said, or other background; may be empty.
    pub detail: String,
}

impl ErrorReply {
    /// An error with a text, cut to what may travel.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ErrorReply {
        let message = cut(message.into(), ERROR_MESSAGE_BYTES_MAX);
        ErrorReply { code, message, retry_after_ms: None, detail: String::new() }
    }

    /// Adds background, cut to what may travel.
    pub fn with_detail(mut self, detail: impl Into<String>) -> ErrorReply {
        self.detail = cut(detail.into(), ERROR_DETAIL_BYTES_MAX);
        self
    }

    /// Adds how long to wait before the next attempt.
    pub fn with_retry_after_ms(mut self, retry_after_ms: u32) -> ErrorReply {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }

    /// Whether the same request may succeed later without a change to it.
    pub fn is_retryable(&self) -> bool {
        self.code.is_retryable()
    }
}

/// Cuts at the last character that ends within `bytes_max`.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// What a field may not be. The connection that sent it is closed; a sender gets it back from encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The field is longer, or larger, than allowed.
    #[error("{field} is {actual}, at most {max} is allowed")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// What it is.
        actual: u64,
        /// What it may be at most.
        max: u64,
    },
    /// The field must not be empty or zero.
    #[error("{0} must not be empty")]
    Empty(&'static str),
    /// The field contradicts another one or has no meaning.
    #[error("{0} is not valid")]
    Invalid(&'static str),
}

/// Why bytes are not a frame. Final: the connection is closed, nothing after the fault can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The first bytes are not the preface.
    #[error("the connection does not begin with the preface of this protocol")]
    BadPreface,
    /// The other side answers in HTTP.
    #[error("the other side speaks HTTP, not the native protocol")]
    SpeaksHttp,
    /// The frame header does not match its checksum.
    #[error("frame header damaged: CRC32 is {actual:08x}, should be {expected:08x}")]
    HeaderChecksum {
        /// What the header says.
        expected: u32,
        /// What its bytes give.
        actual: u32,
    },
    /// The control payload or the piece header does not match its checksum.
    #[error("frame body damaged: CRC32 is {actual:08x}, should be {expected:08x}")]
    BodyChecksum {
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        actual: u32,
    },
    /// The frame type is not one of ours.
    #[error("frame type {0:#04x} is not known")]
    UnknownType(u8),
    /// A flag is set that must be understood and is not.
    #[error("frame flags {0:#04x} are not known")]
    UnknownFlags(u8),
    /// The frame says it is longer than its type may be.
    #[error("frame of {length} bytes, at most {max} are allowed here")]
    TooLong {
        /// What the header says.
        length: u32,
        /// What is allowed.
        max: u32,
    },
    /// The payload ends before its message does, or a value in it has no meaning.
    #[error("payload of frame type {0:#04x} cannot be read")]
    BadPayload(u8),
    /// The length of the frame and the length in the piece header differ, or the piece is empty.
    #[error("piece of {piece} bytes in a frame for {frame}")]
    PieceLength {
        /// Raw bytes by the frame header.
        frame: u32,
        /// Raw bytes by the piece header.
        piece: u32,
    },
    /// A field of a message is out of bounds.
    #[error("frame type {frame_type:#04x}: {error}")]
    Field {
        /// The frame's type.
        frame_type: u8,
        /// The field and its fault.
        error: FieldError,
    },
}

/// Why a message cannot be encoded. The caller's mistake, or the user's: nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A field is out of bounds.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The message is longer than a control frame may be.
    #[error("message longer than {max} bytes")]
    TooLong {
        /// Most bytes of a payload.
        max: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_and_is_unique() {
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), code);
            assert_eq!(ErrorCode::ALL.iter().filter(|other| other.number() == code.number()).count(), 1);
        }
        for number in 0..=u16::MAX {
            assert_eq!(ErrorCode::from_number(number).number(), number);
        }
    }

    #[test]
    fn unknown_codes_say_by_their_number_whether_to_try_again() {
        assert!(!ErrorCode::from_number(999).is_retryable());
        assert!(ErrorCode::from_number(1999).is_retryable());
        assert!(!ErrorCode::from_number(2000).is_retryable());
        assert!(ErrorCode::VersionChanged.is_retryable() && !ErrorCode::NoSpace.is_retryable());
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let reply = ErrorReply::new(ErrorCode::Internal, "ü".repeat(600)).with_detail("x".repeat(9000));
        assert_eq!(reply.message.len(), ERROR_MESSAGE_BYTES_MAX);
        assert_eq!(reply.detail.len(), ERROR_DETAIL_BYTES_MAX);
        assert_eq!(ErrorReply::new(ErrorCode::Internal, format!("a{}", "ü".repeat(600))).message.len(), 1023);
    }
}
