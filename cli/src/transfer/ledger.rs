//! Which pieces of a transfer are handed out, have failed, or are done. Pure state.

use std::collections::HashMap;

use anyhow::Result;

use crate::client::error::ClientError;
use crate::transfer::{PIECE_FAILURES_MAX, Shape};

/// The account of one attempt.
pub struct Ledger {
    /// `None` while a stream has not ended.
    pieces: Option<u32>,
    window: usize,
    lanes_left: usize,
    /// Next piece that was never handed out.
    next: u32,
    /// Pieces that came back.
    again: Vec<u32>,
    failures: HashMap<u32, u32>,
    outstanding: usize,
    done: u32,
    crcs: Vec<u32>,
}

impl Ledger {
    /// Nothing is handed out yet.
    pub fn new(pieces: Option<u32>, shape: Shape) -> Ledger {
        Ledger {
            pieces,
            window: shape.window,
            lanes_left: shape.lanes,
            next: 0,
            again: Vec::new(),
            failures: HashMap::new(),
            outstanding: 0,
            done: 0,
            crcs: vec![0; pieces.unwrap_or(0) as usize],
        }
    }

    /// The stream has ended: now the number of pieces is known.
    pub fn end(&mut self, pieces: u32) {
        self.pieces = Some(pieces);
    }

    /// Whether all pieces are where they belong.
    pub fn is_done(&self) -> bool {
        self.pieces == Some(self.done)
    }

    /// CRC32 of every piece, once all are done.
    pub fn crcs(&self) -> impl Iterator<Item = u32> {
        self.crcs.iter().copied()
    }

    /// The next piece to hand out, while the window has room. A piece counts until it is done, so the window also
    /// bounds how far lanes get ahead of a slow one, and with it the buffers they hold.
    pub fn hand_out(&mut self) -> Option<u32> {
        if self.outstanding == self.window {
            return None;
        }
        let number = match self.again.pop() {
            Some(number) => number,
            None if self.pieces.is_some_and(|pieces| self.next < pieces) => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.outstanding += 1;
        Some(number)
    }

    /// A piece is where it belongs.
    pub fn done(&mut self, number: u32, crc32: u32) {
        let index = number as usize;
        if index >= self.crcs.len() {
            self.crcs.resize(index + 1, 0);
        }
        self.crcs[index] = crc32;
        self.done += 1;
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// Pieces come back from a connection that failed. The failure is the transfer's when no other lane could do
    /// better, when no lane is left, or when a piece has failed too often.
    pub fn give_back(&mut self, numbers: Vec<u32>, error: ClientError, is_over: bool) -> Result<()> {
        let mut too_often = false;
        for number in numbers {
            let failures = self.failures.entry(number).or_default();
            *failures += 1;
            too_often |= *failures >= PIECE_FAILURES_MAX;
            self.again.push(number);
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        if is_over {
            self.lanes_left = self.lanes_left.saturating_sub(1);
        }
        let is_final = is_over && (!error.is_retryable() || error.is_version_change());
        if is_final || too_often || self.lanes_left == 0 {
            return Err(error.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfstore_proto::error::{ErrorCode, ErrorReply};

    const SHAPE: Shape = Shape { lanes: 2, window: 3, buffers: 3 };

    fn refused(code: ErrorCode) -> ClientError {
        ClientError::Refused(ErrorReply::new(code, "no"))
    }

    #[test]
    fn every_piece_is_handed_out_once_within_the_window() {
        let mut ledger = Ledger::new(Some(5), SHAPE);
        let first: Vec<_> = std::iter::from_fn(|| ledger.hand_out()).collect();
        assert_eq!(first, [0, 1, 2]);
        ledger.done(1, 11);
        assert_eq!(ledger.hand_out(), Some(3));
        assert_eq!(ledger.hand_out(), None);
        for number in [0, 2, 3] {
            ledger.done(number, number * 10);
        }
        assert_eq!((ledger.hand_out(), ledger.hand_out(), ledger.is_done()), (Some(4), None, false));
        ledger.done(4, 40);
        assert!(ledger.is_done());
        assert_eq!(ledger.crcs().collect::<Vec<_>>(), [0, 11, 20, 30, 40]);
    }

    #[test]
    fn pieces_of_a_failed_lane_are_handed_out_again() {
        let mut ledger = Ledger::new(Some(2), SHAPE);
        while ledger.hand_out().is_some() {}
        ledger.give_back(vec![0, 1], refused(ErrorCode::Busy), false).expect("may heal");
        let mut again: Vec<_> = std::iter::from_fn(|| ledger.hand_out()).collect();
        again.sort_unstable();
        assert_eq!(again, [0, 1]);
    }

    #[test]
    fn gives_up_when_nothing_may_heal_any_more() {
        let ledger = || {
            let mut ledger = Ledger::new(Some(1), SHAPE);
            ledger.hand_out();
            ledger
        };
        assert!(ledger().give_back(vec![0], refused(ErrorCode::NotFound), true).is_err());
        assert!(ledger().give_back(vec![0], refused(ErrorCode::VersionChanged), true).is_err());
        let mut lanes = ledger();
        assert!(lanes.give_back(vec![0], refused(ErrorCode::Busy), true).is_ok());
        assert!(lanes.give_back(vec![], refused(ErrorCode::Busy), true).is_err(), "no lane is left");
        let mut piece = ledger();
        for _ in 1..PIECE_FAILURES_MAX {
            assert!(piece.give_back(vec![0], refused(ErrorCode::ChecksumMismatch), false).is_ok());
        }
        assert!(piece.give_back(vec![0], refused(ErrorCode::ChecksumMismatch), false).is_err());
    }

    #[test]
    fn a_stream_is_done_when_it_has_ended_and_all_is_stored() {
        let mut ledger = Ledger::new(None, SHAPE);
        ledger.done(0, 7);
        assert!(!ledger.is_done() && ledger.hand_out().is_none());
        ledger.end(1);
        assert!(ledger.is_done());
    }
}
