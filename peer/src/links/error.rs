//! What can go wrong with another peer.

use std::sync::Arc;

use dfstore_proto::error::{ErrorCode, ErrorReply};

use crate::metrics::PeerFailure;

/// Why another peer gave no answer, or not the one that was asked for. Clones share the texts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It cannot be connected to, or the connection broke.
    #[error("peer {node} cannot be reached: {reason}")]
    Unreachable {
        /// Its id, or its address where that is all that is known.
        node: Arc<str>,
        /// What happened.
        reason: Arc<str>,
    },
    /// It is connected to and says nothing.
    #[error("peer {node} does not answer")]
    Silent {
        /// Its id or address.
        node: Arc<str>,
    },
    /// It does not take connections of this node.
    #[error("peer {node} refuses this node: {reply}")]
    Rejected {
        /// Its id or address.
        node: Arc<str>,
        /// What it says.
        reply: ErrorReply,
    },
    /// It answered the request with an error.
    #[error("{0}")]
    Refused(ErrorReply),
    /// The bytes of a piece do not match its checksum.
    #[error("piece {number} from peer {node} is damaged: CRC32 is {actual:08x}, should be {expected:08x}")]
    WrongBytes {
        /// Its id.
        node: Arc<str>,
        /// Which piece.
        number: u32,
        /// What it says.
        expected: u32,
        /// What its bytes give.
        actual: u32,
    },
    /// A piece has not the length that it should have.
    #[error("piece {number} from peer {node} has {actual} bytes, should be {expected}")]
    WrongLength {
        /// Its id.
        node: Arc<str>,
        /// Which piece.
        number: u32,
        /// The length that was asked for, or the most that there is room for.
        expected: usize,
        /// The length that it has.
        actual: u32,
    },
    /// It broke a rule of the protocol, or a request breaks one.
    #[error("peer {node}: {reason}")]
    Protocol {
        /// Its id or address.
        node: Arc<str>,
        /// Which rule.
        reason: Arc<str>,
    },
    /// This process ends.
    #[error("this peer is shutting down")]
    ShuttingDown,
}

impl LinkError {
    /// Whether nothing can be asked of the other peer now, whatever the request.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            LinkError::Unreachable { .. }
                | LinkError::Silent { .. }
                | LinkError::Rejected { .. }
                | LinkError::ShuttingDown
        )
    }

    /// Whether the same request may succeed later, or at another peer.
    pub fn is_retryable(&self) -> bool {
        match self {
            LinkError::Refused(reply) => reply.is_retryable(),
            LinkError::Unreachable { .. } | LinkError::Silent { .. } | LinkError::ShuttingDown => true,
            LinkError::WrongBytes { .. } => true,
            LinkError::Rejected { .. } | LinkError::WrongLength { .. } | LinkError::Protocol { .. } => false,
        }
    }

    /// The code of the answer, if there was one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            LinkError::Refused(reply) | LinkError::Rejected { reply, .. } => Some(reply.code),
            _ => None,
        }
    }

    /// What to count it as. An answer, and an end of our own, is no failure of the other side.
    pub(super) fn kind(&self) -> Option<PeerFailure> {
        match self {
            LinkError::Unreachable { .. } => Some(PeerFailure::Unreachable),
            LinkError::Silent { .. } => Some(PeerFailure::Silent),
            LinkError::Rejected { .. } => Some(PeerFailure::Rejected),
            LinkError::WrongBytes { .. } | LinkError::WrongLength { .. } => Some(PeerFailure::WrongBytes),
            LinkError::Protocol { .. } => Some(PeerFailure::Protocol),
            LinkError::Refused(_) | LinkError::ShuttingDown => None,
        }
    }
}
