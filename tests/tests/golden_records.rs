//! The bytes of every record on disk, as they were when their version was written.
//!
//! They are literal here: what a disk of a user holds must be readable by the next version of the program.

use std::fmt::Debug;

use bytes::Bytes;
use dfstore_peer::catalog::codec::{self, Record};
use dfstore_peer::catalog::journal::{self, Mark};
use dfstore_peer::catalog::operations::Operations;
use dfstore_peer::catalog::{
    Change, PartRecord, PieceKey, PieceRecord, TaskRecord, TaskState, UploadRecord, UploadStarted, WriteBackKind,
    WriteBackRecord,
};
use dfstore_peer::store::{Extent, ExtentList, Header, HeaderError, UnsyncedPiece};
use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::object::ObjectMeta;

const GUIDE: &str = "The bytes on disk have changed, and disks with the old ones are out there. Raise the version of \
    the record (peer/src/catalog/codec.rs), of the piece files (peer/src/store/files.rs) or of the journal \
    (peer/src/catalog/journal.rs), keep a reader for the old \
    version or refuse it with a message, describe it in peer/src/store/FORMAT.md, then correct the bytes here.";

fn task() -> TaskId {
    let mut number = 0;
    TaskId::from_bytes([(); 32].map(|()| {
        number += 1;
        number - 1
    }))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The record has these bytes under the key, they are read back, and no flipped bit of them is.
fn check<R: Record + Debug + PartialEq>(key: &[u8], record: &R, golden: &str) {
    let bytes = codec::encode(key, record);
    assert_eq!(hex(&bytes), golden.split_whitespace().collect::<String>(), "\n{GUIDE}\n");
    assert_eq!(codec::decode::<R>(key, &bytes).as_ref(), Ok(record));
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(codec::decode::<R>(key, &damaged).is_err(), "bit {bit} is flipped");
    }
    for length in 0..bytes.len() {
        assert!(codec::decode::<R>(key, &bytes[..length]).is_err(), "cut to {length} bytes");
    }
    assert!(codec::decode::<R>(&key[1..], &bytes).is_err(), "under another key");
}

#[test]
fn task_records() {
    let record = TaskRecord {
        name: ObjectName::new("models", "llm/w\u{e4}.bin"),
        query: "versionId=7".to_owned(),
        generation: 1_795_305_600_000_000,
        state: TaskState::Dirty,
        meta: ObjectMeta {
            length: 8_388_617,
            etag: "\"e1\"".to_owned(),
            last_modified_ms: 1_795_305_600_123,
            content_type: "text/plain".to_owned(),
            content_encoding: "gzip".to_owned(),
            content_disposition: "inline".to_owned(),
            content_language: "en".to_owned(),
            storage_class: "STANDARD".to_owned(),
            digest: "crc32:cbf43926".to_owned(),
        },
        piece_bytes: 4 << 20,
        crc32: Some(0xcbf4_3926),
        validated_at_ms: 1_795_305_600_456,
        replicas: 3,
        published: true,
    };
    check(
        task().as_bytes(),
        &record,
        "02066d6f64656c730b6c6c6d2f77c3a42e62696e0b76657273696f6e49643d3780c0b4c4a29a98030189808004042265 \
        3122fbe8b584a0340a746578742f706c61696e04677a697006696e6c696e6502656e085354414e444152440e63726333 \
        323a63626634333932368080800201a6f2d0df0cc8ebb584a0340301ce9b529f",
    );
    let record = TaskRecord {
        query: String::new(),
        state: TaskState::Deleted,
        meta: ObjectMeta::default(),
        crc32: None,
        ..record
    };
    check(
        task().as_bytes(),
        &record,
        "02066d6f64656c730b6c6c6d2f77c3a42e62696e0080c0b4c4a29a9803030000000000000000008080800200c8ebb584 \
        a03403019b890ef2",
    );
}

/// Disks written before there were clusters are read: nobody asked for replicas, nobody was told.
#[test]
fn task_records_of_version_1_are_read() {
    let golden: String =
        "01066d6f64656c730b6c6c6d2f77c3a42e62696e0b76657273696f6e49643d3780c0b4c4a29a98030189808004042265 \
        3122fbe8b584a0340a746578742f706c61696e04677a697006696e6c696e6502656e085354414e444152440e63726333 \
        323a63626634333932368080800201a6f2d0df0cc8ebb584a0342fcb8ec6"
            .split_whitespace()
            .collect();
    let bytes: Vec<u8> =
        (0..golden.len()).step_by(2).map(|at| u8::from_str_radix(&golden[at..at + 2], 16).expect("hex")).collect();
    let record = codec::decode::<TaskRecord>(task().as_bytes(), &bytes).expect("it is read");
    assert_eq!((record.state, record.validated_at_ms), (TaskState::Dirty, 1_795_305_600_456));
    assert_eq!((record.replicas, record.published), (0, false));
    for length in 0..bytes.len() {
        assert!(codec::decode::<TaskRecord>(task().as_bytes(), &bytes[..length]).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn piece_records() {
    let key = codec::piece_key(&PieceKey { task: task(), generation: 2, number: 3 });
    assert_eq!(hex(&key[32..]), "000000000000000200000003", "{GUIDE}");
    let extents = |list: &[Extent]| ExtentList::new(list).expect("a list of extents");
    let first = Extent { file: 1, block: 5, count: 3 };
    let record = PieceRecord { length: 10_000, crc32: 0xcbf4_3926, extents: extents(&[first]) };
    check(&key, &record, "01904ea6f2d0df0c01010503b2df1f43");
    let second = Extent { file: 2, block: 261_119, count: 1021 };
    let record = PieceRecord { length: 4 << 20, crc32: 1, extents: extents(&[first, second]) };
    check(&key, &record, "0180808002010201050302fff70ffd07c6b8be11");
}

#[test]
fn write_back_records() {
    let record = WriteBackRecord {
        kind: WriteBackKind::Put,
        generation: 1_795_305_600_000_000,
        sequence: 300,
        queued_at_ms: 1_795_305_600_123,
        attempts: 2,
        last_error: "503 SlowDown".to_owned(),
        dead: false,
        upload: Some(UploadStarted { upload_id: "upload-1".to_owned(), part_bytes: 16 << 20 }),
        replaced_etag: "\"r\"".to_owned(),
    };
    check(
        task().as_bytes(),
        &record,
        "020080c0b4c4a29a9803ac02fbe8b584a034020c35303320536c6f77446f776e00010875706c6f61642d318080800803 \
         227222ed6b598c",
    );
    let record = WriteBackRecord { kind: WriteBackKind::Delete, dead: true, upload: None, ..record };
    check(
        task().as_bytes(),
        &record,
        "020180c0b4c4a29a9803ac02fbe8b584a034020c35303320536c6f77446f776e010003227222330d90cd",
    );
}

/// Disks written before it was noted what a write replaces: nothing is known of it.
#[test]
fn write_back_records_of_version_1_are_read() {
    let golden =
        "010080c0b4c4a29a9803ac02fbe8b584a034020c35303320536c6f77446f776e00010875706c6f61642d3180808008d404a841";
    let bytes: Vec<u8> =
        (0..golden.len()).step_by(2).map(|at| u8::from_str_radix(&golden[at..at + 2], 16).expect("hex")).collect();
    let record = codec::decode::<WriteBackRecord>(task().as_bytes(), &bytes).expect("it is read");
    assert_eq!((record.attempts, record.sequence, record.replaced_etag.as_str()), (2, 300, ""));
    assert_eq!(record.upload.map(|upload| upload.part_bytes), Some(16 << 20));
}

#[test]
fn upload_records() {
    let key = codec::upload_key(&task(), 1_795_305_600_000_007);
    assert_eq!(hex(&key[32..]), "000660d2288d2007", "{GUIDE}");
    let name = ObjectName::new("models", "llm/a.bin");
    let record = UploadRecord { name, upload_id: "upload-1".to_owned(), asked_at_ms: 1_795_305_600_123 };
    check(&key, &record, "01066d6f64656c73096c6c6d2f612e62696e0875706c6f61642d31fbe8b584a0341d635cfc");
}

#[test]
fn part_records() {
    let key = codec::part_key(&task(), 10_000);
    assert_eq!(hex(&key[32..]), "00002710", "{GUIDE}");
    check(&key, &PartRecord { etag: "\"p1\"".to_owned(), crc32: 0xcbf4_3926 }, "010422703122a6f2d0df0c80c88e24");
}

#[test]
fn journals() {
    let id = *b"0123456789abcdef";
    let golden = "4446534a4f55524e010000003031323334353637383961626364656600080000bb88bd0c";
    assert_eq!(hex(&journal::encode_header(&id, 2048)), golden, "\n{GUIDE}\n");
    let mark = Mark { sequence: 258, block: 17 };
    assert_eq!(hex(&mark.to_bytes()), "020100000000000011000000", "\n{GUIDE}\n");
    assert_eq!(Mark::from_bytes(&mark.to_bytes()), Some(mark));
    assert_eq!(Mark::from_bytes(&mark.to_bytes()[1..]), None);
    let entry = |number, changes: &[Change]| {
        let mut operations = Operations::default();
        changes.iter().for_each(|change| operations.push(change));
        hex(&journal::encode_entry(&id, number, &operations))
    };
    let of_task = |golden: &str| {
        let task = hex(task().as_bytes());
        golden.replace("TASK", &task).split_whitespace().collect::<String>()
    };
    let example = entry(1, &[Change::RemoveUpload { task: task(), number: 7 }]);
    let golden = "4446534a 654bbac4 0100000000000000 30000000 01000000 0104280000000000 TASK 0000000000000007";
    assert_eq!(example, of_task(golden), "\n{GUIDE}\n");
    let piece = PieceKey { task: task(), generation: 2, number: 3 };
    let kept = Change::KeepPiece {
        key: piece,
        piece: UnsyncedPiece::written_to(Vec::new()),
        bytes: Bytes::from_static(b"bytes"),
    };
    let record = PartRecord { etag: "e".to_owned(), crc32: 1 };
    let two = entry(2, &[Change::PutPart { task: task(), number: 1, record }, kept]);
    let golden = "4446534a 91065df7 0200000000000000 6d000000 02000000 0003240008000000 TASK 00000001 01016501108e8ecd \
        03012c0005000000 TASK 000000000000000200000003 6279746573";
    assert_eq!(two, of_task(golden), "\n{GUIDE}\n");
    let range = entry(3, &[Change::RemoveParts { task: task() }]);
    let golden = "4446534a ea6373fb 0300000000000000 50000000 01000000 0203240024000000 TASK 00000000 TASK ffffffff";
    assert_eq!(range, of_task(golden), "\n{GUIDE}\n");
}

#[test]
fn piece_file_headers() {
    let header = Header { store_id: *b"0123456789abcdef", number: 258, block_count: 261_121 };
    let bytes = header.encode();
    let golden = "444653504945434501000000020100003031323334353637383961626364656601fc0300001000007f6b2ccd";
    assert_eq!(hex(&bytes), golden.split_whitespace().collect::<String>(), "\n{GUIDE}\n");
    assert_eq!(Header::decode(&bytes), Ok(header));
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Header::decode(&damaged), Err(HeaderError::Damaged), "bit {bit} is flipped");
    }
}
