//! What the peer does while it is recorded: a random script of writes, deletions, reads and evictions, with marks before
//! each write and after its acknowledgement.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dfstore_proto::ids::ObjectName;
use dfstore_proto::object::{ObjectMeta, WriteMode};
use futures_util::future::join_all;

use super::disk::Dice;
use crate::catalog::{Change, Durability};
use crate::config::{Config, Overrides};
use crate::engine::request::{CommitRequest, PutRequest, Target};
use crate::engine::{Context, DirtyBudget, Engine, Inventory, RepairPlan, ScrubPlan};
use crate::limits::{JOURNAL_PIECE_BYTES_MAX, PIECE_BYTES, SHARD_MAILBOX};
use crate::metrics::Metrics;
use crate::rt::arena::Arena;
use crate::rt::disk_log::DiskLog;
use crate::rt::mailbox::mailbox;
use crate::rt::shard::{block_on, spawn_local};
use crate::server::{Resources, open_resources, watermarks};
use crate::sidecar::health::Health;

/// What is done at once, each with another key.
const AT_ONCE: usize = 3;
const KEYS: [&str; 6] = ["a", "b", "c", "d", "stuck-1", "stuck-2"];
/// Keys that only the bucket has at first; they are read and evicted, never written.
pub const REMOTE: [&str; 3] = ["remote-1", "remote-2", "remote-3"];
pub const CAPACITY: u64 = 64 << 20;

/// One thing to do with one key.
#[derive(Clone)]
pub enum Step {
    Put { mode: WriteMode, bytes: Arc<[u8]>, crc32: u32 },
    Delete,
    Read,
    Evict,
}

/// Bytes and their CRC32.
pub type Content<'a> = (&'a Arc<[u8]>, u32);

/// A step and its key. Step number n has the marks 2n, before it, and 2n + 1, when it was acknowledged.
#[derive(Clone)]
pub struct Act {
    pub key: String,
    pub step: Step,
}

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.step {
            Step::Put { mode, bytes, crc32 } => write!(f, "{mode:?} of {} bytes, CRC32 {crc32:08x}", bytes.len()),
            Step::Delete => f.write_str("deletion"),
            Step::Read => f.write_str("read"),
            Step::Evict => f.write_str("eviction"),
        }
    }
}

impl Act {
    /// What the key holds after it, if it changes that: bytes, or nothing.
    pub fn content(&self) -> Option<Option<Content<'_>>> {
        match &self.step {
            Step::Put { bytes, crc32, .. } => Some(Some((bytes, *crc32))),
            Step::Delete => Some(None),
            Step::Read | Step::Evict => None,
        }
    }
}

/// A name in the only bucket.
pub fn target(key: &str) -> Target {
    Target::of(ObjectName::new("bucket", key))
}

/// So many bytes that look random.
pub fn bytes(seed: u64, length: usize) -> Arc<[u8]> {
    let mut dice = Dice(seed);
    let words = std::iter::repeat_with(|| dice.number().to_le_bytes()).flatten();
    words.take(length).collect()
}

/// A script of so many acts, in groups of those that are done at once.
pub fn script(seed: u64, groups: usize) -> Vec<Vec<Act>> {
    let mut dice = Dice(seed);
    let group = |_| {
        let mut keys: Vec<&str> = KEYS.into_iter().chain(REMOTE).collect();
        let acts = (0..AT_ONCE).map(|_| {
            let key = keys.swap_remove(usize::try_from(dice.below(keys.len() as u64)).expect("an index"));
            let step = if REMOTE.contains(&key) { cache_step(&mut dice) } else { step(&mut dice) };
            Act { key: key.to_owned(), step }
        });
        acts.collect()
    };
    (0..groups).map(group).collect()
}

fn cache_step(dice: &mut Dice) -> Step {
    if dice.below(3) == 0 { Step::Evict } else { Step::Read }
}

fn step(dice: &mut Dice) -> Step {
    let mode = match dice.below(12) {
        0 | 1 => return Step::Delete,
        2 | 3 => return cache_step(dice),
        4 | 5 => WriteMode::Ephemeral,
        6 => WriteMode::WriteBack,
        _ => WriteMode::AsyncWriteBack,
    };
    let length = match dice.below(24) {
        0 => PIECE_BYTES as usize + 5000,
        1..=3 => 0,
        n => [1, 4095, 4096, 4097, 12_000, 30_000, 65_537][usize::try_from(n % 7).expect("an index")],
    };
    let bytes = bytes(dice.number(), length);
    let crc32 = crc32fast::hash(&bytes);
    Step::Put { mode, bytes, crc32 }
}

/// What can be asked for by its checksum, for the bucket.
pub fn contents<'a>(acts: impl Iterator<Item = &'a Act>) -> HashMap<u32, Vec<u8>> {
    acts.filter_map(Act::content).flatten().map(|(bytes, crc32)| (crc32, bytes.to_vec())).collect()
}

/// Starts a shard on this folder, does what the script says, and ends it; the number of the first act is `first`.
pub fn perform(folder: &Path, bucket: SocketAddr, script: &[Vec<Act>], first: usize, log: &DiskLog) {
    let yaml = format!(
        "objectStorage: {{ enable: true, name: s3, region: us-east-1, endpoint: \"http://{bucket}\", \
         accessKey: a, secretKey: b }}\nstorage: {{ dataPath: {:?}, capacity: {CAPACITY} }}\nshards: 1\n",
        folder.display().to_string()
    );
    let config = Config::parse("test", &yaml, &Overrides::default()).expect("valid");
    let (metrics, health) = (Metrics::new(1, ""), Health::new());
    let (resources, loaded, _) = open_resources(&config, &metrics, &health, None).expect("they open");
    let Resources { catalog, background, sidecar, backend, seed } = resources;
    let inventory = Inventory::new(loaded, &seed, 1);
    let (sender, _receiver) = mailbox(SHARD_MAILBOX);
    let context = Context {
        arena: Arena::new(64 << 20).expect("mapped"),
        catalog: catalog.handle(),
        backend,
        background: background.handle(),
        metrics,
        health,
        freshness: config.freshness.clone(),
        conflict: config.conflict.clone(),
        scrub: ScrubPlan::of(&config.store, 1),
        dirty: DirtyBudget::new(config.store.dirty_limit_bytes),
        shards: vec![sender],
        repair: RepairPlan::of(None, 1),
        replicas_default: config.http.replicas_default,
        uploads: Arc::default(),
        evictions: Arc::default(),
        outages_ended: Arc::default(),
        next_id: Arc::default(),
    };
    let tasks = inventory.shards.into_iter().next().expect("one shard");
    let handle = catalog.handle();
    let commit = async |changes| handle.commit(changes, Durability::Durable).await.expect("it is taken");
    block_on(async {
        let engine = Engine::start(0, context, &seed, watermarks(&config.store), tasks, None);
        commit(inventory.cleanup).await;
        let queue = engine.clone();
        spawn_local(async move { queue.run_writeback().await });
        let mut number = first;
        for group in script {
            let acts = group.iter().zip(number..).map(|(act, number)| act_once(&engine, act, number as u64, log));
            join_all(acts).await;
            number += group.len();
        }
        // What waits for the backend or for the catalog must have its answer while its shard lives.
        sidecar.stop(Duration::from_secs(2));
        let nothing = Change::RemoveParts { task: target("nothing").task };
        commit(vec![nothing]).await;
    })
    .expect("a runtime");
    background.close();
    catalog.close();
}

async fn act_once(engine: &Engine, act: &Act, number: u64, log: &DiskLog) {
    let target = target(&act.key);
    log.mark(2 * number);
    match &act.step {
        Step::Put { mode, bytes, .. } => put(engine, target, *mode, bytes).await,
        Step::Delete => drop(engine.delete(&target).await.expect("deleted")),
        Step::Evict => drop(engine.drop_cached(&target).await),
        Step::Read => {
            let Ok(reader) = engine.open(&target, false).await else { return };
            let mut pieces = reader.stream(0..u64::MAX);
            while let Some(piece) = pieces.next().await {
                piece.expect("it is read");
            }
        }
    }
    log.mark(2 * number + 1);
}

/// Writes an object, its pieces at once; some small ones in one go, as a client does that says how long they are.
async fn put(engine: &Engine, target: Target, mode: WriteMode, bytes: &[u8]) {
    let length = bytes.len() as u64;
    // A bucket that takes nothing would make this an error.
    let mode = if target.name.key.starts_with("stuck") && mode == WriteMode::WriteBack {
        WriteMode::AsyncWriteBack
    } else {
        mode
    };
    let meta = ObjectMeta::default();
    let request = PutRequest { target, mode, replicas: 0, ack_peers: 0, length: Some(length), meta };
    let commit = CommitRequest { length, crc32: None, mode: None, replicas: None };
    if (1..=JOURNAL_PIECE_BYTES_MAX).contains(&bytes.len()) && bytes[0].is_multiple_of(2) {
        let mut slot = engine.take_slot(bytes.len()).await.expect("memory");
        slot.append(bytes);
        engine.put_small(request, slot, commit).await.expect("acknowledged");
        return;
    }
    let upload = engine.put(request).await.expect("begun");
    let pieces = (0..).zip(bytes.chunks(PIECE_BYTES as usize)).map(async |(number, piece)| {
        let mut slot = upload.take_slot(piece.len()).await.expect("memory");
        slot.append(piece);
        upload.write_piece(number, slot, None).await.expect("written");
    });
    join_all(pieces).await;
    upload.commit(commit).await.expect("acknowledged");
}
