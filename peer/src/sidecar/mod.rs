//! The sidecar: one thread with a tokio runtime for everything that is not on the data path's own executor.
//!
//! It owns the backend client ([`backend`]) and the admin listener ([`admin`]: metrics and health). Only modules in
//! here may name tokio or the AWS crates. Others talk to it through a [`BackendHandle`]: closed messages in a bounded
//! mailbox, of which at most [`limits::BACKEND_REQUESTS_MAX`](crate::limits::BACKEND_REQUESTS_MAX) are being worked
//! on at once; the others wait in the mailbox and, when that is full, at their sender.
//!
//! Starting fails when the admin address cannot be bound or the thread cannot be made. The backend itself may be
//! down: a peer serves what it has.

pub mod admin;
pub mod backend;
pub mod health;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{BackendOptions, MetricsOptions};
use crate::limits::{BACKEND_REQUESTS_MAX, SIDECAR_MAILBOX};
use crate::metrics::Metrics;
use crate::rt::mailbox::{Receiver, mailbox};
use backend::handle::Call;
use backend::{Backend, BackendHandle, BackendTuning};
use health::Health;

/// What the sidecar needs to know.
pub struct SidecarOptions {
    /// Which backend, and how to reach it.
    pub backend: BackendOptions,
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
    /// The thread or its runtime cannot be made.
    #[error("cannot start the sidecar thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The running thread. Dropping it stops the thread at once.
pub struct Sidecar {
    thread: Option<JoinHandle<()>>,
    stop: watch::Sender<Option<Duration>>,
    admin_address: Option<SocketAddr>,
}

impl Sidecar {
    /// Starts the thread; the handle is how everybody else reaches the backend.
    pub fn start(options: SidecarOptions) -> Result<(Sidecar, BackendHandle), SidecarError> {
        let listener = options.admin.listen.map(bind_admin).transpose()?;
        let admin_address = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let (sender, calls) = mailbox(SIDECAR_MAILBOX);
        let (stop, stopping) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("sidecar".into()).spawn(move || {
            runtime.block_on(run(options, listener, calls, stopping));
            // A lookup of a name may hang in a blocking thread; the process does not wait for it.
            runtime.shutdown_background();
        })?;
        Ok((Sidecar { thread: Some(thread), stop, admin_address }, BackendHandle::new(sender)))
    }

    /// The address the admin listener is bound to.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
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
    options: SidecarOptions,
    listener: Option<TcpListener>,
    calls: Receiver<Call>,
    mut stopping: watch::Receiver<Option<Duration>>,
) {
    let admin =
        listener.map(|listener| tokio::spawn(admin::serve(listener, options.metrics.clone(), options.health.clone())));
    let backend: Arc<dyn Backend> =
        Arc::new(backend::S3Backend::new(&options.backend, options.tuning, options.metrics, options.health).await);
    let mut working = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stopping.wait_for(Option::is_some) => break,
            Some(_) = working.join_next() => {}
            call = calls.recv(), if working.len() < BACKEND_REQUESTS_MAX => match call {
                Some(call) => { working.spawn(call.answer(backend.clone())); }
                None => break,
            },
        }
    }
    drop(calls);
    let limit = stopping.borrow().unwrap_or(Duration::ZERO);
    let _ = tokio::time::timeout(limit, working.join_all().map(drop)).await;
    if let Some(admin) = admin {
        admin.abort();
    }
}

#[cfg(test)]
mod tests;
