//! What a manager tells peers that have no configuration of their own: how to reach the backend and other nodes.

use serde::{Deserialize, Serialize};

use crate::error::FieldError;
use crate::limits::{
    ADDRESS_BYTES_MAX, ATTRIBUTE_BYTES_MAX, BOOTSTRAP_MAX, NAME_BYTES_MAX, SESSION_TOKEN_BYTES_MAX, TOKEN_BYTES_MAX,
};
use crate::message::{Bounded, Token};
use crate::wire::{self, at_most, filled, number_at_most};

/// Asks a manager for the backend's configuration. Answered with CONFIG.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetConfig {}

impl Bounded for GetConfig {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// How to reach the backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendConfig {
    /// `s3` or `oss`.
    pub provider: String,
    /// Region; empty when not configured.
    pub region: String,
    /// URL; empty when not configured.
    pub endpoint: String,
    /// Access key ID; empty leaves it to the peer's own environment.
    pub access_key: Token,
    /// Secret access key.
    pub secret_key: Token,
    /// Session token of temporary credentials; empty for none.
    pub session_token: Token,
    /// Address buckets as a part of the path.
    pub path_style: bool,
}

impl BackendConfig {
    fn check(&self) -> Result<(), FieldError> {
        filled("provider", &self.provider, NAME_BYTES_MAX)?;
        at_most("region", &self.region, NAME_BYTES_MAX)?;
        at_most("endpoint", &self.endpoint, ATTRIBUTE_BYTES_MAX)?;
        at_most("access_key", self.access_key.reveal(), TOKEN_BYTES_MAX)?;
        at_most("secret_key", self.secret_key.reveal(), TOKEN_BYTES_MAX)?;
        at_most("session_token", self.session_token.reveal(), SESSION_TOKEN_BYTES_MAX)
    }
}

/// Answers GET_CONFIG.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigOk {
    /// How to reach the backend.
    pub backend: BackendConfig,
    /// Gossip addresses (`ip:port`) of nodes that are alive.
    #[serde(deserialize_with = "wire::bounded::<_, _, BOOTSTRAP_MAX>")]
    pub bootstrap: Vec<String>,
}

impl Bounded for ConfigOk {
    fn check(&self) -> Result<(), FieldError> {
        self.backend.check()?;
        number_at_most("bootstrap", self.bootstrap.len() as u64, BOOTSTRAP_MAX as u64)?;
        self.bootstrap.iter().try_for_each(|address| filled("bootstrap", address, ADDRESS_BYTES_MAX))
    }
}
