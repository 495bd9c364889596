//! Which backend, and how to reach it: the options of this component, made once from the configuration.
//!
//! Owns plain values only. `Debug` never shows a secret.

use std::fmt;
use std::time::Duration;

/// Which provider's dialect of S3 the backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderName {
    /// AWS S3 and everything compatible with it.
    S3,
    /// Alibaba Cloud OSS through its S3-compatible endpoint.
    Oss,
}

impl ProviderName {
    /// The name in the configuration and in the answer of `/metadata`.
    pub fn as_str(self) -> &'static str {
        match self {
            ProviderName::S3 => "s3",
            ProviderName::Oss => "oss",
        }
    }
}

/// The backend's part of the configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct BackendOptions {
    /// The provider.
    pub name: ProviderName,
    /// Region, empty for `us-east-1`.
    pub region: String,
    /// URL of the endpoint; empty for AWS's own (or OSS's of the region). Without a scheme, `https://` is meant.
    pub endpoint: String,
    /// Access key. When this and the secret key are empty, the SDK's default chain is asked.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Session token of temporary credentials, or empty.
    pub session_token: String,
    /// Whether the bucket is in the path instead of in the host name. OSS refuses that, so it is ignored there.
    pub path_style: bool,
    /// Times and rates.
    pub tuning: BackendTuning,
}

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
    /// How often a request that only reads is tried in all, when the backend fails in a way that may pass at once
    /// (connection lost, 5xx, short body).
    pub read_attempts: u32,
    /// Pause before the second try; doubled before each further one.
    pub read_retry_pause: Duration,
}

impl Default for BackendTuning {
    fn default() -> Self {
        BackendTuning {
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(30),
            server_work_timeout: Duration::from_secs(300),
            body_window: Duration::from_secs(30),
            body_window_bytes: 64 << 10,
            read_attempts: 3,
            read_retry_pause: Duration::from_millis(50),
        }
    }
}

impl BackendOptions {
    /// Says what makes these options unusable.
    pub fn check(&self) -> Result<(), String> {
        if self.access_key.is_empty() != self.secret_key.is_empty() {
            return Err("accessKey and secretKey go together: give both, or neither for the default chain".into());
        }
        if self.name == ProviderName::Oss && self.endpoint.is_empty() && self.region.is_empty() {
            return Err("oss needs an endpoint or a region".into());
        }
        let url = super::provider::endpoint_url(self);
        if let Some(url) = url {
            let uri: http::Uri = url.parse().map_err(|error| format!("endpoint {url:?} is not a URL: {error}"))?;
            if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
                return Err(format!("endpoint {url:?} is not an http or https URL"));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for BackendOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendOptions")
            .field("name", &self.name)
            .field("region", &self.region)
            .field("endpoint", &self.endpoint)
            .field("has_keys", &!self.access_key.is_empty())
            .field("has_session_token", &!self.session_token.is_empty())
            .field("path_style", &self.path_style)
            .field("tuning", &self.tuning)
            .finish()
    }
}
