//! The binary from the outside: what it says and how it ends when it cannot start, and that it never shows a secret.
//!
//! Each test runs the real program in a folder of its own. Limits and filters are set on the child only.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dfstore-peer");
/// Nothing here takes this long; a program that hangs must not hang the tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a run ended.
struct Outcome {
    status: Option<i32>,
    stdout: String,
    stderr: String,
    took: Duration,
}

/// A folder with a configuration file.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        Scene::with_config("objectStorage: { enable: true, name: s3, endpoint: 'http://127.0.0.1:1' }\n")
    }

    fn with_config(text: &str) -> Scene {
        let scene = Scene { folder: tempfile::tempdir().expect("made") };
        std::fs::write(scene.config(), text).expect("written");
        std::fs::set_permissions(scene.config(), PermissionsExt::from_mode(0o600)).expect("ours");
        scene
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("peer.yaml")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A command that would start a small peer on a port that the system chooses.
    fn command(&self) -> Command {
        let mut command = bare();
        command.arg("--config").arg(self.config()).arg("--data-path").arg(self.data());
        command.args(["--listen", "127.0.0.1", "--port", "0", "--capacity", "64MiB", "--memory-budget", "64MiB"]);
        command
    }
}

fn bare() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The same command in a shell that first runs `prelude`, such as a `ulimit`.
fn after(prelude: &str, command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("{prelude} && exec \"$0\" \"$@\"")]).arg(command.get_program()).args(command.get_args());
    shell.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

fn run(command: &mut Command) -> Outcome {
    let start = Instant::now();
    let mut child = command.spawn().expect("the program was built");
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let status = wait(child);
    let took = start.elapsed();
    let text = |reader: std::thread::JoinHandle<String>| reader.join().expect("readers do not panic");
    Outcome { status, stdout: text(stdout), stderr: text(stderr), took }
}

fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = pipe.read_to_string(&mut text);
        text
    })
}

/// The exit status; `None` after a signal, also the one sent to a program that does not end.
fn wait(mut child: Child) -> Option<i32> {
    let pid = Pid::from_child(&child);
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait()));
    let status = ended.recv_timeout(PATIENCE).or_else(|_| {
        let _ = kill_process(pid, Signal::KILL);
        ended.recv()
    });
    status.expect("a killed program ends").expect("our child").code()
}

/// Fails to start with these words in its messages, each error with a hint or a place.
#[track_caller]
fn refuses(command: &mut Command, words: &[&str]) -> Outcome {
    let outcome = run(command);
    assert_eq!(outcome.status, Some(1), "{}{}", outcome.stdout, outcome.stderr);
    for word in words {
        assert!(outcome.stderr.contains(word), "expected {word:?} in\n{}", outcome.stderr);
    }
    assert!(outcome.stderr.contains("dfstore-peer: error: "), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    outcome
}

#[test]
fn check_prints_the_configuration_and_starts_nothing() {
    let scene = Scene::with_config(
        "objectStorage: { enable: true, name: s3, accessKey: canary-access, secretKey: canary-secret }\nkeepStorage: true\n",
    );
    let outcome = run(scene.command().arg("--check").env("DFSTORE_SESSION_TOKEN", "canary-token"));
    assert_eq!(outcome.status, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("capacity: 64MiB") && outcome.stdout.contains("secretKey: [redacted]"));
    assert!(outcome.stderr.contains("warning") && outcome.stderr.contains("\"keepStorage\" has no effect"));
    assert!(!format!("{}{}", outcome.stdout, outcome.stderr).contains("canary"), "{}", outcome.stdout);
    assert!(!scene.data().exists(), "nothing was made");
}

#[test]
fn a_file_that_everyone_may_read_is_warned_about() {
    let scene = Scene::with_config("objectStorage: { enable: true, name: s3, accessKey: a, secretKey: b }\n");
    std::fs::set_permissions(scene.config(), PermissionsExt::from_mode(0o644)).expect("ours");
    let outcome = run(scene.command().arg("--check"));
    assert!(outcome.stderr.contains("everyone may read it: chmod 600"), "{}", outcome.stderr);
}

#[test]
fn variables_replace_what_the_file_says() {
    let scene = Scene::new();
    let outcome = run(bare().arg("--check").env("DFSTORE_CONFIG", scene.config()).env("DFSTORE_CAPACITY", "1GiB"));
    assert!(outcome.stdout.contains("capacity: 1GiB"), "{}{}", outcome.stdout, outcome.stderr);
    let words = ["DFSTORE_CAPACITY: \"storage.capacity\": \"lots\" is not valid: expected a size such as 20GiB"];
    refuses(bare().arg("--config").arg(scene.config()).env("DFSTORE_CAPACITY", "lots"), &words);
}

#[test]
fn a_wrong_command_line_ends_with_2_and_names_the_nearest_flag() {
    let outcome = run(bare().args(["--config", "x", "--chek"]));
    assert_eq!(outcome.status, Some(2));
    assert!(outcome.stderr.contains("--check"), "{}", outcome.stderr);
    assert_eq!(run(&mut bare()).status, Some(2), "no file named");
    let version = run(bare().arg("--version"));
    assert_eq!(
        (version.status, version.stdout.as_str()),
        (Some(0), concat!("dfstore-peer ", env!("CARGO_PKG_VERSION"), "\n"))
    );
}

#[test]
fn a_missing_or_unreadable_file_is_named() {
    let scene = Scene::new();
    let gone = scene.folder.path().join("gone.yaml");
    refuses(bare().arg("--config").arg(&gone), &["gone.yaml: there is no such file"]);
    refuses(bare().arg("--config").arg(scene.folder.path()), &["is a folder, expected a YAML file"]);
    std::fs::write(&gone, [0xff, 0xfe]).expect("written");
    refuses(bare().arg("--config").arg(&gone), &["is not UTF-8 text"]);
    File::create(&gone).expect("made").set_len(2 << 20).expect("sparse");
    refuses(bare().arg("--config").arg(&gone), &["not a configuration file"]);
}

#[test]
fn bad_yaml_and_unknown_keys_name_line_and_column() {
    let broken = Scene::with_config("objectStorage:\n  enable: [true\n");
    refuses(&mut broken.command(), &["peer.yaml:", "not valid YAML"]);
    let unknown = Scene::with_config("objectStorage:\n  enable: true\n  name: s3\n  endpont: http://h\nshrds: 1\n");
    let outcome = refuses(
        &mut unknown.command(),
        &[
            "peer.yaml:4:3: unknown key \"objectStorage.endpont\"; did you mean \"endpoint\"?",
            "peer.yaml:5:1: unknown key \"shrds\"; did you mean \"shards\"?",
        ],
    );
    assert_eq!(outcome.stderr.lines().count(), 2, "one line each: {}", outcome.stderr);
}

#[test]
fn tls_and_half_a_cluster_are_refused_not_ignored() {
    let text = "objectStorage: { enable: true, name: s3, security: { insecure: false } }\nseedPeer: { enable: true }\n";
    let words = ["asks for TLS, which comes with a later version", "\"seedPeer.enable\" needs a cluster"];
    refuses(&mut Scene::with_config(text).command(), &words);
}

#[test]
fn a_folder_of_another_user_is_refused() {
    let scene = Scene::new();
    let folder = if rustix::process::geteuid().is_root() {
        std::fs::create_dir(scene.data()).expect("made");
        std::os::unix::fs::chown(scene.data(), Some(12_345), None).expect("root may");
        scene.data()
    } else {
        Path::new("/etc").to_owned()
    };
    let mut command = without_flag(&scene.command(), "--data-path");
    command.env("DFSTORE_DATA_PATH", &folder);
    refuses(&mut command, &["belongs to user", "this process runs as user", "hint: run as user", "chown -R"]);
}

/// The command without this flag and its value.
fn without_flag(command: &Command, flag: &str) -> Command {
    let mut fewer = bare();
    let mut words = command.get_args();
    while let Some(word) = words.next() {
        if word == flag {
            words.next();
        } else {
            fewer.arg(word);
        }
    }
    fewer
}

#[test]
fn a_folder_that_cannot_be_written_or_made_is_refused() {
    let scene = Scene::new();
    let blocked = if rustix::process::geteuid().is_root() {
        Path::new("/sys/kernel").to_owned()
    } else {
        std::fs::create_dir(scene.data()).expect("made");
        std::fs::set_permissions(scene.data(), PermissionsExt::from_mode(0o500)).expect("ours");
        scene.data()
    };
    let mut command = without_flag(&scene.command(), "--data-path");
    refuses(command.env("DFSTORE_DATA_PATH", &blocked), &["is not writable", "hint: check the mode"]);
    let mut command = without_flag(&scene.command(), "--data-path");
    command.env("DFSTORE_DATA_PATH", scene.config().join("below"));
    refuses(&mut command, &["data folder", "hint: name a folder that exists or can be made"]);
}

#[test]
fn a_locked_folder_names_its_holder() {
    let scene = Scene::new();
    std::fs::create_dir(scene.data()).expect("made");
    let mut lock = File::create(scene.data().join("LOCK")).expect("made");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("free");
    writeln!(lock, "4711").expect("written");
    refuses(&mut scene.command(), &["is in use by process 4711", "hint: stop that process"]);
}

#[test]
fn a_port_in_use_is_named() {
    let scene = Scene::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("free");
    let address = taken.local_addr().expect("bound").to_string();
    let port = taken.local_addr().expect("bound").port().to_string();
    let mut command = without_flag(&scene.command(), "--port");
    let words =
        [format!("cannot listen on {address} (objectStorage.tcpListen): in use"), "hint: see who has it".to_owned()];
    refuses(command.args(["--port", &port]), &[&words[0], &words[1]]);
    let words = format!("cannot listen on {address} (metrics.listen): in use");
    refuses(scene.command().args(["--metrics-listen", &address]), &[&words]);
}

#[test]
fn all_that_is_missing_is_told_at_once() {
    let scene = Scene::new();
    std::fs::write(scene.data(), "a file").expect("written");
    let command = without_flag(&scene.command(), "--listen");
    let mut limited = after("ulimit -n 100", &command);
    limited.env("DFSTORE_LISTEN", "192.0.2.1");
    let outcome = refuses(
        &mut limited,
        &["only 100 files may be open", "LimitNOFILE=", "data folder", "this machine does not have the address"],
    );
    assert_eq!(outcome.stderr.matches("dfstore-peer: error: ").count(), 3, "{}", outcome.stderr);
    assert_eq!(outcome.stderr.matches("  hint: ").count(), 3, "{}", outcome.stderr);
}

#[test]
fn too_little_locked_memory_is_refused_with_advice() {
    let scene = Scene::new();
    let mut command = after("ulimit -l 64", &scene.command());
    refuses(&mut command, &["only 64KiB of memory may be locked: 512KiB are needed", "ulimit -l", "LimitMEMLOCK="]);
}

#[test]
fn soft_limits_are_raised_to_the_hard_ones() {
    let scene = Scene::new();
    std::fs::write(scene.data(), "a file, so that it does not start").expect("written");
    let outcome = refuses(&mut after("ulimit -S -n 100", &scene.command()), &["data folder"]);
    assert!(!outcome.stderr.contains("files may be open"), "{}", outcome.stderr);
}

#[test]
fn io_uring_refused_by_a_filter_is_told_within_a_second() {
    let scene = Scene::new();
    let allowed = scene.command();
    let mut command = Command::new("python3");
    command.args(["-c", REFUSE_IO_URING]).arg(allowed.get_program()).args(allowed.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The machine may be busy with other tests: the best of three counts.
    let best = (0..3)
        .map(|_| {
            let words = ["io_uring is forbidden here: a seccomp filter", "hint: allow the io_uring_* system calls"];
            refuses(&mut command, &words).took
        })
        .min();
    assert!(best.is_some_and(|took| took < Duration::from_secs(1)), "{best:?}");
}

/// Becomes the program of its arguments after installing a seccomp filter that answers `EPERM` to `io_uring_setup`
/// (425 on every architecture), as containers do. In Python, because a filter needs system calls that are unsafe here.
const REFUSE_IO_URING: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
step = lambda code, otherwise, value: struct.pack("HBBI", code, 0, otherwise, value)
steps = b"".join([
    step(0x20, 0, 0),                 # load the number of the call
    step(0x15, 1, 425),               # skip the next line for any other
    step(0x06, 0, 0x00050000 | 1),    # refuse with EPERM
    step(0x06, 0, 0x7FFF0000),        # allow
])
held = ctypes.create_string_buffer(steps)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(held)))
assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
assert libc.prctl(22, 2, program) == 0, "PR_SET_SECCOMP"
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn the_fullest_log_shows_no_secret() {
    for format in ["text", "json"] {
        let scene = Scene::with_config(
            "objectStorage: { enable: true, name: s3, endpoint: 'http://127.0.0.1:1', accessKey: canary-access, \
             secretKey: canary-secret, sessionToken: canary-token }\n",
        );
        let mut command = scene.command();
        let mut child = command.args(["--log-level", "trace", "--log-format", format]).spawn().expect("built");
        let stdout = collect(child.stdout.take().expect("piped"));
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut shown = String::new();
        while !shown.contains("starting") {
            assert!(stderr.read_line(&mut shown).expect("text") > 0, "it ended without a word: {shown}");
        }
        let rest = collect(stderr);
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        wait(child);
        shown += &rest.join().expect("readers do not panic");
        shown += &stdout.join().expect("readers do not panic");
        assert!(!shown.contains("canary"), "{shown}");
    }
}
