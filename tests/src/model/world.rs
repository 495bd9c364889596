//! The model: for each key every state that may be behind what clients have seen so far.
//!
//! A state is what the peers hold of an object and what the bucket has. Some changes happen in the background (a
//! write-back, a deletion that is carried out), some requests may or may not have had an effect (the answer was lost).
//! So the model keeps a set of states: what may happen adds some, what is seen removes those that do not explain it.
//! When none is left, no order of events explains what was seen, and that is a failure. Pure; knows no node.

use std::fmt;

use crate::data::Payload;
use crate::model::answer::{Answer, Content, Label};
use crate::model::history::{KEYS, Trouble};
use crate::scene::{ASYNC, EPHEMERAL};

/// What the peers hold of an object that the bucket need not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing, or what is cached: the bucket has the truth.
    Cache,
    /// An acknowledged version on its way to the bucket.
    Dirty(Payload),
    /// A version that the bucket never gets.
    Ephemeral(Payload),
    /// An acknowledged deletion on its way to the bucket.
    Deleted,
}

/// One of the states that an object may be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    held: Held,
    bucket: Content,
    /// Versions that may be cached.
    cached: Vec<Payload>,
    /// What a request to the bucket that was replaced meanwhile may still make of the object there.
    late: Option<Content>,
    /// Whether what is held can have been sent to the bucket.
    sendable: bool,
    /// What is in the bucket was written by a request that failed and began after what is held.
    outranked: bool,
    /// What the peers held before it was written back or deleted, if nothing was written since. In a cluster a node
    /// may still hold it, and tell a home of it that has been restarted and has forgotten what became of it.
    ghost: Option<Held>,
    /// The last that the peers know of it is its deletion, which they say as long as the bucket cannot be asked.
    closed: bool,
}

impl State {
    fn empty() -> State {
        State {
            held: Held::Cache,
            bucket: None,
            cached: Vec::new(),
            late: None,
            sendable: false,
            outranked: false,
            ghost: None,
            closed: false,
        }
    }

    /// What a client sees whatever the bucket says; `None` when the bucket decides.
    fn decided(&self) -> Option<Content> {
        match self.held {
            Held::Cache => None,
            Held::Dirty(payload) | Held::Ephemeral(payload) => Some(Some(payload)),
            Held::Deleted => Some(None),
        }
    }

    /// What a client that has the bucket asked sees.
    fn truth(&self) -> Content {
        self.decided().unwrap_or(self.bucket)
    }

    /// The bucket has this now, and nothing else is held.
    fn cleaned(&self, bucket: Content) -> State {
        State { bucket, cached: bucket.into_iter().collect(), ..State::empty() }
    }

    /// As [`cleaned`](Self::cleaned), and a node may not have heard of it yet.
    fn retired(&self, bucket: Content) -> State {
        let ghost = match self.held {
            Held::Dirty(_) | Held::Ephemeral(_) => Some(self.held),
            Held::Cache | Held::Deleted => self.ghost,
        };
        State { ghost, closed: bucket.is_none(), ..self.cleaned(bucket) }
    }

    /// Something is held that replaces what was. One request at a time is under way: for what was held, or for what that
    /// had replaced in its turn, if that was sent at all.
    fn replaced(&self, held: Held, sendable: bool) -> Vec<State> {
        let replaced =
            |late| State { held, bucket: self.bucket, late, sendable, ghost: self.haunts(held), ..State::empty() };
        let mut states: Vec<State> = match (self.late, self.sent()) {
            (Some(late), Some(sent)) => vec![replaced(Some(late)), replaced(Some(sent))],
            (late, sent) => vec![replaced(late.or(sent))],
        };
        // An attempt that the trouble has not spoiled yet may come through when the trouble is over.
        if let Held::Dirty(payload) = self.held {
            add(&mut states, replaced(Some(Some(payload))));
        }
        states
    }

    /// What a request makes of the object in the bucket that may be under way for what is held.
    fn sent(&self) -> Option<Content> {
        match self.held {
            Held::Dirty(payload) if self.sendable => Some(Some(payload)),
            Held::Deleted if self.sendable => Some(None),
            _ => None,
        }
    }

    /// What is left of what was held when something else is held: a deletion may be forgotten, a write is not.
    fn haunts(&self, held: Held) -> Option<Held> {
        match held {
            Held::Deleted => self.retired(None).ghost,
            _ => None,
        }
    }

    /// What may become of it in the background, in one step.
    fn next(&self) -> Vec<State> {
        let mut next = Vec::new();
        if let Some(bucket) = self.late {
            next.push(State { bucket, late: None, ..self.clone() });
        }
        if let Some(bucket) = self.sent() {
            // One request at a time: what was late is over.
            next.push(State { bucket, late: None, ..self.clone() });
            next.push(self.retired(bucket));
        }
        if self.outranked && self.sent().is_some() {
            next.push(self.cleaned(self.bucket));
        }
        next
    }
}

/// How an object's node answers reads of a clean object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `freshness: immutable` instead of `always`.
    pub immutable: bool,
    /// Several nodes cache: each may hold another version for the time the bucket cannot be asked.
    pub cluster: bool,
}

/// How a request ended that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged.
    Done,
    /// A deletion was acknowledged that the bucket has not heard of.
    Pending,
    /// There is no such object.
    Missing,
    /// An error with this status, 0 if there was no answer, and what was said.
    Failed(u16, String),
}

/// The states of all keys of a history.
#[derive(Clone, Debug)]
pub struct World {
    rules: Rules,
    keys: Vec<Vec<State>>,
    trouble: Trouble,
    /// Reads from the bucket have failed since the last restart: nodes may leave it alone for a while.
    leaves_alone: bool,
}

/// What was seen and cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    key: usize,
    seen: String,
    before: Vec<State>,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, which none of these explains:", KEYS[self.key], self.seen)?;
        for state in &self.before {
            write!(f, "\n      {:?}, bucket {:?}, cached {:?}", state.held, state.bucket, state.cached)?;
            if let Some(late) = state.late {
                write!(f, ", under way {late:?}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Contradiction {}

type Checked = Result<(), Contradiction>;

impl World {
    /// Nothing is there, and nothing goes wrong.
    pub fn new(rules: Rules) -> World {
        let keys = KEYS.iter().map(|_| vec![State::empty()]).collect();
        World { rules, keys, trouble: Trouble::Nothing, leaves_alone: false }
    }

    /// The trouble of now.
    pub fn trouble(&self) -> Trouble {
        self.trouble
    }

    /// Replaces each state by those that `change` makes of it, once what may happen in the background has happened or
    /// not. Something must be left.
    fn step(&mut self, key: usize, seen: impl FnOnce() -> String, change: impl Fn(&State) -> Vec<State>) -> Checked {
        let before = settled(&self.keys[key]);
        let mut after = Vec::new();
        before.iter().flat_map(change).for_each(|state| add(&mut after, state));
        if after.is_empty() {
            return Err(Contradiction { key, seen: seen(), before });
        }
        self.keys[key] = after;
        Ok(())
    }

    /// From now on this goes wrong.
    pub fn set_trouble(&mut self, trouble: Trouble) {
        for states in &mut self.keys {
            *states = settled(states);
            if trouble.lets_writes_through() {
                states.iter_mut().for_each(|state| state.sendable = true);
            }
        }
        self.trouble = trouble;
        self.leaves_alone |= trouble.spoils_reads();
    }

    /// Nodes have forgotten that the bucket did not answer.
    pub fn restarted(&mut self) {
        self.leaves_alone = self.trouble.spoils_reads();
        if self.rules.cluster {
            for states in &mut self.keys {
                for state in settled(states) {
                    let back = state.ghost.filter(|_| state.held == Held::Cache);
                    let back = back.map(|held| State { held, sendable: true, cached: Vec::new(), ..state.clone() });
                    back.into_iter().chain([state]).for_each(|state| add(states, state));
                }
            }
        }
    }

    /// The bucket was looked into: it has this.
    pub fn bucket_seen(&mut self, key: usize, is_it: impl Fn(Content) -> bool, seen: &str) -> Checked {
        self.step(key, || format!("the bucket has {seen}"), |state| only_if(is_it(state.bucket), state))
    }

    /// Others have changed the bucket.
    pub fn changed_outside(&mut self, key: usize, bucket: Content) -> Checked {
        let changed = |state: &State| vec![State { bucket, outranked: false, ..state.clone() }];
        self.step(key, String::new, changed)
    }

    /// A PUT has ended.
    pub fn put(&mut self, key: usize, mode: u8, payload: Payload, outcome: &Outcome) -> Checked {
        let trouble = self.trouble;
        let sendable = trouble.lets_writes_through();
        let seen = || format!("put #{} in mode {mode}: {outcome:?}", payload.seed);
        match (mode, outcome) {
            (ASYNC, Outcome::Done) => self.step(key, seen, |state| state.replaced(Held::Dirty(payload), sendable)),
            (EPHEMERAL, Outcome::Done) => self.step(key, seen, |state| state.replaced(Held::Ephemeral(payload), false)),
            (_, Outcome::Done) => self.step(key, seen, |state| only(sendable, state.cleaned(Some(payload)))),
            (ASYNC | EPHEMERAL, _) => self.step(key, seen, |_| Vec::new()),
            (..) => {
                let may_fail = trouble.spoils_writes() || trouble.spoils_reads() || is_of_connection(outcome);
                self.step(key, seen, |state| {
                    if may_fail { perhaps_written(state, Some(payload), sendable) } else { Vec::new() }
                })
            }
        }
    }

    /// A DELETE has ended.
    pub fn deleted(&mut self, key: usize, outcome: &Outcome) -> Checked {
        let trouble = self.trouble;
        let sendable = trouble.lets_writes_through();
        let seen = || format!("delete: {outcome:?}");
        self.step(key, seen, |state| match outcome {
            Outcome::Done => only(sendable, state.retired(None)),
            Outcome::Pending => state.replaced(Held::Deleted, sendable),
            // What was ephemeral is gone; what the bucket has stays, and what it is still to get.
            Outcome::Failed(403, _) if trouble == Trouble::WritesDenied => match state.held {
                Held::Dirty(_) => vec![state.clone()],
                _ => vec![State { cached: Vec::new(), closed: false, ..state.retired(state.bucket) }],
            },
            _ => Vec::new(),
        })
    }

    /// A copy has ended.
    pub fn copied(&mut self, from: usize, to: usize, outcome: &Outcome) -> Checked {
        let (trouble, leaves_alone) = (self.trouble, self.leaves_alone);
        let troubled = trouble.spoils_reads() || trouble.spoils_writes() || leaves_alone;
        let seen = || format!("copy to {}: {outcome:?}", KEYS[to]);
        // The bucket copies what it has; peers copy what only they have.
        self.step(from, seen, |state| {
            let explains = match outcome {
                Outcome::Done => state.truth().is_some(),
                Outcome::Missing => state.truth().is_none() || (state.closed && troubled),
                _ => troubled && state.decided().is_none(),
            };
            let asked = State { cached: known_after(&state.cached, state.bucket), ..state.clone() };
            only(explains, if state.held == Held::Cache { asked } else { state.clone() })
        })?;
        let sources = self.keys[from].clone();
        let sendable = trouble.lets_writes_through();
        let seen = || format!("copy of {}: {outcome:?}", KEYS[from]);
        self.step(to, seen, |state| {
            let copied = sources.iter().flat_map(|source| match (outcome, source.held) {
                (Outcome::Missing, _) => vec![state.clone()],
                (Outcome::Done, Held::Dirty(payload)) => state.replaced(Held::Dirty(payload), sendable),
                (Outcome::Done, Held::Ephemeral(payload)) => state.replaced(Held::Ephemeral(payload), false),
                (Outcome::Done, _) => only(sendable, state.cleaned(source.bucket)),
                (_, _) => perhaps_copied(state, source.bucket, sendable),
            });
            copied.collect()
        })
    }

    /// A read was answered.
    pub fn read(&mut self, key: usize, no_cache: bool, answer: &Answer) -> Checked {
        let (rules, trouble, leaves_alone) = (self.rules, self.trouble, self.leaves_alone);
        let asks = no_cache || !rules.immutable;
        let seen = || format!("read {answer:?}");
        self.step(key, seen, |state| {
            if let Some(content) = state.decided() {
                let is_labelled = rules.cluster
                    || content.is_none()
                    || matches!(answer.shown, crate::model::answer::Shown::Outside(..))
                    || (answer.label == Label::Pending) == matches!(state.held, Held::Dirty(_));
                return only_if(answer.shows(content) && is_labelled && answer.label != Label::Stale, state);
            }
            if answer.is_failure() {
                // A long version whose other piece is no longer in the bucket breaks off.
                let is_torn = !asks && state.cached.iter().any(|payload| Some(*payload) != state.bucket);
                let known = State { cached: known_after(&state.cached, state.bucket), ..state.clone() };
                return only(trouble.spoils_reads() || is_torn, known);
            }
            let mut after = Vec::new();
            let is_pending = answer.label == Label::Pending && !rules.cluster;
            if answer.label != Label::Stale && !is_pending && answer.shows(state.bucket) {
                let seen: Vec<Payload> = state.bucket.into_iter().collect();
                let cached = if rules.cluster { known_after(&state.cached, state.bucket) } else { seen };
                let closed = state.closed && state.bucket.is_none();
                add(&mut after, State { cached, closed, ..state.clone() });
            }
            if state.closed && (trouble.spoils_reads() || leaves_alone) && answer.shows(None) {
                add(&mut after, state.clone());
            }
            let from_cache = if answer.label == Label::Stale { leaves_alone } else { !asks };
            for payload in state.cached.iter().filter(|payload| from_cache && answer.shows(Some(**payload))) {
                let cached =
                    if rules.cluster || answer.label == Label::Stale { state.cached.clone() } else { vec![*payload] };
                add(&mut after, State { cached, ..state.clone() });
            }
            after
        })
    }

    /// A listing showed the object with this length, or did not show it.
    pub fn listed(&mut self, key: usize, length: Option<u64>) -> Checked {
        let seen = || format!("listed with length {length:?}");
        self.step(key, seen, |state| only_if(state.truth().map(|payload| payload.length) == length, state))
    }

    /// Nothing waits for the bucket any more.
    pub fn at_rest(&mut self) -> Checked {
        (0..self.keys.len()).try_for_each(|key| {
            let at_rest = |state: &State| {
                let rests = matches!(state.held, Held::Cache | Held::Ephemeral(_));
                // What was under way has arrived or never will.
                only(rests, State { late: None, ..state.clone() })
            };
            self.step(key, || "at rest".to_owned(), at_rest)
        })
    }
}

/// These states, and all that may become of them in the background.
fn settled(states: &[State]) -> Vec<State> {
    let mut all = states.to_vec();
    let mut at = 0;
    while at < all.len() {
        for next in all[at].next() {
            add(&mut all, next);
        }
        at += 1;
    }
    all
}

fn add(states: &mut Vec<State>, state: State) {
    if !states.contains(&state) {
        states.push(state);
    }
}

fn only(holds: bool, state: State) -> Vec<State> {
    if holds { vec![state] } else { Vec::new() }
}

fn only_if(holds: bool, state: &State) -> Vec<State> {
    only(holds, state.clone())
}

/// Whether a request failed with the connection to the backend that it was sent on. Nodes keep connections, and what goes
/// wrong with one request ends the connection that the next one, of another history, may have been given: its body
/// cannot be sent twice.
fn is_of_connection(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(_, text) if text.contains("dispatch failure"))
}

/// A write to the bucket that failed, or whose answer was lost.
fn perhaps_written(state: &State, bucket: Content, reaches: bool) -> Vec<State> {
    let mut after = vec![state.clone()];
    if reaches {
        let outranked = !matches!(state.held, Held::Cache | Held::Ephemeral(_));
        after.push(State { bucket, late: None, outranked, ..state.clone() });
    }
    after
}

/// A copy by the bucket that failed, or whose answer was lost. What was held may be forgotten for it.
fn perhaps_copied(state: &State, bucket: Content, reaches: bool) -> Vec<State> {
    let mut after = perhaps_written(state, bucket, reaches);
    if reaches {
        after.push(state.cleaned(bucket));
    }
    after
}

fn known_after(cached: &[Payload], seen: Content) -> Vec<Payload> {
    let mut known = cached.to_vec();
    known.extend(seen.filter(|payload| !cached.contains(payload)));
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_writes_that_were_replaced_either_may_reach_the_bucket_late() {
        let payloads = [1, 2, 3].map(|seed| Payload::new(seed, 10));
        let seen = |payload: Payload| {
            let mut world = World::new(Rules { immutable: false, cluster: false });
            for (mode, payload) in [(ASYNC, payloads[0]), (ASYNC, payloads[1]), (EPHEMERAL, payloads[2])] {
                world.put(0, mode, payload, &Outcome::Done).expect("it was acknowledged");
                world.bucket_seen(0, |content| content.is_none(), "nothing").expect("it may take long");
            }
            world.bucket_seen(0, |content| content == Some(payload), "this").is_ok()
        };
        assert_eq!(payloads.map(seen), [true, true, false]);
    }
}
