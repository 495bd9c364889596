//! How a backend operation fails, in words that do not depend on the provider.
//!
//! Owns [`BackendError`]. Its text names operation and object and carries what the backend said, never a secret and
//! never a signed URL.

use std::fmt;
use std::time::Duration;

/// What was asked of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Attributes of an object.
    Head,
    /// A range of an object.
    Get,
    /// A whole object.
    Put,
    /// Start of a multipart upload.
    CreateUpload,
    /// One part.
    PutPart,
    /// End of a multipart upload.
    CompleteUpload,
    /// Dropping a multipart upload.
    AbortUpload,
    /// Parts of an upload.
    ListParts,
    /// Uploads of a bucket.
    ListUploads,
    /// Copy within the backend.
    Copy,
    /// Deletion of an object.
    Delete,
    /// One page of a bucket.
    List,
    /// Making a bucket.
    CreateBucket,
    /// Asking for a bucket.
    HeadBucket,
}

impl Operation {
    /// All operations, in the order of their numbers.
    pub const ALL: [Operation; 14] = [
        Operation::Head,
        Operation::Get,
        Operation::Put,
        Operation::CreateUpload,
        Operation::PutPart,
        Operation::CompleteUpload,
        Operation::AbortUpload,
        Operation::ListParts,
        Operation::ListUploads,
        Operation::Copy,
        Operation::Delete,
        Operation::List,
        Operation::CreateBucket,
        Operation::HeadBucket,
    ];

    /// The name used in metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Head => "head",
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::CreateUpload => "create_upload",
            Operation::PutPart => "put_part",
            Operation::CompleteUpload => "complete_upload",
            Operation::AbortUpload => "abort_upload",
            Operation::ListParts => "list_parts",
            Operation::ListUploads => "list_uploads",
            Operation::Copy => "copy",
            Operation::Delete => "delete",
            Operation::List => "list",
            Operation::CreateBucket => "create_bucket",
            Operation::HeadBucket => "head_bucket",
        }
    }
}

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
    /// No connection, or the backend answered with a server error.
    #[error("unavailable")]
    Unavailable,
    /// No answer, or too slow a body.
    #[error("timeout")]
    Timeout,
    /// The answer is not what was asked for: short, long or misplaced body, or a checksum that does not match.
    #[error("bad answer")]
    BadAnswer,
    /// A defect on our side, or the sidecar has ended.
    #[error("internal")]
    Internal,
}

impl BackendErrorKind {
    /// The name used in metrics.
    pub fn name(self) -> &'static str {
        match self {
            BackendErrorKind::NotFound => "not_found",
            BackendErrorKind::NoSuchBucket => "no_such_bucket",
            BackendErrorKind::NoSuchUpload => "no_such_upload",
            BackendErrorKind::AccessDenied => "access_denied",
            BackendErrorKind::ClockSkew => "clock_skew",
            BackendErrorKind::InvalidArgument => "invalid_argument",
            BackendErrorKind::PreconditionFailed => "precondition_failed",
            BackendErrorKind::VersionChanged => "version_changed",
            BackendErrorKind::RangeNotSatisfiable => "range_not_satisfiable",
            BackendErrorKind::BucketExists => "bucket_exists",
            BackendErrorKind::SlowDown { .. } => "slow_down",
            BackendErrorKind::Unavailable => "unavailable",
            BackendErrorKind::Timeout => "timeout",
            BackendErrorKind::BadAnswer => "bad_answer",
            BackendErrorKind::Internal => "internal",
        }
    }

    /// Whether the same request may succeed later without anybody changing anything. A skewed clock counts: time
    /// services heal it.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            BackendErrorKind::ClockSkew
                | BackendErrorKind::SlowDown { .. }
                | BackendErrorKind::Unavailable
                | BackendErrorKind::Timeout
                | BackendErrorKind::BadAnswer
        )
    }
}

/// A failed backend operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError {
    /// What went wrong.
    pub kind: BackendErrorKind,
    /// What was asked.
    pub operation: Operation,
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
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend {} of {}: {}", self.operation.name(), self.target, self.kind)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

impl std::error::Error for BackendError {}
