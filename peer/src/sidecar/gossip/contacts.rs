//! Where gossip starts from: the configured nodes, all addresses of their names, and what managers tell.
//!
//! A node that is alone speaks to all of them, again and again; one that is not speaks to one after the other of those
//! it does not see, so that two halves of a cluster find each other when the network is whole again.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chitchat::ChitchatHandle;
use tokio::sync::watch;

use crate::limits::{GOSSIP_CONTACTS_MAX, GOSSIP_LOOKUP_PERIOD};

/// A name that is not found in this time is looked up again later.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The known ones.
pub(super) struct Contacts {
    me: SocketAddr,
    fixed: BTreeSet<SocketAddr>,
    names: Vec<String>,
    found: BTreeSet<SocketAddr>,
    looked_up: Option<Instant>,
    told: watch::Receiver<Vec<SocketAddr>>,
    turn: usize,
}

impl Contacts {
    /// `seeds` are addresses or names, each with a port; `told` is what managers tell.
    pub(super) fn new(seeds: &[String], me: SocketAddr, told: watch::Receiver<Vec<SocketAddr>>) -> Contacts {
        let address = |seed: &String| seed.parse::<SocketAddr>().ok();
        Contacts {
            me,
            fixed: seeds.iter().filter_map(address).collect(),
            names: seeds.iter().filter(|seed| address(seed).is_none()).cloned().collect(),
            found: BTreeSet::new(),
            looked_up: None,
            told,
            turn: 0,
        }
    }

    /// Speaks to them forever.
    pub(super) async fn keep_up(&mut self, handle: &ChitchatHandle, period: Duration) -> Infallible {
        loop {
            let seen = seen(handle).await;
            self.look_up(seen.is_empty()).await;
            for address in self.due(&seen) {
                // It fails when gossip has ended, which its owner notices.
                let _ = handle.gossip(address);
            }
            // News of a manager does not wait. The sender may be gone: then there is none.
            let news = async {
                if self.told.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let _ = tokio::time::timeout(period, news).await;
        }
    }

    async fn look_up(&mut self, alone: bool) {
        let fresh = self.looked_up.is_some_and(|at| at.elapsed() < GOSSIP_LOOKUP_PERIOD);
        if self.names.is_empty() || (fresh && !alone) {
            return;
        }
        let first = self.looked_up.is_none();
        let mut found = BTreeSet::new();
        for name in &self.names {
            match tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(name.as_str())).await {
                Ok(Ok(addresses)) => found.extend(addresses),
                Ok(Err(error)) if first => tracing::warn!(%error, "the gossip seed {name} is not found yet"),
                Err(_) if first => tracing::warn!("the gossip seed {name} is not found yet: no answer"),
                Ok(Err(_)) | Err(_) => {}
            }
        }
        // A name service that is away does not make known addresses unknown.
        if !found.is_empty() {
            self.found = found;
        }
        self.looked_up = Some(Instant::now());
    }

    /// Whom to speak to now.
    fn due(&mut self, seen: &BTreeSet<SocketAddr>) -> Vec<SocketAddr> {
        let told = self.told.borrow_and_update().clone();
        let all: BTreeSet<_> = self.fixed.iter().chain(&self.found).copied().chain(told).collect();
        let unseen: Vec<_> = all.into_iter().filter(|one| *one != self.me && !seen.contains(one)).collect();
        if seen.is_empty() || unseen.is_empty() {
            return unseen.into_iter().take(GOSSIP_CONTACTS_MAX).collect();
        }
        self.turn = (self.turn + 1) % unseen.len();
        vec![unseen[self.turn]]
    }
}

/// Gossip addresses of all others that are alive.
async fn seen(handle: &ChitchatHandle) -> BTreeSet<SocketAddr> {
    let chitchat = handle.chitchat();
    let chitchat = chitchat.lock().await;
    let me = chitchat.self_chitchat_id();
    chitchat.live_nodes().filter(|id| *id != me).map(|id| id.gossip_advertise_addr).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn who_is_alone_speaks_to_all_and_others_to_those_they_do_not_see() {
        let (tell, told) = watch::channel(vec![address(4), address(1)]);
        let seeds: Vec<String> = (1..=3).map(|port| address(port).to_string()).collect();
        let mut contacts = Contacts::new(&seeds, address(3), told);
        let nobody = BTreeSet::new();
        assert_eq!(contacts.due(&nobody), [1, 2, 4].map(address), "all but itself");
        let some = BTreeSet::from([address(2)]);
        let mut turns: Vec<_> = (0..2).flat_map(|_| contacts.due(&some)).collect();
        turns.sort();
        assert_eq!(turns, [1, 4].map(address), "one after the other");
        tell.send_replace(Vec::new());
        assert_eq!(contacts.due(&nobody), [1, 2].map(address), "what a manager no longer tells");
    }

    #[tokio::test]
    async fn a_name_stands_for_its_addresses_and_an_unknown_one_for_none() {
        let (_tell, told) = watch::channel(Vec::new());
        let seeds = ["localhost:9".to_owned(), "no-such-host.invalid:9".to_owned()];
        let mut contacts = Contacts::new(&seeds, address(3), told);
        contacts.look_up(true).await;
        assert!(contacts.due(&BTreeSet::new()).contains(&address(9)), "{:?}", contacts.found);
    }
}
