//! Bulk data: downloads, uploads, and streaming from one object to another.
//!
//! A transfer is one coordinator and a few lanes. The coordinator runs on the thread that asked: it hands out piece
//! numbers, keeps the count, decides what a failure means, and touches no socket. A lane owns one connection and moves
//! whole pieces, several in flight. Lanes are spread over a few threads with a runtime each and speak to the
//! coordinator through bounded channels only. When the coordinator goes, its channels close and the lanes end.
//!
//! Memory is bounded by one buffer pool per transfer. Every piece is checked against its CRC32 where it arrives, and
//! the whole object against the combination of them.

pub mod download;
mod lanes;
mod ledger;
pub mod target;
pub mod upload;

use std::time::Duration;

use dfstore_proto::message::{PutDone, ReadEnd};

use crate::client::Peer;
use crate::rt::signal::Unfinished;

/// Pieces that one lane has on the way: two that move, two that are about to, two that are written or acknowledged.
const LANE_WINDOW: usize = 6;
/// Memory of one transfer, whatever its pieces and lanes, as long as each lane can hold a piece.
const POOL_BYTES_MAX: usize = 256 << 20;
/// Times one piece may fail before the transfer does.
const PIECE_FAILURES_MAX: u32 = 5;
/// Times a transfer starts over: on a version that replaced the one being read, or after its upload was lost.
const RESTARTS_MAX: u32 = 4;
/// An upload whose source is silent says so to the peer this often.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// What all transfers of one command have in common.
pub struct Context<'a> {
    /// Whom to talk to.
    pub peer: &'a Peer,
    /// Most connections at once.
    pub parallel: usize,
    /// Whether a progress bar is wanted.
    pub progress: bool,
    /// Where unfinished files are noted.
    pub unfinished: &'a Unfinished,
}

/// What a transfer did.
#[derive(Debug, Default)]
pub struct Moved {
    /// Bytes of the object.
    pub length: u64,
    /// Where they came from; empty for uploads.
    pub sources: ReadEnd,
    /// How far a written object has come; absent for downloads.
    pub written: Option<PutDone>,
    /// The version that the peer made by copying; absent for everything else.
    pub copied: Option<u64>,
}

impl Moved {
    /// The version that was written.
    pub fn generation(&self) -> Option<u64> {
        self.written.as_ref().map(|done| done.generation).or(self.copied)
    }
}

/// How many lanes and buffers a transfer of `pieces` pieces gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    lanes: usize,
    /// Pieces handed out and not yet done.
    window: usize,
    buffers: usize,
}

impl Shape {
    fn new(parallel: usize, pieces: Option<u64>, piece_bytes: u32) -> Shape {
        let pieces = pieces.and_then(|pieces| usize::try_from(pieces).ok()).unwrap_or(usize::MAX);
        let affordable = (POOL_BYTES_MAX / piece_bytes.max(1) as usize).max(1);
        let lanes = parallel.min(pieces).min(affordable).max(1);
        let window = (lanes * LANE_WINDOW).min(affordable).max(1);
        // Each piece handed out may hold a buffer: then the piece that the output waits for always gets one.
        Shape { lanes, window, buffers: window }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_objects_get_few_lanes_and_large_pieces_few_buffers() {
        assert_eq!(Shape::new(4, Some(1), 2 << 20).lanes, 1);
        assert_eq!(Shape::new(4, Some(0), 2 << 20).lanes, 1);
        assert_eq!(Shape::new(4, None, 2 << 20), Shape { lanes: 4, window: 24, buffers: 24 });
        let huge = Shape::new(32, None, 16 << 20);
        assert!(huge.buffers * (16 << 20) <= POOL_BYTES_MAX && huge.lanes == 16);
    }
}
