//! Why a request about an object failed: one closed list for both faces.

use std::time::Duration;

use dfstore_proto::error::ErrorCode;
use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::Message;

use crate::catalog::CatalogError;
use crate::links::LinkError;
use crate::sidecar::backend::{BackendError, BackendErrorKind};
use crate::store::StoreError;

/// What failed. Each face maps it to its own status or code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// No such object, in the backend or here.
    #[error("{0} does not exist")]
    NotFound(String),
    /// No such bucket in the backend.
    #[error("bucket {0} does not exist")]
    NoSuchBucket(String),
    /// The bucket to create exists.
    #[error("bucket {0} exists already")]
    BucketExists(String),
    /// The backend refuses the credentials or the action.
    #[error("the backend refuses access: {0}")]
    AccessDenied(String),
    /// The request makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// A condition of the request does not hold.
    #[error("the object does not meet the condition of the request")]
    PreconditionFailed,
    /// Something else is in the way.
    #[error("{0}")]
    Conflict(String),
    /// The object changed while it was read; reading again gives the new version.
    #[error("{0} changed while it was read; try again")]
    VersionChanged(String),
    /// Bytes arrived whose checksum is not the one that was sent with them.
    #[error("checksum mismatch: {0}")]
    ChecksumMismatch(String),
    /// The disk or the quota is full and nothing can be evicted.
    #[error("no space left: {0}")]
    NoSpace(String),
    /// Too much is going on; the same request may succeed after the given time.
    #[error("busy: {reason}; try again in {} s", retry_after.as_secs())]
    Busy {
        /// Which limit was reached.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The backend does not answer, or answers with an error that may heal.
    #[error("the backend is not available: {0}")]
    BackendUnavailable(String),
    /// The backend did not answer in time.
    #[error("the backend did not answer in time: {0}")]
    BackendTimeout(String),
    /// Another peer of the cluster that is needed cannot be reached, or cannot do its part now.
    #[error("a peer of the cluster is not available: {0}")]
    PeerUnavailable(String),
    /// The write is durable here and known in the cluster, but fewer peers hold it than were asked for.
    #[error("{name} is written, but {copies} of {wanted} peers hold it so far; more copies are being made")]
    FewCopies {
        /// The object.
        name: String,
        /// Peers that hold it.
        copies: u16,
        /// Peers that should.
        wanted: u16,
    },
    /// An upload this peer knows nothing of (any more).
    #[error("upload {0} is not known: it was finished, aborted or abandoned")]
    UploadUnknown(u64),
    /// The store takes no writes since a sync or a write failed.
    #[error("the store takes no writes since the disk failed; see the peer's log")]
    Poisoned,
    /// The process is stopping.
    #[error("the peer is shutting down")]
    ShuttingDown,
    /// A defect of this program or of the machine.
    #[error("internal error: {0}")]
    Internal(String),
}

impl ObjectError {
    /// Whether the same request may succeed later without anyone changing anything.
    pub fn is_retryable(&self) -> bool {
        use ObjectError as E;
        matches!(
            self,
            E::VersionChanged(_)
                | E::Busy { .. }
                | E::BackendUnavailable(_)
                | E::BackendTimeout(_)
                | E::PeerUnavailable(_)
                | E::FewCopies { .. }
                | E::ShuttingDown
                | E::ChecksumMismatch(_)
        )
    }

    /// The same with something added to what it says, if it is of a kind that the backend answers with for good.
    pub fn with_note(self, note: &str) -> ObjectError {
        let noted = |text: String| format!("{text}; {note}");
        match self {
            ObjectError::AccessDenied(text) => ObjectError::AccessDenied(noted(text)),
            ObjectError::InvalidArgument(text) => ObjectError::InvalidArgument(noted(text)),
            ObjectError::Conflict(text) => ObjectError::Conflict(noted(text)),
            error => error,
        }
    }
}

impl ObjectError {
    /// What another peer answered when it was asked about an object, or that it did not.
    pub fn from_peer(error: LinkError, name: &ObjectName) -> ObjectError {
        let text = error.to_string();
        let LinkError::Refused(reply) = error else { return ObjectError::PeerUnavailable(text) };
        let retry_after = Duration::from_millis(reply.retry_after_ms.unwrap_or(1000).into());
        match reply.code {
            ErrorCode::NotFound => ObjectError::NotFound(name.to_string()),
            ErrorCode::NoSuchBucket => ObjectError::NoSuchBucket(name.bucket.clone()),
            ErrorCode::AccessDenied => of_text(ObjectError::AccessDenied, reply.message),
            ErrorCode::InvalidArgument => ObjectError::InvalidArgument(reply.message),
            ErrorCode::PreconditionFailed => ObjectError::PreconditionFailed,
            ErrorCode::Conflict => ObjectError::Conflict(reply.message),
            ErrorCode::NoSpace | ErrorCode::TooLarge => of_text(ObjectError::NoSpace, reply.message),
            ErrorCode::VersionChanged => ObjectError::VersionChanged(name.to_string()),
            ErrorCode::Busy => ObjectError::Busy { reason: reply.message, retry_after },
            ErrorCode::BackendUnavailable => of_text(ObjectError::BackendUnavailable, reply.message),
            ErrorCode::BackendTimeout => of_text(ObjectError::BackendTimeout, reply.message),
            _ => ObjectError::PeerUnavailable(text),
        }
    }

    /// A peer answered with something that is no answer to the question.
    pub fn unexpected(answer: &Message) -> ObjectError {
        ObjectError::PeerUnavailable(format!("it answered with {}", answer.frame_type().name()))
    }
}

/// The error of this text, in which the words that the error begins with may stand already: its sender had made the same.
fn of_text(make: fn(String) -> ObjectError, text: String) -> ObjectError {
    let words = make(String::new()).to_string();
    make(text.strip_prefix(&words).map(str::to_owned).unwrap_or(text))
}

impl From<crate::rt::mailbox::Closed> for ObjectError {
    fn from(_: crate::rt::mailbox::Closed) -> Self {
        ObjectError::ShuttingDown
    }
}

impl From<StoreError> for ObjectError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace { .. } | StoreError::DiskFull { .. } => ObjectError::NoSpace(error.to_string()),
            StoreError::Poisoned => ObjectError::Poisoned,
            // The log has said which file and why.
            error if error.is_disk_failure() => ObjectError::Poisoned,
            _ => ObjectError::Internal(error.to_string()),
        }
    }
}

impl From<CatalogError> for ObjectError {
    fn from(error: CatalogError) -> Self {
        if let CatalogError::DiskFull { .. } = error {
            return ObjectError::NoSpace(format!("the catalog: {error}"));
        }
        // The reason is in the log, once; a client cannot do anything with it.
        tracing::error!(%error, "the catalog refused a change");
        ObjectError::Poisoned
    }
}

impl From<BackendError> for ObjectError {
    fn from(error: BackendError) -> Self {
        use BackendErrorKind as Kind;
        let text = error.to_string();
        match error.kind {
            // These say themselves what is missing or there; what they name is enough.
            Kind::NotFound | Kind::NoSuchUpload => ObjectError::NotFound(error.target),
            Kind::NoSuchBucket => ObjectError::NoSuchBucket(bucket_of(&error.target)),
            Kind::BucketExists => ObjectError::BucketExists(bucket_of(&error.target)),
            Kind::AccessDenied => ObjectError::AccessDenied(text),
            Kind::InvalidArgument | Kind::RangeNotSatisfiable => ObjectError::InvalidArgument(text),
            Kind::PreconditionFailed => ObjectError::PreconditionFailed,
            Kind::VersionChanged => ObjectError::VersionChanged(error.target),
            Kind::SlowDown { retry_after } => {
                ObjectError::Busy { reason: text, retry_after: retry_after.unwrap_or(Duration::from_secs(2)) }
            }
            Kind::Timeout => ObjectError::BackendTimeout(text),
            Kind::NotConfigured => ObjectError::BackendUnavailable(error.kind.to_string()),
            _ => ObjectError::BackendUnavailable(text),
        }
    }
}

/// The bucket of a target, which is an object's URL or a bucket.
fn bucket_of(target: &str) -> String {
    let name = target.strip_prefix("dfs://").unwrap_or(target);
    name.split('/').next().unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::BackendOperation;

    #[test]
    fn a_backend_that_nobody_has_told_of_is_said_plainly_and_may_come() {
        let (kind, operation) = (BackendErrorKind::NotConfigured, BackendOperation::Head);
        let error = ObjectError::from(BackendError { kind, operation, target: "t".into(), message: String::new() });
        assert!(error.is_retryable());
        let expected = "the backend is not available: no manager has told how to reach it yet";
        assert_eq!(error.to_string(), expected);
    }
}
