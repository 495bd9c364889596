//! Random choices that a seed reproduces.
//!
//! [`seed`] takes the seed of a run from the environment or from the clock and prints it; from then on everything comes
//! out of [`Choices`], and each part of a test derives its own, so that threads do not disturb each other. What a seed
//! cannot reproduce is when the machine does what.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// Set to a number, it repeats the choices of the run that printed it.
pub const SEED_VARIABLE: &str = "DFSTORE_TEST_SEED";
/// Set to 1, tests that repeat something at random do so many more times.
const LONG_VARIABLE: &str = "DFSTORE_TEST_LONG";

/// The seed of this run, printed with the name of the test.
pub fn seed(test: &str) -> u64 {
    let given = env::var(SEED_VARIABLE).ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_nanos() % u128::from(u32::MAX)).unwrap_or_default()
    });
    eprintln!("{test}: {SEED_VARIABLE}={seed}");
    seed
}

/// Whether there is time for every case and for large transfers: `DFSTORE_TEST_LONG=1` in the environment.
pub fn is_long_run() -> bool {
    env::var(LONG_VARIABLE).is_ok_and(|value| value == "1")
}

/// How often to do something: `normal`, or `long` when the environment asks for it.
pub fn rounds(normal: u64, long: u64) -> u64 {
    if is_long_run() { long } else { normal }
}

/// A stream of choices: SplitMix64.
#[derive(Clone, Debug)]
pub struct Choices(u64);

impl Choices {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Choices {
        Choices(seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1))
    }

    /// Another stream, for one part of the test; the same one for the same number.
    pub fn derive(&self, part: u64) -> Choices {
        let mut parted = Choices(self.0 ^ part.wrapping_add(1).wrapping_mul(0xa24b_aed4_963e_e407));
        parted.number();
        Choices(parted.number())
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `end`, which is at least one.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "there is no number below zero");
        self.number() % end
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// An index into something that has so many items.
    pub fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).expect("an index")
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.index(all.len())]
    }

    /// These in another order.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_choices_and_parts_differ() {
        let take = |mut choices: Choices| (0..8).map(|_| choices.below(1000)).collect::<Vec<_>>();
        let root = Choices::new(7);
        assert_eq!(take(root.derive(1)), take(Choices::new(7).derive(1)));
        assert_ne!(take(root.derive(1)), take(root.derive(2)));
        assert_ne!(take(Choices::new(7)), take(Choices::new(8)));
    }

    #[test]
    fn a_shuffle_keeps_everything() {
        let mut all: Vec<u64> = (0..50).collect();
        Choices::new(3).shuffle(&mut all);
        assert_ne!(all, (0..50).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
