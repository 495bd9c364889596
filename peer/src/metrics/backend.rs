//! Requests to the backend, by operation and outcome.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::series::{DurationHistogram, Series};

/// What the backend was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendOperation {
    /// Attributes of an object.
    Head = 0,
    /// Read a range of an object.
    Get = 1,
    /// Write an object in one request.
    Put = 2,
    /// Begin a multipart upload.
    CreateUpload = 3,
    /// Send a part.
    UploadPart = 4,
    /// Which parts are there.
    ListParts = 5,
    /// Finish a multipart upload.
    CompleteUpload = 6,
    /// Give up a multipart upload.
    AbortUpload = 7,
    /// Copy an object.
    Copy = 8,
    /// Delete an object.
    Delete = 9,
    /// List objects.
    List = 10,
    /// Create a bucket.
    CreateBucket = 11,
    /// Whether a bucket is there.
    HeadBucket = 12,
    /// Which multipart uploads are in progress.
    ListUploads = 13,
}

impl BackendOperation {
    const COUNT: usize = 14;

    /// The value of the label `operation`.
    pub fn name(self) -> &'static str {
        match self {
            BackendOperation::Head => "head",
            BackendOperation::Get => "get",
            BackendOperation::Put => "put",
            BackendOperation::CreateUpload => "create_upload",
            BackendOperation::UploadPart => "upload_part",
            BackendOperation::ListParts => "list_parts",
            BackendOperation::CompleteUpload => "complete_upload",
            BackendOperation::AbortUpload => "abort_upload",
            BackendOperation::Copy => "copy",
            BackendOperation::Delete => "delete",
            BackendOperation::List => "list",
            BackendOperation::CreateBucket => "create_bucket",
            BackendOperation::HeadBucket => "head_bucket",
            BackendOperation::ListUploads => "list_uploads",
        }
    }
}

/// How a backend request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendOutcome {
    /// As asked.
    Ok = 0,
    /// No such object, bucket or upload.
    NotFound = 1,
    /// A condition such as `If-Match` did not hold.
    Precondition = 2,
    /// Access denied, wrong keys, clock skew.
    Denied = 3,
    /// 429, 503, SlowDown.
    Throttled = 4,
    /// Another 5xx.
    ServerError = 5,
    /// No connection, or it broke.
    Network = 6,
    /// No answer or too slow a body.
    Timeout = 7,
    /// An answer that contradicts the request: wrong length, range or checksum.
    Corrupt = 8,
    /// Anything else.
    Other = 9,
}

impl BackendOutcome {
    const COUNT: usize = 10;

    /// The value of the label `outcome`.
    pub fn name(self) -> &'static str {
        match self {
            BackendOutcome::Ok => "ok",
            BackendOutcome::NotFound => "not_found",
            BackendOutcome::Precondition => "precondition",
            BackendOutcome::Denied => "denied",
            BackendOutcome::Throttled => "throttled",
            BackendOutcome::ServerError => "server_error",
            BackendOutcome::Network => "network",
            BackendOutcome::Timeout => "timeout",
            BackendOutcome::Corrupt => "corrupt",
            BackendOutcome::Other => "other",
        }
    }
}

/// Counters of the backend client.
pub(super) struct BackendMetrics {
    requests: Series<Counter>,
    duration: Series<DurationHistogram>,
    pub(super) received_bytes: Counter,
    pub(super) sent_bytes: Counter,
    pub(super) in_flight: Gauge,
    pub(super) retries: Counter,
}

impl BackendMetrics {
    pub(super) fn new(registry: &mut Registry) -> BackendMetrics {
        let metrics = BackendMetrics {
            requests: Series::new(
                registry,
                "dfstore_backend_requests",
                "Requests to the backend, by operation and outcome",
                BackendOperation::COUNT * BackendOutcome::COUNT,
            ),
            duration: Series::new(
                registry,
                "dfstore_backend_request_duration_seconds",
                "Time of a backend request, its body included",
                BackendOperation::COUNT,
            ),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            in_flight: Gauge::default(),
            retries: Counter::default(),
        };
        let received = metrics.received_bytes.clone();
        registry.register("dfstore_backend_received_bytes", "Object bytes read from the backend", received);
        registry.register("dfstore_backend_sent_bytes", "Object bytes sent to the backend", metrics.sent_bytes.clone());
        registry.register("dfstore_backend_requests_in_flight", "Backend requests open", metrics.in_flight.clone());
        registry.register("dfstore_backend_retries", "Backend requests made again", metrics.retries.clone());
        metrics
    }

    pub(super) fn count(&self, operation: BackendOperation, outcome: BackendOutcome, duration: Duration) {
        let labels = || vec![("operation", operation.name().into())];
        self.duration.at(operation as usize, labels).observe(duration);
        let number = operation as usize * BackendOutcome::COUNT + outcome as usize;
        self.requests.at(number, || [labels(), vec![("outcome", outcome.name().into())]].concat()).inc();
    }
}
