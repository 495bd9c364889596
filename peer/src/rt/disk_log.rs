//! For tests: a log of everything that this process writes below a folder, and of every sync.
//!
//! [`file`](super::file), and the catalog by its own backend, note each write before it is given to the kernel and again
//! when it is done, and each sync likewise. From that a test knows at each moment what the disk surely has, and what it
//! may have. Exists in builds for tests only; others have calls that do nothing instead.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Something that happened to the files of the folder.
#[derive(Clone, Debug)]
pub enum Event {
    /// A file was created, empty.
    Created {
        /// Its name.
        file: String,
    },
    /// A file got another name.
    Renamed {
        /// What it was called.
        from: String,
        /// What it is called.
        to: String,
    },
    /// It got this length.
    Resized {
        /// Its name.
        file: String,
        /// Its length now.
        bytes: u64,
    },
    /// A write was given to the kernel.
    Write {
        /// Tells writes and syncs apart.
        id: u64,
        /// Its name.
        file: String,
        /// Where.
        offset: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// A sync was asked for.
    Sync {
        /// Tells writes and syncs apart.
        id: u64,
        /// The file's name; empty for the folder itself.
        file: String,
    },
    /// The write or sync with this number is done, without an error.
    Done {
        /// As in the event before.
        id: u64,
    },
    /// The test says something, by a number of its own.
    Mark(u64),
}

/// The log of one folder. Clones share it.
#[derive(Clone)]
pub struct DiskLog(Arc<Mutex<Vec<Event>>>);

static LOGS: Mutex<Vec<(PathBuf, DiskLog)>> = Mutex::new(Vec::new());

fn logs() -> MutexGuard<'static, Vec<(PathBuf, DiskLog)>> {
    LOGS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl DiskLog {
    /// Begins to log what happens in this folder.
    pub fn of(folder: &Path) -> DiskLog {
        let log = DiskLog(Arc::default());
        logs().push((folder.to_path_buf(), log.clone()));
        log
    }

    /// Ends it, and gives what was logged.
    pub fn take(self) -> Vec<Event> {
        logs().retain(|(_, log)| !Arc::ptr_eq(&log.0, &self.0));
        std::mem::take(&mut *self.events())
    }

    /// Adds a mark.
    pub fn mark(&self, mark: u64) {
        self.events().push(Event::Mark(mark));
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn begin(self, make: impl FnOnce(u64) -> Event) -> Noted {
        let id = {
            let mut events = self.events();
            let id = events.len() as u64;
            events.push(make(id));
            id
        };
        Noted(Some((self, id)))
    }
}

/// A write or sync that was noted.
#[must_use]
pub struct Noted(Option<(DiskLog, u64)>);

impl Noted {
    /// It has ended; only success is of interest.
    pub fn ended<T, E>(self, result: &Result<T, E>) {
        if let Some((log, id)) = self.0.filter(|_| result.is_ok()) {
            log.events().push(Event::Done { id });
        }
    }
}

/// The log of the folder that a path lies in (or that it is), if it has one, and the file's name in it.
fn find(path: &Path) -> Option<(DiskLog, String)> {
    let logs = logs();
    let found = |folder: &Path| logs.iter().find(|(logged, _)| logged == folder).map(|(_, log)| log.clone());
    if let Some(log) = found(path) {
        return Some((log, String::new()));
    }
    Some((found(path.parent()?)?, path.file_name()?.to_str()?.to_owned()))
}

fn path_of(file: &File) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// A file was created.
pub fn created(path: &Path) {
    if let Some((log, file)) = find(path) {
        log.events().push(Event::Created { file });
    }
}

/// A file got another name in its folder.
pub fn renamed(from: &Path, to: &Path) {
    if let (Some((log, from)), Some((_, to))) = (find(from), find(to)) {
        log.events().push(Event::Renamed { from, to });
    }
}

/// A file got another length.
pub fn resized(file: &File, bytes: u64) {
    if let Some((log, file)) = path_of(file).and_then(|path| find(&path)) {
        log.events().push(Event::Resized { file, bytes });
    }
}

/// A write begins.
pub fn write(file: &File, offset: u64, bytes: impl FnOnce() -> Vec<u8>) -> Noted {
    let Some((log, file)) = path_of(file).and_then(|path| find(&path)) else { return Noted(None) };
    log.begin(|id| Event::Write { id, file, offset, bytes: bytes().into() })
}

/// A sync of a file or a folder begins.
pub fn sync(file: &File) -> Noted {
    let Some((log, file)) = path_of(file).and_then(|path| find(&path)) else { return Noted(None) };
    log.begin(|id| Event::Sync { id, file })
}
