//! Random histories on one peer, compared with a reference model of what clients may see (`tests/src/model`).

use anyhow::Result;
use dfstore_tests::model::stage::Stage;
use dfstore_tests::model::suite::Suite;

const HISTORIES: u64 = 1600;

#[test]
fn random_histories_on_one_peer_show_nothing_that_the_model_forbids() -> Result<()> {
    let command = "cargo test -p dfstore-tests --test model random_histories";
    let suite = Suite { command, stage: Stage::one, histories: HISTORIES };
    suite.run(|_| Ok(())).map(|count| println!("{count} histories"))
}
