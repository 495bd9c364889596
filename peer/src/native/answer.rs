//! What the engine's errors are called on the wire.
//!
//! Pure. The text of an error goes to the client as it is: it names the object and says what to do, and holds no
//! secret (the engine's promise).

use dfstore_proto::error::{ErrorCode, ErrorReply};

use crate::engine::ObjectError;
use crate::metrics::STATUS_ABORTED;

/// The answer for a request that failed.
pub fn error_reply(error: &ObjectError) -> ErrorReply {
    let reply = ErrorReply::new(code_of(error), error.to_string());
    match error {
        ObjectError::Busy { retry_after, .. } => {
            reply.with_retry_after_ms(u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX))
        }
        _ => reply,
    }
}

fn code_of(error: &ObjectError) -> ErrorCode {
    match error {
        ObjectError::NotFound(_) => ErrorCode::NotFound,
        ObjectError::NoSuchBucket(_) => ErrorCode::NoSuchBucket,
        ObjectError::BucketExists(_) => ErrorCode::Conflict,
        ObjectError::AccessDenied(_) => ErrorCode::AccessDenied,
        ObjectError::InvalidArgument(_) => ErrorCode::InvalidArgument,
        ObjectError::PreconditionFailed => ErrorCode::PreconditionFailed,
        ObjectError::Conflict(_) => ErrorCode::Conflict,
        ObjectError::VersionChanged(_) => ErrorCode::VersionChanged,
        ObjectError::ChecksumMismatch(_) => ErrorCode::ChecksumMismatch,
        ObjectError::NoSpace(_) => ErrorCode::NoSpace,
        ObjectError::Busy { .. } => ErrorCode::Busy,
        ObjectError::BackendUnavailable(_) => ErrorCode::BackendUnavailable,
        ObjectError::BackendTimeout(_) => ErrorCode::BackendTimeout,
        ObjectError::PeerUnavailable(_) => ErrorCode::PeerUnavailable,
        ObjectError::FewCopies { .. } => ErrorCode::FewCopies,
        ObjectError::UploadUnknown(_) => ErrorCode::UploadUnknown,
        ObjectError::ShuttingDown => ErrorCode::ShuttingDown,
        // Both need a person to look at the peer; the text says which it is.
        ObjectError::Poisoned | ObjectError::Internal(_) => ErrorCode::Internal,
    }
}

/// The HTTP status that requests with this outcome are counted under, so that both faces share their metrics.
pub fn status_of(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::NotFound | ErrorCode::NoSuchBucket | ErrorCode::UploadUnknown => 404,
        ErrorCode::AccessDenied => 403,
        ErrorCode::InvalidArgument | ErrorCode::ProtocolError | ErrorCode::ChecksumMismatch => 400,
        ErrorCode::PreconditionFailed => 412,
        ErrorCode::RangeNotSatisfiable => 416,
        ErrorCode::TooLarge => 413,
        ErrorCode::Conflict | ErrorCode::VersionChanged => 409,
        ErrorCode::NoSpace => 507,
        ErrorCode::Busy | ErrorCode::ShuttingDown | ErrorCode::PeerUnavailable | ErrorCode::FewCopies => 503,
        ErrorCode::BackendUnavailable | ErrorCode::BackendTimeout => 504,
        ErrorCode::Timeout => 408,
        ErrorCode::Cancelled => STATUS_ABORTED,
        ErrorCode::Unsupported => 422,
        ErrorCode::Internal | ErrorCode::Unknown(_) => 500,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn every_error() -> Vec<ObjectError> {
        use ObjectError as E;
        let text = || "dfs://bucket/key".to_owned();
        vec![
            E::NotFound(text()),
            E::NoSuchBucket(text()),
            E::BucketExists(text()),
            E::AccessDenied(text()),
            E::InvalidArgument(text()),
            E::PreconditionFailed,
            E::Conflict(text()),
            E::VersionChanged(text()),
            E::ChecksumMismatch(text()),
            E::NoSpace(text()),
            E::Busy { reason: text(), retry_after: Duration::from_millis(1500) },
            E::BackendUnavailable(text()),
            E::BackendTimeout(text()),
            E::PeerUnavailable(text()),
            E::FewCopies { name: text(), copies: 1, wanted: 2 },
            E::UploadUnknown(7),
            E::Poisoned,
            E::ShuttingDown,
            E::Internal(text()),
        ]
    }

    #[test]
    fn engine_and_wire_agree_on_what_may_be_tried_again() {
        for error in every_error() {
            assert_eq!(error_reply(&error).is_retryable(), error.is_retryable(), "{error:?}");
        }
    }

    #[test]
    fn busy_says_when_to_try_again() {
        let busy = ObjectError::Busy { reason: "memory".into(), retry_after: Duration::from_millis(1500) };
        assert_eq!(error_reply(&busy).retry_after_ms, Some(1500));
        assert_eq!(error_reply(&ObjectError::PreconditionFailed).retry_after_ms, None);
    }
}
