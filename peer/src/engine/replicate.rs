//! Copies on seeds: the home has them made, a seed makes one, and what was lost is made anew.
//!
//! A copy is a version whose pieces are all here, synced, and recorded durably. The home keeps one of every version that
//! the backend does not have (it sends it there) and asks the next seeds in order for the others; each tells the home
//! when it holds all. Repair is the same question asked again: it starts when a seed has been gone for
//! `replicas.repairAfter`, and its rate is bounded.

use std::rc::Rc;
use std::sync::Arc;

use dfstore_proto::error::ErrorCode;
use dfstore_proto::message::{Duty, Fetch, Message, NodeRole, Publish, Recall, Standing as Verdict};
use futures_util::StreamExt;

use crate::catalog::{Durability, TaskState};
use crate::engine::call::{Asker, Wanted, WrittenPiece};
use crate::engine::cluster::{Cluster, Place};
use crate::engine::error::ObjectError;
use crate::engine::fetch::{arrived, busy, sized, source_of};
use crate::engine::owner::Owner;
use crate::engine::request::{piece_count, piece_length};
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::limits::{
    ADMISSION_POLL, ADMISSION_TIMEOUT, COPIES_AT_ONCE_MAX, COPY_WINDOW_PIECES, REPAIR_PERIOD, REPAIR_TASKS_MAX,
    STORED_WAIT,
};
use crate::links::LinkError;
use crate::membership::Node;
use crate::placement;
use crate::rt::arena::Holder;
use crate::rt::shard::spawn_local;
use crate::rt::time::{since_start, sleep, timeout};

impl Owner {
    /// At the home: has the copies of a version made, without waiting for them.
    ///
    /// Tells whether that begins now.
    pub fn spread(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>) -> bool {
        if self.cluster.is_none() || version.state.get() == TaskState::Deleted || version.spreading.replace(true) {
            return false;
        }
        let (owner, task, version) = (self.clone(), task.clone(), version.clone());
        spawn_local(async move {
            // The others copy from whoever has it, while this peer does.
            let (own, asked) = futures_util::join!(owner.copy_here(&version), owner.ask_for_copies(&task, &version));
            if let Err(error) = own.and(asked) {
                tracing::debug!(%error, object = %task.target.name, "not all copies are made yet");
            }
            version.spreading.set(false);
        });
        true
    }

    /// Asks the seeds that should hold a copy and do not, as far as is known. Gives how many were asked.
    async fn ask_for_copies(&self, task: &Task, version: &Rc<Version>) -> Result<u32, ObjectError> {
        let (Some(cluster), Place::Home { others }) = (&self.cluster, self.place(&task.target.task)) else {
            return Ok(0);
        };
        let wanted = usize::from(self.replicas_possible(version.replicas.get())).saturating_sub(1);
        let mut asked = 0;
        for node in others.iter().take(wanted) {
            if version.holders.borrow().is_keeper(&node.id) {
                continue;
            }
            asked += 1;
            let publish = self.publication(cluster, task, version, Duty::Replicate);
            let answer = cluster.ask(node, &task.target.task, publish).await;
            match answer.map_err(|error| ObjectError::from_peer(error, &task.target.name))? {
                Message::PublishOk(told) if told.standing == Verdict::Current => {}
                Message::PublishOk(_) => return Ok(asked),
                other => return Err(ObjectError::unexpected(&other)),
            }
        }
        Ok(asked)
    }

    /// What a seed is told of a version.
    pub fn publication(&self, cluster: &Cluster, task: &Task, version: &Version, duty: Duty) -> Publish {
        Publish {
            target: task.target.to_message(),
            version: version.to_message(),
            duty,
            node: cluster.me().to_string(),
            whole: version.is_durable_here(),
            holders: version.holders.borrow().keepers(),
            wait_replicas: 0,
        }
    }

    /// At a seed: makes a copy of a version, without waiting, and tells the home when it is there.
    pub fn keep_copy(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>) {
        if version.state.get() == TaskState::Deleted || version.spreading.replace(true) {
            return;
        }
        let (owner, task, version) = (self.clone(), task.clone(), version.clone());
        spawn_local(async move {
            let result = match owner.copy_here(&version).await {
                Ok(()) => owner.tell_home(&task, &version, 0).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                tracing::debug!(%error, object = %task.target.name, "a copy is not made yet");
            }
            version.spreading.set(false);
        });
    }

    /// Brings all pieces of a version here and makes them durable.
    pub async fn copy_here(self: &Rc<Self>, version: &Rc<Version>) -> Result<(), ObjectError> {
        if version.is_durable_here() {
            return Ok(());
        }
        let _permit = self.copies.acquire(|| COPIES_AT_ONCE_MAX).await;
        // Made by somebody else while this one waited.
        if version.is_durable_here() {
            return Ok(());
        }
        self.fill(version).await?;
        let pieces = version.stored_pieces();
        self.store.sync(pieces.iter().map(|(_, piece)| piece.lease.extents())).await?;
        let changed = || ObjectError::VersionChanged(format!("task {}", version.task));
        let task = self.known(&version.task).ok_or_else(changed)?;
        // The record of what replaces it must come after this one.
        let _commit = task.commit_lock.lock().await;
        if !task.is_current(version) {
            return Err(changed());
        }
        let mut changes = vec![self.record_change(&task, version)];
        changes.extend(pieces.iter().map(|(number, piece)| version.piece_change(*number, piece)));
        self.context.catalog.commit(changes, Durability::Durable).await?;
        version.durable.set(true);
        self.metrics.copy_made();
        version.spread.notify(usize::MAX);
        Ok(())
    }

    /// Brings all pieces of a version here, from whoever has them. Gives the bytes that came.
    pub async fn fill(self: &Rc<Self>, version: &Rc<Version>) -> Result<u64, ObjectError> {
        let end = version.piece_count();
        let missing: Vec<u32> = (0..end).filter(|number| !version.has_stored(*number)).collect();
        let bytes = missing.iter().map(|number| u64::from(version.piece_length(*number))).sum();
        // A download goes ahead by itself; the peer that decides fetches just what is asked for.
        let window = if self.is_away(&version.task) { 1 } else { COPY_WINDOW_PIECES };
        let reader = self.context.unique_id();
        let fetches = missing.iter().map(|&number| {
            let wanted = Wanted { number, end, urgent: true, local_only: false, asker: Asker::Copy, reader };
            self.bring(version, wanted)
        });
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(window);
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        Ok(bytes)
    }

    /// Brings one piece to disk.
    async fn bring(self: &Rc<Self>, version: &Rc<Version>, wanted: Wanted) -> Result<(), ObjectError> {
        let number = wanted.number;
        // The answer comes before the piece is on disk.
        drop(self.piece(&version.task, version.generation, wanted).await?);
        let stored = async {
            while !version.has_stored(number) && version.holds(number) {
                version.stored.listen().await;
            }
        };
        let _ = timeout(STORED_WAIT, stored).await;
        if version.has_stored(number) {
            return Ok(());
        }
        Err(ObjectError::Busy {
            reason: format!(
                "piece {number} of task {} was not kept: the disk is full or the version replaced",
                version.task
            ),
            retry_after: STORED_WAIT,
        })
    }

    /// At the home: brings the pieces that another peer holds of a version that is about to be written, into an upload.
    pub async fn take_pieces(self: &Rc<Self>, asked: &Publish, upload: u64) -> Result<(), ObjectError> {
        let members = self.cluster.as_ref().map(Cluster::members);
        let source = members.as_ref().and_then(|members| members.find(&asked.node).cloned());
        let source =
            source.ok_or_else(|| ObjectError::PeerUnavailable(format!("node {} is not in the cluster", asked.node)))?;
        let length = asked.version.meta.length;
        let pieces = 0..piece_count(length, asked.version.piece_bytes);
        let source = &source;
        let taken = pieces.map(|number| async move { self.take_piece(source, asked, upload, number).await });
        let mut taken = futures_util::stream::iter(taken).buffer_unordered(COPY_WINDOW_PIECES);
        while let Some(piece) = taken.next().await {
            piece?;
        }
        Ok(())
    }

    async fn take_piece(
        self: &Rc<Self>,
        source: &Node,
        asked: &Publish,
        upload: u64,
        number: u32,
    ) -> Result<(), ObjectError> {
        let Some(cluster) = &self.cluster else { return Err(ObjectError::Internal("there is no cluster".into())) };
        let record = &asked.version;
        let length = piece_length(record.meta.length, record.piece_bytes, number);
        let fetch = Fetch { task: asked.target.task(), generation: record.generation, number, local_only: true };
        let mut waits_left = ADMISSION_TIMEOUT.as_millis() / ADMISSION_POLL.as_millis();
        let piece = loop {
            let slot = timeout(ADMISSION_TIMEOUT, self.context.arena.take(length as usize, Holder::Ingest)).await;
            let slot = slot.map_err(|_| busy("all memory for uploads is in use"))?;
            match cluster.links.fetch(source, fetch.clone(), sized(slot, length), None).await {
                Ok(piece) => break piece,
                // It sends others just now, and nobody else has this one.
                Err(LinkError::Refused(reply)) if reply.code == ErrorCode::Busy && waits_left > 0 => {
                    waits_left -= 1;
                    sleep(ADMISSION_POLL).await;
                }
                Err(error) => return Err(ObjectError::from_peer(error, &asked.target.object)),
            }
        };
        let crc32 = piece.head.crc32;
        let (slot, _, _) = arrived(piece.slot, crc32, source_of(source));
        self.admit(upload, number, length).await?;
        let reservation = self.write_new(slot, None).await?;
        self.written(upload, WrittenPiece { number, length, crc32, reservation, kept: None })
    }

    /// Looks now and then for copies that are missing or no longer wanted; never ends.
    pub async fn run_repair(self: &Rc<Self>) {
        let began = since_start();
        while self.cluster.is_some() {
            sleep(REPAIR_PERIOD).await;
            // Which seeds were here before is not known at first.
            let is_new = since_start() < began.saturating_add(self.context.repair.after);
            self.repair(is_new).await;
            self.retell().await;
        }
    }

    /// Has copies made anew that were on seeds which have been gone for long. `is_new`: this peer has not been here for
    /// so long itself; then it sees only to what the backend does not have.
    async fn repair(self: &Rc<Self>, is_new: bool) {
        let Some(cluster) = &self.cluster else { return };
        let members = cluster.members();
        let repair = &self.context.repair;
        // A seed that has just gone may come back with all it had.
        let is_waited_for = members.dead.iter().any(|node| node.role == NodeRole::Seed && node.gone < repair.after);
        if is_waited_for || !members.is_seed() {
            return;
        }
        for (task, version) in self.replicated() {
            if is_new && version.is_clean() {
                continue;
            }
            match self.place(&version.task) {
                Place::Home { .. } => {
                    let length = version.meta.borrow().length;
                    if !version.is_durable_here() {
                        if self.spread(&task, &version) {
                            sleep(repair.time_for(length)).await;
                        }
                    } else if let Ok(asked @ 1..) = self.ask_for_copies(&task, &version).await {
                        sleep(repair.time_for(length.saturating_mul(asked.into()))).await;
                    }
                }
                Place::Away { homes, .. } => {
                    self.introduce(&task, &version, &homes).await;
                    let is_wanted = homes.len() < usize::from(self.replicas_possible(version.replicas.get()));
                    let may_go = matches!(version.state.get(), TaskState::Clean | TaskState::Ephemeral);
                    if !is_wanted && may_go && !version.pin.is_shared() {
                        self.drop_extra_copy(&task, &version).await;
                    }
                }
                Place::Alone => {}
            }
        }
    }

    /// Tells the home of a version that the backend has and this seed holds, once: a home that was not here before has
    /// never heard of it, and would keep no copy until somebody reads it.
    async fn introduce(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>, homes: &[Arc<Node>]) {
        let Some(home) = homes.first().filter(|_| version.is_clean() && version.is_durable_here()) else { return };
        if version.home_told.borrow().as_ref() == Some(&home.id) {
            return;
        }
        match self.tell_home(task, version, 0).await {
            Ok(Some(told)) => {
                version.home_told.replace(Some(home.id.clone()));
                self.take_verdict(task, version, &told).await;
                // It copies now, most likely.
                let length = version.meta.borrow().length;
                sleep(self.context.repair.time_for(length)).await;
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, object = %task.target.name, "the home was not told"),
        }
    }

    /// Versions of which seeds should keep copies; as many as one round looks at, going on where the last one ended.
    fn replicated(&self) -> Vec<(Rc<Task>, Rc<Version>)> {
        let tasks = self.tasks.borrow();
        let mut found: Vec<(Rc<Task>, Rc<Version>)> = tasks
            .values()
            .filter_map(|task| Some((task.clone(), task.current()?)))
            .filter(|(_, version)| version.replicas.get() > 0 && version.state.get() != TaskState::Deleted)
            .collect();
        drop(tasks);
        found.sort_unstable_by_key(|(_, version)| version.task);
        let start = found.partition_point(|(_, version)| version.task <= self.repaired_up_to.get());
        let round: Vec<_> = found[start..].iter().take(REPAIR_TASKS_MAX).cloned().collect();
        let last = round.last().map(|(_, version)| version.task);
        self.repaired_up_to.set(last.unwrap_or_else(|| dfstore_proto::ids::TaskId::from_bytes([0; 32])));
        round
    }

    /// Lets a copy go that was made while a seed was gone, if all the seeds that come first hold one again.
    async fn drop_extra_copy(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>) {
        let Some(cluster) = &self.cluster else { return };
        let homes = placement::homes(&cluster.members(), &version.task);
        let wanted = usize::from(self.replicas_possible(version.replicas.get()));
        for node in homes.iter().take(wanted) {
            let recall = Recall { target: task.target.to_message() };
            let Ok(Message::Recalled(known)) = cluster.ask(node, &version.task, recall).await else { return };
            let same = known.version.is_some_and(|record| record.generation == version.generation);
            if !same || !known.whole {
                return;
            }
        }
        // The home must not count on it any more, and asks for it again when it is needed.
        let let_go = Publish { whole: false, ..self.publication(cluster, task, version, Duty::Decide) };
        let Some(home) = homes.first() else { return };
        if cluster.ask(home, &version.task, let_go).await.is_err() {
            return;
        }
        let _commit = task.commit_lock.lock().await;
        if task.is_current(version) && !version.pin.is_shared() {
            tracing::debug!(object = %task.target.name, "an extra copy goes");
            self.supersede(task, None);
        }
    }
}

impl Version {
    /// Whether it is whole and durable on this peer.
    pub fn is_durable_here(&self) -> bool {
        self.durable.get() && self.is_whole()
    }
}
