//! Many histories at once, and what to say about one that fails.
//!
//! A round plays one history in each bucket, side by side on a few threads, with the same restart in the middle of all.
//! Then every trouble ends, the nodes are started again, and what is left is compared. A history that fails is played
//! again alone, shorter and shorter, and printed with the way to run it.

use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::choices::{SEED_VARIABLE, is_long_run};
use crate::model::history::{Action, History, Step};
use crate::model::run::Play;
use crate::model::stage::{Ending, PLACES, Stage, place_of};

const LONG_FACTOR: u64 = 10;
/// Histories that are played at the same time; most of them wait for a disk or a backend.
const THREADS: usize = 64;
/// Times that a single history is played to find what goes wrong with it.
const REPEATS: usize = 3;
/// Time to make it shorter.
const SHRINKING_TIME: Duration = Duration::from_secs(60);

/// What is played, and on what.
pub struct Suite {
    /// How it is run again, such as `cargo test -p dfstore-tests --test model NAME`.
    pub command: &'static str,
    /// Makes the processes.
    pub stage: fn() -> Result<Stage>,
    /// How many histories.
    pub histories: u64,
}

impl Suite {
    /// Plays all histories; gives how many they were. With a seed in the environment, that history alone.
    pub fn run(&self) -> Result<u64> {
        if let Ok(seed) = env::var(SEED_VARIABLE) {
            let seed = seed.parse().with_context(|| format!("{SEED_VARIABLE}={seed}"))?;
            return self.explain(History::new(seed)).map_or(Ok(1), Err);
        }
        let factor = if is_long_run() { LONG_FACTOR } else { 1 };
        let count = self.histories * factor;
        let mut stage = (self.stage)()?;
        for (number, round) in rounds(count) {
            if let Err(Failed { history, error }) = play_histories(&mut stage, round, number) {
                eprintln!("history {} of round {number}: {error:#}\n{history}", history.seed);
                let alone = self.explain(history.clone());
                let alone =
                    alone.unwrap_or_else(|| anyhow!("alone it does not fail: it takes the others of its round"));
                bail!("history {} of round {number} fails: {error:#}\n{history}\n{alone:#}", history.seed);
            }
        }
        Ok(count)
    }

    /// The first history that fails, for a stage on which some must.
    pub fn failing(&self) -> Result<Option<History>> {
        let mut stage = (self.stage)()?;
        Ok(rounds(self.histories)
            .find_map(|(number, round)| play_histories(&mut stage, round, number).err().map(|failed| failed.history)))
    }

    /// As it is said of a history that fails; `None` when it does not fail alone.
    pub fn explanation(&self, history: History) -> Option<String> {
        self.explain(history).map(|error| format!("{error:#}"))
    }

    /// Plays a history alone until it fails, and makes it short; `None` when it does not fail.
    fn explain(&self, history: History) -> Option<anyhow::Error> {
        let (mut history, mut error) = (history.clone(), self.failure_of(&history)?);
        let (started, mut at) = (Instant::now(), 0);
        while at < history.steps.len() && started.elapsed() < SHRINKING_TIME {
            let mut shorter = history.clone();
            shorter.steps.remove(at);
            match self.failure_of(&shorter) {
                Some(found) => (history, error) = (shorter, found),
                None => at += 1,
            }
        }
        let seed = history.seed;
        let command = self.command;
        Some(anyhow!("{error:#}\nthe shortest history that fails:\n{history}run it: {SEED_VARIABLE}={seed} {command}"))
    }

    fn failure_of(&self, history: &History) -> Option<anyhow::Error> {
        let attempt = || -> Result<()> {
            let mut stage = (self.stage)()?;
            for repeat in 0..REPEATS {
                let (round, place) = replay_of(history.seed, repeat);
                play_histories(&mut stage, vec![(place, history.clone())], round).map_err(|failed| failed.error)?;
            }
            Ok(())
        };
        attempt().err()
    }
}

/// The round and the place in which a seed is played alone: whatever depends on them is as it is among others.
fn replay_of(seed: u64, repeat: usize) -> (usize, usize) {
    (usize::try_from(seed).unwrap_or(0) / PLACES, place_of(seed, repeat))
}

/// Histories with the places they are played in, by round.
fn rounds(count: u64) -> impl Iterator<Item = (usize, Vec<(usize, History)>)> {
    let seeds: Vec<u64> = (0..count).collect();
    let rounds: Vec<Vec<u64>> = seeds.chunks(PLACES).map(<[u64]>::to_vec).collect();
    rounds.into_iter().enumerate().map(|(number, round)| {
        (number, round.into_iter().map(|seed| (place_of(seed, 0), History::new(seed))).collect())
    })
}

/// A history that did not end well.
struct Failed {
    history: History,
    error: anyhow::Error,
}

/// Plays histories, each in its place.
fn play_histories(stage: &mut Stage, histories: Vec<(usize, History)>, round: usize) -> Result<(), Failed> {
    let (middle, end) =
        if round.is_multiple_of(2) { (Ending::Kill, Ending::Terminate) } else { (Ending::Terminate, Ending::Kill) };
    let mut plays: Vec<Play> =
        histories.into_iter().map(|(place, history)| Play::new(history, place, stage, middle)).collect();
    let first = plays[0].history.clone();
    let of_stage = |error: anyhow::Error| Failed { history: first.clone(), error };
    each(stage, &mut plays, Play::play_part)?;
    plays.iter_mut().for_each(Play::before_restart);
    stage.restart(round, middle).map_err(of_stage)?;
    plays.iter_mut().for_each(Play::after_restart);
    each(stage, &mut plays, |play, stage| {
        play.play_part(stage)?;
        play.end_trouble(stage)
    })?;
    plays.iter_mut().for_each(Play::before_restart);
    stage.restart_all(end).map_err(of_stage)?;
    let census = stage.census().map_err(of_stage)?;
    plays.iter_mut().for_each(Play::after_restart);
    each(stage, &mut plays, Play::check_at_rest)?;
    plays.iter_mut().for_each(Play::before_restart);
    stage.backend().map_err(of_stage)?.forget();
    stage.check_census(&census).map_err(of_stage)
}

/// Does the same with all plays, several at a time; the first that fails ends it.
fn each(
    stage: &Stage,
    plays: &mut [Play],
    work: impl Fn(&mut Play, &Stage) -> Result<()> + Sync,
) -> Result<(), Failed> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let plays: Vec<Mutex<&mut Play>> = plays.iter_mut().map(Mutex::new).collect();
    let work_off = || {
        while let Some(play) = plays.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Nobody else has this play.
            let Ok(mut play) = play.lock() else { return };
            if let Err(error) = work(&mut play, stage) {
                next.store(plays.len(), Ordering::Relaxed);
                let mut first = failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                first.get_or_insert(Failed { history: play.history.clone(), error });
            }
        }
    };
    thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work_off))));
    failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).map_or(Ok(()), Err)
}

/// A history that is written down, for a named regression test: played a few times, alone.
pub fn play_steps(stage: fn() -> Result<Stage>, steps: Vec<Step>) -> Result<()> {
    assert!(steps.iter().filter(|step| step.action == Action::Restart).count() <= 1, "one restart at most");
    let suite = Suite { command: "", stage, histories: 1 };
    suite.failure_of(&History { seed: 0, steps }).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::stage::is_immutable;

    #[test]
    fn a_seed_alone_is_played_as_it_is_among_others() {
        let (mut classes, mut seeds) = (BTreeSet::new(), 0..);
        for (round, histories) in rounds(2 * PLACES as u64 + 7) {
            let mut places = BTreeSet::new();
            for (place, history) in histories {
                assert!(places.insert(place), "two histories in place {place}");
                assert_eq!(Some(history.seed), seeds.next());
                for repeat in 0..REPEATS {
                    let (alone_in, at) = replay_of(history.seed, repeat);
                    assert_eq!((alone_in, is_immutable(at)), (round, is_immutable(place)), "seed {}", history.seed);
                    classes.insert(is_immutable(at));
                }
                assert_ne!(replay_of(history.seed, 0), replay_of(history.seed, 1), "each repeat has a new bucket");
            }
        }
        assert_eq!(classes.len(), 2, "both kinds of buckets are played");
    }
}
