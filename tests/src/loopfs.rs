//! A small file system of its own in a file, for tests of a disk that is full, fails, or loses its power.
//!
//! Needs root, a loop device and mkfs.ext4. Where one is missing there is none, and the test that wanted it says loudly
//! that it was skipped and passes: a laptop without root still runs everything else, and the test run as root (as
//! continuous integration does) runs it all. Unmounted and removed when dropped; what a killed run left mounted is
//! unmounted by the next one (see [`crate::dirs`]).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::dirs;

/// Ends an ext4 at once, flag 2: without flushing its journal (`EXT4_IOC_SHUTDOWN`). In Python, because a call of
/// `ioctl` is no safe code.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

/// A mounted file system.
pub struct LoopFs {
    mount_point: PathBuf,
    image: PathBuf,
    folder: TempDir,
}

impl LoopFs {
    /// Makes and mounts an ext4 of this size; `None`, and a line on standard error, where that is not possible.
    pub fn new(length_bytes: u64) -> Option<LoopFs> {
        LoopFs::or_skip(LoopFs::make(length_bytes, &["-O", "^has_journal"]))
    }

    /// One with a journal, which can lose its power and fail.
    pub fn journaled(length_bytes: u64) -> Option<LoopFs> {
        LoopFs::or_skip(LoopFs::make(length_bytes, &[]))
    }

    fn or_skip(made: Result<LoopFs>) -> Option<LoopFs> {
        match made {
            Ok(mounted) => Some(mounted),
            Err(error) => {
                eprintln!("SKIPPED: no loop-mounted file system here (root and mkfs.ext4 needed): {error:#}");
                None
            }
        }
    }

    fn make(length_bytes: u64, options: &[&str]) -> Result<LoopFs> {
        let folder = dirs::temporary("loopfs")?;
        let image = folder.path().join("image");
        File::create(&image)?.set_len(length_bytes).context("a sparse image")?;
        // No reserved blocks: root may fill the last one as anybody else.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).args(options).arg(&image))?;
        let mount_point = folder.path().join("mounted");
        fs::create_dir(&mount_point)?;
        // Shared, so that who made a namespace meanwhile (network namespaces are entered with one of mounts) does not
        // keep the file system mounted when it is unmounted here.
        run(Command::new("mount").arg("--bind").arg(folder.path()).arg(folder.path()))?;
        let made = LoopFs { mount_point, image, folder };
        run(Command::new("mount").arg("--make-shared").arg(made.folder.path()))?;
        made.mount()?;
        Ok(made)
    }

    fn mount(&self) -> Result<()> {
        let options = ["-t", "ext4", "-o", "loop,errors=remount-ro"];
        run(Command::new("mount").args(options).arg(&self.image).arg(&self.mount_point))
    }

    /// The power fails: from now on everything in it is an error, and what was not synced is lost.
    pub fn cut_power(&self) -> Result<()> {
        run(Command::new("python3").args(["-c", SHUT_DOWN]).arg(&self.mount_point))
    }

    /// The disk fails, as the file system sees it: it takes no more writes and no more syncs; reads go on.
    pub fn fail(&self) -> Result<()> {
        let found = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&self.mount_point).output()?;
        let device = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        let name = device.strip_prefix("/dev/").with_context(|| format!("{device:?} is no device"))?;
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "a test").context("ext4 takes no errors")
    }

    /// Mounts it again, as after the power is back or the disk is mended. Nobody may have a file open in it.
    pub fn remount(&mut self) -> Result<()> {
        run(Command::new("umount").arg(&self.mount_point))?;
        self.mount()
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        for mounted in [self.mount_point.as_path(), self.folder.path()] {
            if run(Command::new("umount").arg(mounted)).is_err() {
                // Somebody still has a file open in it: it goes away with the last of them.
                let _ = run(Command::new("umount").arg("--lazy").arg(mounted));
            }
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    use super::*;

    #[test]
    fn what_is_not_synced_does_not_survive_a_power_cut() {
        let Some(mut disk) = LoopFs::journaled(16 << 20) else { return };
        let (synced, lost) = (disk.path().join("synced"), disk.path().join("lost"));
        fs::write(&synced, "kept").expect("writes");
        File::open(&synced).and_then(|file| file.sync_all()).expect("syncs");
        File::open(disk.path()).and_then(|folder| folder.sync_all()).expect("syncs");
        fs::write(&lost, "lost").expect("writes");
        disk.cut_power().expect("the power fails");
        fs::write(&synced, "late").expect_err("it is off");
        disk.remount().expect("the power is back");
        assert_eq!(fs::read_to_string(&synced).expect("it is there"), "kept");
        assert!(!lost.exists());
    }

    #[test]
    fn a_disk_that_failed_is_read_and_not_written() {
        let Some(disk) = LoopFs::journaled(16 << 20) else { return };
        let path = disk.path().join("file");
        fs::write(&path, "kept").expect("writes");
        let open = File::options().write(true).open(&path).expect("opens");
        disk.fail().expect("it fails");
        open.sync_data().expect_err("no sync any more");
        fs::write(disk.path().join("more"), "x").expect_err("no write any more");
        assert_eq!(fs::read_to_string(&path).expect("it is read"), "kept");
    }

    #[test]
    fn a_namespace_made_meanwhile_does_not_keep_it_mounted() {
        let Some(mut disk) = LoopFs::journaled(16 << 20) else { return };
        let entered = ["--mount", "--propagation", "slave", "sh", "-c", "echo entered; read line"];
        let (input, output) = (Stdio::piped(), Stdio::piped());
        let mut other =
            Command::new("unshare").args(entered).stdin(input).stdout(output).spawn().expect("unshare runs");
        let mut line = String::new();
        BufReader::new(other.stdout.take().expect("piped")).read_line(&mut line).expect("it speaks");
        disk.cut_power().expect("the power fails");
        disk.remount().expect("the power is back");
        fs::write(disk.path().join("file"), "written").expect("it is another life of the file system");
        drop(other.stdin.take());
        other.wait().expect("it ends");
        assert_eq!(line, "entered\n");
    }

    #[test]
    fn fills_up_and_goes_away() {
        let Some(small) = LoopFs::new(8 << 20) else { return };
        let path = small.path().to_path_buf();
        let error = fs::write(path.join("big"), vec![1; 16 << 20]).expect_err("it does not fit");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        drop(small);
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let folder = path.parent().expect("it has one");
        assert!(!mounts.contains(&*folder.to_string_lossy()));
    }
}
