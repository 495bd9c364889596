//! Waiting for something to become true, instead of sleeping and hoping.
//!
//! Owns one flag: a program that is told to end (the demo, at ^C) raises it, and every wait ends at once with an error.
//! A condition that does not come true in time is an error that names it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The flag that ends all waiting of this process, for a signal handler to raise.
pub fn interruption() -> Arc<AtomicBool> {
    INTERRUPTED.clone()
}

/// As a shell reports a program that ^C ended.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Raises the flag at SIGINT, SIGTERM and SIGHUP. The second one ends us at once, when cleaning up takes too long; our
/// children die with us.
pub fn heed_signals() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let interrupted = interruption();
        flag::register_conditional_shutdown(signal, i32::from(EXIT_INTERRUPTED), interrupted.clone())
            .and_then(|_| flag::register(signal, interrupted))
            .with_context(|| format!("cannot watch for signal {signal}"))?;
    }
    Ok(())
}

/// An error once the flag is up.
pub fn check_interruption() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

const POLL_FIRST: Duration = Duration::from_millis(1);
const POLL_LAST: Duration = Duration::from_millis(50);

/// Asks `condition` until it gives a value, more and more rarely; after `timeout` an error that names `what`.
pub fn eventually<T>(what: &str, timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    let mut pause = POLL_FIRST;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        check_interruption()?;
        if Instant::now() >= deadline {
            return Err(anyhow!("not within {} s: {what}", timeout.as_secs_f32()));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(POLL_LAST);
    }
}

/// Lets this much time pass. For moments that a test chooses at random, never to wait for something.
pub fn let_pass(time: Duration) {
    thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_once_there_is_one() {
        let mut asked = 0;
        let value = eventually("third try", Duration::from_secs(5), || {
            asked += 1;
            (asked == 3).then_some(asked)
        });
        assert_eq!(value.expect("in time"), 3);
    }

    #[test]
    fn names_what_did_not_happen() {
        let error = eventually("pigs fly", Duration::from_millis(5), || None::<()>).expect_err("never");
        assert!(error.to_string().contains("pigs fly"));
    }
}
