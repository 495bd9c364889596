//! Nodes that could not be reached a moment ago: they are left alone, so that a dead one does not cost each request
//! the time it takes to find that out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use crate::limits::{LINK_PAUSE, LINK_PAUSES_MAX};
use crate::links::LinkError;

/// What failed lately, by address.
#[derive(Default)]
pub(super) struct Pauses(RefCell<HashMap<SocketAddr, Failure>>);

struct Failure {
    until: Instant,
    error: LinkError,
    /// Whether a person was told.
    told: bool,
}

impl Pauses {
    /// The failure of a moment ago, if there was one.
    pub fn check(&self, address: SocketAddr) -> Result<(), LinkError> {
        match self.0.borrow().get(&address) {
            Some(failure) if Instant::now() < failure.until => Err(failure.error.clone()),
            _ => Ok(()),
        }
    }

    /// Remembers a failure. What a person has to mend is logged, once until the address is reached again.
    pub fn note(&self, address: SocketAddr, error: &LinkError) {
        if matches!(error, LinkError::ShuttingDown) {
            return;
        }
        let mut failures = self.0.borrow_mut();
        let mut told = failures.get(&address).is_some_and(|failure| failure.told);
        if !told && matches!(error, LinkError::Rejected { .. } | LinkError::Protocol { .. }) {
            told = true;
            tracing::warn!(%address, %error, "another peer cannot be talked to");
        } else {
            tracing::debug!(%address, %error, "another peer cannot be reached");
        }
        let now = Instant::now();
        if failures.len() >= LINK_PAUSES_MAX {
            failures.retain(|_, failure| now < failure.until);
        }
        if failures.len() < LINK_PAUSES_MAX {
            failures.insert(address, Failure { until: now + LINK_PAUSE, error: error.clone(), told });
        }
    }

    /// The address was reached.
    pub fn clear(&self, address: SocketAddr) {
        self.0.borrow_mut().remove(&address);
    }

    /// Forgets failures that are over, of addresses of which nobody lives any more.
    pub fn keep(&self, lives: impl Fn(&SocketAddr) -> bool) {
        let now = Instant::now();
        self.0.borrow_mut().retain(|address, failure| now < failure.until || lives(address));
    }
}
