//! Load of several connections at once, each a thread that does the same thing over and over.
//!
//! Closed loop: a connection sends its next request when the last one is answered. For throughput, not for latency.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Lets every client do `work` `rounds` times, all at once; gives the time from the common start to the last end.
pub fn rounds<C: Send>(
    clients: &mut [C],
    rounds: u64,
    work: impl Fn(usize, &mut C) -> Result<()> + Sync,
) -> Result<Duration> {
    let start = Barrier::new(clients.len() + 1);
    thread::scope(|scope| {
        let mut threads = Vec::with_capacity(clients.len());
        for (index, client) in clients.iter_mut().enumerate() {
            let (start, work) = (&start, &work);
            threads.push(scope.spawn(move || -> Result<()> {
                start.wait();
                for _ in 0..rounds {
                    work(index, client)?;
                }
                Ok(())
            }));
        }
        start.wait();
        let started = Instant::now();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(started.elapsed())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_does_every_round() {
        let mut clients = vec![0; 5];
        rounds(&mut clients, 7, |_, count| {
            *count += 1;
            Ok(())
        })
        .expect("no client fails");
        assert_eq!(clients, [7; 5]);
    }

    #[test]
    fn failure_of_one_is_failure_of_all() {
        let failed = rounds(&mut [0, 1], 1, |index, _| if index == 1 { Err(anyhow!("oops")) } else { Ok(()) });
        assert_eq!(failed.expect_err("one fails").to_string(), "oops");
    }
}
