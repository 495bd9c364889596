//! Starting `dfstore` and looking at what it did.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::fake::Fake;

/// A command with nothing of the environment that could change what it does.
pub fn dfstore() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfstore"));
    command.env_remove("DFSTORE_ENDPOINT").stdin(Stdio::null());
    command
}

/// Runs `dfstore` against a fake peer.
pub fn run<S: AsRef<OsStr>>(fake: &Fake, args: &[S]) -> Finished {
    Finished::of(dfstore().env("DFSTORE_ENDPOINT", fake.endpoint()).args(args).output().expect("dfstore starts"))
}

/// What a process left behind.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Finished {
    pub fn of(output: Output) -> Finished {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Finished { code: output.status.code(), stdout: output.stdout, stderr }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub fn done(self) -> Finished {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Ended with this code, and said all this on standard error.
    #[track_caller]
    pub fn failed(self, code: i32, said: &[&str]) -> Finished {
        assert_eq!(self.code, Some(code), "{self:?}");
        for part in said {
            assert!(self.stderr.contains(part), "{part:?} is missing in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// A folder for one test.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, bytes).expect("written");
        path
    }

    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).expect("readable");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Bytes that differ from piece to piece.
pub fn bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}
