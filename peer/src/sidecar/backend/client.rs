//! Makes the SDK's client: TLS, names, credentials, and everything automatic switched off that we do ourselves.
//!
//! Owns nothing. The SDK's retries are off (callers know what they want to try again, and a body cannot be replayed),
//! as are its checksum trailers and its own guards against stalled streams.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::default_provider::region::DefaultRegionChain;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};

use super::BackendTuning;
use super::provider::Profile;
use crate::config::BackendOptions;
use crate::limits::BACKEND_REQUESTS_MAX;

/// An idle connection is closed before the servers' usual limits close it under our hands.
const POOL_IDLE: Duration = Duration::from_secs(15);

/// The region: as configured, or from the SDK's default chain. The metadata service is asked only where AWS's own
/// endpoint depends on it.
pub(super) async fn region(options: &BackendOptions) -> String {
    let found = match (&options.region, &options.endpoint) {
        (Some(region), _) => return region.clone(),
        (None, None) => DefaultRegionChain::builder().build().region().await,
        (None, Some(_)) => EnvironmentVariableRegionProvider::new().region().await,
    };
    found.map(|region| region.to_string()).unwrap_or_default()
}

pub(super) async fn make(options: &BackendOptions, profile: &Profile, tuning: &BackendTuning) -> Client {
    let http = http_client();
    let region = Region::new(profile.region.clone());
    let timeouts = TimeoutConfig::builder().connect_timeout(tuning.connect_timeout).build();
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(credentials(options, &http, region.clone()).await)
        .region(region)
        .http_client(http)
        .force_path_style(profile.path_style)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    config.set_endpoint_url(profile.endpoint_url.clone());
    Client::from_conf(config.build())
}

fn http_client() -> SharedHttpClient {
    Builder::new()
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(BACKEND_REQUESTS_MAX)
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_with_resolver(Resolver)
}

/// The configured keys, or the default chain: environment, profile files, web identity, metadata services. The chain
/// is asked at the first request and gives up on an absent metadata service after about a second.
async fn credentials(options: &BackendOptions, http: &SharedHttpClient, region: Region) -> SharedCredentialsProvider {
    let Some(keys) = &options.credentials else {
        let environment = ProviderConfig::without_region().with_http_client(http.clone()).with_region(Some(region));
        return SharedCredentialsProvider::new(DefaultCredentialsChain::builder().configure(environment).build().await);
    };
    let token = keys.session_token.as_ref().map(|token| token.expose().to_owned());
    let (access_key, secret_key) = (keys.access_key.expose(), keys.secret_key.expose());
    SharedCredentialsProvider::new(Credentials::new(access_key, secret_key, token, None, "configuration"))
}

/// The system's resolver, except that `localhost` and everything below it is this machine, as RFC 6761 asks; not every
/// libc does that.
#[derive(Clone, Copy, Debug)]
struct Resolver;

impl ResolveDns for Resolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            if name == "localhost" || name.ends_with(".localhost") {
                return Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
            }
            let found = tokio::net::lookup_host((name, 0)).await.map_err(ResolveDnsError::new)?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}
