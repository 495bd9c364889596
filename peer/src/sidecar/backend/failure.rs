//! From what the SDK reports to [`BackendErrorKind`]: the one table of error codes of all providers.
//!
//! Pure. A code wins over the status, because OSS and compatible servers use statuses freely; the status decides where
//! there is no code (HEAD has no body) or an unknown one.

use std::time::{Duration, SystemTime};

use crate::metrics::BackendOperation;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::error::BackendErrorKind;

/// S3 refuses signatures that are this much off.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(15 * 60);
/// Most characters of a message that are kept.
const MESSAGE_CHARS_MAX: usize = 300;

/// Why a request failed, and what was said about it.
pub(super) type Refusal = (BackendErrorKind, String);

/// The kind and the message of a failed request.
pub(super) fn classify<E>(operation: BackendOperation, error: &SdkError<E, HttpResponse>) -> Refusal
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or_default();
            let message = service.err().message().unwrap_or_default();
            let response = service.raw();
            let status = response.status().as_u16();
            let kind = of_code(code)
                .or_else(|| skewed(status, response).then_some(BackendErrorKind::ClockSkew))
                .or_else(|| of_status(operation, status))
                .unwrap_or(BackendErrorKind::InvalidArgument);
            (with_hint(kind, response), brief(&format!("{status} {code} {message}")))
        }
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            let kind = of_status(operation, status).unwrap_or(BackendErrorKind::BadAnswer);
            (with_hint(kind, response.raw()), brief(&format!("{status}, unreadable answer: {}", chain(error))))
        }
        SdkError::TimeoutError(_) => (BackendErrorKind::Timeout, "no answer".to_owned()),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => (BackendErrorKind::Timeout, brief(&chain(error))),
        SdkError::DispatchFailure(failure) if failure.is_user() => (BackendErrorKind::Internal, brief(&chain(error))),
        SdkError::DispatchFailure(_) => (BackendErrorKind::Unreachable, brief(&chain(error))),
        SdkError::ConstructionFailure(_) => {
            let text = chain(error);
            // Credentials are found while the request is being made.
            let credentials = text.contains("redentials");
            let kind = if credentials { BackendErrorKind::AccessDenied } else { BackendErrorKind::InvalidArgument };
            (kind, brief(&text))
        }
        _ => (BackendErrorKind::Internal, brief(&chain(error))),
    }
}

fn of_code(code: &str) -> Option<BackendErrorKind> {
    Some(match code {
        "NoSuchKey" | "SymlinkTargetNotExist" => BackendErrorKind::NotFound,
        "NoSuchBucket" => BackendErrorKind::NoSuchBucket,
        "NoSuchUpload" => BackendErrorKind::NoSuchUpload,
        "AccessDenied"
        | "AccountProblem"
        | "AllAccessDisabled"
        | "ExpiredToken"
        | "InvalidAccessKeyId"
        | "InvalidObjectState"
        | "InvalidSecurity"
        | "InvalidToken"
        | "SecurityTokenExpired"
        | "SignatureDoesNotMatch"
        | "UserDisable" => BackendErrorKind::AccessDenied,
        "RequestTimeTooSkewed" | "RequestExpired" => BackendErrorKind::ClockSkew,
        "PreconditionFailed" | "FileAlreadyExists" | "ObjectAlreadyExists" => BackendErrorKind::PreconditionFailed,
        "InvalidRange" => BackendErrorKind::RangeNotSatisfiable,
        "BucketAlreadyExists" | "BucketAlreadyOwnedByYou" => BackendErrorKind::BucketExists,
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "DownloadTrafficRateLimitExceeded"
        | "UploadTrafficRateLimitExceeded"
        | "QpsLimitExceeded" => BackendErrorKind::SlowDown { retry_after: None },
        "InternalError" | "ServiceUnavailable" | "OperationAborted" | "ConditionalRequestConflict" | "ServerBusy" => {
            BackendErrorKind::Unavailable
        }
        "RequestTimeout" => BackendErrorKind::Timeout,
        // What we sent did not arrive as it was: worth another try.
        "BadDigest" | "XAmzContentChecksumMismatch" | "IncompleteBody" => BackendErrorKind::BadAnswer,
        _ => return None,
    })
}

fn of_status(operation: BackendOperation, status: u16) -> Option<BackendErrorKind> {
    let bucket =
        matches!(operation, BackendOperation::HeadBucket | BackendOperation::List | BackendOperation::ListUploads);
    Some(match status {
        404 if bucket => BackendErrorKind::NoSuchBucket,
        404 => BackendErrorKind::NotFound,
        401 | 403 => BackendErrorKind::AccessDenied,
        408 => BackendErrorKind::Timeout,
        409 if operation == BackendOperation::CreateBucket => BackendErrorKind::BucketExists,
        412 => BackendErrorKind::PreconditionFailed,
        416 => BackendErrorKind::RangeNotSatisfiable,
        429 => BackendErrorKind::SlowDown { retry_after: None },
        500..=599 => BackendErrorKind::Unavailable,
        _ => return None,
    })
}

/// Adds the time that the backend asks for, and takes a 503 with such a time for what it is.
fn with_hint(kind: BackendErrorKind, response: &HttpResponse) -> BackendErrorKind {
    let hint = response.headers().get("retry-after").and_then(|value| value.parse().ok()).map(Duration::from_secs);
    match kind {
        BackendErrorKind::SlowDown { .. } => BackendErrorKind::SlowDown { retry_after: hint },
        BackendErrorKind::Unavailable if hint.is_some() && response.status().as_u16() == 503 => {
            BackendErrorKind::SlowDown { retry_after: hint }
        }
        other => other,
    }
}

/// A refused HEAD says nothing but 403; the date of the answer tells whether the clocks are the reason.
fn skewed(status: u16, response: &HttpResponse) -> bool {
    let date = response.headers().get("date").and_then(|date| httpdate::parse_http_date(date).ok());
    let Some(date) = date.filter(|_| status == 403) else { return false };
    let now = SystemTime::now();
    let apart = now.duration_since(date).or_else(|_| date.duration_since(now)).unwrap_or_default();
    apart > CLOCK_SKEW_MAX
}

/// The error and its causes. The SDK's own errors carry neither keys nor signatures; addresses are the endpoint's.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn brief(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
}
