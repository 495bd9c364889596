//! Random histories on a cluster of two seeds and a peer, compared with the reference model of `tests/src/model`.

use anyhow::Result;
use dfstore_tests::model::stage::Stage;
use dfstore_tests::model::suite::Suite;

const HISTORIES: u64 = 320;

#[test]
fn random_histories_on_three_nodes_show_nothing_that_the_model_forbids() -> Result<()> {
    let command = "cargo test -p dfstore-tests --test model_cluster random_histories";
    let suite = Suite { command, stage: Stage::three, histories: HISTORIES };
    suite.run().map(|count| println!("{count} histories"))
}
