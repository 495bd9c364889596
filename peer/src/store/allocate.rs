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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// Sizes around the borders of a bitmap word.
    const FILE_BLOCKS: [u32; 4] = [130, 64, 63, 3];

    fn numbered(bitmaps: &[Bitmap]) -> impl Iterator<Item = (u32, &Bitmap)> + Clone {
        (0..).zip(bitmaps)
    }

    /// Which blocks are in use, the slow way.
    #[derive(Default)]
    struct Model(Vec<Vec<bool>>);

    impl Model {
        fn free_runs(&self) -> Vec<u32> {
            let mut runs: Vec<u32> = Vec::new();
            for file in &self.0 {
                let lengths = file.split(|used| *used).map(|run| u32::try_from(run.len()).unwrap());
                runs.extend(lengths.filter(|length| *length > 0));
            }
            runs.sort_unstable_by(|a, b| b.cmp(a));
            runs
        }

        fn mark(&mut self, extents: &ExtentList, used: bool) {
            for extent in extents {
                for block in extent.block..extent.block + extent.count {
                    let place = &mut self.0[extent.file as usize][block as usize];
                    assert_ne!(*place, used, "block {block} of file {}", extent.file);
                    *place = used;
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Run(u32),
        Scattered(u32),
        Free(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        let count = prop_oneof![1..4u32, 60..70u32, 1..140u32];
        prop_oneof![
            2 => count.clone().prop_map(Step::Run),
            1 => count.prop_map(Step::Scattered),
            2 => any::<prop::sample::Index>().prop_map(Step::Free),
        ]
    }

    proptest! {
        #[test]
        fn takes_and_frees_like_a_list_of_blocks(steps in prop::collection::vec(step(), 1..80)) {
            let bitmaps: Vec<Bitmap> = FILE_BLOCKS.iter().map(|count| Bitmap::new(*count)).collect();
            let mut model = Model(FILE_BLOCKS.iter().map(|count| vec![false; *count as usize]).collect());
            let cursor = Cursor::default();
            let mut live: Vec<ExtentList> = Vec::new();
            for step in steps {
                let runs = model.free_runs();
                let (wanted, taken, possible) = match step {
                    Step::Run(wanted) => {
                        let taken = take_run(numbered(&bitmaps), &cursor, wanted);
                        (wanted, taken, runs.first().is_some_and(|longest| *longest >= wanted))
                    }
                    Step::Scattered(wanted) => {
                        let taken = take_scattered(numbered(&bitmaps), wanted);
                        (wanted, taken, runs.iter().take(PIECE_EXTENTS_MAX).sum::<u32>() >= wanted)
                    }
                    Step::Free(index) => {
                        if !live.is_empty() {
                            let freed = live.swap_remove(index.index(live.len()));
                            model.mark(&freed, false);
                            freed.iter().for_each(|e| bitmaps[e.file as usize].release(e.block, e.count));
                        }
                        continue;
                    }
                };
                prop_assert_eq!(taken.is_some(), possible);
                if let Some(taken) = taken {
                    prop_assert_eq!(taken.block_count(), u64::from(wanted));
                    model.mark(&taken, true);
                    live.push(taken);
                }
                for (bitmap, blocks) in bitmaps.iter().zip(&model.0) {
                    prop_assert_eq!(bitmap.used() as usize, blocks.iter().filter(|used| **used).count());
                }
            }
        }
    }

    #[test]
    fn threads_never_get_the_same_block() {
        let bitmaps: Arc<Vec<Bitmap>> = Arc::new(vec![Bitmap::new(500), Bitmap::new(500)]);
        let owned: Arc<Vec<AtomicBool>> = Arc::new((0..1000).map(|_| AtomicBool::new(false)).collect());
        let mut threads = Vec::new();
        for thread in 0..4u32 {
            let (bitmaps, owned) = (bitmaps.clone(), owned.clone());
            threads.push(std::thread::spawn(move || {
                let cursor = Cursor::default();
                let mut live = Vec::new();
                for round in 0..3000u32 {
                    let wanted = 1 + (round * 7 + thread * 13) % 100;
                    let taken = match round % 3 {
                        0 => take_scattered(numbered(&bitmaps), wanted),
                        _ => take_run(numbered(&bitmaps), &cursor, wanted),
                    };
                    let blocks = |extents: &ExtentList| {
                        let places =
                            extents.iter().flat_map(|e| (e.block..e.block + e.count).map(|b| e.file * 500 + b));
                        places.collect::<Vec<u32>>()
                    };
                    if let Some(taken) = taken {
                        let again = |b: &u32| owned[*b as usize].swap(true, Ordering::SeqCst);
                        let twice: Vec<u32> = blocks(&taken).into_iter().filter(again).collect();
                        assert!(
                            twice.is_empty(),
                            "taken twice: {twice:?} of {taken:?}, round {round} of thread {thread}"
                        );
                        live.push(taken);
                    }
                    // At the end everything goes back.
                    let keep = if round < 2999 { 3 } else { 0 };
                    while live.len() > keep {
                        let freed: ExtentList = live.remove(0);
                        blocks(&freed).iter().for_each(|b| owned[*b as usize].store(false, Ordering::SeqCst));
                        freed.iter().for_each(|e| bitmaps[e.file as usize].release(e.block, e.count));
                    }
                }
            }));
        }
        threads.into_iter().for_each(|thread| thread.join().expect("no thread finds a block taken twice"));
        assert!(bitmaps.iter().all(|bitmap| bitmap.used() == 0 && bitmap.runs(0).count() == 1));
    }
}
