//! Threads that run a monoio runtime: one per shard, pinned to a core.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use futures_util::FutureExt;

use crate::rt::mailbox::oneshot;

/// Entries of each shard's submission queue.
const RING_ENTRIES: u32 = 1024;

/// A running shard thread.
pub struct ShardThread(JoinHandle<io::Result<()>>);

impl ShardThread {
    /// Starts a thread named `name`, pinned to `core` when the machine has it, and runs `make()`'s future on it. The
    /// future is made on the new thread, so it may hold thread-bound state.
    pub fn start<M, F>(name: String, core: usize, make: M) -> io::Result<ShardThread>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            // Pinning is a wish: in a container with fewer cores the shard runs wherever it may.
            if let Err(error) = monoio::utils::bind_to_cpu_set([core]) {
                tracing::debug!(core, %error, "the shard is not pinned");
            }
            block_on(async move { make().await })
        })?;
        Ok(ShardThread(thread))
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        match self.0.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "a shard's runtime failed"),
            Err(_) => tracing::error!("a shard ended with a panic"),
        }
    }
}

/// Runs a future on a runtime of this thread until it ends.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    let mut runtime =
        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().with_entries(RING_ENTRIES).enable_timer().build()?;
    Ok(runtime.block_on(future))
}

/// Runs `work` on this shard as a task of its own, to its end even if the caller stops waiting.
pub async fn detached<T: 'static>(work: impl Future<Output = T> + 'static) -> T {
    let (reply, answer) = oneshot::channel();
    spawn_local(async move {
        let _ = reply.send(work.await);
    });
    answer.await.expect("a task of this shard ends before its runtime does")
}

/// Polls a future once, now; what comes back is the rest of it.
pub fn begun<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let mut work = Box::pin(work);
    let ended = work.as_mut().now_or_never();
    async move {
        match ended {
            Some(result) => result,
            None => work.await,
        }
    }
}

/// Runs a future on this shard beside the current one. Its result is dropped.
pub fn spawn_local(future: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(future));
}
