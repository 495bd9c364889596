//! A backend's configuration as a manager gives it to peers over the native protocol, and back.
//!
//! What arrives passes the same rules as a file: a manager may be older, newer or wrong.

use dfstore_proto::message::{BackendConfig, Token};

use super::object_storage::{endpoint_url, provider, region_name};
use super::options::{BackendOptions, Credentials, Provider};
use super::secret::Secret;
use super::units;

/// What a manager gave is no backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendConfigError {
    /// A field has a value that a file could not have. Its value is not repeated: it may be a secret.
    #[error("the manager's \"{key}\" is not valid: {allowed}")]
    Field {
        /// The key of section `objectStorage` that stands for it.
        key: &'static str,
        /// What is allowed.
        allowed: String,
    },
    /// One key without the other.
    #[error("the manager gave one of accessKey and secretKey without the other")]
    Keys,
    /// OSS without a place.
    #[error("the manager gave neither region nor endpoint, and oss needs one")]
    Place,
}

impl BackendConfigError {
    /// The same answer is as wrong the next time.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

impl From<&BackendOptions> for BackendConfig {
    fn from(options: &BackendOptions) -> BackendConfig {
        let token = |secret: Option<&Secret>| Token::new(secret.map(Secret::expose).unwrap_or_default());
        let keys = options.credentials.as_ref();
        BackendConfig {
            provider: options.provider.name().to_owned(),
            region: options.region.clone().unwrap_or_default(),
            endpoint: options.endpoint.clone().unwrap_or_default(),
            access_key: token(keys.map(|keys| &keys.access_key)),
            secret_key: token(keys.map(|keys| &keys.secret_key)),
            session_token: token(keys.and_then(|keys| keys.session_token.as_ref())),
            path_style: options.path_style,
        }
    }
}

impl TryFrom<&BackendConfig> for BackendOptions {
    type Error = BackendConfigError;

    fn try_from(config: &BackendConfig) -> Result<BackendOptions, BackendConfigError> {
        let provider = provider(&config.provider).map_err(field("name"))?;
        let region = given(&config.region).map(region_name).transpose().map_err(field("region"))?;
        let endpoint = given(&config.endpoint).map(endpoint_url).transpose().map_err(field("endpoint"))?;
        if provider == Provider::Oss && region.is_none() && endpoint.is_none() {
            return Err(BackendConfigError::Place);
        }
        Ok(BackendOptions {
            provider,
            region,
            endpoint,
            credentials: credentials(config)?,
            path_style: provider == Provider::S3 && config.path_style,
        })
    }
}

fn credentials(config: &BackendConfig) -> Result<Option<Credentials>, BackendConfigError> {
    let secret = |key, token: &Token| given(token.reveal()).map(units::secret).transpose().map_err(field(key));
    let session_token = secret("sessionToken", &config.session_token)?;
    match (secret("accessKey", &config.access_key)?, secret("secretKey", &config.secret_key)?) {
        (Some(access_key), Some(secret_key)) => Ok(Some(Credentials { access_key, secret_key, session_token })),
        (None, None) if session_token.is_none() => Ok(None),
        _ => Err(BackendConfigError::Keys),
    }
}

fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn field(key: &'static str) -> impl Fn(String) -> BackendConfigError {
    move |allowed| BackendConfigError::Field { key, allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> BackendOptions {
        BackendOptions {
            provider: Provider::S3,
            region: Some("us-east-1".into()),
            endpoint: Some("http://127.0.0.1:8333".into()),
            credentials: Some(Credentials {
                access_key: Secret::new("key"),
                secret_key: Secret::new("secret"),
                session_token: Some(Secret::new("session")),
            }),
            path_style: true,
        }
    }

    #[test]
    fn what_a_manager_gives_is_what_it_has() {
        let bare = BackendOptions { region: None, endpoint: None, credentials: None, path_style: false, ..options() };
        let region = Some("cn-hangzhou".into());
        let oss = BackendOptions { provider: Provider::Oss, region, path_style: false, ..options() };
        for options in [options(), bare, oss] {
            assert_eq!(BackendOptions::try_from(&BackendConfig::from(&options)), Ok(options));
        }
    }

    #[test]
    fn what_no_file_could_say_is_refused_without_repeating_it() {
        let good = BackendConfig::from(&options());
        let wrong = [
            BackendConfig { provider: "canary".into(), ..good.clone() },
            BackendConfig { region: "canary canary".into(), ..good.clone() },
            BackendConfig { endpoint: "http://user:canary@host".into(), ..good.clone() },
            BackendConfig { secret_key: Token::new("canary\n"), ..good.clone() },
            BackendConfig { secret_key: Token::default(), ..good.clone() },
            BackendConfig { access_key: Token::default(), secret_key: Token::default(), ..good.clone() },
            BackendConfig { provider: "oss".into(), region: String::new(), endpoint: String::new(), ..good },
        ];
        for config in wrong {
            let error = BackendOptions::try_from(&config).expect_err("refused");
            assert!(!error.to_string().contains("canary") && !error.is_retryable(), "{error}");
        }
    }
}
