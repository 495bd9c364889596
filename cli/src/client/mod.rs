//! The client side of the native protocol: finding a peer, connecting, single requests with their retries.
//!
//! Transfers drive a [`Session`] themselves; everything else is a [`Peer::call`].

pub mod error;
mod retry;
mod session;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dfstore_proto::ids::TaskId;
use dfstore_proto::message::Message;

use crate::client::error::ClientError;
use crate::rt::{net, time};
use crate::url::Endpoint;

pub use retry::Backoff;
pub use session::Session;
use session::is_hangup;

/// A peer at a known address. Clones are cheap and may go to other threads.
#[derive(Clone)]
pub struct Peer {
    endpoint: Arc<str>,
    addresses: Arc<[SocketAddr]>,
    /// Whether it has answered a hello of this process.
    has_spoken: Arc<AtomicBool>,
}

impl Peer {
    /// Resolves the endpoint. Blocks while the resolver works.
    pub fn find(endpoint: &Endpoint) -> Result<Peer, ClientError> {
        let addresses = net::resolve(&endpoint.host, endpoint.port)
            .map_err(|cause| ClientError::Connect { endpoint: endpoint.text.clone(), cause })?;
        let has_spoken = Arc::default();
        Ok(Peer { endpoint: endpoint.text.as_str().into(), addresses: addresses.into(), has_spoken })
    }

    /// Connects and says hello. The connection goes to the shard that owns `task`.
    pub async fn connect(&self, task: Option<TaskId>) -> Result<Session, ClientError> {
        let connected = net::connect(&self.addresses).await;
        let ends = connected.map_err(|cause| ClientError::Connect { endpoint: self.endpoint.to_string(), cause })?;
        let opened = Session::open(self.endpoint.clone(), ends, task).await;
        match opened {
            Ok(session) => {
                self.has_spoken.store(true, Ordering::Relaxed);
                Ok(session)
            }
            // Whoever hangs up on a preface does not know it, unless it did before: then it is being stopped.
            Err(ClientError::Broken { endpoint, cause }) if is_hangup(&cause) && !self.has_spoken() => {
                Err(ClientError::NotNative { endpoint })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether an error is that of a peer that was never there. One that has answered before is being restarted, and
    /// may be back in a moment.
    pub fn is_absent(&self, error: &ClientError) -> bool {
        matches!(error, ClientError::Connect { .. }) && !self.has_spoken()
    }

    fn has_spoken(&self) -> bool {
        self.has_spoken.load(Ordering::Relaxed)
    }

    /// Makes one request on a connection of its own, which goes to the shard that owns `task`. What can heal is tried
    /// again, but a peer that is not there from the start is told at once.
    pub async fn call(
        &self,
        task: impl Into<Option<TaskId>>,
        message: impl Into<Message>,
    ) -> Result<Message, ClientError> {
        let (task, message) = (task.into(), message.into());
        let mut backoff = Backoff::new();
        loop {
            let error = match self.call_once(task, message.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match backoff.next(&error) {
                Some(delay) if !self.is_absent(&error) => time::sleep(delay).await,
                _ => return Err(error),
            }
        }
    }

    async fn call_once(&self, task: Option<TaskId>, message: Message) -> Result<Message, ClientError> {
        self.connect(task).await?.call(message).await
    }

    /// The error for an answer that cannot be meant.
    pub fn unexpected(&self, message: &Message) -> ClientError {
        let what = format!("unexpected {}", message.frame_type().name());
        ClientError::Protocol { endpoint: self.endpoint.to_string(), what }
    }
}
