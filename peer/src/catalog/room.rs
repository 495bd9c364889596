//! Room on the disk for the next transactions, taken before they need it.
//!
//! redb cannot go on after a write that failed, not even for a full disk; and its file has holes, so any commit may
//! meet one. So blocks are taken ahead of what the file holds: as long as there are some, a transaction does not fail
//! for lack of space. When no more can be had the rest is kept for changes that make room, such as deletions, and
//! what only adds is refused before it begins. Nothing here fails: a file system that cannot take blocks ahead is
//! trusted as before.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::catalog::records::Change;
use crate::limits::{CATALOG_ROOM_BYTES, CATALOG_ROOM_BYTES_LEAST, CATALOG_ROOM_BYTES_LOW};
use crate::rt::file::{allocate_ahead, data_end};

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// For any transaction.
    Enough,
    /// For those that make room.
    Low,
    /// For none.
    Out,
}

impl Standing {
    /// Whether these changes may begin.
    pub fn allows(self, changes: &[Change]) -> bool {
        match self {
            Standing::Enough => true,
            Standing::Low => make_room(changes),
            Standing::Out => false,
        }
    }
}

/// Whether these changes remove something, and name no new piece: a version that replaces another does both.
fn make_room(changes: &[Change]) -> bool {
    let removes = |change: &Change| match change {
        Change::RemoveTask { .. }
        | Change::RemovePieces { .. }
        | Change::RemoveWriteBack { .. }
        | Change::RemoveParts { .. }
        | Change::RemoveUpload { .. } => true,
        Change::PutTask { .. }
        | Change::PutPiece { .. }
        | Change::KeepPiece { .. }
        | Change::PutWriteBack { .. }
        | Change::PutPart { .. }
        | Change::PutUpload { .. } => false,
    };
    changes.iter().any(removes) && !changes.iter().any(|change| matches!(change, Change::PutPiece { .. }))
}

/// The room of one catalog file.
pub struct Room {
    /// `None` where blocks cannot be taken ahead.
    file: Option<File>,
    /// Length of the file at the last look. When it shrinks, blocks behind its end are gone.
    length: u64,
    /// Where what it holds ends.
    end: u64,
    /// Up to where blocks have been taken.
    taken_to: u64,
    standing: Standing,
}

impl Room {
    /// The room of the catalog file at `path`.
    pub fn new(path: &Path) -> Room {
        let file = File::options().read(true).write(true).open(path).ok();
        Room { file, length: 0, end: 0, taken_to: 0, standing: Standing::Enough }
    }

    /// How much room there is, after taking more where there was little.
    pub fn look(&mut self) -> Standing {
        let found = match &self.file {
            Some(_) => self.take(),
            None => Ok(Standing::Enough),
        };
        let standing = found.unwrap_or_else(|error| {
            tracing::debug!(%error, "no room can be taken ahead for the catalog");
            self.file = None;
            Standing::Enough
        });
        if standing != self.standing {
            tracing::warn!(?standing, "room on the disk for the catalog");
            self.standing = standing;
        }
        standing
    }

    fn take(&mut self) -> io::Result<Standing> {
        let Some(file) = &self.file else { return Ok(Standing::Enough) };
        let length = file.metadata()?.len();
        if length < self.length {
            self.taken_to = self.taken_to.min(length);
            self.end = self.end.min(length);
        }
        self.length = length;
        self.end = data_end(file, self.end)?;
        if self.taken_to < self.end + CATALOG_ROOM_BYTES_LOW {
            // What a full disk still gives.
            let mut bytes = CATALOG_ROOM_BYTES;
            while bytes >= CATALOG_ROOM_BYTES_LEAST && self.end + bytes > self.taken_to {
                match allocate_ahead(file, self.end + bytes) {
                    Ok(()) => self.taken_to = self.end + bytes,
                    Err(error) if is_full(&error) => bytes /= 2,
                    Err(error) => return Err(error),
                }
            }
        }
        let room_bytes = self.taken_to.saturating_sub(self.end);
        Ok(match room_bytes {
            CATALOG_ROOM_BYTES_LOW.. => Standing::Enough,
            CATALOG_ROOM_BYTES_LEAST.. => Standing::Low,
            _ => Standing::Out,
        })
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use dfstore_proto::ids::TaskId;

    use super::*;

    #[test]
    fn what_makes_room_may_use_the_last_of_it() {
        let task = TaskId::from_bytes([1; 32]);
        let removal = [Change::RemoveTask { task }];
        assert!(Standing::Low.allows(&removal) && !Standing::Out.allows(&removal) && !Standing::Low.allows(&[]));
    }

    #[test]
    fn takes_blocks_ahead_of_what_the_file_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let file = File::create(&path).expect("a file");
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 8192], 0).expect("written");
        file.set_len(64 << 20).expect("a hole");
        let mut room = Room::new(&path);
        assert_eq!(room.look(), Standing::Enough);
        if room.file.is_some() {
            let taken = std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("there")) * 512;
            assert!((CATALOG_ROOM_BYTES..64 << 20).contains(&taken), "{taken} bytes are taken");
        }
        file.set_len(4096).expect("cut");
        assert_eq!(room.look(), Standing::Enough);
        assert!(room.end <= 4096 && room.taken_to <= room.end + CATALOG_ROOM_BYTES);
    }
}
