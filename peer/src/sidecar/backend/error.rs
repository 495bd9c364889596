//! How a backend operation fails, in words that do not depend on the provider.
//!
//! Owns [`BackendError`]. Its text names operation and object and carries what the backend said, never a secret and
//! never a signed URL.

use std::fmt;
use std::time::Duration;

use crate::metrics::{BackendOperation, BackendOutcome};

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendErrorKind {
    /// The object is not there.
    #[error("not found")]
    NotFound,
    /// The bucket is not there.
    #[error("no such bucket")]
    NoSuchBucket,
    /// The multipart upload is not there (completed, aborted or expired).
    #[error("no such upload")]
    NoSuchUpload,
    /// The credentials are wrong or do not allow this.
    #[error("access denied")]
    AccessDenied,
    /// The clocks of this machine and the backend differ too much for signatures to hold.
    #[error("clock skew")]
    ClockSkew,
    /// The backend does not take this request, and will not later.
    #[error("invalid argument")]
    InvalidArgument,
    /// The object exists already, and the write was only to happen if not.
    #[error("precondition failed")]
    PreconditionFailed,
    /// The object is no longer the version that was asked for.
    #[error("version changed")]
    VersionChanged,
    /// The range starts at or after the end of the object.
    #[error("range not satisfiable")]
    RangeNotSatisfiable,
    /// The bucket exists already.
    #[error("bucket exists")]
    BucketExists,
    /// The backend asks for fewer requests.
    #[error("slow down")]
    SlowDown {
        /// How long the backend wants to be left alone, if it said so.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    #[error("unreachable")]
    Unreachable,
    /// The backend answered with a server error.
    #[error("unavailable")]
    Unavailable,
    /// No answer, or too slow a body.
    #[error("timeout")]
    Timeout,
    /// The answer is not what was asked for: short, long or misplaced body, or a checksum that does not match.
    #[error("bad answer")]
    BadAnswer,
    /// Nobody has told yet which backend there is.
    #[error("no manager has told how to reach it yet")]
    NotConfigured,
    /// A defect on our side, or the sidecar has ended.
    #[error("internal")]
    Internal,
}

impl BackendErrorKind {
    /// How this is counted.
    pub fn outcome(self) -> BackendOutcome {
        match self {
            BackendErrorKind::NotFound | BackendErrorKind::NoSuchBucket | BackendErrorKind::NoSuchUpload => {
                BackendOutcome::NotFound
            }
            BackendErrorKind::AccessDenied | BackendErrorKind::ClockSkew => BackendOutcome::Denied,
            BackendErrorKind::PreconditionFailed | BackendErrorKind::VersionChanged => BackendOutcome::Precondition,
            BackendErrorKind::SlowDown { .. } => BackendOutcome::Throttled,
            BackendErrorKind::Unreachable => BackendOutcome::Network,
            BackendErrorKind::Unavailable => BackendOutcome::ServerError,
            BackendErrorKind::Timeout => BackendOutcome::Timeout,
            BackendErrorKind::BadAnswer => BackendOutcome::Corrupt,
            BackendErrorKind::InvalidArgument
            | BackendErrorKind::RangeNotSatisfiable
            | BackendErrorKind::BucketExists
            | BackendErrorKind::NotConfigured
            | BackendErrorKind::Internal => BackendOutcome::Other,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything. A skewed clock counts: time
    /// services heal it.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            BackendErrorKind::ClockSkew
                | BackendErrorKind::SlowDown { .. }
                | BackendErrorKind::Unreachable
                | BackendErrorKind::Unavailable
                | BackendErrorKind::Timeout
                | BackendErrorKind::NotConfigured
                | BackendErrorKind::BadAnswer
        )
    }

    /// Whether the backend could not be asked at all, so that what is cached is the best there is.
    pub fn is_outage(self) -> bool {
        matches!(
            self,
            BackendErrorKind::Unreachable
                | BackendErrorKind::Unavailable
                | BackendErrorKind::Timeout
                | BackendErrorKind::NotConfigured
                | BackendErrorKind::SlowDown { .. }
        )
    }
}

/// A failed backend operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError {
    /// What went wrong.
    pub kind: BackendErrorKind,
    /// What was asked.
    pub operation: BackendOperation,
    /// The object (`dfs://bucket/key`) or bucket it was asked of.
    pub target: String,
    /// What the backend or the network said. May be empty.
    pub message: String,
}

impl BackendError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable()
    }

    /// Whether the backend could not be asked at all.
    pub fn is_outage(&self) -> bool {
        self.kind.is_outage()
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend {} of {}: {}", self.operation.name(), self.target, self.kind)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

impl std::error::Error for BackendError {}
