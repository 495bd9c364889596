//! The power fails at every moment, on a disk that does with what was not synced whatever it likes.
//!
//! A whole shard (engine, store, catalog, write-back) does a random [script] in front of a small [bucket]; every write and
//! sync of its files is logged, and when it acknowledged what. Then, for every prefix of the log, images of the disk are
//! made: all that was synced, and of the rest nothing, all, every subset if it is little, and random parts, torn at
//! sectors of 512 or 4096 bytes ([disk]). Each is opened as a start does and compared with the acknowledgements
//! ([check]): what was acknowledged is there, whole; what was not is absent or whole; no block is used twice; nothing
//! passes for good that is not; the catalog opens, and none of its records is damaged.
//!
//! Covered: the order of writes, syncs, commits and acknowledgements of the product's own code, from `Engine::put`,
//! `delete`, `open`, `drop_cached` and the write-back queue down to redb's pages, over two runs with a clean end of the
//! first. Not covered: a cut during the recovery from a cut; several shards; multipart uploads; file systems that lose
//! what they synced. A change of a file's length counts as atomic, and names do until the folder is synced.

mod bucket;
mod check;
mod disk;
mod script;

use std::path::PathBuf;
use std::sync::Arc;

use dfstore_proto::object::WriteMode;

use bucket::{Bucket, MARKS};
use check::{Checker, Expected, Seen};
use disk::{Dice, Disk, Forgets};
use script::{Act, REMOTE, Step};

use crate::rt::disk_log::{DiskLog, Event};

/// Groups of acts in each of the two runs.
const GROUPS: usize = 14;
/// Random images of each prefix.
const RANDOM_IMAGES: usize = 3;
/// Threads that check images.
const THREADS: usize = 2;

/// What happened, and what it means.
struct Recording {
    events: Vec<Event>,
    acts: Vec<Act>,
    remote: Vec<Act>,
    history: Vec<(String, Option<u32>)>,
}

fn parent() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR").to_owned() + "/../target")
}

/// Objects that the bucket has from the beginning.
fn remote_objects() -> Vec<Act> {
    let object = |(number, key): (u64, &&str)| {
        let bytes = script::bytes(number, 3000 + 20_000 * usize::try_from(number).expect("small"));
        let crc32 = crc32fast::hash(&bytes);
        Act { key: (*key).to_owned(), step: Step::Put { mode: WriteMode::WriteBack, bytes, crc32 } }
    };
    (0..).zip(&REMOTE).map(object).collect()
}

fn record(seed: u64) -> Recording {
    let folder = tempfile::tempdir_in(parent()).expect("target can be written");
    let path = folder.path().canonicalize().expect("it is there");
    let scripts = [script::script(seed, GROUPS), script::script(!seed, GROUPS)];
    let acts: Vec<Act> = scripts.iter().flatten().flatten().cloned().collect();
    let remote = remote_objects();
    let placed: Vec<(String, u32)> =
        remote.iter().filter_map(|act| Some((act.key.clone(), act.content()??.1))).collect();
    let (bucket, address) = Bucket::start(script::contents(acts.iter().chain(&remote)), &placed);
    let log = DiskLog::of(&path);
    bucket.mark_in(log.clone());
    let mut first = 0;
    for script in &scripts {
        script::perform(&path, address, script, first, &log);
        first += script.iter().map(Vec::len).sum::<usize>();
    }
    Recording { events: log.take(), acts, remote, history: bucket.history() }
}

impl Recording {
    fn apply_mark(&self, expected: &mut Expected, mark: u64) {
        if mark >= MARKS {
            let (key, crc32) = &self.history[usize::try_from(mark - MARKS).expect("an index")];
            return expected.bucket_has(key, *crc32);
        }
        let act = &self.acts[usize::try_from(mark / 2).expect("an index")];
        if mark.is_multiple_of(2) { expected.begun(act) } else { expected.acknowledged(act) }
    }

    /// Checks images of every prefix whose number leaves `part` when divided by `parts`; gives what was seen, or the
    /// first problem.
    fn replay(&self, seed: u64, part: usize, parts: usize, forgets: Forgets) -> Result<Seen, String> {
        let (mut disk, mut expected) = (Disk::new(forgets), Expected::default());
        let mut checker = Checker::new(&parent());
        self.remote.iter().for_each(|act| expected.place(&act.key, act));
        for (number, event) in self.events.iter().enumerate() {
            disk.apply(event);
            if let Event::Mark(mark) = event {
                self.apply_mark(&mut expected, *mark);
            }
            if number % parts != part {
                continue;
            }
            let mut dice = Dice(seed ^ number as u64);
            for fates in disk.fates(&mut dice, RANDOM_IMAGES) {
                let image = disk.image(&fates);
                let checked = checker.check(&image, &expected);
                checked.map_err(|problem| format!("after event {number}, {}: {problem}", describe(event)))?;
            }
        }
        Ok(checker.seen)
    }
}

fn describe(event: &Event) -> String {
    match event {
        Event::Write { id, file, offset, bytes } => {
            format!("write {id} of {} bytes at {offset} of {file}", bytes.len())
        }
        other => format!("{other:?}"),
    }
}

fn seed() -> u64 {
    let given = std::env::var("DFSTORE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| crate::rt::time::unix_ms() % 1_000_000);
    eprintln!("DFSTORE_TEST_SEED={seed}");
    seed
}

#[test]
fn whatever_a_power_cut_leaves_holds_what_was_acknowledged() {
    let seed = seed();
    let recording = Arc::new(record(seed));
    let threads = (0..THREADS).map(|part| {
        let recording = recording.clone();
        std::thread::spawn(move || recording.replay(seed, part, THREADS, |_, _| false))
    });
    let seen: Vec<Seen> = threads
        .collect::<Vec<_>>()
        .into_iter()
        .map(|thread| thread.join().expect("no panic").unwrap_or_else(|problem| panic!("seed {seed}: {problem}")))
        .collect();
    eprintln!("{} events, {seen:?}", recording.events.len());
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    assert!(sum(|seen| seen.images) > 2000 && sum(|seen| seen.whole) > 2000, "too few images: {seen:?}");
    let all = [sum(|seen| seen.deleted), sum(|seen| seen.clean_lost), sum(|seen| seen.cut_off_there)];
    assert!(all.iter().all(|count| *count > 0), "this says too little: {seen:?}");
}

/// Were a sync left out, the test above would say so.
#[test]
fn a_sync_that_is_left_out_is_noticed() {
    let recording = record(7);
    let commit: Forgets = |file, _| file == "catalog.redb";
    let journal: Forgets = |file, _| file == "catalog.journal";
    let pieces: Forgets = |file, before| file.starts_with("pieces-") && before > 0;
    let names: Forgets = |file, _| file.is_empty();
    let all = [("commit", commit, ""), ("journal", journal, ""), ("pieces", pieces, " are lost"), ("names", names, "")];
    for (forgotten, forgets, words) in all {
        let problem = recording.replay(7, 0, 3, forgets).map(|seen| seen.images).expect_err(forgotten);
        eprintln!("without {forgotten}: {problem}");
        assert!(problem.contains(words), "{forgotten}: {problem}");
    }
}
