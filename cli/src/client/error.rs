//! Why talking to a peer failed, in the user's words, and whether to try again.

use std::io;

use dfstore_proto::error::{EncodeError, ErrorCode, ErrorReply};

/// A failed request or connection.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to {endpoint}: {cause}")]
    Connect {
        /// As the user wrote it.
        endpoint: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The connection broke or was silent for too long.
    #[error("connection to {endpoint} broke: {cause}")]
    Broken {
        /// As the user wrote it.
        endpoint: String,
        /// What the system said.
        cause: io::Error,
    },
    /// Somebody else listens there.
    #[error("{endpoint} answers, but does not speak the native protocol of dfstore")]
    NotNative {
        /// As the user wrote it.
        endpoint: String,
    },
    /// The peer sent what it must not send.
    #[error("{endpoint} broke the protocol: {what}")]
    Protocol {
        /// As the user wrote it.
        endpoint: String,
        /// The fault.
        what: String,
    },
    /// The peer's version of the protocol does not have what the command needs.
    #[error("{endpoint} is too old: {what}")]
    TooOld {
        /// As the user wrote it.
        endpoint: String,
        /// What is needed, and what there is.
        what: String,
    },
    /// What the user asked for cannot be said in the protocol.
    #[error(transparent)]
    Unsayable(#[from] EncodeError),
    /// The peer said no.
    #[error("{}", refusal(.0))]
    Refused(ErrorReply),
    /// Bytes of a piece do not have the checksum that came with them.
    #[error("piece {number} arrived damaged: CRC32 is {actual:08x}, should be {expected:08x}")]
    Damaged {
        /// Which piece.
        number: u32,
        /// What the peer said.
        expected: u32,
        /// What the bytes give.
        actual: u32,
    },
}

impl ClientError {
    /// Whether the same may succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Connect { .. } | ClientError::Broken { .. } | ClientError::Damaged { .. } => true,
            ClientError::Refused(reply) => reply.is_retryable(),
            ClientError::NotNative { .. }
            | ClientError::Protocol { .. }
            | ClientError::TooOld { .. }
            | ClientError::Unsayable(_) => false,
        }
    }

    /// The code of a refusal.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused(reply) => Some(reply.code),
            _ => None,
        }
    }

    /// Whether the version that was being read is no more.
    pub fn is_version_change(&self) -> bool {
        self.code() == Some(ErrorCode::VersionChanged)
    }

    /// Whether an upload that failed like this may succeed from the start: it was lost on the way, not refused.
    pub fn is_worth_a_new_upload(&self) -> bool {
        match self {
            ClientError::Broken { .. } | ClientError::Connect { .. } => true,
            ClientError::Refused(reply) => matches!(
                reply.code,
                ErrorCode::ChecksumMismatch | ErrorCode::ShuttingDown | ErrorCode::Timeout | ErrorCode::UploadUnknown
            ),
            _ => false,
        }
    }

    /// Whether any other request would fail in the same way: the peer is not there, or does not do this.
    pub fn is_about_the_peer(&self) -> bool {
        match self {
            ClientError::Connect { .. } | ClientError::NotNative { .. } | ClientError::TooOld { .. } => true,
            ClientError::Refused(reply) => reply.code == ErrorCode::Unsupported,
            _ => false,
        }
    }

    /// How long the peer wants us to wait before another attempt.
    pub fn retry_after_ms(&self) -> Option<u32> {
        match self {
            ClientError::Refused(reply) => reply.retry_after_ms,
            _ => None,
        }
    }

    /// What the user may do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ClientError::Connect { .. } => {
                Some("start a peer with 'dfstore-peer --config FILE', or name one that runs with --endpoint")
            }
            ClientError::NotNative { .. } => {
                Some("name the public port of a dfstore peer (65004 by default) with --endpoint")
            }
            ClientError::TooOld { .. } => Some("upgrade that peer, or name a newer one with --endpoint"),
            ClientError::Refused(reply) => match reply.code {
                ErrorCode::NoSuchBucket => Some("create the bucket first, or check its spelling"),
                ErrorCode::Busy => Some("the peer has too much to do; try again later or with less --parallel"),
                _ => None,
            },
            _ => None,
        }
    }
}

fn refusal(reply: &ErrorReply) -> String {
    if reply.detail.is_empty() { reply.to_string() } else { format!("{reply}: {}", reply.detail) }
}
