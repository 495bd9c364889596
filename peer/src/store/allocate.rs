//! Where a piece goes: one run of blocks if there is one, else as few runs as will do. Pure memory, no I/O.
//!
//! Small pieces are placed at the lowest address that fits, so that they gather at the front; large ones at the next
//! run after the last, so that pieces written together lie together. Both spare the long runs.

use std::cell::Cell;

use crate::limits::PIECE_EXTENTS_MAX;
use crate::store::bitmap::{Bitmap, Run};
use crate::store::extents::{Extent, ExtentList};

/// Pieces below this many blocks are small.
const SMALL_BLOCKS: u32 = 64;
/// Times a claim may lose a race against another thread before the caller looks elsewhere.
const RACES_MAX: usize = 8;

/// Where the last large piece ended. One per shard.
#[derive(Default)]
pub struct Cursor {
    file: Cell<u32>,
    block: Cell<u32>,
}

/// Takes one run of `wanted` blocks from the first of `files` that has one.
pub fn take_run<'a>(
    files: impl Iterator<Item = (u32, &'a Bitmap)> + Clone,
    cursor: &Cursor,
    wanted: u32,
) -> Option<ExtentList> {
    let small = wanted < SMALL_BLOCKS;
    let at_cursor = files.clone().filter(|(file, _)| !small && *file == cursor.file.get());
    for (file, bitmap) in at_cursor.chain(files) {
        let from = if !small && file == cursor.file.get() { cursor.block.get() } else { 0 };
        for _ in 0..RACES_MAX {
            let Some(run) = bitmap.find(from, wanted) else { break };
            if bitmap.claim(run.block, wanted) {
                if !small {
                    cursor.file.set(file);
                    cursor.block.set(run.block + wanted);
                }
                return ExtentList::new(&[Extent { file, block: run.block, count: wanted }]);
            }
        }
    }
    None
}

/// Takes `wanted` blocks from the longest free runs of `files`, at most [`PIECE_EXTENTS_MAX`] of them.
pub fn take_scattered<'a>(files: impl Iterator<Item = (u32, &'a Bitmap)> + Clone, wanted: u32) -> Option<ExtentList> {
    for _ in 0..RACES_MAX {
        let plan = longest_runs(files.clone(), wanted)?;
        if let Some(taken) = claim_all(files.clone(), &plan) {
            return Some(taken);
        }
    }
    None
}

/// The longest runs that add up to `wanted` blocks, the last one cut.
fn longest_runs<'a>(files: impl Iterator<Item = (u32, &'a Bitmap)>, wanted: u32) -> Option<Vec<Extent>> {
    let mut longest: Vec<(Run, u32)> = Vec::new();
    for (file, bitmap) in files {
        longest.extend(bitmap.runs(0).map(|run| (run, file)));
        longest.sort_unstable_by(|a, b| b.cmp(a));
        longest.truncate(PIECE_EXTENTS_MAX);
    }
    let mut missing = wanted;
    let mut plan = Vec::new();
    for (run, file) in longest {
        if missing == 0 {
            break;
        }
        let count = run.count.min(missing);
        missing -= count;
        plan.push(Extent { file, block: run.block, count });
    }
    (missing == 0).then_some(plan)
}

/// Claims every extent of the plan, or none.
fn claim_all<'a>(files: impl Iterator<Item = (u32, &'a Bitmap)> + Clone, plan: &[Extent]) -> Option<ExtentList> {
    let bitmap_of = |file: u32| files.clone().find(|(number, _)| *number == file).map(|(_, bitmap)| bitmap);
    for (index, extent) in plan.iter().enumerate() {
        if bitmap_of(extent.file).is_some_and(|bitmap| bitmap.claim(extent.block, extent.count)) {
            continue;
        }
        for taken in &plan[..index] {
            bitmap_of(taken.file).expect("it was just claimed from").release(taken.block, taken.count);
        }
        return None;
    }
    ExtentList::new(plan)
}
