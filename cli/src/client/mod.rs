//! The client side of the native protocol: finding a peer, connecting, single requests with their retries.
//!
//! Transfers drive a [`Session`] themselves; everything else is a [`Peer::call`].

pub mod error;
mod retry;
mod session;

use std::net::SocketAddr;
use std::sync::Arc;

use dfstore_proto::ids::TaskId;
use dfstore_proto::message::Message;

use crate::client::error::ClientError;
use crate::rt::{net, time};
use crate::url::Endpoint;

pub use retry::Backoff;
pub use session::Session;

/// A peer at a known address. Clones are cheap and may go to other threads.
#[derive(Clone)]
pub struct Peer {
    endpoint: Arc<str>,
    addresses: Arc<[SocketAddr]>,
}

impl Peer {
    /// Resolves the endpoint. Blocks while the resolver works.
    pub fn find(endpoint: &Endpoint) -> Result<Peer, ClientError> {
        let addresses = net::resolve(&endpoint.host, endpoint.port)
            .map_err(|cause| ClientError::Connect { endpoint: endpoint.text.clone(), cause })?;
        Ok(Peer { endpoint: endpoint.text.as_str().into(), addresses: addresses.into() })
    }

    /// Connects and says hello. The connection goes to the shard that owns `task`.
    pub async fn connect(&self, task: Option<TaskId>) -> Result<Session, ClientError> {
        let connected = net::connect(&self.addresses).await;
        let ends = connected.map_err(|cause| ClientError::Connect { endpoint: self.endpoint.to_string(), cause })?;
        Session::open(self.endpoint.clone(), ends, task).await
    }

    /// Makes one request on a connection of its own. What can heal is tried again, except for the first connection:
    /// a peer that is not there is told at once.
    pub async fn call(&self, task: TaskId, message: impl Into<Message>) -> Result<Message, ClientError> {
        let message = message.into();
        let mut backoff = Backoff::new();
        loop {
            let error = match self.call_once(task, message.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let is_absent = matches!(error, ClientError::Connect { .. });
            match backoff.next(&error) {
                Some(delay) if !is_absent => time::sleep(delay).await,
                _ => return Err(error),
            }
        }
    }

    async fn call_once(&self, task: TaskId, message: Message) -> Result<Message, ClientError> {
        self.connect(Some(task)).await?.call(message).await
    }

    /// The error for an answer that cannot be meant.
    pub fn unexpected(&self, message: &Message) -> ClientError {
        let what = format!("unexpected {}", message.frame_type().name());
        ClientError::Protocol { endpoint: self.endpoint.to_string(), what }
    }
}
