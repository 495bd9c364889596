//! The one seam to the machine: runtime, sockets, files, buffers, signals.
//!
//! Only this module names monoio, and only this module holds `unsafe` code. The runtime is io_uring where the kernel
//! allows it and epoll elsewhere. A command runs on the main thread; the connections of a transfer are spread over
//! threads with a runtime each ([`spawn`]), so that many cores can fill a fast link.

pub mod buffer;
pub mod file;
pub mod net;
pub mod signal;
pub mod time;

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

/// Operations that one runtime may have in flight before it has to submit: far above what a few connections need.
const RING_ENTRIES: u32 = 256;

/// Runs `future` to its end on a runtime of this thread.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    let builder = monoio::RuntimeBuilder::<monoio::FusionDriver>::new().with_entries(RING_ENTRIES);
    let mut runtime = builder.enable_timer().build()?;
    Ok(runtime.block_on(future))
}

/// Runs the future that `make` builds on a thread with a runtime of its own.
pub fn spawn<T, M, F>(name: &str, make: M) -> io::Result<JoinHandle<io::Result<T>>>
where
    T: Send + 'static,
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = T>,
{
    std::thread::Builder::new().name(name.to_string()).spawn(move || block_on(make()))
}

/// Threads that are worth starting for `wanted` connections.
pub fn threads_for(wanted: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    wanted.min(cores).max(1)
}

/// Runs `future` beside the current one on this thread. It goes when the runtime ends.
pub fn spawn_local<F: Future<Output = ()> + 'static>(future: F) {
    drop(monoio::spawn(future));
}
