//! The local file that a download makes: written beside its target under a name of its own, renamed when whole.
//!
//! Invariant: the target's name never shows a partial file. Whatever ends the transfer (an error, a signal, a panic)
//! removes the temporary file; only kill -9 and a power cut leave one, which its name explains.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::error::{usage, with_hint};
use crate::rt::file::preallocate;
use crate::rt::signal::Unfinished;
use crate::url::DfsUrl;

/// Names tried before giving up on a folder full of leftovers.
const NAMES_TRIED_MAX: u32 = 16;
/// Longest file name of common filesystems, in bytes.
const FILE_NAME_BYTES_MAX: usize = 255;
/// Bytes around the target's name in the temporary name: a dot, the tag, eight digits, the ending.
const DECORATION_BYTES: usize = 1 + ".dfstore-".len() + 8 + ".part".len();

/// The path to download to: a folder takes the last part of the key as name.
pub fn resolve(path: &Path, source: &DfsUrl) -> Result<PathBuf> {
    let is_folder = path.is_dir();
    let names_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    if names_folder && !is_folder {
        bail!("folder '{}' does not exist", path.display());
    }
    if !is_folder {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            bail!("folder '{}' does not exist", folder.display());
        }
        return Ok(path.to_path_buf());
    }
    let name =
        source.basename().ok_or_else(|| usage(format!("'{source}' gives no file name; name the target file")))?;
    Ok(path.join(name))
}

/// Whether bytes go straight to `path`: pipes and devices have no name to rename to.
pub fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

/// A file that is not whole yet.
pub struct PartialFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    unfinished: Unfinished,
    done: bool,
}

impl PartialFile {
    /// Makes the temporary file for `target`, with `length_bytes` of space.
    pub fn create(target: &Path, length_bytes: u64, unfinished: &Unfinished) -> Result<PartialFile> {
        // A link to a file stays a link: what it points to is replaced.
        let target = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
        let (file, temporary) = create_new(&target, unfinished)
            .with_context(|| format!("cannot create a file beside '{}'", target.display()))?;
        let partial = PartialFile { file, temporary, target, unfinished: unfinished.clone(), done: false };
        preallocate(&partial.file, length_bytes).map_err(|error| write_error(error, &partial.target, length_bytes))?;
        Ok(partial)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the whole file its name.
    pub fn finish(mut self, length_bytes: u64) -> Result<()> {
        let finish = || {
            self.file.set_len(length_bytes)?;
            keep_mode(&self.file, &self.target)?;
            std::fs::rename(&self.temporary, &self.target)
        };
        self.unfinished
            .settle(&self.temporary, finish)
            .with_context(|| format!("cannot rename the finished file to '{}'", self.target.display()))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.unfinished.settle(&self.temporary, || std::fs::remove_file(&self.temporary));
        }
    }
}

fn create_new(target: &Path, unfinished: &Unfinished) -> io::Result<(File, PathBuf)> {
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for attempt in 0..NAMES_TRIED_MAX {
        let path = temporary_path(target, attempt);
        unfinished.add(&path);
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) => {
                unfinished.settle(&path, || ());
                if error.kind() != io::ErrorKind::AlreadyExists {
                    return Err(error);
                }
                last = error;
            }
        }
    }
    Err(last)
}

/// `.<name>.dfstore-XXXXXXXX.part` beside the target.
fn temporary_path(target: &Path, attempt: u32) -> PathBuf {
    // The keys of `RandomState` are random enough for a name; `O_EXCL` does the rest.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(attempt);
    let random = hasher.finish() & 0xffff_ffff;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let name = &name[..name.floor_char_boundary(FILE_NAME_BYTES_MAX - DECORATION_BYTES)];
    target.with_file_name(format!(".{name}.dfstore-{random:08x}.part"))
}

/// A file that is replaced passes its permission bits on.
fn keep_mode(file: &File, target: &Path) -> io::Result<()> {
    match std::fs::metadata(target) {
        Ok(meta) if meta.is_file() => file.set_permissions(meta.permissions()),
        _ => Ok(()),
    }
}

/// An error of a local write, in the user's words.
pub fn write_error(error: io::Error, target: &Path, length_bytes: u64) -> anyhow::Error {
    let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let what = format!("cannot write '{}'", target.display());
    let error = anyhow::Error::new(error).context(what);
    if !is_full {
        return error;
    }
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    with_hint(error, format!("the object has {length_bytes} bytes; make room in '{}'", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("entry").file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_target_appears_whole_and_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("f");
        std::fs::write(&target, "old").expect("written");
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o640)).expect("allowed");
        let partial = PartialFile::create(&target, 1 << 20, &Unfinished::default()).expect("created");
        assert_eq!(std::fs::read(&target).expect("readable"), b"old");
        std::os::unix::fs::FileExt::write_all_at(partial.file(), b"new!", 0).expect("written");
        partial.finish(4).expect("renamed");
        assert_eq!(std::fs::read(&target).expect("readable"), b"new!");
        assert_eq!(std::fs::metadata(&target).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(entries(folder.path()), ["f"]);
    }

    #[test]
    fn an_unfinished_file_goes_with_its_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let partial = PartialFile::create(&folder.path().join("f"), 10, &Unfinished::default()).expect("created");
        let names = entries(folder.path());
        assert!(names.len() == 1 && names[0].starts_with(".f.dfstore-") && names[0].ends_with(".part"), "{names:?}");
        drop(partial);
        assert!(entries(folder.path()).is_empty());
    }

    #[test]
    fn long_names_still_get_a_temporary_one() {
        let path = temporary_path(Path::new(&format!("/x/{}", "\u{fc}".repeat(127))), 0);
        assert!(path.file_name().expect("a name").len() <= FILE_NAME_BYTES_MAX);
    }

    #[test]
    fn folders_take_the_last_part_of_the_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let source = DfsUrl::parse("dfs://b/a/k.bin").expect("valid");
        assert_eq!(resolve(folder.path(), &source).expect("ok"), folder.path().join("k.bin"));
        assert_eq!(resolve(Path::new("x"), &source).expect("ok"), Path::new("x"));
        assert!(resolve(&folder.path().join("none/"), &source).is_err());
        let error = resolve(&folder.path().join("none/x"), &source).expect_err("no such folder");
        assert!(error.to_string().ends_with("/none' does not exist"), "{error}");
        let nameless = DfsUrl::parse("dfs://b/a/..").expect("valid");
        assert!(resolve(folder.path(), &nameless).is_err());
    }
}
