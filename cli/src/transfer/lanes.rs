//! Lanes on threads: how many threads, and which lane runs where.
//!
//! Lane 0 has a thread of its own, because it makes the first request, whose answer says how many others there will
//! be. The others share what the machine has left. Nobody waits for the threads: they end when their channels close,
//! or with the process.

use std::future::Future;
use std::io;
use std::sync::Arc;

use futures_util::future::join_all;

use crate::rt;

/// Runs lanes `1..count` of a job whose lane 0 runs already.
pub fn start_others<J, F>(job: &Arc<J>, count: usize, lane: fn(Arc<J>, usize) -> F) -> io::Result<()>
where
    J: Send + Sync + 'static,
    F: Future<Output = ()> + 'static,
{
    let threads = rt::threads_for(count).saturating_sub(1).max(1);
    for first in 1..count.min(threads + 1) {
        let job = job.clone();
        let mine = (first..count).step_by(threads);
        rt::spawn("lanes", move || async move {
            join_all(mine.map(|number| lane(job.clone(), number))).await;
        })?;
    }
    Ok(())
}
