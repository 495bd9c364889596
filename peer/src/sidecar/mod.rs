//! The sidecar: one thread with a tokio runtime for everything that is not on the data path's own executor.
//!
//! It owns the backend client ([`backend`]), which is replaced when another backend is configured, the admin listener
//! ([`admin`]: metrics and health) and membership ([`mod@gossip`]). Only modules in here may name tokio or the AWS crates. Others talk to it through a [`BackendHandle`]: closed messages in a bounded
//! mailbox, of which at most [`limits::BACKEND_REQUESTS_MAX`](crate::limits::BACKEND_REQUESTS_MAX) are being worked
//! on at once; the others wait in the mailbox and, when that is full, at their sender.
//!
//! Starting fails when an address cannot be bound or the thread cannot be made. The backend itself may be down, or not
//! known yet: a peer serves what it has.

pub mod admin;
pub mod backend;
pub mod gossip;
pub mod health;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::config::{BackendOptions, MetricsOptions};
use crate::limits::{BACKEND_REQUESTS_MAX, SIDECAR_MAILBOX};
use crate::metrics::Metrics;
use crate::rt::mailbox::{Receiver, mailbox};
use backend::configured::Configured;
use backend::handle::Call;
use backend::{Backend, BackendHandle, BackendTuning, S3Backend};
use gossip::{GossipHandle, GossipSetup};
use health::Health;

/// What the sidecar needs to know.
pub struct SidecarOptions {
    /// Which backend, and how to reach it; `None` until a manager tells.
    pub backend: Option<BackendOptions>,
    /// Membership, for a node of a cluster.
    pub cluster: Option<GossipSetup>,
    /// Times and rates of backend requests.
    pub tuning: BackendTuning,
    /// Where `/metrics`, `/healthy` and `/readyz` are served, if anywhere.
    pub admin: MetricsOptions,
    /// Counts what the backend client does, and answers `/metrics`.
    pub metrics: Metrics,
    /// Answers `/healthy` and `/readyz`; other threads change it.
    pub health: Health,
}

/// Why the sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The address of the admin listener cannot be bound.
    #[error("cannot listen on {address} for metrics: {source}. Choose another metrics.listen or stop what uses it")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address of the gossip cannot be bound.
    #[error("cannot listen on {address} (UDP) for gossip: {source}. Choose another gossip.listen or stop what uses it")]
    Gossip {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread or its runtime cannot be made.
    #[error("cannot start the sidecar thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The running thread. Dropping it stops the thread at once.
pub struct Sidecar {
    thread: Option<JoinHandle<()>>,
    stop: watch::Sender<Option<Duration>>,
    admin_address: Option<SocketAddr>,
    gossip: Option<GossipHandle>,
}

/// What is made before the thread starts, so that its failure is told to whoever starts it.
struct Parts {
    listener: Option<TcpListener>,
    gossip: Option<gossip::Bound>,
    configured: Configured,
}

impl Sidecar {
    /// Starts the thread; the handle is how everybody else reaches the backend.
    pub fn start(options: SidecarOptions) -> Result<(Sidecar, BackendHandle), SidecarError> {
        let listener = options.admin.listen.map(bind_admin).transpose()?;
        let admin_address = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let gossip = options.cluster.as_ref().map(gossip::bind).transpose()?;
        let (gossip, gossip_handle) = gossip.unzip();
        let configured = Configured::new(options.backend.clone());
        let (sender, calls) = mailbox(SIDECAR_MAILBOX);
        let backend = BackendHandle::new(sender, configured.clone());
        let (stop, stopping) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let parts = Parts { listener, gossip, configured };
        let thread = std::thread::Builder::new().name("sidecar".into()).spawn(move || {
            runtime.block_on(run(options, parts, calls, stopping));
            // A lookup of a name may hang in a blocking thread; the process does not wait for it.
            runtime.shutdown_background();
        })?;
        Ok((Sidecar { thread: Some(thread), stop, admin_address, gossip: gossip_handle }, backend))
    }

    /// The address the admin listener is bound to.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// How to speak to the gossip of a node of a cluster.
    pub fn gossip(&self) -> Option<GossipHandle> {
        self.gossip.clone()
    }

    /// Stops taking calls, lets those in work finish within `limit`, and ends the thread.
    pub fn stop(mut self, limit: Duration) {
        self.end(limit);
    }

    fn end(&mut self, limit: Duration) {
        let _ = self.stop.send(Some(limit));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the sidecar thread ended with a panic");
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

fn bind_admin(address: SocketAddr) -> Result<TcpListener, SidecarError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source| SidecarError::Listen { address, source })
}

async fn run(
    mut options: SidecarOptions,
    parts: Parts,
    calls: Receiver<Call>,
    mut stopping: watch::Receiver<Option<Duration>>,
) {
    let admin = parts
        .listener
        .map(|listener| tokio::spawn(admin::serve(listener, options.metrics.clone(), options.health.clone())));
    let gossip = options.cluster.take().zip(parts.gossip);
    let gossip = gossip.map(|(setup, bound)| tokio::spawn(gossip::run(setup, bound, options.metrics.clone())));
    let mut clients = Clients::new(&options, &parts.configured);
    let mut working = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stopping.wait_for(Option::is_some) => break,
            Some(_) = working.join_next() => {}
            () = clients.follow() => {}
            call = calls.recv(), if clients.are_ready() && working.len() < BACKEND_REQUESTS_MAX => {
                match call.zip(clients.current.clone()) {
                    Some((call, backend)) => { working.spawn(call.answer(backend)); }
                    None => break,
                }
            }
        }
    }
    drop(calls);
    let limit = stopping.borrow().unwrap_or(Duration::ZERO);
    let _ = tokio::time::timeout(limit, working.join_all().map(drop)).await;
    for task in [admin, gossip].into_iter().flatten() {
        task.abort();
    }
}

/// The client of the backend, replaced when another backend is configured.
struct Clients {
    /// New calls go here.
    current: Option<Arc<dyn Backend>>,
    changes: watch::Receiver<Option<Arc<BackendOptions>>>,
    /// The next one; making it may have to ask the environment for its region. One at most.
    making: JoinSet<S3Backend>,
    tuning: BackendTuning,
    metrics: Metrics,
    health: Health,
}

impl Clients {
    fn new(options: &SidecarOptions, configured: &Configured) -> Clients {
        options.health.set_backend_reachable(configured.is_set());
        Clients {
            current: None,
            changes: configured.changes(),
            making: JoinSet::new(),
            tuning: options.tuning.clone(),
            metrics: options.metrics.clone(),
            health: options.health.clone(),
        }
    }

    /// Whether a call may be taken: not while a client is being made, so that whoever has configured a backend reaches
    /// that one.
    fn are_ready(&self) -> bool {
        self.current.is_some() && self.making.is_empty()
    }

    /// Takes one step: notices a change, or puts the client that was made for it to use. May be dropped and called
    /// again at any time.
    async fn follow(&mut self) {
        tokio::select! {
            biased;
            Some(made) = self.making.join_next() => self.put_to_use(made),
            // The sender lives as long as somebody may call; without one nothing changes any more.
            changed = self.changes.changed() => match changed {
                Ok(()) => self.make(),
                Err(_) => std::future::pending().await,
            },
        }
    }

    fn make(&mut self) {
        let Some(options) = self.changes.borrow_and_update().clone() else { return };
        let (tuning, metrics, health) = (self.tuning.clone(), self.metrics.clone(), self.health.clone());
        self.making.abort_all();
        self.making.detach_all();
        self.making.spawn(async move { S3Backend::new(&options, tuning, metrics, health).await });
    }

    fn put_to_use(&mut self, made: Result<S3Backend, JoinError>) {
        match made {
            Ok(backend) => {
                if self.current.is_some() {
                    tracing::info!("another backend is configured and in use");
                }
                self.health.set_backend_reachable(true);
                self.current = Some(Arc::new(backend));
            }
            Err(error) => tracing::error!(%error, "cannot make a client for the configured backend"),
        }
    }
}

#[cfg(test)]
mod tests;
