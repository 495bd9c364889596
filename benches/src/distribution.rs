//! The least time in which an object can reach many peers, whatever they do. Pure.

use std::time::Duration;

/// Links of a swarm, in bits per second.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// What leaves the one that has the object.
    pub seed_bits: u64,
    /// What leaves each peer.
    pub peer_bits: u64,
}

/// The larger of two bounds: each byte leaves the seed at least once, and all copies leave somebody
/// (Kumar and Ross 2006; links into peers are no narrower than those out of the seed).
pub fn swarm_bound(length_bytes: u64, peers: u64, links: Links) -> Duration {
    let bits = length_bytes as f64 * 8.0;
    let once = bits / links.seed_bits as f64;
    let copies = bits * peers as f64 / (links.seed_bits + peers * links.peer_bits) as f64;
    Duration::from_secs_f64(once.max(copies))
}

/// Every copy leaves one host.
pub fn star_bound(length_bytes: u64, peers: u64, host_bits: u64) -> Duration {
    Duration::from_secs_f64(length_bytes as f64 * 8.0 * peers as f64 / host_bits as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_narrowest_cut() {
        let even = Links { seed_bits: 200, peer_bits: 200 };
        assert_eq!(swarm_bound(250, 8, even), Duration::from_secs(10), "once out of the seed");
        let wide_seed = Links { seed_bits: 800, peer_bits: 100 };
        assert_eq!(swarm_bound(250, 8, wide_seed), Duration::from_secs(10), "eight copies out of all");
        assert_eq!(star_bound(250, 8, 200), Duration::from_secs(80));
    }
}
