//! Tests of the journal: what is read again after a crash, coming round, damage, pieces that are kept, earlier files.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;
use crate::limits::JOURNAL_BYTES;
use crate::rt::time::timeout;

const BLOCK: u64 = 4096;

/// The folder as a crash would leave it: the files at one moment of the database's thread, which goes on meanwhile.
fn crashed(dir: &TempDir) -> TempDir {
    let copy = folder();
    let read = |name: &str| std::fs::read(dir.path().join(name)).expect("reads");
    loop {
        let database = read(CATALOG_FILE);
        for entry in std::fs::read_dir(dir.path()).expect("a folder") {
            let path = entry.expect("an entry").path();
            std::fs::copy(&path, copy.path().join(path.file_name().expect("a name"))).expect("a copy");
        }
        if read(CATALOG_FILE) == database {
            std::fs::write(copy.path().join(CATALOG_FILE), database).expect("writes");
            return copy;
        }
    }
}

fn generations(loaded: &Loaded) -> BTreeMap<TaskId, u64> {
    loaded.tasks.iter().map(|(task, record)| (*task, record.generation)).collect()
}

fn put(number: u64, generation: u64) -> Change {
    Change::PutTask { task: task(number), record: task_record(generation) }
}

#[test]
fn what_was_answered_is_there_after_a_crash_however_often_the_ring_was_filled() {
    let dir = folder();
    let (catalog, _) = open(&dir);
    // An entry takes a block at least: these go round the ring several times.
    let commits = 3 * JOURNAL_BYTES as u64 / BLOCK;
    let mut expected = BTreeMap::new();
    for number in 0..commits {
        commit(&catalog, vec![put(number % 7, number)]);
        expected.insert(task(number % 7), number);
        if number % 31 == 0 {
            let image = crashed(&dir);
            let (crashed, loaded) = open(&image);
            assert_eq!(generations(&loaded), expected, "after {number}");
            assert_eq!(loaded.damaged, 0);
            crashed.close();
            assert_eq!(generations(&open(&image).1), expected, "and once more");
        }
    }
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!(generations(&loaded), expected);
    catalog.close();
}

#[test]
fn a_commit_that_is_too_large_for_the_journal_is_as_durable() {
    let dir = folder();
    let (catalog, _) = open(&dir);
    commit(&catalog, vec![put(1, 1)]);
    let many = |generation| (0..4000).map(move |number| piece(task(2), generation, number));
    const { assert!(4000 * 60 > JOURNAL_BYTES / 2, "this is too little") };
    commit(&catalog, many(1).chain([put(2, 1)]).collect());
    commit(&catalog, vec![put(1, 2)]);
    let (crashed, loaded) = open(&crashed(&dir));
    assert_eq!(generations(&loaded), BTreeMap::from([(task(1), 2), (task(2), 1)]));
    assert_eq!(loaded.pieces.len(), 4000);
    crashed.close();
    catalog.close();
}

/// The writes of kept pieces begin when their commits are answered, so no commit may wait for them.
#[test]
fn more_kept_pieces_than_the_journal_can_hold_at_once_are_all_answered() {
    const { assert!(40 * 30_000 > JOURNAL_BYTES * 4, "this is too little") };
    let dir = folder();
    let (catalog, _) = open(&dir);
    let handle = catalog.handle();
    let commit = async |number: u64| {
        let bytes = Bytes::from(vec![1; 30_000]);
        let key = PieceKey { task: task(number), generation: 1, number: 0 };
        let (piece, end) = UnsyncedPiece::new(Vec::new());
        let changes = vec![put(number, 1), Change::KeepPiece { key, piece, bytes }];
        handle.commit(changes, Durability::Durable).await.expect("it is taken");
        end.ended(true);
    };
    run(async { timeout(Duration::from_secs(30), join_all((0..40).map(commit))).await.expect("they are answered") });
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!(loaded.tasks.len(), 40);
    catalog.close();
}

/// A catalog that ended without its database having the last entries: how many, and a copy of the folder.
fn behind() -> (TempDir, Vec<u64>) {
    let dir = folder();
    let (catalog, _) = open(&dir);
    loop {
        for number in 0..5 {
            commit(&catalog, vec![put(number, number)]);
        }
        let image = crashed(&dir);
        let database = redb::Database::open(image.path().join(CATALOG_FILE)).expect("opens");
        let transaction = redb::ReadableDatabase::begin_read(&database).expect("begins");
        let meta = transaction.open_table(META).expect("opens");
        let mark = meta.get(b"journal".as_slice()).expect("reads").expect("is there").value().to_vec();
        let mark = Mark::from_bytes(&mark).expect("a mark");
        let id = meta.get(b"store-id".as_slice()).expect("reads").expect("is there").value().to_vec();
        drop((meta, transaction));
        drop(database);
        let id = id.try_into().expect("sixteen bytes");
        let (_, replay) = Journal::open(image.path(), &id, mark).expect("opens");
        if replay.entries().count() >= 3 {
            catalog.close();
            let blocks = (0..3).map(|number| u64::from(mark.block) + number).collect();
            return (image, blocks);
        }
    }
}

#[test]
fn a_damaged_entry_costs_itself_and_is_counted_and_the_rest_is_there() {
    let (dir, blocks) = behind();
    let journal = File::options().read(true).write(true).open(dir.path().join(JOURNAL_FILE)).expect("opens");
    journal.write_all_at(&[0xff; 3], blocks[1] * BLOCK + 40).expect("writes");
    let (catalog, loaded) = open(&dir);
    assert_eq!(loaded.damaged, 1);
    // The damaged one may have been the first that named its task.
    assert!(loaded.tasks.len() >= 4, "{:?}", generations(&loaded));
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!(loaded.damaged, 0);
    catalog.close();
}

#[test]
fn a_journal_that_is_missing_or_no_journal_or_of_another_store_is_refused_with_a_reason() {
    let error = |dir: &TempDir| {
        let opened = Catalog::open(dir.path(), CACHE_BYTES, Box::new(|_, _| ()));
        opened.err().expect("it is refused").to_string()
    };
    let dir = folder();
    open(&dir).0.close();
    let path = dir.path().join(JOURNAL_FILE);
    let bytes = std::fs::read(&path).expect("reads");
    std::fs::remove_file(&path).expect("removes");
    assert!(error(&dir).contains("catalog.journal is damaged (it is missing)"), "{}", error(&dir));
    std::fs::write(&path, &bytes[..bytes.len() - 4096]).expect("writes");
    assert!(error(&dir).contains("its size is not what its header says"), "{}", error(&dir));
    std::fs::write(&path, vec![0; bytes.len()]).expect("writes");
    assert!(error(&dir).contains("it does not begin with a valid header"), "{}", error(&dir));
    std::fs::write(&path, b"x").expect("writes");
    assert!(error(&dir).contains("it is too short"), "{}", error(&dir));
    let other = folder();
    open(&other).0.close();
    std::fs::copy(other.path().join(JOURNAL_FILE), &path).expect("copies");
    assert!(error(&dir).contains("it belongs to another store"), "{}", error(&dir));
    std::fs::write(&path, &bytes).expect("writes");
    open(&dir).0.close();
}

#[test]
fn a_catalog_of_an_earlier_program_gets_a_journal() {
    let dir = folder();
    let (catalog, before) = open(&dir);
    commit(&catalog, vec![put(1, 5)]);
    catalog.close();
    std::fs::remove_file(dir.path().join(JOURNAL_FILE)).expect("removes");
    tamper(&dir, |transaction| {
        let mut meta = transaction.open_table(META).expect("opens");
        meta.insert(b"format".as_slice(), 1u32.to_le_bytes().as_slice()).expect("writes");
        meta.remove(b"journal".as_slice()).expect("removes");
    });
    let (catalog, loaded) = open(&dir);
    assert_eq!((loaded.store_id, generations(&loaded)), (before.store_id, BTreeMap::from([(task(1), 5)])));
    commit(&catalog, vec![put(1, 6)]);
    let (catalog, loaded) = reopen(catalog, &dir);
    assert_eq!(generations(&loaded), BTreeMap::from([(task(1), 6)]));
    catalog.close();
}

/// What happens to a piece that the journal keeps, before the crash.
#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    Removed,
    /// Its blocks have gone to another piece, which was synced there.
    Replaced,
}

#[test]
fn kept_pieces_are_written_again_unless_they_were_replaced() {
    for then in [Then::Nothing, Then::Removed, Then::Replaced] {
        let dir = folder();
        let (catalog, _) = open(&dir);
        let piece = unsynced_in(&dir);
        let piece_file = File::options().write(true).open(piece_file_path(dir.path(), 1)).expect("a piece file");
        piece_file.set_len(100 * BLOCK).expect("its size");
        let record = |change: &Change| match change {
            Change::PutPiece { key, record } => (*key, record.clone()),
            _ => panic!("a record"),
        };
        let changes = kept(9, &piece);
        let (key, kept_record) = record(&changes[0]);
        let at = kept_record.extents.as_slice()[0].offset_bytes();
        commit(&catalog, changes);
        if !matches!(then, Then::Nothing) {
            let all = PieceSet::All;
            commit(&catalog, vec![Change::RemovePieces { task: key.task, generation: 1, pieces: all }]);
            piece_file.write_all_at(b"another!", at).expect("writes");
        }
        if matches!(then, Then::Replaced) {
            // The same key: only its checksum tells it apart.
            let record = PieceRecord { crc32: crc32fast::hash(b"another!"), ..kept_record.clone() };
            commit(&catalog, vec![Change::PutPiece { key, record }]);
        }
        let image = crashed(&dir);
        let (crashed, _) = open(&image);
        crashed.close();
        catalog.close();
        let mut found = [0; 8];
        let file = File::open(piece_file_path(image.path(), 1)).expect("opens");
        file.read_exact_at(&mut found, at).expect("reads");
        match then {
            // The piece itself was never written here: the bytes can only be the journal's, as long as it had them.
            Then::Nothing => assert!(found == 9u64.to_le_bytes() || found == [0; 8], "{found:?}"),
            Then::Removed | Then::Replaced => assert_eq!(&found, b"another!"),
        }
    }
}

#[test]
fn files_that_are_not_there_are_no_reason_not_to_start() {
    let dir = folder();
    let mut files = PlainFiles::new(dir.path().to_path_buf());
    let extents = ExtentList::new(&[Extent { file: 7, block: 2, count: 1 }]).expect("one extent");
    files.write(&extents, b"bytes").expect("the store says what is lost");
    files.sync(7).expect("likewise");
    File::create(piece_file_path(dir.path(), 7)).expect("a file");
    files.write(&extents, b"bytes").expect("outside the file");
    assert_eq!(std::fs::metadata(piece_file_path(dir.path(), 7)).expect("there").len(), 0);
}

#[test]
fn any_flipped_bit_of_an_entry_is_found() {
    let id = [7; 16];
    let mut row = operations::Operations::default();
    row.push(&put(1, 2));
    row.push(&Change::RemoveTask { task: task(3) });
    kept(4, &unsynced_in(&folder())).iter().for_each(|change| row.push(change));
    let entry = crate::catalog::journal::encode_entry(&id, 1, &row);
    let header = crate::catalog::journal::encode_header(&id, 3);
    let read = |entry: &[u8]| {
        let mut bytes = crate::rt::aligned::AlignedBytes::zeroed(3 * 4096);
        bytes[..header.len()].copy_from_slice(&header);
        bytes[4096..4096 + entry.len()].copy_from_slice(entry);
        Replay::read(Path::new("journal"), bytes, &id, Mark::START).expect("a journal")
    };
    let whole = read(&entry);
    assert_eq!(whole.entries().collect::<Vec<_>>(), [row.bytes()]);
    assert!(operations::decode(row.bytes()).all(|operation| operation.is_ok()));
    assert_eq!(operations::decode(row.bytes()).count(), row.count() as usize);
    for bit in 0..entry.len() * 8 {
        let mut damaged = entry.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let replay = read(&damaged);
        assert_eq!((replay.entries().count(), replay.mark), (0, Mark::START), "bit {bit} is flipped");
    }
    for length in 0..row.bytes().len() {
        let cut = operations::decode(&row.bytes()[..length]).collect::<Vec<_>>();
        assert!(cut.len() < row.count() as usize || cut.iter().any(Result::is_err), "cut to {length}");
    }
}
