//! Random histories on one peer, compared with a reference model of what clients may see (`tests/src/model`).

use anyhow::{Context, Result};
use dfstore_tests::data::Payload;
use dfstore_tests::model::answer::{Answer, Label, Shown};
use dfstore_tests::model::history::{Action, Trouble};
use dfstore_tests::model::stage::Stage;
use dfstore_tests::model::suite::Suite;
use dfstore_tests::model::world::{Outcome, Rules, World};
use dfstore_tests::scene::{ASYNC, EPHEMERAL, SYNC};

const HISTORIES: u64 = 1760;

#[test]
fn random_histories_on_one_peer_show_nothing_that_the_model_forbids() -> Result<()> {
    let command = "cargo test -p dfstore-tests --test model random_histories";
    let suite = Suite { command, stage: Stage::one, histories: HISTORIES };
    suite.run().map(|count| println!("{count} histories"))
}

/// The suite must be able to fail: this peer serves what it has cached though others have changed the bucket.
#[test]
fn a_peer_that_serves_old_versions_is_found_out_and_the_history_is_made_short() -> Result<()> {
    let suite = Suite { command: "COMMAND", stage: Stage::stale, histories: 320 };
    let history = suite.failing()?.context("nothing was found")?;
    let explanation = suite.explanation(history.clone()).context("alone it does not fail")?;
    let seed = format!("DFSTORE_TEST_SEED={} COMMAND", history.seed);
    assert!(explanation.contains(&seed) && explanation.contains("others"), "{explanation}");
    assert!(history.steps.iter().any(|step| matches!(step.action, Action::Outside { .. })), "{history}");
    Ok(())
}

const KEY: usize = 0;
const OLD: Payload = Payload { seed: 1, length: 100 };
const NEW: Payload = Payload { seed: 2, length: 100 };

/// A world in which the old version was written back, and the new one has been acknowledged after it.
fn overwritten(mode: u8) -> Result<World> {
    let mut world = World::new(Rules { immutable: false, cluster: false });
    world.put(KEY, SYNC, OLD, &Outcome::Done)?;
    world.put(KEY, mode, NEW, &Outcome::Done)?;
    Ok(world)
}

fn whole(bytes: Vec<u8>, label: Label) -> Answer {
    Answer { shown: Shown::Whole(bytes), label }
}

#[test]
fn the_model_refuses_an_older_version_a_wrong_byte_and_a_lost_write() -> Result<()> {
    let mut wrong = NEW.bytes();
    wrong[99] ^= 1;
    for (mode, label) in [(ASYNC, Label::Pending), (SYNC, Label::Other), (EPHEMERAL, Label::Other)] {
        let world = overwritten(mode)?;
        world.clone().read(KEY, false, &whole(NEW.bytes(), label))?;
        for bytes in [OLD.bytes(), wrong.clone(), NEW.range(0..99)] {
            assert!(world.clone().read(KEY, false, &whole(bytes, label)).is_err(), "mode {mode}");
        }
        for shown in [Shown::Missing, Shown::Length(99), Shown::Failed("503".to_owned())] {
            assert!(world.clone().read(KEY, false, &Answer { shown, label: Label::Other }).is_err(), "mode {mode}");
        }
        assert!(world.clone().listed(KEY, None).is_err() && world.clone().listed(KEY, Some(100)).is_ok());
    }
    Ok(())
}

#[test]
fn the_model_refuses_a_bucket_that_is_not_as_it_was_acknowledged() -> Result<()> {
    for (mode, wanted) in [(ASYNC, NEW), (SYNC, NEW), (EPHEMERAL, OLD)] {
        let mut world = overwritten(mode)?;
        world.at_rest()?;
        for content in [None, Some(OLD), Some(NEW)] {
            let fits = world.clone().bucket_seen(KEY, |bucket| bucket == content, "this").is_ok();
            assert_eq!(fits, content == Some(wanted), "mode {mode}, {content:?}");
        }
    }
    Ok(())
}

#[test]
fn the_model_refuses_failures_that_nothing_explains() -> Result<()> {
    let world = World::new(Rules { immutable: false, cluster: false });
    let failed = Outcome::Failed(503, String::new());
    for mode in [ASYNC, SYNC, EPHEMERAL] {
        assert!(world.clone().put(KEY, mode, NEW, &failed).is_err());
    }
    let mut troubled = world.clone();
    troubled.set_trouble(Trouble::WritesFail);
    assert!(troubled.clone().put(KEY, SYNC, NEW, &failed).is_ok());
    assert!(troubled.clone().put(KEY, SYNC, NEW, &Outcome::Done).is_err(), "the bucket cannot have it");
    assert!(troubled.clone().put(KEY, ASYNC, NEW, &failed).is_err(), "it needs no bucket");
    assert!(troubled.deleted(KEY, &Outcome::Done).is_err());
    Ok(())
}
