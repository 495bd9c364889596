//! What the home of a task answers to the other peers, and what a seed remembers for the home.
//!
//! A request from a peer is answered as if this peer were the home, and never sent on: so nothing goes in circles while
//! peers see different members. Before a home says anything about a task for the first time since the set of seeds
//! changed, it asks the other seeds what they know of it ([`Owner::settle`]): one of them may have been the home before.
//! Of two versions the higher generation wins. What is learnt of a version that the backend does not have is durable
//! before it is answered.

use std::rc::Rc;
use std::sync::Arc;

use dfstore_proto::message::{
    Duty, KnownVersion, Locate, Message, Publish, PublishOk, Published, Recall, Recalled, Reserved,
    Standing as Verdict, Track, Tracked, VersionRecord, VersionState,
};
use dfstore_proto::object::{ObjectMeta, Source};
use futures_util::future::join_all;

use crate::catalog::{Change, Durability, TaskState, WriteBackKind};
use crate::engine::cluster::Place;
use crate::engine::error::ObjectError;
use crate::engine::locate::source_at_home;
use crate::engine::numbers::is_own_etag;
use crate::engine::owner::Owner;
use crate::engine::request::{Target, takes_pieces};
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::limits::{HOME_AHEAD_PIECES, HOMES_ASKED_MAX, REPLICAS_WAIT, SETTLE_AGAIN};
use crate::membership::Node;
use crate::rt::time::{milliseconds, since_start, timeout, unix_ms};

impl Owner {
    /// LOCATE: the current version, as this peer decides about it.
    pub async fn answer_locate(self: &Rc<Self>, asked: Locate) -> Result<Message, ObjectError> {
        let target = Target::of(asked.target.object);
        let task = self.task(&target);
        let held = asked.known.as_ref().map(|known| known.generation);
        if let Some(known) = asked.known.filter(|_| task.current().is_none()) {
            let is_news = task.claimed.borrow().as_ref().is_none_or(|claimed| claimed.generation < known.generation);
            if is_news {
                task.claimed.replace(Some(known));
            }
        }
        let opened = match self.open_as_home(&target, asked.no_cache).await {
            // What has come after the deletion cannot be seen; what the asker holds is older, and not to be served.
            Err(error)
                if error.is_retryable()
                    && held.is_some()
                    && held <= self.graves.borrow().generation_of(&target.task) =>
            {
                return Err(ObjectError::PreconditionFailed);
            }
            opened => opened?,
        };
        let mut info = opened.stat.to_info(target.task);
        if let Ok(version) = self.opened_version(&target.task, info.generation) {
            version.note_remote_reader();
            let is_held = self
                .cluster
                .as_ref()
                .is_some_and(|cluster| version.holders.borrow().is_held_by_a_peer(&cluster.members()));
            if info.source != Source::Stale {
                info.source = source_at_home(&version, is_held);
            }
        }
        Ok(Message::Located(info))
    }

    /// RECALL: what this peer knows by itself.
    pub fn answer_recall(&self, asked: &Recall) -> Recalled {
        let target = Target::of(asked.target.object.clone());
        let current = self.known(&target.task).and_then(|task| task.current());
        let Some(version) = current else {
            // A deletion that is done leaves its number, so that nothing older comes back: there is nothing more of it.
            let version = self.graves.borrow().generation_of(&target.task).map(deletion);
            return Recalled { whole: version.is_some(), version, ..Recalled::default() };
        };
        // A deletion that is whole is one that is done: this one still is to be told to the backend. Of what the backend
        // does not have only what is durable counts.
        let whole = match version.state.get() {
            TaskState::Clean => version.is_whole(),
            TaskState::Dirty | TaskState::Ephemeral => version.is_durable_here(),
            TaskState::Deleted => false,
        };
        Recalled { version: Some(version.to_message()), whole, holders: version.holders.borrow().keepers() }
    }

    /// RESERVE: the number for a version that is being written.
    pub async fn answer_reserve(self: &Rc<Self>, target: Target) -> Result<Reserved, ObjectError> {
        let task = self.task(&target);
        self.settle_if_home(&task).await?;
        let generation = self.next_number(&task, unix_ms());
        task.reserve(generation, unix_ms());
        Ok(Reserved { generation })
    }

    /// TRACK: notes what a peer has of a version, and tells it whom to ask for the rest.
    pub fn answer_track(self: &Rc<Self>, asked: &Track) -> Result<Message, ObjectError> {
        let version = self.opened_version(&asked.task, asked.generation)?;
        version.note_remote_reader();
        let Some(cluster) = &self.cluster else { return Err(ObjectError::Internal("there is no cluster".into())) };
        let mut holders = version.holders.borrow_mut();
        let tracked = holders.track(version.piece_count(), asked, &cluster.members(), since_start());
        drop(holders);
        self.fetch_ahead_of_peers(&version, asked, &tracked);
        Ok(Message::Tracked(tracked))
    }

    /// Begins to bring pieces here that peers are about to ask for: what was suggested to this one, and a few more that
    /// nobody has. So the way from the backend and the ways to the peers are in use at the same time.
    fn fetch_ahead_of_peers(self: &Rc<Self>, version: &Rc<Version>, asked: &Track, tracked: &Tracked) {
        if self.is_away(&version.task) || !version.is_clean() {
            return;
        }
        let rare =
            (asked.window.first..).zip(&tracked.counts).filter(|(_, count)| **count == 0).map(|(number, _)| number);
        let mut places = HOME_AHEAD_PIECES.saturating_sub(version.fetching_count());
        for number in tracked.suggested.iter().copied().chain(rare) {
            if places == 0 {
                return;
            }
            if !version.holds(number) && self.fetch_ahead(version, number) {
                places -= 1;
            }
        }
    }

    /// PUBLISH: takes a version or deletion in and says what has become of it.
    pub async fn answer_publish(self: &Rc<Self>, asked: Publish) -> Result<Message, ObjectError> {
        let target = Target::of(asked.target.object.clone());
        let task = self.task(&target);
        match asked.version.kind {
            Published::Deleted if asked.version.generation == 0 => return self.delete_for_peer(&target).await,
            Published::Through => return self.write_through(&target, &asked).await,
            _ => {}
        }
        if asked.duty == Duty::Decide {
            self.settle_if_home(&task).await?;
        }
        let verdict = self.learn(&task, &asked.version).await?;
        if let Some(version) = task.current().filter(|version| version.generation == asked.version.generation) {
            self.note_holders(&version, &asked);
            match asked.duty {
                Duty::Decide => {
                    self.spread(&task, &version);
                }
                Duty::Replicate => self.keep_copy(&task, &version),
                Duty::Witness => {}
            }
            self.wait_for_copies(&task, &version, asked.wait_replicas).await;
        }
        Ok(Message::PublishOk(self.standing_of(&task, verdict, asked.version.generation)))
    }

    fn note_holders(&self, version: &Version, asked: &Publish) {
        let mut holders = version.holders.borrow_mut();
        let said = asked.holders.iter().chain(asked.whole.then_some(&asked.node));
        for node in said.filter(|node| !self.is_me(node)) {
            if !holders.is_keeper(node) {
                // The bytes that the backend waits for may have come back with it.
                self.queue.hurry_task(&version.task);
            }
            holders.note_whole(node, since_start());
        }
        if !asked.whole {
            holders.forget(&asked.node);
        }
        drop(holders);
        version.spread.notify(usize::MAX);
    }

    /// Whether this is the name of this node.
    pub fn is_me(&self, node: &str) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.me().as_ref() == node)
    }

    /// Waits until so many nodes hold all of a version, or for a while; not for one that was replaced.
    pub async fn wait_for_copies(&self, task: &Task, version: &Rc<Version>, wanted: u16) {
        let enough = async {
            while self.copies_of(version) < wanted && task.is_current(version) {
                version.spread.listen().await;
            }
        };
        if self.copies_of(version) < wanted {
            let _ = timeout(REPLICAS_WAIT, enough).await;
        }
    }

    /// Live nodes that hold all of a version, this one included.
    pub fn copies_of(&self, version: &Version) -> u16 {
        let Some(cluster) = &self.cluster else { return 1 };
        let live = version.holders.borrow().live_keepers(&cluster.members());
        u16::try_from(live).unwrap_or(u16::MAX).saturating_add(version.is_durable_here().into())
    }

    fn standing_of(&self, task: &Task, verdict: Verdict, generation: u64) -> PublishOk {
        let current = task.current();
        let newest = current.as_ref().map_or(generation, |version| version.generation.max(generation));
        // It may have been replaced while copies of it were waited for.
        let verdict = if newest > generation { Verdict::Superseded } else { verdict };
        let Some(version) = current.filter(|version| version.generation == generation) else {
            let state = VersionState::Clean;
            let (meta, replicas, replicas_wanted) = (ObjectMeta::default(), 0, 0);
            return PublishOk { standing: verdict, generation: newest, state, meta, replicas, replicas_wanted };
        };
        let state = match version.state.get() {
            TaskState::Clean => VersionState::Clean,
            TaskState::Dirty | TaskState::Deleted => VersionState::Dirty,
            TaskState::Ephemeral => VersionState::Ephemeral,
        };
        PublishOk {
            standing: verdict,
            generation: newest,
            state,
            meta: version.meta.borrow().clone(),
            replicas: self.copies_of(&version),
            replicas_wanted: self.replicas_possible(version.replicas.get()),
        }
    }

    /// Takes in what another peer knows, unless something newer is known here. What the backend does not have is
    /// durable when this returns.
    pub async fn learn(self: &Rc<Self>, task: &Rc<Task>, record: &VersionRecord) -> Result<Verdict, ObjectError> {
        if record.kind == Published::Dirty && self.is_overtaken(task, record.generation).await {
            return Ok(Verdict::Superseded);
        }
        let _commit = task.commit_lock.lock().await;
        if let Some(version) = task.current() {
            if version.generation > record.generation {
                return Ok(Verdict::Superseded);
            }
            if version.generation == record.generation && is_other_content(&version, record) {
                // Two sides that could not reach each other gave one number: what is here stays.
                return Ok(Verdict::Superseded);
            }
            if version.generation == record.generation {
                self.learn_end(task, &version, record).await?;
                return Ok(Verdict::Current);
            }
        }
        let is_deletion = record.kind == Published::Deleted;
        if self.graves.borrow().generation_of(&task.target.task).is_some_and(|grave| grave >= record.generation) {
            return Ok(if is_deletion { Verdict::Current } else { Verdict::Superseded });
        }
        let evicted = task.evicted.borrow().as_ref().map(|(generation, _)| *generation);
        if task.current().is_none() && evicted.is_some_and(|evicted| evicted > record.generation) {
            return Ok(Verdict::Superseded);
        }
        let record = &match evicted_as(task, record) {
            Some(etag) => VersionRecord {
                kind: Published::Clean,
                meta: ObjectMeta { etag, ..record.meta.clone() },
                ..record.clone()
            },
            None => record.clone(),
        };
        if !takes_pieces(record.meta.length, record.piece_bytes) {
            return Err(ObjectError::InvalidArgument(format!("pieces of {} bytes are not taken", record.piece_bytes)));
        }
        let (state, queued) = match record.kind {
            Published::Dirty | Published::Through => (TaskState::Dirty, Some(WriteBackKind::Put)),
            Published::Ephemeral => (TaskState::Ephemeral, None),
            Published::Clean => (TaskState::Clean, None),
            Published::Deleted => (TaskState::Deleted, Some(WriteBackKind::Delete)),
        };
        let version = Version {
            piece_bytes: record.piece_bytes,
            ..Version::new(task.target.task, record.generation, record.meta.clone(), state, record.crc32)
        };
        version.replicas.set(record.replicas);
        version.published.set(true);
        let queued = queued.map(|kind| self.new_entry(task, kind, record.generation));
        if state != TaskState::Clean {
            self.record_replacement(task, &version, queued.as_ref()).await?;
            version.dirty.replace(Some(self.context.dirty.hold()));
            self.publish_new(task, Rc::new(version), queued);
        } else {
            // The backend has not said so to this peer: it is asked before anyone is served.
            self.supersede(task, Some(Rc::new(version)));
        }
        Ok(Verdict::Current)
    }

    /// The same version is known here; the other side may know that the backend has it by now.
    async fn learn_end(
        self: &Rc<Self>,
        task: &Rc<Task>,
        version: &Rc<Version>,
        record: &VersionRecord,
    ) -> Result<(), ObjectError> {
        match record.kind {
            Published::Clean if version.state.get() == TaskState::Dirty => {
                self.become_clean_locked(task, version, record.meta.clone()).await;
            }
            Published::Dirty if is_reader_copy(version) => {
                self.take_on(task, version, record, TaskState::Dirty).await?;
            }
            Published::Ephemeral if is_reader_copy(version) => {
                self.take_on(task, version, record, TaskState::Ephemeral).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// This peer has a version as a reader has it, and is now told to answer for it: durable and never evicted, though
    /// the backend does not have it.
    async fn take_on(
        self: &Rc<Self>,
        task: &Rc<Task>,
        version: &Rc<Version>,
        record: &VersionRecord,
        state: TaskState,
    ) -> Result<(), ObjectError> {
        let queued = (state == TaskState::Dirty).then(|| self.new_entry(task, WriteBackKind::Put, record.generation));
        // From here on it is not evicted.
        version.state.set(state);
        version.replicas.set(record.replicas);
        version.published.set(true);
        version.durable.set(false);
        let mut changes = vec![self.record_change(task, version)];
        changes.extend(version.piece_changes());
        changes.extend(queued.clone().map(|record| Change::PutWriteBack { task: version.task, record }));
        if let Err(error) = self.context.catalog.commit(changes, Durability::Durable).await {
            version.state.set(TaskState::Clean);
            return Err(error.into());
        }
        let hold = self.context.dirty.hold();
        hold.grow(version.stored_bytes());
        version.dirty.replace(Some(hold));
        self.publish(task, Some(version.clone()));
        if let Some(record) = queued {
            self.queue.push(task.clone(), record, std::collections::BTreeMap::new());
        }
        Ok(())
    }

    /// Learns what the other seeds know of a task, once for each set of seeds.
    pub async fn settle(self: &Rc<Self>, task: &Rc<Task>, others: &[Arc<Node>]) -> Result<(), ObjectError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let epoch = cluster.epoch();
        let (settled, until_ms) = task.settled.get();
        if settled == epoch && unix_ms() < until_ms {
            return Ok(());
        }
        let asked = others.iter().take(HOMES_ASKED_MAX);
        let answers = join_all(asked.map(|node| async move {
            let recall = Recall { target: task.target.to_message() };
            (node, cluster.ask(node, &task.target.task, recall).await)
        }));
        let mut until_ms = u64::MAX;
        for (node, answer) in answers.await {
            match answer {
                Ok(Message::Recalled(known)) => self.take_in(task, node, known).await?,
                Ok(other) => return Err(ObjectError::unexpected(&other)),
                // What it knows, the others have been told as well, most likely. It is asked again.
                Err(error) => {
                    tracing::warn!(%error, node = %node.id, "a seed cannot say what it knows");
                    until_ms = unix_ms().saturating_add(milliseconds(SETTLE_AGAIN));
                }
            }
        }
        task.settled.set((epoch, until_ms));
        Ok(())
    }

    /// As [`settle`](Self::settle), if this peer decides about the task.
    pub async fn settle_if_home(self: &Rc<Self>, task: &Rc<Task>) -> Result<(), ObjectError> {
        match self.place(&task.target.task) {
            Place::Home { others } => self.settle(task, &others).await,
            Place::Alone | Place::Away { .. } => Ok(()),
        }
    }

    async fn take_in(self: &Rc<Self>, task: &Rc<Task>, node: &Node, known: Recalled) -> Result<(), ObjectError> {
        let Some(record) = known.version else { return Ok(()) };
        if record.kind == Published::Deleted && known.whole {
            self.graves.borrow_mut().note(task.target.task, record.generation);
            if let Some(version) = task.current().filter(|version| version.generation < record.generation) {
                self.give_way(task, &version).await;
            }
            return Ok(());
        }
        let is_news = task.current().is_none_or(|version| version.generation < record.generation);
        // The backend is the better witness of what it has; but the number must go on.
        if record.kind == Published::Clean && is_news && task.current().is_none_or(|version| version.is_clean()) {
            let (etag, length) = (record.meta.etag.clone(), record.meta.length);
            task.claimed.replace(Some(KnownVersion { generation: record.generation, etag, length }));
            // However fresh, what is here was replaced while this peer could not be told: the backend is asked.
            if let Some(version) = task.current() {
                version.validated_at_ms.set(0);
            }
        } else {
            self.learn(task, &record).await?;
        }
        if let Some(version) = task.current().filter(|version| version.generation == record.generation) {
            let node = node.id.to_string();
            let said = known.holders.iter().chain(known.whole.then_some(&node)).filter(|holder| !self.is_me(holder));
            said.for_each(|holder| version.holders.borrow_mut().note_whole(holder, since_start()));
        }
        Ok(())
    }
}

/// Whether this peer holds a version that the backend does not have only because it was read here: it never became clean
/// here, for that gives it another entity tag.
fn is_reader_copy(version: &Version) -> bool {
    version.is_clean() && is_own_etag(&version.meta.borrow().etag, version.generation)
}

/// What the backend calls a version that was evicted here, and that is told as one that the backend does not have: who
/// tells of it was away when it was written back.
fn evicted_as(task: &Task, record: &VersionRecord) -> Option<String> {
    if task.current().is_some() || record.kind != Published::Dirty {
        return None;
    }
    let claimed = task.claimed.borrow();
    let claimed = claimed.as_ref().filter(|claimed| claimed.generation == record.generation)?;
    let was_clean = !claimed.etag.is_empty() && !is_own_etag(&claimed.etag, claimed.generation);
    was_clean.then(|| claimed.etag.clone())
}

/// Whether a version that was told of has the number of one that is known here, and other bytes.
fn is_other_content(version: &Version, record: &VersionRecord) -> bool {
    let is_deletion = |state| state == TaskState::Deleted;
    let differs = version.crc32.zip(record.crc32).is_some_and(|(ours, theirs)| ours != theirs);
    is_deletion(version.state.get()) != (record.kind == Published::Deleted)
        || differs
        || version.meta.borrow().length != record.meta.length
}

/// A deletion, as other peers are told of it.
pub fn deletion(generation: u64) -> VersionRecord {
    VersionRecord {
        generation,
        kind: Published::Deleted,
        meta: ObjectMeta::default(),
        crc32: None,
        piece_bytes: crate::limits::PIECE_BYTES,
        replicas: 0,
    }
}

impl Version {
    /// As other peers are told of it.
    pub fn to_message(&self) -> VersionRecord {
        VersionRecord {
            generation: self.generation,
            kind: match self.state.get() {
                TaskState::Dirty => Published::Dirty,
                TaskState::Ephemeral => Published::Ephemeral,
                TaskState::Clean => Published::Clean,
                TaskState::Deleted => Published::Deleted,
            },
            meta: self.meta.borrow().clone(),
            crc32: self.crc32,
            piece_bytes: self.piece_bytes,
            replicas: self.replicas.get(),
        }
    }
}
