//! Histories: short lists of steps over three keys, made from a seed. Pure.
//!
//! The alphabets are tiny, so that steps meet: three keys, lengths at the borders of blocks and pieces, one backend
//! fault at a time. Each written content has a seed of its own, so bytes of two versions cannot be taken for each other.

use crate::choices::Choices;
use std::fmt;

use crate::data::{PIECE, Payload};
use crate::scene::{ASYNC, EPHEMERAL, SYNC};

/// The keys of a history, below a prefix of its own. The third is in a group.
pub const KEYS: [&str; 3] = ["a", "b", "d/a"];
/// Most objects are small, so that a history takes milliseconds.
const SHORT_LENGTHS: [u64; 7] = [0, 1, 100, 4095, 4096, 4097, 70_001];
const LONG_LENGTHS: [u64; 3] = [PIECE - 1, PIECE, PIECE + 1];
/// One object in so many is long.
const LONG_ONE_IN: u64 = 40;
const STEPS_MIN: u64 = 6;
const STEPS_MAX: u64 = 14;

/// A part of an object, as clients ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `bytes=0-0`
    FirstByte,
    /// `bytes=4095-4096`
    BlockBorder,
    /// `bytes=2097151-2097152`
    PieceBorder,
    /// `bytes=-1`
    LastByte,
    /// `bytes=1-`
    AllButFirst,
}

impl Part {
    const ALL: [Part; 5] = [Part::FirstByte, Part::BlockBorder, Part::PieceBorder, Part::LastByte, Part::AllButFirst];

    /// The header `Range`.
    pub fn header(self) -> &'static str {
        match self {
            Part::FirstByte => "bytes=0-0",
            Part::BlockBorder => "bytes=4095-4096",
            Part::PieceBorder => "bytes=2097151-2097152",
            Part::LastByte => "bytes=-1",
            Part::AllButFirst => "bytes=1-",
        }
    }

    /// Which bytes of an object of this length that is; `None` when it has none of them.
    pub fn of(self, length: u64) -> Option<std::ops::Range<u64>> {
        let (start, end) = match self {
            Part::FirstByte => (0, 1),
            Part::BlockBorder => (4095, 4097),
            Part::PieceBorder => (PIECE - 1, PIECE + 1),
            Part::LastByte => (length.saturating_sub(1), length),
            Part::AllButFirst => (1, length),
        };
        (start < length).then_some(start..end.min(length))
    }
}

/// What goes wrong with the requests of a history to the backend, until the next such step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    Nothing,
    /// Writes and deletions get 500.
    WritesFail,
    /// Writes and deletions get 403.
    WritesDenied,
    /// The next two writes and the next deletion are done, but the answer is lost.
    AnswersLost,
    /// Writes take a little longer.
    WritesSlow,
    /// HEAD and GET get 500.
    ReadsFail,
    /// The body of the next GET breaks off.
    BodyBreaks,
    /// Every connection is cut.
    Down,
}

impl Trouble {
    const ALL: [Trouble; 7] = [
        Trouble::WritesFail,
        Trouble::WritesDenied,
        Trouble::AnswersLost,
        Trouble::WritesSlow,
        Trouble::ReadsFail,
        Trouble::BodyBreaks,
        Trouble::Down,
    ];

    /// Whether a write can reach the bucket.
    pub fn lets_writes_through(self) -> bool {
        !matches!(self, Trouble::WritesFail | Trouble::WritesDenied | Trouble::Down)
    }

    /// Whether a write to the bucket may fail.
    pub fn spoils_writes(self) -> bool {
        !self.lets_writes_through() || self == Trouble::AnswersLost
    }

    /// Whether a read from the bucket may fail.
    pub fn spoils_reads(self) -> bool {
        matches!(self, Trouble::ReadsFail | Trouble::BodyBreaks | Trouble::Down)
    }

    /// Whether the bucket never answers a deletion while this lasts.
    pub fn hides_deletions(self) -> bool {
        matches!(self, Trouble::WritesFail | Trouble::Down)
    }
}

/// What is done. Keys are inchoicess into [`KEYS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// PUT, over HTTP or over the native protocol.
    Put { key: usize, mode: u8, payload: Payload, native: bool },
    /// GET of all of it; `no_cache` has the bucket asked.
    Get { key: usize, no_cache: bool },
    /// GET of a part.
    Range { key: usize, part: Part },
    /// HEAD.
    Head { key: usize },
    /// A listing, in one page or in pages of one.
    List { paged: bool },
    /// A copy.
    Copy { from: usize, to: usize },
    /// DELETE.
    Delete { key: usize },
    /// The node drops what it has cached of an object.
    Evict { key: usize },
    /// Another trouble from now on.
    Trouble(Trouble),
    /// Others write the object into the bucket, or delete it there.
    Outside { key: usize, payload: Option<Payload> },
    /// A node ends and starts again. All histories that run meanwhile have this step at the same time.
    Restart,
}

/// An action, and the number of the node that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Modulo the number of nodes.
    pub node: usize,
    /// What it is asked.
    pub action: Action,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode_name = |mode| ["async", "write-back", "ephemeral"][usize::from(mode)];
        write!(f, "node {}: ", self.node)?;
        match self.action {
            Action::Put { key, mode, payload: Payload { seed, length }, native } => {
                let face = if native { "native " } else { "" };
                write!(f, "{face}put {} {} #{seed} of {length} bytes", KEYS[key], mode_name(mode))
            }
            Action::Get { key, no_cache } => {
                write!(f, "get {}{}", KEYS[key], if no_cache { " with no-cache" } else { "" })
            }
            Action::Range { key, part } => write!(f, "get {} {}", KEYS[key], part.header()),
            Action::Head { key } => write!(f, "head {}", KEYS[key]),
            Action::List { paged } => write!(f, "list{}", if paged { " in pages of one" } else { "" }),
            Action::Copy { from, to } => write!(f, "copy {} to {}", KEYS[from], KEYS[to]),
            Action::Delete { key } => write!(f, "delete {}", KEYS[key]),
            Action::Evict { key } => write!(f, "evict {}", KEYS[key]),
            Action::Trouble(trouble) => write!(f, "trouble: {trouble:?}"),
            Action::Outside { key, payload: Some(Payload { seed, length }) } => {
                write!(f, "others put {} #{seed} of {length} bytes", KEYS[key])
            }
            Action::Outside { key, payload: None } => write!(f, "others delete {}", KEYS[key]),
            Action::Restart => write!(f, "restart"),
        }
    }
}

/// A list of steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// What it was made from.
    pub seed: u64,
    /// Its steps, with one restart among them.
    pub steps: Vec<Step>,
}

impl History {
    /// The history of this seed.
    pub fn new(seed: u64) -> History {
        let mut choices = Choices::new(seed);
        let count = STEPS_MIN + choices.below(STEPS_MAX - STEPS_MIN + 1);
        let mut steps: Vec<Step> = (0..count).map(|number| step(&mut choices, seed * 1000 + number)).collect();
        let at = usize::try_from(choices.below(count + 1)).expect("few steps");
        steps.insert(at, Step { node: 0, action: Action::Restart });
        History { seed, steps }
    }

    /// The steps before, between and after the restarts.
    pub fn parts(&self) -> impl Iterator<Item = &[Step]> {
        self.steps.split(|step| step.action == Action::Restart)
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {number:>2}. {step}")?;
        }
        Ok(())
    }
}

fn step(choices: &mut Choices, content: u64) -> Step {
    let node = choices.index(3);
    let (key, other) = (choices.index(KEYS.len()), 1 + choices.index(KEYS.len() - 1));
    let action = match choices.below(100) {
        0..=17 => Action::Put { key, mode: ASYNC, payload: payload(choices, content), native: choices.one_in(5) },
        18..=25 => Action::Put { key, mode: SYNC, payload: payload(choices, content), native: choices.one_in(5) },
        26..=32 => Action::Put { key, mode: EPHEMERAL, payload: payload(choices, content), native: choices.one_in(5) },
        33..=49 => Action::Get { key, no_cache: choices.one_in(4) },
        50..=54 => Action::Range { key, part: Part::ALL[choices.index(Part::ALL.len())] },
        55..=58 => Action::Head { key },
        59..=63 => Action::List { paged: choices.one_in(2) },
        64..=71 => Action::Copy { from: key, to: (key + other) % KEYS.len() },
        72..=79 => Action::Delete { key },
        80..=84 => Action::Evict { key },
        85..=90 => Action::Trouble(trouble(choices)),
        91..=97 => Action::Outside { key, payload: Some(payload(choices, content)) },
        _ => Action::Outside { key, payload: None },
    };
    Step { node, action }
}

fn payload(choices: &mut Choices, content: u64) -> Payload {
    let lengths: &[u64] = if choices.one_in(LONG_ONE_IN) { &LONG_LENGTHS } else { &SHORT_LENGTHS };
    Payload::new(content, lengths[choices.index(lengths.len())])
}

fn trouble(choices: &mut Choices) -> Trouble {
    if choices.one_in(4) { Trouble::Nothing } else { Trouble::ALL[choices.index(Trouble::ALL.len())] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_history_each_time_and_seeds_give_different_ones() {
        assert_eq!(History::new(7), History::new(7));
        assert_ne!(History::new(7).steps, History::new(8).steps);
        assert_eq!(History::new(7).parts().count(), 2);
    }

    #[test]
    fn every_kind_of_step_comes_up() {
        let steps: Vec<Step> = (0..400).flat_map(|seed| History::new(seed).steps).collect();
        let kinds: std::collections::BTreeSet<String> = steps
            .iter()
            .map(|step| format!("{:?}", step.action).split([' ', '{']).next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(kinds.iter().filter(|kind| kind.starts_with("Trouble")).count(), 8, "{kinds:?}");
        assert_eq!(kinds.len(), 8 + 10, "{kinds:?}");
    }

    #[test]
    fn parts_lie_within_the_object() {
        assert_eq!(Part::BlockBorder.of(4096), Some(4095..4096));
        assert_eq!(Part::BlockBorder.of(4095), None);
        assert_eq!(Part::LastByte.of(0), None);
        assert_eq!(Part::LastByte.of(3), Some(2..3));
        assert_eq!(Part::AllButFirst.of(1), None);
    }
}
