//! Times and rates of backend requests. Which backend it is comes from [`crate::config::BackendOptions`].

use std::time::Duration;

/// Times and rates of backend requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTuning {
    /// A connection must stand within this time.
    pub connect_timeout: Duration,
    /// The head of the answer must arrive within this time after the request's body was sent.
    pub first_byte_timeout: Duration,
    /// The same for requests that make the backend copy data: completing an upload and copying an object.
    pub server_work_timeout: Duration,
    /// A body must move at least [`body_window_bytes`](Self::body_window_bytes) in each window of this length.
    pub body_window: Duration,
    /// See [`body_window`](Self::body_window).
    pub body_window_bytes: u64,
    /// How often a request that may be done twice is tried in all, when the backend fails in a way that may pass at once
    /// (connection lost, 5xx, short body): reads, copies and deletions. Writes are tried again by who has their bytes.
    pub attempts: u32,
    /// Pause before the second try; doubled before each further one.
    pub retry_pause: Duration,
}

impl Default for BackendTuning {
    fn default() -> Self {
        BackendTuning {
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(30),
            server_work_timeout: Duration::from_secs(300),
            body_window: Duration::from_secs(30),
            body_window_bytes: 64 << 10,
            attempts: 3,
            retry_pause: Duration::from_millis(50),
        }
    }
}
