//! What a session may refuse, and the count of credits.

use crate::error::{DecodeError, EncodeError, ErrorCode, ErrorReply};
use crate::frame::RequestId;
use crate::limits::{CREDITS_MAX, VERSION_MAX, VERSION_MIN, VERSION_OF_PEERS};
use crate::message::FrameType;
use crate::preface::Versions;

/// A rule that the other side broke. Final: the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// This frame may not come now.
    #[error("{} may not come now", .0.name())]
    NotNow(FrameType),
    /// No such request was made on this connection, or it has ended.
    #[error("request {0} is not known")]
    UnknownRequest(RequestId),
    /// Request numbers must be odd and grow.
    #[error("request {0} is even or not above those before it")]
    BadRequestId(RequestId),
    /// More requests in flight than HELLO_ACK allows.
    #[error("too many requests in flight")]
    TooManyRequests,
    /// A piece came that was not granted.
    #[error("piece without credit")]
    NoCredit,
    /// More credits than there may be.
    #[error("more than {CREDITS_MAX} credits outstanding")]
    TooManyCredits,
    /// The piece is not one that the request asks for or is ready for.
    #[error("piece does not belong to its request")]
    PieceNotAsked,
    /// The range in HELLO is not the one in the preface.
    #[error("HELLO and preface name different versions")]
    VersionsDiffer,
    /// Both sides speak, but no version in common.
    #[error("no version in common: the other side speaks {} to {}, this one {VERSION_MIN} to {VERSION_MAX}", .0.min, .0.max)]
    NoCommonVersion(Versions),
    /// The version that both sides speak does not have this frame.
    #[error("{} needs version {needs} of the protocol, and this connection speaks version {version}", .frame_type.name())]
    NotInVersion {
        /// The frame.
        frame_type: FrameType,
        /// The first version that has it.
        needs: u8,
        /// The version that both sides speak.
        version: u8,
    },
    /// Only peers say this to each other, and HELLO did not name this role.
    #[error("{} is for peers only", .0.name())]
    NotOfThisRole(FrameType),
    /// Peers must have the messages between peers.
    #[error("peers need version {VERSION_OF_PEERS} of the protocol, and both sides together speak version {version}")]
    PeerTooOld {
        /// The version that both sides speak.
        version: u8,
    },
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// What came is not a frame of this protocol.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The other side broke a rule.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// One of the sides has closed the connection with an ERROR.
    #[error("the session is closed")]
    Closed,
}

impl SessionError {
    /// What to tell the other side before closing.
    pub fn reply(&self) -> ErrorReply {
        let code = match self {
            SessionError::Violation(Violation::NoCommonVersion(_) | Violation::PeerTooOld { .. }) => {
                ErrorCode::Unsupported
            }
            _ => ErrorCode::ProtocolError,
        };
        ErrorReply::new(code, self.to_string())
    }
}

/// Why something cannot be sent. Nothing was written and the session is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Hello was not exchanged yet, or the session is over.
    #[error("the session is not open")]
    NotOpen,
    /// This message may not be sent now by this side.
    #[error(transparent)]
    NotNow(Violation),
    /// No such request is in flight: it was never made, has ended, or was not taken.
    #[error("request {0} is not in flight")]
    UnknownRequest(RequestId),
    /// As many requests are in flight as the other side takes. Wait for one to end.
    #[error("as many requests are in flight as the other side takes")]
    TooManyRequests,
    /// The other side takes no new requests. Connect anew.
    #[error("the other side takes no new requests")]
    GoingAway,
    /// The other side has granted no more pieces. Wait for [`super::Event::Credit`].
    #[error("no credit left for a piece")]
    NoCredit,
    /// The other side takes no piece of this length.
    #[error("piece of {length} bytes, the other side takes {max}")]
    PieceTooLong {
        /// Its length.
        length: u32,
        /// What the other side takes.
        max: u32,
    },
    /// A field of the message is out of bounds.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Pieces that may still be sent in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credits(u32);

impl Credits {
    /// Credits that a checked hello names.
    pub(super) fn new(pieces: u32) -> Credits {
        assert!(pieces <= CREDITS_MAX, "checked when the hello was encoded or decoded");
        Credits(pieces)
    }

    pub(super) fn pieces(self) -> u32 {
        self.0
    }

    pub(super) fn add(&mut self, pieces: u32) -> Result<(), Violation> {
        let sum = self.0.checked_add(pieces).filter(|&sum| sum <= CREDITS_MAX);
        self.0 = sum.ok_or(Violation::TooManyCredits)?;
        Ok(())
    }

    pub(super) fn take(&mut self) -> Option<()> {
        self.0 = self.0.checked_sub(1)?;
        Some(())
    }
}
