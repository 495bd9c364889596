//! A small file system of its own in a file, for tests of a full disk.
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

/// A mounted file system.
pub struct LoopFs {
    mount_point: PathBuf,
    _folder: TempDir,
}

impl LoopFs {
    /// Makes and mounts an ext4 of this size; `None`, and a line on standard error, where that is not possible.
    pub fn new(length_bytes: u64) -> Option<LoopFs> {
        match LoopFs::mount(length_bytes) {
            Ok(mounted) => Some(mounted),
            Err(error) => {
                eprintln!("SKIPPED: no loop-mounted file system here (root and mkfs.ext4 needed): {error:#}");
                None
            }
        }
    }

    fn mount(length_bytes: u64) -> Result<LoopFs> {
        let folder = dirs::temporary("loopfs")?;
        let image = folder.path().join("image");
        File::create(&image)?.set_len(length_bytes).context("a sparse image")?;
        // No reserved blocks: root may fill the last one as anybody else.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-O", "^has_journal"]).arg(&image))?;
        let mount_point = folder.path().join("mounted");
        fs::create_dir(&mount_point)?;
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&image).arg(&mount_point))?;
        Ok(LoopFs { mount_point, _folder: folder })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        let unmounted = run(Command::new("umount").arg(&self.mount_point));
        if unmounted.is_err() {
            // Somebody still has a file open in it: it goes away with the last of them.
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.mount_point));
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
    use super::*;

    #[test]
    fn fills_up_and_goes_away() {
        let Some(small) = LoopFs::new(8 << 20) else { return };
        let path = small.path().to_path_buf();
        let error = fs::write(path.join("big"), vec![1; 16 << 20]).expect_err("it does not fit");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        drop(small);
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(&*path.to_string_lossy()));
    }
}
