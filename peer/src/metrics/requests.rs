//! Requests of clients: counts, latency, time to first byte, in flight; also under the names that dashboards of
//! Dragonfly's object storage service use.

use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Metrics;
use super::series::{DurationHistogram, Labels, Series};

/// Which protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// The object API over HTTP.
    Http = 0,
    /// The native protocol.
    Native = 1,
}

impl Face {
    pub(super) const COUNT: usize = 2;

    /// The value of the label `face`.
    pub fn name(self) -> &'static str {
        match self {
            Face::Http => "http",
            Face::Native => "native",
        }
    }
}

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read an object or a part of it.
    Get = 0,
    /// Attributes of an object.
    Head = 1,
    /// Write an object.
    Put = 2,
    /// Copy an object.
    Copy = 3,
    /// Delete an object.
    Delete = 4,
    /// List objects.
    List = 5,
    /// Create a bucket.
    CreateBucket = 6,
    /// Facts about the backend.
    Metadata = 7,
    /// Liveness or readiness.
    Health = 8,
    /// Anything else, also what has no route.
    Other = 9,
}

impl Operation {
    const COUNT: usize = 10;

    /// The value of the label `operation`.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Head => "head",
            Operation::Put => "put",
            Operation::Copy => "copy",
            Operation::Delete => "delete",
            Operation::List => "list",
            Operation::CreateBucket => "create_bucket",
            Operation::Metadata => "metadata",
            Operation::Health => "health",
            Operation::Other => "other",
        }
    }

    /// Method, handler and collapsed URL in the words of the original's metrics.
    fn original(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Operation::Get => ("GET", "getObject", "/buckets"),
            Operation::Head => ("HEAD", "headObject", "/buckets"),
            Operation::Put => ("PUT", "putObject", "/buckets"),
            Operation::Copy => ("PUT", "copyObject", "/buckets"),
            Operation::Delete => ("DELETE", "destroyObject", "/buckets"),
            Operation::List => ("GET", "getObjectMetadatas", "/buckets"),
            Operation::CreateBucket => ("POST", "createBucket", "/buckets"),
            Operation::Metadata => ("GET", "getObjectStorageMetadata", "/metadata"),
            Operation::Health => ("GET", "getHealth", "/healthy"),
            Operation::Other => ("GET", "none", "/other"),
        }
    }
}

/// The status of a request whose client went away before it was answered, or whose body broke off.
pub const STATUS_ABORTED: u16 = 499;

/// Statuses that are counted without a lock; others are found by label.
const STATUSES: [u16; 20] =
    [200, 204, 206, 304, 400, 403, 404, 405, 408, 409, 412, 413, 416, 422, 431, STATUS_ABORTED, 500, 503, 504, 507];

/// Counters of all requests.
pub(super) struct RequestMetrics {
    host: String,
    requests: Series<Counter>,
    in_flight: Series<Gauge>,
    duration: Series<DurationHistogram>,
    first_byte: Series<DurationHistogram>,
    original_requests: Series<Counter>,
    original_duration: Series<DurationHistogram>,
}

impl RequestMetrics {
    pub(super) fn new(registry: &mut Registry, host: &str) -> RequestMetrics {
        let operations = Face::COUNT * Operation::COUNT;
        let answers = Operation::COUNT * STATUSES.len();
        RequestMetrics {
            host: host.to_owned(),
            requests: Series::new(
                registry,
                "dfstore_requests",
                "Requests answered, by face, operation and status code (499: broken off)",
                answers * Face::COUNT,
            ),
            in_flight: Series::new(registry, "dfstore_requests_in_flight", "Requests being served", Face::COUNT),
            duration: Series::new(
                registry,
                "dfstore_request_duration_seconds",
                "Time from the request head to the last byte of the answer",
                operations,
            ),
            first_byte: Series::new(
                registry,
                "dfstore_request_first_byte_seconds",
                "Time from the request head to the first byte of the answer's body",
                operations,
            ),
            original_requests: Series::new(
                registry,
                "dragonfly_dfdaemon_object_storage_requests",
                "HTTP requests, under the name Dragonfly's object storage service used",
                answers,
            ),
            original_duration: Series::new(
                registry,
                "dragonfly_dfdaemon_object_storage_request_duration_seconds",
                "HTTP request durations, under the name Dragonfly's object storage service used",
                answers,
            ),
        }
    }

    fn in_flight(&self, face: Face) -> &Gauge {
        self.in_flight.at(face as usize, || vec![("face", face.name().into())])
    }

    fn count(&self, face: Face, operation: Operation, status: u16, duration: Duration) {
        let operation_number = operation as usize;
        let labels = || vec![("face", face.name().into()), ("operation", operation.name().into())];
        let with_code = || [labels(), vec![("code", status.to_string().into())]].concat();
        self.duration.at(face as usize * Operation::COUNT + operation_number, labels).observe(duration);
        let known = STATUSES.iter().position(|code| *code == status);
        match known {
            Some(code) => {
                let answer = (face as usize * Operation::COUNT + operation_number) * STATUSES.len() + code;
                self.requests.at(answer, with_code).inc();
            }
            None => _ = self.requests.with(&with_code()).inc(),
        }
        if face == Face::Http {
            self.count_original(operation, status, known, duration);
        }
    }

    fn count_original(&self, operation: Operation, status: u16, known: Option<usize>, duration: Duration) {
        let (method, handler, url) = operation.original();
        let timed: Labels = vec![("code", status.to_string().into()), ("method", method.into()), ("url", url.into())];
        let counted =
            || [timed.clone(), vec![("handler", handler.into()), ("host", self.host.clone().into())]].concat();
        match known {
            Some(code) => {
                let answer = operation as usize * STATUSES.len() + code;
                self.original_requests.at(answer, counted).inc();
                self.original_duration.at(answer, || timed.clone()).observe(duration);
            }
            None => {
                self.original_requests.with(&counted()).inc();
                self.original_duration.with(&timed).observe(duration);
            }
        }
    }
}

/// One request being served. Dropped without [`finish`](Self::finish) it counts as broken off.
pub struct RequestTimer {
    metrics: Metrics,
    face: Face,
    operation: Operation,
    start: Instant,
    first_byte_seen: bool,
    status: u16,
}

impl RequestTimer {
    pub(super) fn start(metrics: Metrics, face: Face, operation: Operation) -> RequestTimer {
        metrics.0.requests.in_flight(face).inc();
        let start = Instant::now();
        RequestTimer { metrics, face, operation, start, first_byte_seen: false, status: STATUS_ABORTED }
    }

    /// What turned out to be asked, where the head alone does not tell.
    pub fn set_operation(&mut self, operation: Operation) {
        self.operation = operation;
    }

    /// The first byte of the answer's body is on its way. Later calls do nothing.
    pub fn first_byte(&mut self) {
        if !self.first_byte_seen {
            self.first_byte_seen = true;
            let number = self.face as usize * Operation::COUNT + self.operation as usize;
            let labels = || vec![("face", self.face.name().into()), ("operation", self.operation.name().into())];
            self.metrics.0.requests.first_byte.at(number, labels).observe(self.start.elapsed());
        }
    }

    /// The answer is complete.
    pub fn finish(mut self, status: u16) {
        self.status = status;
    }
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        let requests = &self.metrics.0.requests;
        requests.in_flight(self.face).dec();
        requests.count(self.face, self.operation, self.status, self.start.elapsed());
    }
}
