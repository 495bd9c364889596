//! A set of pieces of one version: a bitmap, and its conversion from and to the runs that travel in messages.
//!
//! Its size follows from the piece count, which the length of an object bounds. Whatever the runs of a message say,
//! nothing beyond the piece count gets in.

use std::ops::Range;

use dfstore_proto::message::PieceRuns;
use dfstore_proto::object::PieceRun;

const WORD_BITS: u32 = u64::BITS;

/// A set of pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Bits at and above `piece_count` are 0.
    words: Vec<u64>,
    piece_count: u32,
    /// Bits that are set.
    len: u32,
}

impl Pieces {
    /// None of `piece_count` pieces.
    pub fn new(piece_count: u32) -> Pieces {
        Pieces { words: vec![0; piece_count.div_ceil(WORD_BITS) as usize], piece_count, len: 0 }
    }

    /// All of `piece_count` pieces.
    pub fn whole(piece_count: u32) -> Pieces {
        let mut pieces = Pieces::new(piece_count);
        pieces.add(PieceRun { first: 0, count: piece_count });
        pieces
    }

    /// The pieces that these runs name, as far as there are such.
    pub fn of_runs(piece_count: u32, runs: &PieceRuns) -> Pieces {
        let mut pieces = Pieces::new(piece_count);
        runs.runs().iter().for_each(|run| pieces.add(*run));
        pieces
    }

    /// How many pieces the version has.
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// How many are in the set.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether none is in the set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether all are in the set.
    pub fn is_whole(&self) -> bool {
        self.len == self.piece_count
    }

    /// Whether this piece is in the set.
    pub fn contains(&self, piece: u32) -> bool {
        piece < self.piece_count && self.words[(piece / WORD_BITS) as usize] & bit(piece) != 0
    }

    /// Puts a piece in; whether it was not there, and exists.
    pub fn insert(&mut self, piece: u32) -> bool {
        if piece >= self.piece_count || self.contains(piece) {
            return false;
        }
        self.words[(piece / WORD_BITS) as usize] |= bit(piece);
        self.len += 1;
        true
    }

    /// Takes a piece out; whether it was there.
    pub fn remove(&mut self, piece: u32) -> bool {
        if !self.contains(piece) {
            return false;
        }
        self.words[(piece / WORD_BITS) as usize] &= !bit(piece);
        self.len -= 1;
        true
    }

    /// Puts a run in, as far as there are such pieces.
    pub fn add(&mut self, run: PieceRun) {
        let end = run.first.saturating_add(run.count).min(self.piece_count);
        let mut at = run.first;
        while at < end {
            let upto = end.min((at / WORD_BITS + 1) * WORD_BITS);
            let word = &mut self.words[(at / WORD_BITS) as usize];
            let added = mask(at % WORD_BITS, upto - at) & !*word;
            *word |= added;
            self.len += added.count_ones();
            at = upto;
        }
    }

    /// The set as runs in order. A message takes a bounded number of them: those at the end are left out.
    pub fn runs(&self) -> PieceRuns {
        let mut at = 0;
        PieceRuns::new(std::iter::from_fn(|| {
            let first = self.next_where(at, true)?;
            at = self.next_where(first, false).unwrap_or(self.piece_count);
            Some(PieceRun { first, count: at - first })
        }))
    }

    /// The first piece at or after `from` that is not in the set.
    pub fn next_missing(&self, from: u32) -> Option<u32> {
        self.next_where(from, false)
    }

    /// The pieces of `range` that are in this set and not in the other.
    pub fn beyond<'a>(&'a self, other: &'a Pieces, range: Range<u32>) -> impl Iterator<Item = u32> + 'a {
        let end = range.end.min(self.piece_count);
        let words = range.start / WORD_BITS..if range.start < end { end.div_ceil(WORD_BITS) } else { 0 };
        let word = |set: &Pieces, index: u32| set.words.get(index as usize).copied().unwrap_or_default();
        words
            .flat_map(move |index| ones(word(self, index) & !word(other, index)).map(move |at| index * WORD_BITS + at))
            .filter(move |piece| (range.start..end).contains(piece))
    }

    /// The pieces in the set.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0_u32..).zip(&self.words).flat_map(|(index, word)| ones(*word).map(move |at| index * WORD_BITS + at))
    }

    fn next_where(&self, from: u32, set: bool) -> Option<u32> {
        let mut at = from;
        while at < self.piece_count {
            let word = self.words[(at / WORD_BITS) as usize];
            let left = (if set { word } else { !word }) >> (at % WORD_BITS);
            if left != 0 {
                return Some(at + left.trailing_zeros()).filter(|piece| *piece < self.piece_count);
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }
}

const fn bit(piece: u32) -> u64 {
    1 << (piece % WORD_BITS)
}

/// `count` bits from `start` on; at most a word.
const fn mask(start: u32, count: u32) -> u64 {
    if count == WORD_BITS { u64::MAX } else { ((1 << count) - 1) << start }
}

/// The positions of the bits of a word.
fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let at = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(at)
    })
}
