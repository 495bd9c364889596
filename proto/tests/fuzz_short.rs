//! A short run of the code behind the fuzz targets: seeds from the corpus, seeds with a flipped byte, random bytes.

use std::path::Path;

use proptest::prelude::{ProptestConfig, any, proptest};

#[path = "../fuzz/src/lib.rs"]
mod checks;

/// Every file of a corpus.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| std::fs::read(entry.expect("a seed").path()).expect("a seed can be read")).collect()
}

#[test]
fn seeds_keep_every_promise_whole_and_damaged() {
    let decoder = seeds("decoder");
    assert!(decoder.len() > 30, "the golden frames are the corpus");
    for seed in decoder {
        checks::decoder::check(&seed);
        for index in 0..seed.len() {
            let mut damaged = seed.clone();
            damaged[index] ^= 0x41;
            checks::decoder::check(&damaged);
            checks::decoder::check(&seed[..index]);
        }
    }
    for seed in seeds("session") {
        checks::session::check(&seed);
        checks::pair::check(&seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_break_decoder_or_session(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        checks::decoder::check(&data);
        checks::session::check(&data);
    }

    #[test]
    fn random_conversations_never_break_a_pair(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        checks::pair::check(&data);
    }
}
