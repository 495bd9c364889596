//! The redb file: its tables, reading all of it, applying changes in a transaction.
//!
//! Used by one thread at a time. Every error of redb after opening is final: the caller stops using the database.

use std::io::Read;
use std::path::{Path, PathBuf};

use redb::{Builder, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition};

use dfstore_proto::ids::TaskId;

use crate::catalog::CatalogError;
use crate::catalog::codec::{self, Damaged};
use crate::catalog::records::{Change, Loaded, PieceKey, PieceSet};
use crate::rt::file;

/// Name of the catalog's file in the data folder.
pub const CATALOG_FILE: &str = "catalog.redb";
/// Its name until it is complete.
const UNFINISHED_FILE: &str = "catalog.redb.new";
/// Version of the tables and keys. A file of another version is refused.
pub const FORMAT_VERSION: u32 = 1;

/// The values of the table `meta`: the format version and the store's identity.
type Meta = (Vec<u8>, Vec<u8>);
/// Takes one entry of a table.
type ReadEntry<'r> = &'r mut dyn FnMut(&[u8], &[u8]) -> Result<(), Damaged>;
type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
const META: Definition = TableDefinition::new("meta");
const TASKS: Definition = TableDefinition::new("tasks");
const PIECES: Definition = TableDefinition::new("pieces");
const WRITEBACKS: Definition = TableDefinition::new("writeback");
const PARTS: Definition = TableDefinition::new("parts");
const UPLOADS: Definition = TableDefinition::new("uploads");

const META_FORMAT: &[u8] = b"format";
const META_STORE_ID: &[u8] = b"store-id";

/// The open file.
pub struct Database(redb::Database);

/// Damaged records: their table and key.
type DamagedRecords = Vec<(Definition, Vec<u8>)>;

impl Database {
    /// Opens or creates the file in `dir` and reads everything.
    pub fn open(dir: &Path, cache_bytes: usize) -> Result<(Database, Loaded), CatalogError> {
        let path = dir.join(CATALOG_FILE);
        if path.exists() {
            let forgotten = file::forget_cached(&path);
            forgotten.map_err(|error| CatalogError::Open { path: path.clone(), reason: error.to_string() })?;
        } else {
            Database::create(dir, &path, cache_bytes)?;
        }
        Database::open_file(path, cache_bytes)
    }

    /// Makes a new file, which gets its name when it is complete: what a crash leaves of it before is no database, and
    /// would not be opened again.
    fn create(dir: &Path, path: &Path, cache_bytes: usize) -> Result<(), CatalogError> {
        let unfinished = dir.join(UNFINISHED_FILE);
        let failed = |reason: String| CatalogError::Open { path: path.to_path_buf(), reason };
        if unfinished.exists() {
            std::fs::remove_file(&unfinished).map_err(|error| failed(error.to_string()))?;
        }
        let (database, _) = Database::open_file(unfinished.clone(), cache_bytes)?;
        database.close().map_err(|error| failed(error.to_string()))?;
        file::rename(&unfinished, path).map_err(|error| failed(error.to_string()))
    }

    fn open_file(path: PathBuf, cache_bytes: usize) -> Result<(Database, Loaded), CatalogError> {
        let builder = builder(cache_bytes);
        #[cfg(not(test))]
        let opened = builder.create(&path);
        #[cfg(test)]
        let opened = crate::catalog::logged::create(&builder, &path);
        Database::read(opened.map_err(|error| open_error(&path, error))?, path)
    }

    /// Reads everything from an opened file.
    pub(super) fn read(opened: redb::Database, path: PathBuf) -> Result<(Database, Loaded), CatalogError> {
        let database = Database(opened);
        let store_id = database.identify(&path)?;
        let damage = |error: redb::Error| CatalogError::Damaged { path: path.clone(), reason: error.to_string() };
        let (mut loaded, damaged) = database.load().map_err(damage)?;
        loaded.store_id = store_id;
        database.remove_damaged(damaged).map_err(damage)?;
        Ok((database, loaded))
    }

    /// Checks the format version and returns the store's identity; gives a new file both.
    fn identify(&self, path: &Path) -> Result<[u8; 16], CatalogError> {
        let damaged = |reason: String| CatalogError::Damaged { path: path.to_path_buf(), reason };
        match self.read_meta().map_err(|error| damaged(error.to_string()))? {
            None => self.write_meta().map_err(|error| damaged(error.to_string())),
            Some((format, store_id)) => {
                let found = format.try_into().map(u32::from_le_bytes);
                let found = found.map_err(|_| damaged("no format version".to_owned()))?;
                if found != FORMAT_VERSION {
                    return Err(CatalogError::Version { path: path.to_path_buf(), found, known: FORMAT_VERSION });
                }
                store_id.try_into().map_err(|_| damaged("no store identity".to_owned()))
            }
        }
    }

    /// The format version and the store's identity, or `None` in a new file.
    fn read_meta(&self) -> Result<Option<Meta>, redb::Error> {
        let transaction = self.0.begin_read()?;
        let table = match transaction.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let value = |key| -> Result<Vec<u8>, redb::Error> {
            Ok(table.get(key)?.map(|value| value.value().to_vec()).unwrap_or_default())
        };
        Ok(Some((value(META_FORMAT)?, value(META_STORE_ID)?)))
    }

    fn write_meta(&self) -> Result<[u8; 16], redb::Error> {
        let mut store_id = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut store_id)?;
        let transaction = self.0.begin_write()?;
        {
            let mut table = transaction.open_table(META)?;
            table.insert(META_FORMAT, FORMAT_VERSION.to_le_bytes().as_slice())?;
            table.insert(META_STORE_ID, store_id.as_slice())?;
            drop(Tables::open(&transaction)?);
        }
        transaction.commit()?;
        Ok(store_id)
    }

    fn load(&self) -> Result<(Loaded, DamagedRecords), redb::Error> {
        let transaction = self.0.begin_read()?;
        let mut loaded = Loaded::default();
        let mut damaged = Vec::new();
        let mut scan = |definition: Definition, read: ReadEntry<'_>| {
            let table = match transaction.open_table(definition) {
                // Made by a program that did not know this table yet.
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
                table => table?,
            };
            for entry in table.iter()? {
                let (key, value) = entry?;
                if read(key.value(), value.value()).is_err() {
                    damaged.push((definition, key.value().to_vec()));
                }
            }
            Ok::<(), redb::Error>(())
        };
        scan(TASKS, &mut |key, value| {
            loaded.tasks.push((codec::decode_task_key(key)?, codec::decode(key, value)?));
            Ok(())
        })?;
        scan(PIECES, &mut |key, value| {
            loaded.pieces.push((codec::decode_piece_key(key)?, codec::decode(key, value)?));
            Ok(())
        })?;
        scan(WRITEBACKS, &mut |key, value| {
            loaded.writebacks.push((codec::decode_task_key(key)?, codec::decode(key, value)?));
            Ok(())
        })?;
        scan(PARTS, &mut |key, value| {
            let (task, number) = codec::decode_part_key(key)?;
            loaded.parts.push((task, number, codec::decode(key, value)?));
            Ok(())
        })?;
        scan(UPLOADS, &mut |key, value| {
            let (task, number) = codec::decode_upload_key(key)?;
            loaded.uploads.push((task, number, codec::decode(key, value)?));
            Ok(())
        })?;
        loaded.damaged = damaged.len() as u64;
        Ok((loaded, damaged))
    }

    fn remove_damaged(&self, damaged: DamagedRecords) -> Result<(), redb::Error> {
        if damaged.is_empty() {
            return Ok(());
        }
        let transaction = self.0.begin_write()?;
        for (definition, key) in damaged {
            let name = redb::TableHandle::name(&definition).to_owned();
            tracing::error!(table = name, key = hex(&key), "a damaged catalog record was removed");
            transaction.open_table(definition)?.remove(key.as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Applies `changes` in one transaction, durable when this returns.
    pub fn apply<'a>(&self, changes: impl Iterator<Item = &'a Change>) -> Result<(), redb::Error> {
        let transaction = self.0.begin_write()?;
        {
            let mut tables = Tables::open(&transaction)?;
            for change in changes {
                tables.apply(change)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Writes what redb keeps for a quick start and closes the file.
    pub fn close(self) -> Result<(), redb::Error> {
        self.0.close().map_err(redb::Error::from)
    }
}

type Open<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// The tables of one transaction.
struct Tables<'t> {
    tasks: Open<'t>,
    pieces: Open<'t>,
    writebacks: Open<'t>,
    parts: Open<'t>,
    uploads: Open<'t>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t redb::WriteTransaction) -> Result<Tables<'t>, redb::Error> {
        Ok(Tables {
            tasks: transaction.open_table(TASKS)?,
            pieces: transaction.open_table(PIECES)?,
            writebacks: transaction.open_table(WRITEBACKS)?,
            parts: transaction.open_table(PARTS)?,
            uploads: transaction.open_table(UPLOADS)?,
        })
    }

    fn apply(&mut self, change: &Change) -> Result<(), StorageError> {
        match change {
            Change::PutTask { task, record } => put(&mut self.tasks, task.as_bytes(), record),
            Change::RemoveTask { task } => {
                self.tasks.remove(task.as_bytes().as_slice())?;
                remove_range(&mut self.pieces, &piece_key(task, 0, 0), &piece_key(task, u64::MAX, u32::MAX))
            }
            Change::PutPiece { key, record } => put(&mut self.pieces, &codec::piece_key(key), record),
            Change::RemovePieces { task, generation, pieces } => self.remove_pieces(task, *generation, pieces),
            Change::PutWriteBack { task, record } => put(&mut self.writebacks, task.as_bytes(), record),
            Change::RemoveWriteBack { task } => {
                self.writebacks.remove(task.as_bytes().as_slice())?;
                self.remove_parts(task)
            }
            Change::PutPart { task, number, record } => put(&mut self.parts, &codec::part_key(task, *number), record),
            Change::RemoveParts { task } => self.remove_parts(task),
            Change::PutUpload { task, number, record } => {
                put(&mut self.uploads, &codec::upload_key(task, *number), record)
            }
            Change::RemoveUpload { task, number } => {
                self.uploads.remove(codec::upload_key(task, *number).as_slice()).map(drop)
            }
        }
    }

    fn remove_pieces(&mut self, task: &TaskId, generation: u64, pieces: &PieceSet) -> Result<(), StorageError> {
        match pieces {
            PieceSet::All => {
                let last = piece_key(task, generation, u32::MAX);
                remove_range(&mut self.pieces, &piece_key(task, generation, 0), &last)
            }
            PieceSet::Numbers(numbers) => {
                for number in numbers {
                    self.pieces.remove(piece_key(task, generation, *number).as_slice())?;
                }
                Ok(())
            }
        }
    }

    fn remove_parts(&mut self, task: &TaskId) -> Result<(), StorageError> {
        remove_range(&mut self.parts, &codec::part_key(task, 0), &codec::part_key(task, u32::MAX))
    }
}

fn put<R: codec::Record>(table: &mut Open<'_>, key: &[u8], record: &R) -> Result<(), StorageError> {
    table.insert(key, codec::encode(key, record).as_slice())?;
    Ok(())
}

fn remove_range(table: &mut Open<'_>, first: &[u8], last: &[u8]) -> Result<(), StorageError> {
    table.retain_in::<&[u8], _>(first..=last, |_, _| false)
}

fn piece_key(task: &TaskId, generation: u64, number: u32) -> [u8; 44] {
    codec::piece_key(&PieceKey { task: *task, generation, number })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How the file is opened: every page is checked.
pub(super) fn builder(cache_bytes: usize) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true);
    builder
}

pub(super) fn open_error(path: &Path, error: DatabaseError) -> CatalogError {
    let path: PathBuf = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen => CatalogError::Locked { path },
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() != std::io::ErrorKind::InvalidData => {
            CatalogError::Open { path, reason: error.to_string() }
        }
        error => CatalogError::Damaged { path, reason: error.to_string() },
    }
}
