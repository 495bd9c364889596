//! `cp` to an object, and from object to object.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::object::WriteMode;

use crate::fake::{Fake, Faults, Gate, PIECE_BYTES};
use crate::run::{Finished, Folder, bytes, dfstore, run};

const PIECE: usize = PIECE_BYTES as usize;

fn upload(fake: &Fake, data: &[u8], url: &str) -> Finished {
    let folder = Folder::new();
    let source = folder.write("source.bin", data);
    run(fake, &["cp", &source.display().to_string(), url])
}

fn feed(command: &mut Command, data: &[u8]) -> Finished {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("dfstore starts");
    // A process that has failed takes nothing any more.
    let _ = child.stdin.take().expect("piped").write_all(data);
    Finished::of(child.wait_with_output().expect("ends"))
}

#[track_caller]
fn holds(fake: &Fake, key: &str, data: &[u8]) {
    let object = fake.get("b", key).unwrap_or_else(|| panic!("{key:?} is not there: {:?}", fake.keys("b")));
    assert!(*object.data == data, "{key:?} has other bytes");
}

#[test]
fn files_of_all_sizes_arrive_whole() {
    for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE, 37 * PIECE + 5] {
        let (fake, data) = (Fake::start(), bytes(length));
        let done = upload(&fake, &data, "dfs://b/dir/k").done();
        holds(&fake, "dir/k", &data);
        let line = done.text();
        let start = format!("upload object storage success, length: {length} bytes cost: ");
        assert!(line.starts_with(&start) && line.ends_with(" ms\n") && line.lines().count() == 1, "{line}");
        assert_eq!((done.stderr.as_str(), fake.uploads_open()), ("", 0));
    }
}

#[test]
fn several_connections_share_a_file() {
    let (fake, data) = (Fake::start(), bytes(50 * PIECE + 1));
    upload(&fake, &data, "dfs://b/k").done();
    holds(&fake, "k", &data);
    assert!(fake.connections() == 4 && fake.count("PUT_JOIN") >= 1 && fake.count("PUT_LEAVE") >= 1);
}

#[test]
fn works_without_io_uring() {
    let (fake, data, folder) = (Fake::start(), bytes(9 * PIECE), Folder::new());
    let mut command = dfstore();
    command.env("MONOIO_FORCE_LEGACY_DRIVER", "1").args(["-e", &fake.endpoint(), "cp"]);
    let output = command.arg(folder.write("f", &data)).arg("dfs://b/k").output();
    Finished::of(output.expect("dfstore starts")).done();
    holds(&fake, "k", &data);
}

#[test]
fn standard_input_of_any_length() {
    for length in [0, 1, PIECE, 11 * PIECE + 7] {
        let (fake, data) = (Fake::start(), bytes(length));
        let mut command = dfstore();
        feed(command.args(["-e", &fake.endpoint(), "cp", "-", "dfs://b/k/"]), &data).done();
        holds(&fake, "k/", &data);
        assert_eq!((fake.connections(), fake.begins()[0].length), (1, None));
    }
}

#[test]
fn keys_arrive_byte_for_byte() {
    let fake = Fake::start();
    for (url, key) in [
        ("dfs://b/a%2Fb%20c", "a/b c"),
        ("DFS://b/../x//y", "../x//y"),
        ("dfs://b//lead", "/lead"),
        ("dfs://b/nul%00%0A", "nul\0\n"),
        ("dfs://b/back\\slash+\u{fc}", "back\\slash+\u{fc}"),
        ("dfs://b/folder/", "folder/source.bin"),
        ("dfs://b/", "source.bin"),
    ] {
        upload(&fake, key.as_bytes(), url).done();
        holds(&fake, key, key.as_bytes());
    }
}

#[test]
fn the_flags_reach_the_peer() {
    let (fake, folder) = (Fake::start(), Folder::new());
    let source = folder.write("f", b"x").display().to_string();
    let flags = ["-m", "writeback", "--max-replicas", "7", "--filter", "a&b", "--content-type", "text/x"];
    run(&fake, &[&["cp", &source, "dfs://b/k"], flags.as_slice()].concat()).done();
    run(&fake, &["cp", &source, "dfs://b/k"]).done();
    let begins = fake.begins();
    assert_eq!((begins[0].mode, begins[0].max_replicas), (WriteMode::WriteBack, 7));
    assert_eq!((begins[0].target.filter.as_str(), begins[0].meta.content_type.as_str()), ("a&b", "text/x"));
    assert_eq!((begins[1].mode, begins[1].max_replicas), (WriteMode::AsyncWriteBack, 3));
    assert_eq!(begins[1].length, Some(1));
}

#[test]
fn sources_that_cannot_be_read_are_named() {
    let (fake, folder) = (Fake::start(), Folder::new());
    let path = folder.path().display().to_string();
    run(&fake, &["cp", &path, "dfs://b/k"]).failed(1, &["is a directory", "Hint:"]);
    run(&fake, &["cp", &format!("{path}/none"), "dfs://b/k"]).failed(1, &["none", "No such file"]);
    run(&fake, &["cp", "..", "dfs://b/folder/"]).failed(2, &["name the object"]);
    assert!(fake.begins().is_empty());
}

#[test]
fn paths_need_not_be_text() {
    let (fake, folder) = (Fake::start(), Folder::new());
    let name: &OsStr = OsStrExt::from_bytes(b"\xff\xfe");
    let source = folder.path().join(name);
    std::fs::write(&source, b"x").expect("written");
    run(&fake, &["cp".as_ref(), source.as_os_str(), "dfs://b/k".as_ref()]).done();
    holds(&fake, "k", b"x");
    run(&fake, &["cp".as_ref(), source.as_os_str(), "dfs://b/folder/".as_ref()]).failed(2, &["name the object"]);
}

#[test]
fn a_refused_upload_shows_the_servers_words() {
    let refusal = ErrorReply::new(ErrorCode::NoSpace, "the disk of the peer is full");
    let fake = Fake::start().with(Faults { refusals: VecDeque::from([refusal]), ..Faults::default() });
    upload(&fake, &bytes(3 * PIECE), "dfs://b/k")
        .failed(1, &["Error: failed to copy ", "the disk of the peer is full"]);
}

#[test]
fn a_broken_joined_connection_is_made_good() {
    let data = bytes(40 * PIECE);
    let fake = Fake::start().with(Faults { broken_writes: vec![false, false], ..Faults::default() });
    upload(&fake, &data, "dfs://b/k").done();
    holds(&fake, "k", &data);
}

#[test]
fn an_upload_whose_first_connection_breaks_starts_over() {
    let data = bytes(40 * PIECE);
    let fake = Fake::start().with(Faults { broken_writes: vec![true], ..Faults::default() });
    upload(&fake, &data, "dfs://b/k").done();
    holds(&fake, "k", &data);
    assert_eq!(fake.begins().len(), 2);
}

#[test]
fn an_upload_waits_for_its_peer_to_be_back() {
    let data = bytes(40 * PIECE);
    let faults = Faults { broken_writes: vec![true], hangups: 4, ..Faults::default() };
    let fake = Fake::start().with(faults);
    upload(&fake, &data, "dfs://b/k").done();
    holds(&fake, "k", &data);
    assert_eq!(fake.begins().len(), 2);
}

#[test]
fn a_peer_that_stays_away_ends_the_upload() {
    let fake = Fake::start().with(Faults { broken_writes: vec![true; 40], ..Faults::default() });
    upload(&fake, &bytes(40 * PIECE), "dfs://b/k").failed(1, &["broke"]);
    assert_eq!(fake.begins().len(), 5, "the first attempt and four more");
    assert!(fake.get("b", "k").is_none());
}

#[test]
fn copies_that_are_waited_for_are_asked_for_and_told() {
    let folder = Folder::new();
    let source = folder.write("f", b"x").display().to_string();
    let fake = Fake::start();
    let done = run(&fake, &["cp", "--ack", "peers:2", &source, "dfs://b/k"]).done();
    assert_eq!(done.stderr, "written: local replicas=3\n");
    assert_eq!(fake.begins()[0].ack_peers, 2);
    assert_eq!(run(&fake, &["cp", "-q", "--ack", "peers:2", &source, "dfs://b/k"]).done().stderr, "");
    run(&fake, &["cp", "--ack", "peers:2", "dfs://b/k", "dfs://b/copy"]).done();
    assert_eq!((fake.count("COPY"), fake.begins()[2].ack_peers), (0, 2), "COPY cannot wait for copies");
    holds(&fake, "copy", b"x");
    let fake = Fake::start().with(Faults { copies: Some(1), ..Faults::default() });
    let done = run(&fake, &["cp", "--ack", "peers:2", &source, "dfs://b/k"]);
    done.failed(1, &["of the 2 durable copies that --ack asks for there are 1", "Hint:"]);
    holds(&fake, "k", b"x");
}

#[test]
fn a_stream_cannot_start_over() {
    let fake = Fake::start().with(Faults { broken_writes: vec![true], ..Faults::default() });
    let mut command = dfstore();
    let done = feed(command.args(["-e", &fake.endpoint(), "cp", "-", "dfs://b/k"]), &bytes(40 * PIECE));
    done.failed(1, &["failed to copy - to dfs://b/k", "broke"]);
    assert!(fake.get("b", "k").is_none());
}

#[test]
fn a_file_that_changes_is_not_uploaded() {
    for shrinks in [false, true] {
        let (gate, keeper) = Gate::new();
        let fake = Fake::start().with(Faults { gate: Some(gate), ..Faults::default() });
        let folder = Folder::new();
        let source = folder.write("f", &bytes(60 * PIECE));
        let mut command = dfstore();
        command.args(["-e", &fake.endpoint(), "cp", "--parallel", "1"]).arg(&source).arg("dfs://b/k");
        let child = command.stderr(Stdio::piped()).spawn().expect("dfstore starts");
        keeper.wait();
        let mut file = std::fs::File::options().append(true).open(&source).expect("opens");
        let changed = if shrinks { file.set_len(30 * PIECE as u64) } else { file.write_all(b"more") };
        changed.expect("changed");
        keeper.open();
        let done = Finished::of(child.wait_with_output().expect("ends"));
        done.failed(1, &["the file changed while it was being read"]);
        assert!(fake.get("b", "k").is_none());
        assert_eq!((fake.count("PUT_ABORT"), fake.count("PUT_COMMIT")), (1, 0));
    }
}

#[test]
fn objects_of_one_bucket_are_copied_by_the_peer() {
    let (fake, data) = (Fake::start(), bytes(5 * PIECE));
    fake.put("b", "from/k", &data);
    let line = run(&fake, &["cp", "dfs://b/from/k", "dfs://b/to/"]).done().text();
    assert!(line.starts_with(&format!("copy object storage success, length: {} bytes", data.len())), "{line}");
    holds(&fake, "to/k", &data);
    assert_eq!((fake.count("COPY"), fake.count("READ"), fake.count("PIECE")), (1, 0, 0));
    run(&fake, &["cp", "dfs://b/none", "dfs://b/to"]).failed(1, &["does not exist"]);
}

#[test]
fn objects_go_from_bucket_to_bucket_through_us() {
    let (fake, data) = (Fake::start(), bytes(25 * PIECE + 3));
    fake.put("other", "k", &data);
    run(&fake, &["cp", "dfs://other/k", "dfs://b/"]).done();
    holds(&fake, "k", &data);
    assert_eq!(fake.begins()[0].length, Some(data.len() as u64));
    run(&fake, &["cp", "dfs://other/none", "dfs://b/none"]).failed(1, &["does not exist"]);
}

#[test]
fn a_copy_through_us_that_breaks_leaves_no_short_object() {
    let replaced = Faults { damaged_pieces: usize::MAX, ..Faults::default() };
    let fake = Fake::start().with(replaced);
    fake.put("other", "k", &bytes(25 * PIECE));
    run(&fake, &["cp", "dfs://other/k", "dfs://b/k"]).failed(1, &["arrived damaged"]);
    assert!(fake.get("b", "k").is_none());
}
