//! Data folders as a peer leaves them, made in seconds without a peer: many objects of zeros.
//!
//! Written with the peer's own catalog and store, so the format is the one of this build. The space of a piece is
//! taken and never written: piece files start as zeros, and the checksums say so.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use dfstore_peer::catalog::{
    Catalog, CatalogHandle, Change, Durability, PieceKey, PieceRecord, TaskRecord, TaskState, WriteBackKind,
    WriteBackRecord,
};
use dfstore_peer::rt::shard::block_on;
use dfstore_peer::store::{PieceStore, SpaceOptions, StoreSeed};
use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::object::ObjectMeta;

/// Bytes of a block, the shortest piece.
pub const BLOCK: u32 = 4096;
/// Changes that go into one transaction, about.
const TRANSACTION_CHANGES: usize = 3000;

/// Objects of zeros in one bucket.
#[derive(Clone, Copy, Debug)]
pub struct Zeros {
    /// The bucket.
    pub bucket: &'static str,
    /// How many objects.
    pub objects: u64,
    /// Pieces of each.
    pub pieces: u32,
    /// Bytes of each piece: whole blocks.
    pub piece_bytes: u32,
    /// Clean, or dirty with an entry in the write-back queue, the lowest number first.
    pub dirty: bool,
}

impl Zeros {
    /// The key of an object.
    pub fn key(object: u64) -> String {
        format!("zeros/{object:06}")
    }

    /// The number in a key.
    pub fn number(key: &str) -> Option<u64> {
        key.rsplit_once("zeros/")?.1.parse().ok()
    }

    /// Bytes of each object.
    pub fn length(&self) -> u64 {
        u64::from(self.pieces) * u64::from(self.piece_bytes)
    }

    /// Makes the data folder of a peer of this capacity that holds them.
    pub fn fill(&self, dir: &Path, capacity_bytes: u64) -> Result<()> {
        let (catalog, loaded) = Catalog::open(dir, 32 << 20, Box::new(|_, _| ()))?;
        let options = SpaceOptions { dir: dir.to_path_buf(), capacity_bytes, shards: 1, store_id: loaded.store_id };
        let seed = StoreSeed::open(options, &BTreeSet::new())?;
        let handle = catalog.handle();
        block_on(async { self.write(&seed.shard(0), &handle).await })??;
        catalog.close();
        Ok(())
    }

    async fn write(&self, store: &PieceStore, catalog: &CatalogHandle) -> Result<()> {
        let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        let mut changes = Vec::new();
        for object in 0..self.objects {
            let generation = (now_ms - 60_000) * 1000 + object;
            changes.append(&mut self.object(store, object, generation, now_ms).await?);
            if changes.len() >= TRANSACTION_CHANGES {
                catalog.commit(std::mem::take(&mut changes), Durability::Durable).await?;
            }
        }
        catalog.commit(changes, Durability::Durable).await?;
        Ok(())
    }

    async fn object(&self, store: &PieceStore, object: u64, generation: u64, now_ms: u64) -> Result<Vec<Change>> {
        let name = ObjectName::new(self.bucket, Zeros::key(object));
        let task = TaskId::of(&name, "", "");
        let crc32 = crc32fast::hash(&vec![0; self.piece_bytes as usize]);
        let mut changes = vec![Change::PutTask { task, record: self.record(name, generation, now_ms) }];
        if self.dirty {
            let record = WriteBackRecord {
                kind: WriteBackKind::Put,
                generation,
                sequence: generation,
                queued_at_ms: now_ms,
                attempts: 0,
                last_error: String::new(),
                dead: false,
                upload: None,
                replaced_etag: String::new(),
            };
            changes.push(Change::PutWriteBack { task, record });
        }
        for number in 0..self.pieces {
            let lease = store.allocate(self.piece_bytes as usize).await?.keep();
            let record = PieceRecord { length: self.piece_bytes, crc32, extents: lease.extents().clone() };
            changes.push(Change::PutPiece { key: PieceKey { task, generation, number }, record });
        }
        Ok(changes)
    }

    fn record(&self, name: ObjectName, generation: u64, now_ms: u64) -> TaskRecord {
        let meta = ObjectMeta {
            length: self.length(),
            etag: "\"zeros\"".into(),
            last_modified_ms: now_ms,
            ..ObjectMeta::default()
        };
        let zeros = vec![0; usize::try_from(self.length()).unwrap_or_default()];
        TaskRecord {
            name,
            query: String::new(),
            generation,
            state: if self.dirty { TaskState::Dirty } else { TaskState::Clean },
            meta,
            piece_bytes: self.piece_bytes,
            crc32: self.dirty.then(|| crc32fast::hash(&zeros)),
            validated_at_ms: now_ms,
            replicas: 0,
            published: false,
        }
    }
}
