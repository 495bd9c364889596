//! The progress bar: on standard error, only on a terminal, never in the way of the data.
//!
//! Cannot fail: a terminal that goes away is ignored.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar is drawn at most.
const DRAWS_PER_SECOND: u8 = 10;
/// The bar moves on, with its speed and remaining time, even when no byte arrives.
const TICK: Duration = Duration::from_millis(250);

const TEMPLATE_KNOWN: &str =
    "{prefix} [{bar:32}] {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}";
const TEMPLATE_UNKNOWN: &str = "{prefix} {spinner} {binary_bytes} {binary_bytes_per_sec}";

/// What a transfer shows of itself.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar named `what` for `total_bytes`, or for an unknown number of bytes; hidden unless `wanted`.
    pub fn new(wanted: bool, what: &str, total_bytes: Option<u64>) -> Progress {
        if !wanted || !std::io::stderr().is_terminal() {
            return Progress(ProgressBar::hidden());
        }
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
        let bar = ProgressBar::with_draw_target(total_bytes, target).with_prefix(what.to_string());
        let template = if total_bytes.is_some() { TEMPLATE_KNOWN } else { TEMPLATE_UNKNOWN };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant and is tested"));
        bar.enable_steady_tick(TICK);
        Progress(bar)
    }

    /// Says something on standard error, above the bar.
    pub fn note(&self, line: impl Display) {
        self.0.suspend(|| {
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        });
    }

    /// Adds transferred bytes.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    /// Takes the bar away, so that what follows stands alone.
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [TEMPLATE_KNOWN, TEMPLATE_UNKNOWN] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
