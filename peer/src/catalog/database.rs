//! The redb file: its tables, reading all of it, applying changes in a transaction.
//!
//! Used by one thread at a time. Every error of redb after opening is final: the caller stops using the database.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use redb::{Builder, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition};

use crate::catalog::CatalogError;
use crate::catalog::codec::{self, Damaged};
use crate::catalog::journal::{Journal, Mark, Replay};
use crate::catalog::operations::{self, Operation, TableId};
use crate::catalog::records::{Loaded, PieceRecord};
use crate::rt::file;
use crate::store::PieceFiles;

/// Name of the catalog's file in the data folder.
pub const CATALOG_FILE: &str = "catalog.redb";
/// Its name until it is complete.
const UNFINISHED_FILE: &str = "catalog.redb.new";
/// Version of the tables and keys, and that there is a journal. A file of another version is refused.
pub const FORMAT_VERSION: u32 = 2;
/// Had no journal: gets one.
const FORMAT_WITHOUT_JOURNAL: u32 = 1;

/// What the table `meta` says.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Identity of the store.
    pub store_id: [u8; 16],
    /// Up to where it has what the journal holds; `None` in a file that was made before there were journals.
    pub mark: Option<Mark>,
}

/// The values of the table `meta`: the format version, the store's identity, and the journal's mark.
type Meta = [Vec<u8>; 3];
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
const META_JOURNAL: &[u8] = b"journal";

/// The open file.
pub struct Database(redb::Database);

/// Damaged records: their table and key.
type DamagedRecords = Vec<(Definition, Vec<u8>)>;

impl Database {
    /// Opens or creates the file in `dir`, and its journal, whose entries it gets. Reads everything.
    pub fn open(
        dir: &Path,
        cache_bytes: usize,
        pieces: &mut dyn PieceFiles,
    ) -> Result<(Database, Journal, Loaded), CatalogError> {
        let path = dir.join(CATALOG_FILE);
        let open_failed = |error: io::Error| CatalogError::Open { path: path.clone(), reason: error.to_string() };
        if path.exists() {
            file::forget_cached(&path).map_err(open_failed)?;
        } else {
            Database::create(dir, &path, cache_bytes)?;
        }
        let (database, identity) = Database::open_file(&path, cache_bytes)?;
        let damage = |error: redb::Error| CatalogError::Damaged { path: path.clone(), reason: error.to_string() };
        let mark = match identity.mark {
            Some(mark) => mark,
            None => {
                Journal::create(dir, &identity.store_id).map_err(open_failed)?;
                database.begin_journal().map_err(damage)?;
                Mark::START
            }
        };
        let (journal, replay) = Journal::open(dir, &identity.store_id, mark)?;
        let loaded = database.catch_up(&path, identity.store_id, mark, &replay, pieces)?;
        Ok((database, journal, loaded))
    }

    /// Takes in what a journal has behind `mark`, then reads everything.
    pub(super) fn catch_up(
        &self,
        path: &Path,
        store_id: [u8; 16],
        mark: Mark,
        replay: &Replay,
        pieces: &mut dyn PieceFiles,
    ) -> Result<Loaded, CatalogError> {
        if replay.mark != mark {
            let replayed = self.replay(replay, pieces);
            replayed.map_err(|error| CatalogError::Damaged { path: path.to_path_buf(), reason: error.to_string() })?;
        }
        let mut loaded = self.load(path, store_id)?;
        if replay.damaged > 0 {
            tracing::error!(entries = replay.damaged, "entries of the catalog's journal are damaged and left out");
        }
        loaded.damaged += replay.damaged;
        Ok(loaded)
    }

    /// Makes a new file, which gets its name when it is complete: what a crash leaves of it before is no database, and
    /// would not be opened again. The journal is there before it.
    fn create(dir: &Path, path: &Path, cache_bytes: usize) -> Result<(), CatalogError> {
        let unfinished = dir.join(UNFINISHED_FILE);
        let failed = |reason: String| CatalogError::Open { path: path.to_path_buf(), reason };
        if unfinished.exists() {
            std::fs::remove_file(&unfinished).map_err(|error| failed(error.to_string()))?;
        }
        let (database, identity) = Database::open_file(&unfinished, cache_bytes)?;
        database.close().map_err(|error| failed(error.to_string()))?;
        Journal::create(dir, &identity.store_id).map_err(|error| failed(error.to_string()))?;
        file::rename(&unfinished, path).map_err(|error| failed(error.to_string()))
    }

    fn open_file(path: &Path, cache_bytes: usize) -> Result<(Database, Identity), CatalogError> {
        let builder = builder(cache_bytes);
        #[cfg(not(test))]
        let opened = builder.create(path);
        #[cfg(test)]
        let opened = crate::catalog::logged::create(&builder, path);
        Database::identified(opened.map_err(|error| open_error(path, error))?, path)
    }

    /// An opened file whose version is known.
    pub(super) fn identified(opened: redb::Database, path: &Path) -> Result<(Database, Identity), CatalogError> {
        let database = Database(opened);
        let identity = database.identify(path)?;
        Ok((database, identity))
    }

    /// Reads everything; removes what is damaged.
    pub(super) fn load(&self, path: &Path, store_id: [u8; 16]) -> Result<Loaded, CatalogError> {
        let damage = |error: redb::Error| CatalogError::Damaged { path: path.to_path_buf(), reason: error.to_string() };
        let (mut loaded, damaged) = self.load_records().map_err(damage)?;
        loaded.store_id = store_id;
        self.remove_damaged(damaged).map_err(damage)?;
        Ok(loaded)
    }

    /// Checks the format version; gives a new file all that a file begins with.
    fn identify(&self, path: &Path) -> Result<Identity, CatalogError> {
        let damaged = |reason: String| CatalogError::Damaged { path: path.to_path_buf(), reason };
        let Some([format, store_id, mark]) = self.read_meta().map_err(|error| damaged(error.to_string()))? else {
            return self.write_meta().map_err(|error| damaged(error.to_string()));
        };
        let format = format.try_into().map(u32::from_le_bytes);
        let found = format.map_err(|_| damaged("no format version".to_owned()))?;
        let store_id = store_id.try_into().map_err(|_| damaged("no store identity".to_owned()))?;
        let mark = match found {
            FORMAT_VERSION => {
                let mark = Mark::from_bytes(&mark);
                Some(mark.ok_or_else(|| damaged("it does not say where its journal stands".to_owned()))?)
            }
            FORMAT_WITHOUT_JOURNAL => None,
            _ => return Err(CatalogError::Version { path: path.to_path_buf(), found, known: FORMAT_VERSION }),
        };
        Ok(Identity { store_id, mark })
    }

    /// What `meta` holds, or `None` in a new file.
    fn read_meta(&self) -> Result<Option<Meta>, redb::Error> {
        let transaction = self.0.begin_read()?;
        let table = match transaction.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let value = |key| -> Result<Vec<u8>, redb::Error> {
            Ok(table.get(key)?.map(|value| value.value().to_vec()).unwrap_or_default())
        };
        Ok(Some([value(META_FORMAT)?, value(META_STORE_ID)?, value(META_JOURNAL)?]))
    }

    fn write_meta(&self) -> Result<Identity, redb::Error> {
        let mut store_id = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut store_id)?;
        let transaction = self.0.begin_write()?;
        {
            let mut tables = Tables::open(&transaction)?;
            tables.meta.insert(META_FORMAT, FORMAT_VERSION.to_le_bytes().as_slice())?;
            tables.meta.insert(META_STORE_ID, store_id.as_slice())?;
            tables.meta.insert(META_JOURNAL, Mark::START.to_bytes().as_slice())?;
        }
        transaction.commit()?;
        Ok(Identity { store_id, mark: Some(Mark::START) })
    }

    /// A file of an earlier program has a journal from now on.
    fn begin_journal(&self) -> Result<(), redb::Error> {
        let transaction = self.0.begin_write()?;
        {
            let mut tables = Tables::open(&transaction)?;
            tables.meta.insert(META_FORMAT, FORMAT_VERSION.to_le_bytes().as_slice())?;
            tables.meta.insert(META_JOURNAL, Mark::START.to_bytes().as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn load_records(&self) -> Result<(Loaded, DamagedRecords), redb::Error> {
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

    /// Applies rows of operations in one transaction, durable when this returns, and notes where the journal stands.
    pub fn apply<'a>(&self, rows: impl Iterator<Item = &'a [u8]>, mark: Mark) -> Result<(), redb::Error> {
        let transaction = self.0.begin_write()?;
        {
            let mut tables = Tables::open(&transaction)?;
            for row in rows {
                tables.apply_row(row)?;
            }
            tables.meta.insert(META_JOURNAL, mark.to_bytes().as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Applies what a journal has and the database does not, and writes the bytes of pieces that are kept there to their
    /// files once more, unless they have been replaced since; all of it durable when this returns.
    fn replay(&self, replay: &Replay, pieces: &mut dyn PieceFiles) -> Result<(), redb::Error> {
        let transaction = self.0.begin_write()?;
        {
            let mut tables = Tables::open(&transaction)?;
            for row in replay.entries() {
                tables.apply_row(row)?;
            }
            let operations = replay.entries().flat_map(operations::decode);
            let mut files = BTreeSet::new();
            for operation in operations {
                if let Ok(Operation::Keep { key, bytes }) = operation
                    && let Some(record) = tables.record_of(key, bytes)?
                {
                    pieces.write(&record.extents, bytes)?;
                    files.extend(record.extents.iter().map(|extent| extent.file));
                }
            }
            files.into_iter().try_for_each(|file| pieces.sync(file))?;
            tables.meta.insert(META_JOURNAL, replay.mark.to_bytes().as_slice())?;
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
    meta: Open<'t>,
    tasks: Open<'t>,
    pieces: Open<'t>,
    writebacks: Open<'t>,
    parts: Open<'t>,
    uploads: Open<'t>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t redb::WriteTransaction) -> Result<Tables<'t>, redb::Error> {
        Ok(Tables {
            meta: transaction.open_table(META)?,
            tasks: transaction.open_table(TASKS)?,
            pieces: transaction.open_table(PIECES)?,
            writebacks: transaction.open_table(WRITEBACKS)?,
            parts: transaction.open_table(PARTS)?,
            uploads: transaction.open_table(UPLOADS)?,
        })
    }

    fn of(&mut self, table: TableId) -> &mut Open<'t> {
        match table {
            TableId::Tasks => &mut self.tasks,
            TableId::Pieces => &mut self.pieces,
            TableId::WriteBacks => &mut self.writebacks,
            TableId::Parts => &mut self.parts,
            TableId::Uploads => &mut self.uploads,
        }
    }

    fn apply_row(&mut self, row: &[u8]) -> Result<(), StorageError> {
        for operation in operations::decode(row) {
            match operation {
                Ok(operation) => self.apply(operation)?,
                // Of a later program: its checksum was right.
                Err(Damaged) => return Err(StorageError::Corrupted("an operation of an unknown kind".to_owned())),
            }
        }
        Ok(())
    }

    fn apply(&mut self, operation: Operation<'_>) -> Result<(), StorageError> {
        match operation {
            Operation::Put { table, key, value } => self.of(table).insert(key, value).map(drop),
            Operation::Remove { table, key } => self.of(table).remove(key).map(drop),
            Operation::RemoveRange { table, first, last } => {
                self.of(table).retain_in::<&[u8], _>(first..=last, |_, _| false)
            }
            Operation::Keep { .. } => Ok(()),
        }
    }

    /// The record under `key`, if it is that of these bytes.
    fn record_of(&self, key: &[u8], bytes: &[u8]) -> Result<Option<PieceRecord>, StorageError> {
        let Some(value) = self.pieces.get(key)? else { return Ok(None) };
        let record = codec::decode::<PieceRecord>(key, value.value()).ok();
        let crc32 = crc32fast::hash(bytes);
        Ok(record.filter(|record| record.length as usize == bytes.len() && record.crc32 == crc32))
    }
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
