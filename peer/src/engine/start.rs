//! Making a shard's engine from what the catalog holds, and its housekeeping.
//!
//! The main thread reads the catalog once and deals the tasks out ([`Inventory`]); each shard builds its table from its
//! share. What was acknowledged is there again: dirty versions with their queue entries, tombstones, ephemeral objects.
//! A clean version of which pieces are missing is still right, merely incomplete. A dirty one of which pieces are
//! missing or damaged is set aside loudly: its bytes cannot be had from anywhere else.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use dfstore_proto::ids::TaskId;
use event_listener::Event;

use crate::catalog::{
    Change, Loaded, PartRecord, PieceKey, PieceRecord, PieceSet, TaskRecord, TaskState, UploadRecord, WriteBackKind,
    WriteBackRecord,
};
use crate::engine::Engine;
use crate::engine::cluster::Cluster;
use crate::engine::context::Context;
use crate::engine::owner::Owner;
use crate::engine::request::{Target, takes_pieces};
use crate::engine::scrub::Scrubber;
use crate::engine::task::Task;
use crate::engine::version::{StoredPiece, Version};
use crate::engine::writeback::{Queue, Strays, new_record};
use crate::limits::{HOUSEKEEPING_PERIOD, PIECE_BYTES};
use crate::metrics::{CacheSize, WorkHeld, WriteBackState};
use crate::rt::permits::Permits;
use crate::rt::time::sleep;
use crate::store::evict::{Evictor, Watermarks};
use crate::store::recover::{Belongs, Found, recover};
use crate::store::{Lease, StoreSeed};

/// One task as the catalog has it, with the pieces that were found good.
pub struct TaskInventory {
    pub(crate) task: TaskId,
    pub(crate) record: TaskRecord,
    pub(crate) pieces: Vec<(u32, PieceRecord, Lease)>,
    writeback: Option<WriteBackRecord>,
    parts: BTreeMap<u32, PartRecord>,
}

/// What the catalog holds of one shard.
#[derive(Default)]
pub struct ShardInventory {
    /// Its tasks.
    pub tasks: Vec<TaskInventory>,
    /// Multipart uploads that the backend may know, with their numbers.
    pub uploads: Vec<(TaskId, u64, UploadRecord)>,
}

/// What the catalog holds, dealt out to the shards.
pub struct Inventory {
    /// For each shard its part.
    pub shards: Vec<ShardInventory>,
    /// The removal of records that are of no use any more: to be committed before anything else.
    pub cleanup: Vec<Change>,
}

impl Inventory {
    /// Deals out what was loaded, and claims the space of every good piece.
    pub fn new(mut loaded: Loaded, seed: &StoreSeed, shards: usize) -> Inventory {
        let mut cleanup = forget_larger_pieces(&mut loaded);
        let current: HashMap<TaskId, (u64, bool)> = loaded
            .tasks
            .iter()
            .map(|(task, record)| (*task, (record.generation, record.state == TaskState::Clean)))
            .collect();
        let mut pieces = claim_pieces(loaded.pieces, &current, seed, &mut cleanup);
        let mut writebacks: HashMap<TaskId, WriteBackRecord> = loaded.writebacks.into_iter().collect();
        let mut parts: HashMap<TaskId, BTreeMap<u32, PartRecord>> = HashMap::new();
        for (task, number, record) in loaded.parts {
            parts.entry(task).or_default().insert(number, record);
        }
        let mut dealt: Vec<ShardInventory> = (0..shards).map(|_| ShardInventory::default()).collect();
        for (task, record) in loaded.tasks {
            let inventory = TaskInventory {
                task,
                pieces: pieces.remove(&task).unwrap_or_default(),
                writeback: writebacks.remove(&task).filter(|entry| entry.generation == record.generation),
                parts: parts.remove(&task).unwrap_or_default(),
                record,
            };
            dealt[task.owner(shards)].tasks.push(inventory);
        }
        for (task, number, record) in loaded.uploads {
            dealt[task.owner(shards)].uploads.push((task, number, record));
        }
        cleanup.extend(writebacks.into_keys().map(|task| Change::RemoveWriteBack { task }));
        Inventory { shards: dealt, cleanup }
    }
}

/// Objects that are more than a cache lie here in pieces that this program cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{objects} objects that are not in the bucket lie here in pieces of more than {PIECE_BYTES} bytes, as an earlier \
     version made them. Start that version again, wait for its writes (dfstore writeback wait) and delete or move its \
     ephemeral objects; then start this one"
)]
pub struct LargerPieces {
    /// How many.
    pub objects: usize,
}

impl LargerPieces {
    /// Whether something would be lost if what was loaded were used. To be asked before others hear of this node.
    pub fn check(loaded: &Loaded) -> Result<(), LargerPieces> {
        let lost = |record: &TaskRecord| record.state != TaskState::Clean && !is_taken(record);
        match loaded.tasks.iter().filter(|(_, record)| lost(record)).count() {
            0 => Ok(()),
            objects => Err(LargerPieces { objects }),
        }
    }
}

fn is_taken(record: &TaskRecord) -> bool {
    takes_pieces(record.meta.length, record.piece_bytes)
}

/// Takes out what an earlier version cached in larger pieces: it is fetched again.
fn forget_larger_pieces(loaded: &mut Loaded) -> Vec<Change> {
    let larger = loaded.tasks.iter().filter(|(_, record)| record.state == TaskState::Clean && !is_taken(record));
    let forgotten: BTreeSet<TaskId> = larger.map(|(task, _)| *task).collect();
    if !forgotten.is_empty() {
        let objects = forgotten.len();
        tracing::warn!(objects, "cached objects in larger pieces, of an earlier version, are forgotten");
    }
    loaded.tasks.retain(|(task, _)| !forgotten.contains(task));
    forgotten.into_iter().map(|task| Change::RemoveTask { task }).collect()
}

/// Claims the space of the pieces.
fn claim_pieces(
    loaded: Vec<(PieceKey, PieceRecord)>,
    current: &HashMap<TaskId, (u64, bool)>,
    seed: &StoreSeed,
    cleanup: &mut Vec<Change>,
) -> HashMap<TaskId, Vec<(u32, PieceRecord, Lease)>> {
    let belongs = |key: &PieceKey| match current.get(&key.task) {
        Some((generation, true)) if *generation == key.generation => Belongs::Clean,
        Some((generation, false)) if *generation == key.generation => Belongs::OnlyHere,
        _ => Belongs::Nothing,
    };
    let found: Vec<Found<(PieceKey, PieceRecord)>> = loaded
        .into_iter()
        .map(|(key, record)| Found { belongs: belongs(&key), extents: record.extents.clone(), piece: (key, record) })
        .collect();
    let recovered = recover(seed, found);
    let mut kept: HashMap<TaskId, Vec<(u32, PieceRecord, Lease)>> = HashMap::new();
    for ((key, record), lease) in recovered.kept {
        kept.entry(key.task).or_default().push((key.number, record, lease));
    }
    for (key, _) in &recovered.quarantined {
        tracing::error!(task = %key.task, number = key.number, "a piece that only this peer has lies where it cannot be");
    }
    for (key, _) in &recovered.dropped {
        let pieces = PieceSet::Numbers(vec![key.number]);
        cleanup.push(Change::RemovePieces { task: key.task, generation: key.generation, pieces });
    }
    kept
}

impl Engine {
    /// The engine of one shard. To be called on the shard's thread.
    pub fn start(
        shard: usize,
        context: Context,
        seed: &StoreSeed,
        watermarks: Watermarks,
        inventory: ShardInventory,
        cluster: Option<Cluster>,
    ) -> Engine {
        let owner = Owner {
            shard,
            metrics: context.metrics.shard(shard),
            context,
            store: seed.shard(shard),
            tasks: RefCell::default(),
            retired: RefCell::default(),
            uploads: RefCell::default(),
            pending: RefCell::default(),
            watermarks,
            eviction: RefCell::new(Evictor::default()),
            queue: Queue::default(),
            strays: Strays::default(),
            is_ending: Cell::new(false),
            ending: Event::new(),
            scrubber: Scrubber::default(),
            cluster,
            graves: RefCell::default(),
            rogues: RefCell::default(),
            copies: Permits::default(),
            repaired_up_to: Cell::new(TaskId::from_bytes([0; 32])),
            retold_up_to: RefCell::default(),
        };
        let owner = Rc::new(owner);
        for task in inventory.tasks {
            owner.restore(task);
        }
        for (task, number, record) in inventory.uploads {
            owner.strays.restore(task, number, record);
        }
        Engine(owner)
    }
}

impl Owner {
    fn restore(&self, inventory: TaskInventory) {
        let TaskInventory { task, record, pieces, writeback, parts } = inventory;
        let entry = Task::new(Target { name: record.name.clone(), task });
        let version = Rc::new(Version::from_record(task, record));
        for (number, record, lease) in pieces {
            version.put_stored(number, StoredPiece { length: record.length, crc32: record.crc32, lease });
        }
        let state = version.state.get();
        if matches!(state, TaskState::Dirty | TaskState::Ephemeral) {
            let hold = self.context.dirty.hold();
            // What is missing of it counts when it comes.
            hold.grow(version.stored_bytes());
            version.dirty.replace(Some(hold));
            if !version.is_whole() && self.cluster.is_none() {
                tracing::error!(object = %entry.target.name, "pieces of an object that is not in the backend are lost");
            }
        }
        self.eviction.borrow_mut().insert(task, version.disk_bytes());
        self.tasks.borrow_mut().insert(task, entry.clone());
        self.publish(&entry, Some(version.clone()));
        let kind = match state {
            TaskState::Dirty => WriteBackKind::Put,
            TaskState::Deleted => WriteBackKind::Delete,
            TaskState::Clean | TaskState::Ephemeral => return,
        };
        // The entry is committed together with the version; were it missing, a new one does the same.
        let record = writeback.unwrap_or_else(|| new_record(kind, version.generation, String::new()));
        self.queue.restore(entry, record, parts);
    }
}

/// Evicts, trims and reports now and then; never ends.
pub async fn housekeeping(owner: &Rc<Owner>) {
    loop {
        owner.evict_to_watermark().await;
        owner.trim_tasks();
        owner.abort_strays();
        owner.report();
        sleep(HOUSEKEEPING_PERIOD).await;
    }
}

impl Owner {
    fn report(&self) {
        let queue = self.queue.stats();
        self.metrics.set_writeback(WriteBackState {
            dirty_bytes: self.dirty_bytes(),
            queued: queue.waiting as u64,
            dead_letters: queue.dead as u64,
            oldest_unix_ms: queue.oldest_ms,
        });
        self.context.metrics.set_dirty_limit_used(self.context.dirty.bytes());
        let tasks = self.tasks.borrow();
        let pieces =
            tasks.values().filter_map(|task| task.current()).map(|version| u64::from(version.stored_count.get()));
        self.metrics.set_cache(CacheSize {
            bytes: self.eviction.borrow().bytes(),
            pieces: pieces.sum(),
            tasks: tasks.len() as u64,
        });
        self.metrics.set_mailbox(self.context.shards[self.shard].len());
        let paced = tasks.values().filter_map(|task| task.current()).map(|version| version.paced.out());
        self.metrics.set_held(WorkHeld {
            uploads: self.uploads.borrow().len() as u64,
            retired_versions: self.retired.borrow().len() as u64,
            permits: (self.copies.out() + paced.sum::<usize>()) as u64,
        });
        self.context.metrics.set_store_used(self.store.stats().used_bytes);
        self.context.metrics.set_peer_uploads(self.context.uploads.load(Ordering::Relaxed));
        if self.store.is_poisoned() || self.context.catalog.is_failed() {
            self.context.metrics.set_poisoned();
            self.context.health.poison_store();
        }
    }

    /// Bytes of this shard's versions that the backend does not have.
    fn dirty_bytes(&self) -> u64 {
        let pending = self.pending.borrow();
        let versions = pending.values().filter_map(|task| task.current());
        versions.filter(|version| version.state.get() == TaskState::Dirty).map(|v| v.meta.borrow().length).sum()
    }
}
