//! Puts the layers together: opens the resources, starts the threads, waits for a signal, drains, closes.
//!
//! Order of the start: catalog and piece files (what is there), sidecar and background executor (what the shards need),
//! sockets, shards. Order of the end: the shards finish what is in flight, then the resources below them close. What
//! can fail at the start is a [`StartError`] that says what and what to do; after that nothing here fails.

mod cluster;
mod shard;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::background::{Background, BackgroundError};
use crate::catalog::{Catalog, CatalogError, CatalogHandle, Change, Durability, Loaded};
use crate::config::{Config, StoreOptions};
use crate::engine::call::ShardMessage;
use crate::engine::{Context, DirtyBudget, Inventory, LargerPieces, RepairPlan, ScrubPlan, ShardInventory};
use crate::limits::{CLEANUP_CHANGES_MAX, DRAIN_TIMEOUT, END_TIMEOUT, SHARD_MAILBOX};
use crate::logging::Redactions;
use crate::membership::Members;
use crate::metrics::Metrics;
use crate::native::ClusterFace;
use crate::rt::arena::Arena;
use crate::rt::mailbox::{Receiver, Sender, mailbox};
use crate::rt::net::{Door, bind_shared};
use crate::rt::shard::{ShardThread, block_on};
use crate::rt::time::milliseconds;
use crate::server::cluster::{Doors, Following};
use crate::server::shard::{ShardSetup, Work, run_shard};
use crate::sidecar::backend::{BackendHandle, BackendTuning};
use crate::sidecar::health::{Health, Phase};
use crate::sidecar::{Sidecar, SidecarError, SidecarOptions};
use crate::store::evict::Watermarks;
use crate::store::{SpaceOptions, StoreError, StoreSeed};

/// Time that the backend's calls in work get after the shards have ended.
const SIDECAR_STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the peer did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The memory of the piece arena.
    #[error("cannot map {bytes} bytes of memory: {source}. Lower memory.budget")]
    Arena {
        /// Bytes wanted.
        bytes: usize,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The piece files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the catalog holds.
    #[error(transparent)]
    Pieces(#[from] LargerPieces),
    /// The bulk reader.
    #[error(transparent)]
    Background(#[from] BackgroundError),
    /// The backend client and the metrics listener.
    #[error(transparent)]
    Sidecar(#[from] SidecarError),
    /// The object port.
    #[error("cannot listen on {address}: {source}. Choose another objectStorage.tcpListen, or stop what uses it")]
    Listen {
        /// Address and first port.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A door of a node of a cluster.
    #[error("cannot listen on {address}: {source}. Choose another {key}, or stop what uses it")]
    Door {
        /// The key that names it.
        key: &'static str,
        /// Its address.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A shard thread.
    #[error("cannot start shard {shard}: {source}")]
    Shard {
        /// Which one.
        shard: usize,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The signal handler.
    #[error("cannot handle signals: {0}")]
    Signals(std::io::Error),
}

/// The resources below the shards.
struct Resources {
    catalog: Catalog,
    background: Background,
    sidecar: Sidecar,
    backend: BackendHandle,
    seed: StoreSeed,
}

/// Runs a peer until SIGTERM or SIGINT; a second one ends the process at once.
pub fn run(config: Config, metrics: Metrics, redactions: Redactions) -> Result<(), StartError> {
    let began = Instant::now();
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(StartError::Signals)?;
    let health = Health::new();
    let arena_bytes = config.memory.arena_bytes;
    let arena = Arena::with_hot(arena_bytes, config.memory.keeps_hot)
        .map_err(|source| StartError::Arena { bytes: arena_bytes, source })?;
    metrics.watch_arena(arena.clone());
    let listeners = bind(&config)?;
    let api = listeners[0].local_addr().map_err(|source| StartError::Listen { address: any(&config), source })?;
    let doors = config.cluster.as_ref().map(|options| Doors::bind(options, config.shards)).transpose()?;
    let mailboxes: Vec<_> = (0..config.shards).map(|_| mailbox(SHARD_MAILBOX)).collect();
    let (senders, receivers): (Vec<_>, Vec<_>) = mailboxes.into_iter().unzip();
    let joining = Joining { api, doors: doors.as_ref(), shards: &senders, redactions };
    let (resources, loaded, part) = open_resources(&config, &metrics, &health, Some(joining))?;
    let inventory = Inventory::new(loaded, &resources.seed, config.shards);
    clean_up(&resources.catalog.handle(), inventory.cleanup);
    let context = Context {
        arena,
        catalog: resources.catalog.handle(),
        backend: resources.backend.clone(),
        background: resources.background.handle(),
        metrics,
        health: health.clone(),
        freshness: config.freshness.clone(),
        conflict: config.conflict.clone(),
        scrub: ScrubPlan::of(&config.store, config.shards),
        dirty: DirtyBudget::new(config.store.dirty_limit_bytes),
        shards: senders.clone(),
        repair: RepairPlan::of(config.cluster.as_ref(), config.shards),
        replicas_default: config.http.replicas_default,
        uploads: part.as_ref().map(|part| part.face.uploads_counter()).unwrap_or_default(),
        evictions: Arc::default(),
        outages_ended: Arc::default(),
        next_id: Arc::new(AtomicU64::new(1)),
    };
    if let Some(doors) = &doors {
        doors.announce();
    }
    let mut shards = Shards { senders, threads: Vec::new(), drained: None };
    let entrances = Entrances { api: listeners, doors, receivers };
    shards.start(&config, &context, &resources, inventory.shards, entrances, part)?;
    health.set_phase(Phase::Ready);
    let elapsed_ms = milliseconds(began.elapsed());
    tracing::info!(address = %api, elapsed_ms, "listening on {api}");
    if let Some(address) = resources.sidecar.admin_address() {
        tracing::info!(%address, "metrics on http://{address}/metrics");
    }
    if let Some(gossip) = resources.sidecar.gossip() {
        let address = gossip.address();
        tracing::info!(%address, "gossip on {address}");
    }
    let signal = signals.forever().next();
    tracing::info!(?signal, "stopping: finishing what is in flight; a second signal ends the process at once");
    health.set_phase(Phase::Draining);
    exit_on_second_signal(signals);
    exit_when_late(END_TIMEOUT);
    shards.drain();
    drop(context);
    close(resources);
    tracing::info!("stopped");
    Ok(())
}

/// What a node needs to join a cluster.
struct Joining<'a> {
    api: SocketAddr,
    doors: Option<&'a Doors>,
    shards: &'a [Sender<ShardMessage>],
    redactions: Redactions,
}

/// A node's part in its cluster.
struct Part {
    face: Arc<ClusterFace>,
    members: Arc<Members>,
    following: Following,
}

fn open_resources(
    config: &Config,
    metrics: &Metrics,
    health: &Health,
    joining: Option<Joining<'_>>,
) -> Result<(Resources, Loaded, Option<Part>), StartError> {
    let StoreOptions { data_path, capacity_bytes, .. } = &config.store;
    let observer = metrics.clone();
    let (catalog, loaded) = Catalog::open(
        data_path,
        config.memory.catalog_cache_bytes,
        Box::new(move |changes, duration| observer.catalog_committed(changes, duration)),
    )?;
    LargerPieces::check(&loaded)?;
    let named: BTreeSet<u32> =
        loaded.pieces.iter().flat_map(|(_, piece)| piece.extents.iter().map(|extent| extent.file)).collect();
    let options = SpaceOptions {
        dir: data_path.clone(),
        capacity_bytes: *capacity_bytes,
        shards: config.shards,
        store_id: loaded.store_id,
    };
    let seed = StoreSeed::open(options, &named)?;
    let background = Background::start(data_path.clone())?;
    let redactions = joining.as_ref().map(|joining| joining.redactions.clone());
    let cluster = config.cluster.as_ref().zip(joining.as_ref().and_then(|joining| Some((joining, joining.doors?))));
    let me = cluster
        .map(|(options, (joining, doors))| cluster::describe(config, options, doors, joining.api, loaded.store_id));
    let gossip = cluster
        .zip(me.as_ref())
        .map(|((options, (joining, _)), me)| cluster::gossip_setup(options, me.clone(), joining.shards.to_vec()));
    let (sidecar, backend) = Sidecar::start(SidecarOptions {
        backend: config.backend.clone(),
        cluster: gossip,
        tuning: BackendTuning::default(),
        admin: config.metrics,
        metrics: metrics.clone(),
        health: health.clone(),
    })?;
    let part = config.cluster.as_ref().zip(me).zip(sidecar.gossip()).zip(redactions);
    let part = part.map(|(((options, me), gossip), redactions)| {
        tracing::info!(node = %me.id, cluster = %options.name, role = ?me.role, "part of a cluster");
        let asks_managers = config.backend.is_none().then(|| backend.clone());
        Part {
            face: cluster::face(options, &me, &backend, &gossip),
            members: cluster::only(&me, options),
            following: Following { options: options.clone(), backend: asks_managers, gossip, redactions },
        }
    });
    Ok((Resources { catalog, background, sidecar, backend, seed }, loaded, part))
}

/// Removes records that are of no use, before anything is written: some name a task, whatever is written of it meanwhile.
fn clean_up(catalog: &CatalogHandle, mut cleanup: Vec<Change>) {
    while !cleanup.is_empty() {
        let later = cleanup.split_off(cleanup.len().min(CLEANUP_CHANGES_MAX));
        let now = std::mem::replace(&mut cleanup, later);
        if let Ok(Err(error)) = block_on(catalog.commit(now, Durability::Lazy)) {
            // The next start tries again.
            tracing::warn!(%error, "records that are of no use cannot be removed");
            return;
        }
    }
}

fn any(config: &Config) -> SocketAddr {
    SocketAddr::new(config.http.listen, *config.http.ports.start())
}

fn bind(config: &Config) -> Result<Vec<TcpListener>, StartError> {
    bind_shared(config.http.listen, config.http.ports.clone(), config.shards)
        .map_err(|source| StartError::Listen { address: any(config), source })
}

fn exit_on_second_signal(mut signals: Signals) {
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            tracing::warn!("a second signal: ending at once");
            std::process::exit(1);
        }
    });
}

/// Should something of ours stand still, the process ends all the same: what was acknowledged is durable, and who waits
/// for the end would kill it.
fn exit_when_late(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        tracing::error!("not ended after {limit:?}: ending now; nothing that was acknowledged is lost");
        std::process::exit(1);
    });
}

/// The resources below the shards end in the reverse order of their start. What was acknowledged is durable already.
fn close(resources: Resources) {
    let Resources { catalog, background, sidecar, backend, seed } = resources;
    sidecar.stop(SIDECAR_STOP_TIMEOUT);
    drop(backend);
    background.close();
    catalog.close();
    drop(seed);
}

/// Where connections and messages come in.
struct Entrances {
    api: Vec<TcpListener>,
    doors: Option<Doors>,
    receivers: Vec<Receiver<ShardMessage>>,
}

/// The running shards.
struct Shards {
    senders: Vec<Sender<ShardMessage>>,
    threads: Vec<ShardThread>,
    drained: Option<Receiver<usize>>,
}

impl Shards {
    fn start(
        &mut self,
        config: &Config,
        context: &Context,
        resources: &Resources,
        inventory: Vec<ShardInventory>,
        entrances: Entrances,
        part: Option<Part>,
    ) -> Result<(), StartError> {
        let (drained, reports) = mailbox(config.shards);
        let Entrances { api, doors, receivers } = entrances;
        let (mut peers, mut manager) = doors.map(|doors| (doors.peers.into_iter(), doors.manager)).unzip();
        let mut work = part
            .as_ref()
            .map(|part| part.following.clone())
            .map(|following| -> Work { Box::new(move |engine| Box::pin(cluster::follow(engine, following))) });
        let parts = inventory.into_iter().zip(api).zip(receivers);
        for (shard, ((inventory, listener), mailbox)) in parts.enumerate() {
            let mut listeners = vec![(Door::Api, listener)];
            listeners.extend(peers.as_mut().and_then(Iterator::next).map(|listener| (Door::Peer, listener)));
            listeners.extend(manager.take().flatten().map(|listener| (Door::Manager, listener)));
            let setup = ShardSetup {
                shard,
                context: context.clone(),
                seed: resources.seed.clone(),
                inventory,
                watermarks: watermarks(&config.store),
                listeners,
                mailbox,
                http: config.http.clone(),
                cluster: part.as_ref().map(|part| (part.face.clone(), part.members.clone())),
                work: work.take(),
                drained: drained.clone(),
            };
            let thread = ShardThread::start(format!("shard-{shard}"), shard, move || run_shard(setup));
            self.threads.push(thread.map_err(|source| StartError::Shard { shard, source })?);
        }
        self.drained = Some(reports);
        Ok(())
    }

    /// Has every shard finish what is in flight, then ends them all: a shard that is done still answers the others.
    fn drain(self) {
        for sender in &self.senders {
            // A shard that has ended by itself has nothing in flight.
            let _ = sender.send_blocking(ShardMessage::Drain);
        }
        let limit = Instant::now() + DRAIN_TIMEOUT + Duration::from_secs(1);
        if let Some(drained) = &self.drained {
            for _ in &self.threads {
                let left = limit.saturating_duration_since(Instant::now());
                if drained.recv_blocking_timeout(left).is_none() {
                    tracing::warn!("requests in flight did not end in time and are cut");
                    break;
                }
            }
        }
        for sender in &self.senders {
            let _ = sender.send_blocking(ShardMessage::End);
        }
        drop(self.senders);
        for thread in self.threads {
            thread.join();
        }
    }
}

fn watermarks(store: &StoreOptions) -> Watermarks {
    Watermarks {
        high_percent: u64::from(store.high_watermark_percent),
        low_percent: u64::from(store.low_watermark_percent),
    }
}
