//! Folders for tests: under `target/tmp`, on a real disk, but for what stands for another machine; gone when the test is.
//!
//! A folder goes away when it is dropped. What a killed run left behind is removed by the next one: each process keeps
//! its folders below `target/tmp/run-PID`, and the first call removes those whose process is gone.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Overrides where temporary folders lie, for a `target/` on a file system without `O_DIRECT`.
pub const SCRATCH_VARIABLE: &str = "DFSTORE_SCRATCH";
/// Where ours lie in the file system that Linux keeps in memory.
const MEMORY_ROOT: &str = "/dev/shm/dfstore-tests";

/// The `target/` folder of the build that this process comes from.
pub fn target() -> Result<PathBuf> {
    let exe = env::current_exe().context("the path of this program")?;
    // cargo tags the folder only if it made it; the test runner, which keeps its Python there, may have come first.
    let marks = ["CACHEDIR.TAG", ".rustc_info.json"];
    let found = exe.ancestors().find(|folder| marks.iter().any(|mark| folder.join(mark).is_file()));
    found.map(Path::to_path_buf).with_context(|| format!("{} lies in no cargo target folder", exe.display()))
}

/// A new folder whose name starts with `name`.
pub fn temporary(name: &str) -> Result<TempDir> {
    new_in(&run_folder()?, name)
}

/// A new folder in memory, for a server that stands for another machine: what it writes is not to meet what is measured
/// at the disk. Where that cannot be, as [`temporary`].
pub fn in_memory(name: &str) -> Result<TempDir> {
    memory_run_folder().and_then(|folder| new_in(&folder, name)).or_else(|_| temporary(name))
}

fn new_in(folder: &Path, name: &str) -> Result<TempDir> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let prefix = format!("{name}-");
    let new = tempfile::Builder::new().prefix(&prefix).tempdir_in(folder);
    new.with_context(|| format!("a folder in {}", folder.display()))
}

fn run_folder() -> Result<PathBuf> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    run_folder_below(&FOLDER, || match env::var_os(SCRATCH_VARIABLE) {
        Some(root) => Ok(PathBuf::from(root)),
        None => Ok(target()?.join("tmp")),
    })
}

fn memory_run_folder() -> Result<PathBuf> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    run_folder_below(&FOLDER, || Ok(PathBuf::from(MEMORY_ROOT)))
}

/// This process's folder below `root`; what killed runs have left beside it is removed at the first call.
fn run_folder_below(known: &OnceLock<PathBuf>, root: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    if let Some(folder) = known.get() {
        return Ok(folder.clone());
    }
    let root = root()?;
    remove_leftovers(&root);
    Ok(known.get_or_init(|| root.join(format!("run-{}", process::id()))).clone())
}

/// Removes this process's run folders, if nothing is left in them. Called at the end by programs that clean up wholly.
pub fn remove_run_folders() {
    for folder in [run_folder(), memory_run_folder()].into_iter().flatten() {
        let _ = fs::remove_dir(folder);
    }
    let _ = fs::remove_dir(MEMORY_ROOT);
}

fn remove_leftovers(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix("run-")) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            unmount_below(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Loop file systems of a killed run are still mounted; removing their files would not free them.
fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(folder)) {
        let _ = Command::new("umount").arg("--lazy").arg(point).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_goes_away_with_its_owner() {
        let folder = temporary("dirs").expect("a folder");
        let path = folder.path().to_path_buf();
        assert!(path.is_dir() && path.starts_with(target().expect("target")));
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_in_memory_goes_away_too() {
        let folder = in_memory("dirs").expect("a folder");
        let path = folder.path().to_path_buf();
        assert!(path.is_dir() && (path.starts_with(MEMORY_ROOT) || path.starts_with(target().expect("target"))));
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn leftovers_of_dead_processes_are_removed() {
        let root = temporary("leftovers").expect("a folder");
        // Above the largest process id that Linux gives out.
        let dead = root.path().join("run-4194999");
        let alive = root.path().join(format!("run-{}", process::id()));
        fs::create_dir_all(dead.join("deep")).expect("dead");
        fs::create_dir_all(&alive).expect("alive");
        remove_leftovers(root.path());
        assert!(!dead.exists() && alive.exists());
    }
}
