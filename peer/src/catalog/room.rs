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
use crate::limits::{
    CATALOG_BATCH_CHANGES, CATALOG_CHANGE_BYTES, CATALOG_ROOM_BYTES, CATALOG_ROOM_BYTES_LEAST, CATALOG_ROOM_BYTES_LOW,
};
use crate::rt::file::{allocate_ahead, data_end, file_system_bytes};

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
    /// How much is taken ahead.
    ahead: u64,
    found: Found,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// How much room there is.
    pub standing: Standing,
    /// How many changes surely fit into it, or [`CATALOG_BATCH_CHANGES`].
    pub changes: usize,
}

impl Found {
    fn of(standing: Standing, room_bytes: u64) -> Found {
        let fits = usize::try_from(room_bytes / CATALOG_CHANGE_BYTES).unwrap_or(usize::MAX);
        Found { standing, changes: fits.max(CATALOG_BATCH_CHANGES) }
    }
}

impl Room {
    /// The room of the catalog file at `path`.
    pub fn new(path: &Path) -> Room {
        let file = File::options().read(true).write(true).open(path).ok();
        let (least, most) = CATALOG_ROOM_BYTES.into_inner();
        let disk_bytes = file.as_ref().and_then(|file| file_system_bytes(file).ok()).unwrap_or(0);
        let ahead = (disk_bytes / 8).clamp(least, most);
        Room { file, length: 0, end: 0, taken_to: 0, ahead, found: Found::of(Standing::Enough, ahead) }
    }

    /// What the last look found.
    pub fn found(&self) -> Found {
        self.found
    }

    /// How much room there is, after taking more where there was little.
    pub fn look(&mut self) -> Found {
        let found = self.take().unwrap_or_else(|error| {
            tracing::debug!(%error, "no room can be taken ahead for the catalog");
            self.file = None;
            Found::of(Standing::Enough, self.ahead)
        });
        if found.standing != self.found.standing {
            tracing::warn!(standing = ?found.standing, "room on the disk for the catalog");
        }
        self.found = found;
        found
    }

    fn take(&mut self) -> io::Result<Found> {
        let Some(file) = &self.file else { return Ok(Found::of(Standing::Enough, self.ahead)) };
        let length = file.metadata()?.len();
        if length < self.length {
            self.taken_to = self.taken_to.min(length);
            self.end = self.end.min(length);
        }
        self.length = length;
        self.end = data_end(file, self.end)?;
        if self.taken_to < self.end + self.ahead / 2 {
            // What a full disk still gives.
            let mut bytes = self.ahead;
            while bytes >= CATALOG_ROOM_BYTES_LEAST && self.end + bytes > self.taken_to {
                match allocate_ahead(file, self.end + bytes) {
                    Ok(()) => self.taken_to = self.end + bytes,
                    Err(error) if is_full(&error) => bytes /= 2,
                    Err(error) => return Err(error),
                }
            }
        }
        let room_bytes = self.taken_to.saturating_sub(self.end);
        let standing = match room_bytes {
            CATALOG_ROOM_BYTES_LOW.. => Standing::Enough,
            CATALOG_ROOM_BYTES_LEAST.. => Standing::Low,
            _ => Standing::Out,
        };
        Ok(Found::of(standing, room_bytes))
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
        let found = room.look();
        assert_eq!((found.standing, found.changes), (Standing::Enough, 4096));
        if room.file.is_some() {
            let taken = std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("there")) * 512;
            assert!((room.ahead..64 << 20).contains(&taken), "{taken} bytes are taken");
        }
        file.set_len(4096).expect("cut");
        assert_eq!(room.look().standing, Standing::Enough);
        assert!(room.end <= 4096 && room.taken_to <= room.end + room.ahead);
    }
}
