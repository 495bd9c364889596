//! Timers of the runtime of this thread.

use std::future::Future;
use std::time::Duration;

/// The time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// Waits for `duration`.
pub async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}

/// Waits for `future`, at most for `duration`. The future is dropped when time runs out, and with it whatever it was
/// receiving: the connection is of no use afterwards.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    monoio::time::timeout(duration, future).await.map_err(|_| Elapsed)
}
