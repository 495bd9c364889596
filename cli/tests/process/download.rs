//! `cp` from an object to files and streams, also when pieces, connections and versions fail on the way.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use crate::fake::{Fake, Faults, Gate, PIECE_BYTES};
use crate::run::{Finished, Folder, bytes, dfstore, run};

const PIECE: usize = PIECE_BYTES as usize;

fn holding(data: &[u8]) -> Fake {
    let fake = Fake::start();
    fake.put("b", "dir/k.bin", data);
    fake
}

#[test]
fn objects_of_all_sizes_arrive_whole() {
    let folder = Folder::new();
    for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE, 37 * PIECE + 5] {
        let data = bytes(length);
        let fake = holding(&data);
        let target = folder.file("out");
        let done = run(&fake, &["cp", "dfs://b/dir/k.bin", &target.display().to_string()]).done();
        assert!(std::fs::read(&target).expect("there") == data, "{length}");
        let line = done.text();
        let start = format!("download object storage success, length: {length} bytes cost: ");
        assert!(line.starts_with(&start) && line.ends_with(" ms\n") && line.lines().count() == 1, "{line}");
        assert_eq!(done.stderr, "");
        assert_eq!(folder.names(), ["out"]);
    }
}

#[test]
fn every_number_of_streams_gives_the_same_bytes() {
    let data = bytes(40 * PIECE + 9);
    let fake = holding(&data);
    let folder = Folder::new();
    for parallel in ["1", "2", "9", "32"] {
        let target = folder.file(parallel).display().to_string();
        run(&fake, &["cp", "dfs://b/dir/k.bin", &target, "--parallel", parallel]).done();
        assert!(std::fs::read(&target).expect("there") == data, "{parallel}");
    }
    assert!(fake.connections() > 4);
}

#[test]
fn works_without_io_uring() {
    let data = bytes(9 * PIECE);
    let fake = holding(&data);
    let folder = Folder::new();
    let target = folder.file("out");
    let mut command = dfstore();
    command.env("MONOIO_FORCE_LEGACY_DRIVER", "1").args(["-e", &fake.endpoint(), "cp", "dfs://b/dir/k.bin"]);
    Finished::of(command.arg(&target).output().expect("dfstore starts")).done();
    assert!(std::fs::read(&target).expect("there") == data);
}

#[test]
fn folders_take_the_last_part_of_the_key() {
    let fake = holding(b"x");
    let folder = Folder::new();
    let path = folder.path().display().to_string();
    run(&fake, &["cp", "dfs://b/dir/k.bin", &path]).done();
    assert_eq!(folder.names(), ["k.bin"]);
    run(&fake, &["cp", "dfs://b/dir/k.bin", &format!("{path}/none/")]).failed(1, &["folder", "does not exist"]);
    fake.put("b", "evil/..", b"x");
    run(&fake, &["cp", "dfs://b/evil/..", &path]).failed(2, &["gives no file name"]);
    assert_eq!(folder.names(), ["k.bin"]);
}

#[test]
fn standard_output_gets_the_bytes_and_nothing_else() {
    let data = bytes(21 * PIECE + 3);
    let fake = holding(&data);
    let done = run(&fake, &["cp", "dfs://b/dir/k.bin", "-"]).done();
    assert!(done.stdout == data);
    assert!(done.stderr.starts_with("download object storage success, length: "), "{}", done.stderr);
}

#[test]
fn quiet_says_nothing_and_verbose_names_the_sources() {
    let fake = holding(b"x");
    let folder = Folder::new();
    let target = folder.file("out").display().to_string();
    let done = run(&fake, &["cp", "-q", "dfs://b/dir/k.bin", &target]).done();
    assert_eq!((done.text().as_str(), done.stderr.as_str()), ("", ""));
    let done = run(&fake, &["cp", "-v", "dfs://b/dir/k.bin", &target]).done();
    assert!(done.stderr.starts_with("sources: local="), "{}", done.stderr);
}

#[test]
fn a_reader_that_goes_away_is_an_error_without_panic() {
    let fake = holding(&bytes(64 * PIECE));
    let mut child = dfstore()
        .args(["-e", &fake.endpoint(), "cp", "dfs://b/dir/k.bin", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("dfstore starts");
    let mut first = [0];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("a byte");
    drop(stdout);
    Finished::of(child.wait_with_output().expect("ends")).failed(1, &["Broken pipe"]);
}

#[test]
fn a_missing_object_leaves_no_file_and_shows_the_servers_words() {
    let fake = Fake::start();
    let folder = Folder::new();
    let target = folder.file("out").display().to_string();
    let said = ["Error: failed to copy dfs://b/none to ", "dfs://b/none does not exist"];
    run(&fake, &["cp", "dfs://b/none", &target]).failed(1, &said);
    assert!(folder.names().is_empty());
}

#[test]
fn damaged_pieces_are_fetched_again() {
    let data = bytes(8 * PIECE);
    let fake = holding(&data).with(Faults { damaged_pieces: 3, ..Faults::default() });
    let folder = Folder::new();
    let target = folder.file("out");
    run(&fake, &["cp", "dfs://b/dir/k.bin", &target.display().to_string()]).done();
    assert!(std::fs::read(&target).expect("there") == data);
}

#[test]
fn damage_that_stays_is_an_error_and_the_old_file_stays() {
    let fake = holding(&bytes(3 * PIECE)).with(Faults { damaged_pieces: usize::MAX, ..Faults::default() });
    let folder = Folder::new();
    let target = folder.write("out", b"old").display().to_string();
    run(&fake, &["cp", "dfs://b/dir/k.bin", &target]).failed(1, &["arrived damaged", "CRC32"]);
    assert_eq!(folder.names(), ["out"]);
    assert_eq!(std::fs::read(&target).expect("there"), b"old");
}

#[test]
fn the_whole_object_is_checked_too() {
    let fake = holding(&bytes(3 * PIECE)).with(Faults { wrong_whole: true, ..Faults::default() });
    let folder = Folder::new();
    let target = folder.file("out").display().to_string();
    run(&fake, &["cp", "dfs://b/dir/k.bin", &target]).failed(1, &["the object arrived damaged"]);
    assert!(folder.names().is_empty());
}

#[test]
fn broken_connections_are_made_good() {
    let data = bytes(30 * PIECE);
    for broken_reads in [1, 4] {
        let fake = holding(&data).with(Faults { broken_reads, ..Faults::default() });
        let done = run(&fake, &["cp", "dfs://b/dir/k.bin", "-"]).done();
        assert!(done.stdout == data);
    }
}

#[test]
fn a_replaced_object_is_read_anew_and_never_mixed() {
    let (old, new) = (bytes(20 * PIECE), vec![7; 25 * PIECE + 1]);
    let fake = holding(&old).with(Faults { replace_on_read: Some(new.clone()), ..Faults::default() });
    let folder = Folder::new();
    let target = folder.file("out");
    let done = run(&fake, &["cp", "dfs://b/dir/k.bin", &target.display().to_string()]).done();
    assert!(std::fs::read(&target).expect("there") == new);
    assert!(done.text().contains(&format!("length: {} bytes", new.len())));
    assert_eq!(folder.names(), ["out"]);
}

#[test]
fn an_interrupt_removes_the_temporary_file() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let (gate, keeper) = Gate::new();
        let fake = holding(&bytes(9 * PIECE)).with(Faults { gate: Some(gate), ..Faults::default() });
        let folder = Folder::new();
        let mut command = dfstore();
        command.args(["-e", &fake.endpoint(), "cp", "dfs://b/dir/k.bin"]).arg(folder.file("out"));
        let mut child = command.stderr(Stdio::piped()).spawn().expect("dfstore starts");
        keeper.wait();
        let names = folder.names();
        assert!(names.len() == 1 && names[0].starts_with(".out.dfstore-"), "{names:?}");
        let killed = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
        assert!(killed.expect("kill starts").success());
        let status = child.wait().expect("ends");
        assert_eq!(status.signal(), Some(signal));
        assert!(folder.names().is_empty());
        keeper.open();
    }
}

#[test]
fn special_files_are_written_to_directly() {
    let fake = holding(&bytes(3 * PIECE));
    run(&fake, &["cp", "dfs://b/dir/k.bin", "/dev/null"]).done();
}

#[test]
fn a_target_that_cannot_be_written_is_named() {
    let fake = holding(&bytes(3 * PIECE));
    let said = ["folder '/nonexistent' does not exist"];
    run(&fake, &["cp", "dfs://b/dir/k.bin", "/nonexistent/out"]).failed(1, &said);
    assert_eq!(fake.count("OPEN"), 0, "nothing is asked for a target that cannot be");
    run(&fake, &["cp", "dfs://b/dir/k.bin", "/dev/full"]).failed(1, &["No space left"]);
}
