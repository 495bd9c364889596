//! A control group of one's own, to give a process less memory or a slower disk.
//!
//! Needs root and a mounted controller, of version 1 or 2. Where one is missing there is none, and the test that wanted
//! it says loudly that it was skipped and passes. Removed when dropped; the processes in it have to end before that.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

const ROOT: &str = "/sys/fs/cgroup";

/// A control group.
pub struct Cgroup {
    folder: PathBuf,
    version_2: bool,
}

impl Cgroup {
    /// A group whose processes get this much memory together, page cache included.
    pub fn with_memory(limit_bytes: u64) -> Option<Cgroup> {
        or_skipped(Cgroup::new("memory").and_then(|group| {
            let file = if group.version_2 { "memory.max" } else { "memory.limit_in_bytes" };
            group.write(file, &limit_bytes.to_string())?;
            Ok(group)
        }))
    }

    /// A group whose processes read and write this many bytes a second on the block device of `path`, each.
    pub fn with_disk_rate(path: &Path, bytes_per_second: u64) -> Option<Cgroup> {
        or_skipped(Cgroup::new(if Path::new(ROOT).join("blkio").is_dir() { "blkio" } else { "io" }).and_then(|group| {
            let device = rustix::fs::stat(path)?.st_dev;
            let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
            if group.version_2 {
                group.write("io.max", &format!("{device} rbps={bytes_per_second} wbps={bytes_per_second}"))?;
            } else {
                group.write("blkio.throttle.read_bps_device", &format!("{device} {bytes_per_second}"))?;
                group.write("blkio.throttle.write_bps_device", &format!("{device} {bytes_per_second}"))?;
            }
            Ok(group)
        }))
    }

    fn new(controller: &str) -> Result<Cgroup> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let version_1 = Path::new(ROOT).join(controller);
        let version_2 = !version_1.is_dir();
        if version_2 {
            let known = fs::read_to_string(Path::new(ROOT).join("cgroup.subtree_control")).unwrap_or_default();
            ensure!(known.split_whitespace().any(|name| name == controller), "no controller for {controller}");
        }
        let parent = if version_2 { PathBuf::from(ROOT) } else { version_1 };
        remove_leftovers(&parent);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("dfstore-test-{}-{number}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Cgroup { folder, version_2 })
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
    }

    /// Moves a process with all its threads into the group. What it has taken before counts where it was.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// The most memory that was in use at once, in bytes.
    pub fn memory_peak_bytes(&self) -> Result<u64> {
        let file = if self.version_2 { "memory.peak" } else { "memory.max_usage_in_bytes" };
        Ok(fs::read_to_string(self.folder.join(file))?.trim().parse()?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were killed just now are counted for a moment.
        let _ = crate::eventually("the group is empty", std::time::Duration::from_secs(5), || {
            fs::remove_dir(&self.folder).ok()
        });
    }
}

/// Groups of killed runs. Only an empty group can be removed.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("dfstore-test-") {
            let pid = entry.file_name().to_string_lossy().split('-').nth(2).map(str::to_owned);
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

fn or_skipped(made: Result<Cgroup>) -> Option<Cgroup> {
    made.inspect_err(|error| {
        eprintln!("SKIPPED: no control group here (root and a mounted controller needed): {error:#}")
    })
    .ok()
}
