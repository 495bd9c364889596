//! Puts the layers together: starts the threads, waits for a signal, drains.

use crate::config::Config;
use crate::metrics::Metrics;

/// The peer could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {}

/// Runs until a signal ends it.
pub fn run(_config: Config, _metrics: Metrics) -> Result<(), StartError> {
    Ok(())
}
