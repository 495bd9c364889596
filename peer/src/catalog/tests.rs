//! Tests of the catalog on real files: what comes back, order, groups, damage, versions, size.

use std::fs::File;
use std::io::pipe;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use redb::backends::InMemoryBackend;
use redb::{ReadableTable, StorageBackend, TableDefinition};
use tempfile::TempDir;

use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::object::ObjectMeta;

use crate::catalog::database::Database;
use crate::catalog::journal::{JOURNAL_FILE, Journal, Mark, Replay};
use crate::catalog::operations::{self, Operation};
use crate::catalog::room::Room;
use crate::catalog::writer::{Message, ToDatabase, Writer};
use crate::catalog::{
    CATALOG_FILE, Catalog, CatalogError, Change, Durability, Loaded, PartRecord, PieceKey, PieceRecord, PieceSet,
    TaskRecord, TaskState, UploadStarted, WriteBackKind, WriteBackRecord,
};
use crate::rt::mailbox::mailbox;
use crate::rt::shard::block_on;
use crate::store::{Extent, ExtentList, PieceFiles, PlainFiles, SharedFile, UnsyncedPiece, piece_file_path};

const CACHE_BYTES: usize = 8 << 20;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn open(dir: &TempDir) -> (Catalog, Loaded) {
    Catalog::open(dir.path(), CACHE_BYTES, Box::new(|_, _| ())).expect("the catalog opens")
}

fn reopen(catalog: Catalog, dir: &TempDir) -> (Catalog, Loaded) {
    catalog.close();
    open(dir)
}

fn run<F: Future>(future: F) -> F::Output {
    block_on(future).expect("io_uring is there")
}

fn commit(catalog: &Catalog, changes: Vec<Change>) {
    run(catalog.handle().commit(changes, Durability::Durable)).expect("commits");
}

fn task(number: u64) -> TaskId {
    TaskId::of(&ObjectName::new("bucket", number.to_string()), "", "")
}

fn task_record(generation: u64) -> TaskRecord {
    TaskRecord {
        name: ObjectName::new("bucket", "a/\u{e4}"),
        query: "versionId=1".to_owned(),
        generation,
        state: TaskState::Dirty,
        meta: ObjectMeta { length: 5, etag: "\"e\"".to_owned(), ..ObjectMeta::default() },
        piece_bytes: 4 << 20,
        crc32: Some(7),
        validated_at_ms: 9,
        replicas: 2,
        published: true,
    }
}

fn piece(task: TaskId, generation: u64, number: u32) -> Change {
    let extents = ExtentList::new(&[Extent { file: 1, block: 2 + number, count: 1 }]).expect("one extent");
    let record = PieceRecord { length: 4096, crc32: number, extents };
    Change::PutPiece { key: PieceKey { task, generation, number }, record }
}

fn writeback(sequence: u64) -> WriteBackRecord {
    let upload = Some(UploadStarted { upload_id: "up".to_owned(), part_bytes: 16 << 20 });
    WriteBackRecord {
        kind: WriteBackKind::Put,
        generation: 3,
        sequence,
        queued_at_ms: 4,
        attempts: 5,
        last_error: "503".to_owned(),
        dead: false,
        upload,
        replaced_etag: "\"r\"".to_owned(),
    }
}

fn piece_numbers(loaded: &Loaded, task: TaskId) -> Vec<(u64, u32)> {
    let own = loaded.pieces.iter().filter(|(key, _)| key.task == task);
    own.map(|(key, _)| (key.generation, key.number)).collect()
}

#[test]
fn everything_comes_back_after_a_restart() {
    let dir = folder();
    let (catalog, empty) = open(&dir);
    assert_eq!(empty, Loaded { store_id: empty.store_id, ..Loaded::default() });
    let part = PartRecord { etag: "p".to_owned(), crc32: 8 };
    commit(
        &catalog,
        vec![
            Change::PutTask { task: task(1), record: task_record(3) },
            piece(task(1), 3, 0),
            piece(task(1), 3, 1),
            Change::PutWriteBack { task: task(1), record: writeback(6) },
            Change::PutPart { task: task(1), number: 2, record: part.clone() },
        ],
    );
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!(loaded.store_id, empty.store_id);
    assert_eq!(loaded.tasks, [(task(1), task_record(3))]);
    assert_eq!(piece_numbers(&loaded, task(1)), [(3, 0), (3, 1)]);
    assert_eq!(loaded.writebacks, [(task(1), writeback(6))]);
    assert_eq!(loaded.parts, [(task(1), 2, part)]);
    assert_eq!(loaded.damaged, 0);
    catalog.close();
}

#[test]
fn removals_take_what_they_name_and_nothing_else() {
    let dir = folder();
    let (catalog, _) = open(&dir);
    let (a, b) = (task(1), task(2));
    let part = PartRecord { etag: "p".to_owned(), crc32: 8 };
    let mut changes = Vec::new();
    for (task, generation) in [(a, 1), (a, 2), (b, 1)] {
        changes.extend((0..3).map(|number| piece(task, generation, number)));
    }
    for task in [a, b] {
        changes.push(Change::PutTask { task, record: task_record(2) });
        changes.push(Change::PutWriteBack { task, record: writeback(1) });
        changes.push(Change::PutPart { task, number: 1, record: part.clone() });
    }
    commit(&catalog, changes);
    commit(
        &catalog,
        vec![
            Change::RemovePieces { task: a, generation: 1, pieces: PieceSet::All },
            Change::RemovePieces { task: a, generation: 2, pieces: PieceSet::Numbers(vec![1, 9]) },
            Change::RemoveWriteBack { task: a },
            Change::RemoveParts { task: b },
        ],
    );
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!(piece_numbers(&loaded, a), [(2, 0), (2, 2)]);
    assert_eq!(piece_numbers(&loaded, b).len(), 3);
    assert_eq!(loaded.writebacks.iter().map(|(task, _)| *task).collect::<Vec<_>>(), [b]);
    assert!(loaded.parts.is_empty());
    commit(&catalog, vec![Change::RemoveTask { task: a }]);
    let (catalog, loaded) = reopen(catalog, &dir);
    assert!(piece_numbers(&loaded, a).is_empty());
    assert_eq!(loaded.tasks.iter().map(|(task, _)| *task).collect::<Vec<_>>(), [b]);
    catalog.close();
}

#[test]
fn commits_that_come_together_share_transactions() {
    const COMMITS: u64 = 400;
    let dir = folder();
    let (transactions, changes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (transactions.clone(), changes.clone());
    let observer = move |count: usize, _| {
        counters.0.fetch_add(1, Ordering::Relaxed);
        counters.1.fetch_add(count, Ordering::Relaxed);
    };
    let (catalog, _) = Catalog::open(dir.path(), CACHE_BYTES, Box::new(observer)).expect("opens");
    let handle = catalog.handle();
    run(async {
        let commits = (0..COMMITS).map(|number| {
            handle
                .commit(vec![Change::PutTask { task: task(number), record: task_record(number) }], Durability::Durable)
        });
        assert!(join_all(commits).await.iter().all(Result::is_ok));
    });
    assert_eq!(changes.load(Ordering::Relaxed), 400);
    assert!(transactions.load(Ordering::Relaxed) <= 10, "{transactions:?} transactions");
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!(loaded.tasks.len(), 400);
    catalog.close();
}

#[test]
fn later_commits_win_whatever_their_durability() {
    let dir = folder();
    let (catalog, _) = open(&dir);
    let handle = catalog.handle();
    run(async {
        let lazy = handle.commit(vec![Change::PutTask { task: task(1), record: task_record(1) }], Durability::Lazy);
        let durable =
            handle.commit(vec![Change::PutTask { task: task(1), record: task_record(2) }], Durability::Durable);
        let (lazy, durable) = futures_util::join!(lazy, durable);
        assert_eq!((lazy, durable), (Ok(()), Ok(())));
    });
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!(loaded.tasks[0].1.generation, 2);
    catalog.close();
    let late = run(handle.commit(vec![Change::RemoveTask { task: task(1) }], Durability::Durable));
    assert_eq!(late, Err(CatalogError::Closed));
}

#[test]
fn a_second_process_is_told_who_has_the_folder() {
    let dir = folder();
    let (catalog, _) = open(&dir);
    let second = Catalog::open(dir.path(), CACHE_BYTES, Box::new(|_, _| ())).err().expect("it is locked");
    assert!(matches!(second, CatalogError::Locked { .. }), "{second}");
    catalog.close();
}

#[test]
fn a_catalog_whose_making_was_cut_off_is_made_anew() {
    let dir = folder();
    let unfinished = dir.path().join("catalog.redb.new");
    // As redb leaves it until its last write: of some length, and no database yet.
    std::fs::write(&unfinished, vec![0; 8192]).expect("writes");
    let (catalog, loaded) = open(&dir);
    assert!(!unfinished.exists() && dir.path().join(CATALOG_FILE).exists());
    let (catalog, again) = reopen(catalog, &dir);
    assert_eq!(loaded.store_id, again.store_id);
    catalog.close();
}

#[test]
fn a_file_that_is_no_catalog_is_refused_with_a_reason() {
    let dir = folder();
    std::fs::write(dir.path().join(CATALOG_FILE), vec![0x5a; 20_000]).expect("writes");
    let error = Catalog::open(dir.path(), CACHE_BYTES, Box::new(|_, _| ())).err().expect("it is refused");
    assert!(matches!(error, CatalogError::Damaged { .. } | CatalogError::Open { .. }), "{error:?}");
}

#[test]
fn reads_a_hundred_thousand_pieces() {
    let dir = folder();
    let (catalog, _) = open(&dir);
    let handle = catalog.handle();
    run(async {
        for object in 0..100u64 {
            let mut changes = vec![Change::PutTask { task: task(object), record: task_record(1) }];
            changes.extend((0..1000).map(|number| piece(task(object), 1, number)));
            handle.commit(changes, Durability::Lazy).await.expect("commits");
        }
    });
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!((loaded.tasks.len(), loaded.pieces.len(), loaded.damaged), (100, 100_000, 0));
    catalog.close();
}

/// Changes a closed catalog behind its back.
fn tamper(dir: &TempDir, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = redb::Database::open(dir.path().join(CATALOG_FILE)).expect("opens");
    let transaction = database.begin_write().expect("begins");
    change(&transaction);
    transaction.commit().expect("commits");
}

const TASKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("tasks");
const META: TableDefinition<&[u8], &[u8]> = TableDefinition::new("meta");

#[test]
fn damaged_and_misplaced_records_are_removed_and_the_rest_stays() {
    let dir = folder();
    let (catalog, _) = open(&dir);
    commit(&catalog, (0..4).map(|n| Change::PutTask { task: task(n), record: task_record(n) }).collect());
    catalog.close();
    tamper(&dir, |transaction| {
        let mut tasks = transaction.open_table(TASKS).expect("opens");
        let value =
            |n: u64| tasks.get(task(n).as_bytes().as_slice()).expect("reads").expect("is there").value().to_vec();
        let (mut flipped, misplaced) = (value(1), value(2));
        flipped[5] ^= 1;
        tasks.insert(task(1).as_bytes().as_slice(), flipped.as_slice()).expect("writes");
        tasks.insert(task(3).as_bytes().as_slice(), misplaced.as_slice()).expect("writes");
        tasks.insert([1, 2, 3].as_slice(), misplaced.as_slice()).expect("writes");
    });
    let (catalog, loaded) = open(&dir);
    assert_eq!(loaded.damaged, 3);
    let mut left: Vec<u64> = loaded.tasks.iter().map(|(_, record)| record.generation).collect();
    left.sort_unstable();
    assert_eq!(left, [0, 2]);
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!((loaded.damaged, loaded.tasks.len()), (0, 2));
    catalog.close();
}

#[test]
fn refuses_another_format_version() {
    let dir = folder();
    open(&dir).0.close();
    tamper(&dir, |transaction| {
        let mut meta = transaction.open_table(META).expect("opens");
        meta.insert(b"format".as_slice(), 3u32.to_le_bytes().as_slice()).expect("writes");
    });
    let error = Catalog::open(dir.path(), CACHE_BYTES, Box::new(|_, _| ())).err().expect("it is refused");
    assert!(matches!(error, CatalogError::Version { found: 3, known: 2, .. }), "{error}");
}

/// Memory whose syncs fail when told to.
#[derive(Debug)]
struct Failing {
    memory: InMemoryBackend,
    fails: Arc<AtomicBool>,
}

impl StorageBackend for Failing {
    fn len(&self) -> std::io::Result<u64> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.memory.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        if self.fails.load(Ordering::SeqCst) { Err(std::io::ErrorKind::Other.into()) } else { Ok(()) }
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.memory.write(offset, data)
    }
}

/// Fails one of the things below a commit, the database or a piece that is given.
fn fail_one(bad: Option<UnsyncedPiece>) {
    let dir = folder();
    let switch = Arc::new(AtomicBool::new(false));
    let fails = if bad.is_none() { switch.clone() } else { Arc::default() };
    let backend = Failing { memory: InMemoryBackend::new(), fails };
    let opened = redb::Database::builder().create_with_backend(backend).expect("opens");
    let (database, identity) = Database::identified(opened, Path::new("memory")).expect("reads");
    Journal::create(dir.path(), &identity.store_id).expect("a journal");
    let (journal, _) = Journal::open(dir.path(), &identity.store_id, Mark::START).expect("opens");
    let good = unsynced_in(&dir);
    let room = Room::new(Path::new("memory"));
    let index = ToDatabase::start(database, Mark::START, room).expect("a thread");
    let (sender, receiver) = mailbox(8);
    let failed = Arc::new(AtomicBool::new(false));
    let writer = Writer::new(journal, index, receiver, failed.clone(), CatalogError::Closed, Box::new(|_, _| ()));
    let thread = std::thread::spawn(move || writer.run());
    let mut acknowledged = 0;
    run(async {
        let commit = async |number: u64| {
            let piece = bad.as_ref().filter(|_| switch.load(Ordering::SeqCst));
            let changes = kept(number, piece.unwrap_or(&good));
            let call = sender.call(|reply| Message::Commit { changes, durability: Durability::Durable, reply });
            call.await.expect("it answers")
        };
        assert_eq!(commit(0).await, Ok(()));
        switch.store(true, Ordering::SeqCst);
        // The journal takes some before the failure behind it is heard.
        let first = loop {
            acknowledged += 1;
            match commit(acknowledged).await {
                Ok(()) => assert!(acknowledged < 10_000, "nobody hears of it"),
                Err(error) => break error,
            }
        };
        assert!(matches!(first, CatalogError::Failed { .. }) && failed.load(Ordering::SeqCst));
        switch.store(false, Ordering::SeqCst);
        assert_eq!(commit(u64::MAX).await, Err(first), "a later sync that succeeds proves nothing");
    });
    drop(sender);
    thread.join().expect("ends");
    let (_, replay) = Journal::open(dir.path(), &identity.store_id, Mark::START).expect("opens");
    let numbers = replay.entries().flat_map(operations::decode).filter_map(|operation| match operation {
        Ok(Operation::Keep { bytes, .. }) => Some(u64::from_le_bytes(bytes.try_into().expect("a number"))),
        _ => None,
    });
    let numbers: Vec<u64> = numbers.collect();
    assert!((0..acknowledged).all(|number| numbers.contains(&number)), "{acknowledged}: {numbers:?}");
}

/// A piece that was written to piece file 1 of the folder, which is made.
fn unsynced_in(dir: &TempDir) -> UnsyncedPiece {
    let file = File::create(piece_file_path(dir.path(), 1)).expect("a file");
    UnsyncedPiece::written_to(vec![SharedFile::new(1, Arc::new(file))])
}

/// A piece that the journal keeps: the bytes are its number.
fn kept(number: u64, piece: &UnsyncedPiece) -> Vec<Change> {
    let bytes = Bytes::copy_from_slice(&number.to_le_bytes());
    let block = 2 + u32::try_from(number % 1000).expect("small");
    let extents = ExtentList::new(&[Extent { file: 1, block, count: 1 }]).expect("one extent");
    let key = PieceKey { task: task(number), generation: 1, number: 0 };
    let record = PieceRecord { length: 8, crc32: crc32fast::hash(&bytes), extents };
    vec![Change::PutPiece { key, record }, Change::KeepPiece { key, piece: piece.clone(), bytes }]
}

#[test]
fn after_a_failure_behind_the_journal_every_commit_is_refused_and_the_journal_has_what_was_answered() {
    fail_one(None);
    // The kernel refuses to sync a pipe.
    let (pipe, _other_end) = pipe().expect("a pipe");
    let pipe = Arc::new(File::from(OwnedFd::from(pipe)));
    fail_one(Some(UnsyncedPiece::written_to(vec![SharedFile::new(2, pipe)])));
    // Nobody will say that it was written.
    let (given_up, _) = UnsyncedPiece::new(Vec::new());
    fail_one(Some(given_up));
}

mod journaled;
