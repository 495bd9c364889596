//! A write at a peer that does not decide about the task, and what every writer owes the cluster.
//!
//! The home gives the number ([`Owner::reserve`]). The version is made durable here, then the home and the next seed in
//! order are told ([`Owner::announce`]) before the client is answered. Of two writers at once the higher number wins
//! everywhere; the other one is told, and lets its version go: its client wrote, and was overwritten at once. A write
//! that the backend must have first is done by the home for this peer. When no home can be reached, this peer acts
//! alone, and the queue tells the home when it is back.

use std::ops::Bound;
use std::rc::Rc;

use dfstore_proto::message::{
    self, Duty, Message, Publish, PublishOk, Published, Reserve, Standing as Verdict, VersionRecord, VersionState,
};
use dfstore_proto::object::ObjectMeta;

use crate::catalog::TaskState;
use crate::engine::cluster::Place;
use crate::engine::error::ObjectError;
use crate::engine::home::deletion;
use crate::engine::owner::Owner;
use crate::engine::request::{CommitRequest, DeleteDone, PutRequest, Target};
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::limits::{HOMES_ASKED_MAX, PIECE_BYTES, REPAIR_TASKS_MAX};
use crate::rt::shard::spawn_local;
use crate::rt::time::unix_ms;

impl Owner {
    /// The number for a version that is about to be made, from whoever decides about it.
    pub async fn reserve(self: &Rc<Self>, task: &Rc<Task>) -> Result<u64, ObjectError> {
        if let Place::Home { others } = self.place(&task.target.task) {
            self.settle(task, &others).await?;
        }
        let asked = self.ask_homes(task, || Reserve { target: task.target.to_message() }).await?;
        let now_ms = unix_ms();
        let own = self.next_number(task, now_ms);
        let generation = match asked {
            Some(Message::Reserved(reserved)) if is_enough(task, reserved.generation) => reserved.generation,
            // Never below what is known here: a home that has forgotten is caught up with.
            Some(Message::Reserved(reserved)) => own.max(reserved.generation),
            Some(other) => return Err(ObjectError::unexpected(&other)),
            None => own,
        };
        task.reserve(generation, now_ms);
        Ok(generation)
    }

    /// The number for a version that is made now, as this peer gives it: above all that is known here, deletions too.
    pub fn next_number(&self, task: &Task, now_ms: u64) -> u64 {
        task.next_generation(now_ms).max(self.graves.borrow().after(&task.target.task))
    }

    /// Carries out `change`, which puts something of which nothing is known here yet into the bucket, for a caller that
    /// holds `backend_lock`. From now on a deletion before it is not the last that is known, also if no answer comes or
    /// this request is dropped; unless the bucket refuses.
    pub async fn changing_bucket<T>(
        &self,
        task: &Task,
        change: impl Future<Output = Result<T, ObjectError>>,
    ) -> Result<T, ObjectError> {
        let id = task.target.task;
        let was_deleted = self.graves.borrow_mut().reopen(&id);
        let changed = change.await;
        let is_refused = changed.as_ref().is_err_and(|error| !error.is_retryable());
        if was_deleted && is_refused && task.current().is_none() {
            self.graves.borrow_mut().close(id, 0);
        }
        changed
    }

    /// Asks the homes of a task in order; `None` when none can be reached, or when this peer decides itself.
    pub async fn ask_homes<M: Into<Message>>(
        &self,
        task: &Task,
        make: impl Fn() -> M,
    ) -> Result<Option<Message>, ObjectError> {
        let (Some(cluster), Place::Away { homes, .. }) = (&self.cluster, self.place(&task.target.task)) else {
            return Ok(None);
        };
        for home in homes.iter().take(HOMES_ASKED_MAX) {
            match cluster.ask(home, &task.target.task, make()).await {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) if error.is_unreachable() => {
                    tracing::debug!(%error, object = %task.target.name, "the home cannot be asked");
                }
                Err(error) => return Err(ObjectError::from_peer(error, &task.target.name)),
            }
        }
        Ok(None)
    }

    /// Tells the home about a version that is durable here, or deleted; `None` when there is no home but this peer.
    pub async fn tell_home(
        self: &Rc<Self>,
        task: &Rc<Task>,
        version: &Rc<Version>,
        wait_replicas: u16,
    ) -> Result<Option<PublishOk>, ObjectError> {
        let Some(cluster) = &self.cluster else { return Ok(None) };
        let make = || Publish { wait_replicas, ..self.publication(cluster, task, version, Duty::Decide) };
        match self.ask_homes(task, make).await? {
            Some(Message::PublishOk(told)) => {
                if !version.published.replace(true) && version.recorded.get() && task.is_current(version) {
                    let (owner, task, version) = (self.clone(), task.clone(), version.clone());
                    spawn_local(async move { owner.record_lazily(&task, &version).await });
                }
                Ok(Some(told))
            }
            Some(other) => Err(ObjectError::unexpected(&other)),
            None => Ok(None),
        }
    }

    /// Tells the seed that comes after the home, which remembers a version in case the home is lost.
    pub async fn tell_witness(&self, task: &Task, version: &Version) {
        let Some(cluster) = &self.cluster else { return };
        let witness = match self.place(&task.target.task) {
            Place::Home { others } => others.into_iter().next(),
            Place::Away { homes, .. } => homes.into_iter().nth(1),
            Place::Alone => None,
        };
        let Some(witness) = witness else { return };
        let publish = self.publication(cluster, task, version, Duty::Witness);
        if let Err(error) = cluster.ask(&witness, &task.target.task, publish).await {
            tracing::debug!(%error, object = %task.target.name, "the second seed was not told");
        }
    }

    /// Tells the cluster about a version that has just become current here: everyone sees it when this returns. Gives
    /// how many peers hold it. `ack_peers`: waits until so many do.
    pub async fn announce(
        self: &Rc<Self>,
        task: &Rc<Task>,
        version: &Rc<Version>,
        ack_peers: u16,
    ) -> Result<u16, ObjectError> {
        if self.cluster.is_none() {
            return Ok(1);
        }
        let ((), told) =
            futures_util::join!(self.tell_witness(task, version), self.tell_home(task, version, ack_peers));
        let copies = match told {
            Ok(Some(told)) => {
                self.take_verdict(task, version, &told).await;
                told.replicas.max(1)
            }
            Ok(None) => {
                if matches!(self.place(&version.task), Place::Home { .. }) {
                    version.published.set(true);
                    self.spread(task, version);
                    self.wait_for_copies(task, version, ack_peers).await;
                }
                self.copies_of(version)
            }
            Err(error) => {
                // It is durable here, and the queue tells the home again.
                tracing::warn!(%error, object = %task.target.name, "the home did not take a write; it is told again");
                1
            }
        };
        enough_copies(task, version, copies, ack_peers)
    }

    /// Waits until as many peers as asked for hold a version that the backend has; `known` do already.
    pub async fn await_copies(
        self: &Rc<Self>,
        task: &Rc<Task>,
        version: &Rc<Version>,
        ack_peers: u16,
        known: u16,
    ) -> Result<u16, ObjectError> {
        if known >= ack_peers {
            return Ok(known);
        }
        let copies = match self.tell_home(task, version, ack_peers).await? {
            Some(told) => told.replicas,
            None => {
                self.wait_for_copies(task, version, ack_peers).await;
                self.copies_of(version)
            }
        };
        enough_copies(task, version, copies, ack_peers)
    }

    /// What the home said of a version that it was told of.
    pub async fn take_verdict(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>, told: &PublishOk) {
        if told.standing == Verdict::Superseded {
            self.give_way(task, version).await;
        } else if is_clean_at_home(version, told) {
            self.become_clean(task, version, told.meta.clone()).await;
        }
    }

    /// A newer version, or a deletion, is known at the home: this one goes.
    pub async fn give_way(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>) {
        let _commit = task.commit_lock.lock().await;
        if task.is_current(version) {
            tracing::debug!(object = %task.target.name, generation = version.generation, "replaced by a newer one");
            self.supersede(task, None);
        }
    }

    /// Has the home write to the backend what this peer holds in `version`, and gives what the backend then has. `None`
    /// when this peer has to do it itself.
    pub async fn write_through_home(
        self: &Rc<Self>,
        task: &Rc<Task>,
        version: &Rc<Version>,
        replicas: u16,
    ) -> Result<Option<PublishOk>, ObjectError> {
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.is_away(&version.task)) else { return Ok(None) };
        let key = (version.task, version.generation);
        let pin = version.pin.clone();
        self.retired.borrow_mut().insert(key, version.clone());
        let record = VersionRecord { kind: Published::Through, replicas, ..version.to_message() };
        let make = || Publish { version: record.clone(), ..self.publication(cluster, task, version, Duty::Decide) };
        let answer = self.ask_homes(task, make).await;
        self.retired.borrow_mut().remove(&key);
        drop(pin);
        match answer? {
            Some(Message::PublishOk(told)) => Ok(Some(told)),
            Some(other) => Err(ObjectError::unexpected(&other)),
            None => Ok(None),
        }
    }

    /// At the home: writes to the backend what another peer holds, as if it had been uploaded here.
    pub async fn write_through(self: &Rc<Self>, target: &Target, asked: &Publish) -> Result<Message, ObjectError> {
        let record = &asked.version;
        if record.piece_bytes != PIECE_BYTES {
            return Err(ObjectError::InvalidArgument(format!("pieces of {} bytes are not taken", record.piece_bytes)));
        }
        let request = PutRequest {
            target: target.clone(),
            mode: dfstore_proto::object::WriteMode::WriteBack,
            replicas: record.replicas,
            ack_peers: 0,
            length: Some(record.meta.length),
            meta: record.meta.clone(),
        };
        let ticket = self.begin(request).await?;
        let taken = self.take_pieces(asked, ticket.upload).await;
        if let Err(error) = taken {
            self.abort(ticket.upload);
            return Err(error);
        }
        let commit = CommitRequest { length: record.meta.length, crc32: record.crc32, mode: None, replicas: None };
        let done = self.commit(ticket.upload, commit).await?;
        Ok(Message::PublishOk(PublishOk {
            standing: Verdict::Current,
            generation: done.generation,
            state: VersionState::Clean,
            meta: done.meta,
            replicas: done.copies,
            replicas_wanted: done.replicas.0,
        }))
    }

    /// At the home: deletes an object for another peer.
    pub async fn delete_for_peer(self: &Rc<Self>, target: &Target) -> Result<Message, ObjectError> {
        let done = self.delete_as_home(target).await?;
        let state = if done == DeleteDone::Deleted { VersionState::Clean } else { VersionState::Dirty };
        Ok(Message::PublishOk(PublishOk {
            standing: Verdict::Current,
            generation: 0,
            state,
            meta: ObjectMeta::default(),
            replicas: 0,
            replicas_wanted: 0,
        }))
    }

    /// Has the home delete an object; `None` when this peer has to do it itself.
    pub async fn delete_at_home(self: &Rc<Self>, task: &Rc<Task>) -> Result<Option<DeleteDone>, ObjectError> {
        let Some(cluster) = &self.cluster else { return Ok(None) };
        let make = || Publish {
            target: task.target.to_message(),
            // The home gives it its number.
            version: deletion(0),
            duty: Duty::Decide,
            node: cluster.me().to_string(),
            whole: false,
            holders: Vec::new(),
            wait_replicas: 0,
        };
        let before = task.current();
        let told = match self.ask_homes(task, make).await? {
            Some(Message::PublishOk(told)) => told,
            Some(other) => return Err(ObjectError::unexpected(&other)),
            None => return Ok(None),
        };
        // What this peer had is deleted with it. What was written here meanwhile may be newer: its writer is told, and
        // every reader asks the home.
        if let Some(before) = before {
            self.give_way(task, &before).await;
        }
        Ok(Some(if told.state == VersionState::Clean { DeleteDone::Deleted } else { DeleteDone::Pending }))
    }

    /// Has the home of the target copy; `None` when this peer has to do it itself.
    pub async fn copy_at_home(&self, source: &Target, target: &Target) -> Result<Option<()>, ObjectError> {
        let task = self.task(target);
        let make = || message::Copy { source: source.to_message(), target: target.to_message(), mode: None };
        match self.ask_homes(&task, make).await? {
            Some(Message::CopyOk(_)) => Ok(Some(())),
            Some(other) => Err(ObjectError::unexpected(&other)),
            None => Ok(None),
        }
    }

    /// Tells the homes again of what only peers keep, and of what they were not told yet: who was away when such an
    /// object was deleted or replaced finds out by this.
    pub async fn retell(self: &Rc<Self>) {
        let begin = self.retold_up_to.take().map_or(Bound::Unbounded, Bound::Excluded);
        let kept: Vec<(Rc<Task>, Rc<Version>)> = self
            .pending
            .borrow()
            .range((begin, Bound::Unbounded))
            .filter_map(|(_, task)| Some((task.clone(), task.current()?)))
            .filter(|(_, version)| version.state.get() == TaskState::Ephemeral && self.is_away(&version.task))
            .take(REPAIR_TASKS_MAX)
            .collect();
        // The next round goes on there, or begins anew.
        let last = kept.last().filter(|_| kept.len() == REPAIR_TASKS_MAX);
        self.retold_up_to.replace(last.map(|(task, _)| task.target.name.clone()));
        for (task, version) in kept {
            match self.tell_home(&task, &version, 0).await {
                Ok(Some(told)) => self.take_verdict(&task, &version, &told).await,
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, object = %task.target.name, "the home was not told"),
            }
        }
    }
}

/// How many peers hold a version, if these are as many as its writer asked for. One that was replaced meanwhile needs no
/// more copies: it is as if the newer write had come right after it.
fn enough_copies(task: &Task, version: &Rc<Version>, copies: u16, wanted: u16) -> Result<u16, ObjectError> {
    if copies < wanted && task.is_current(version) {
        return Err(ObjectError::FewCopies { name: task.target.name.to_string(), copies, wanted });
    }
    Ok(copies)
}

/// Whether the home says that the backend has this version by now, and how it is called there.
fn is_clean_at_home(version: &Version, told: &PublishOk) -> bool {
    let is_same = told.meta.length == version.meta.borrow().length;
    told.state == VersionState::Clean && version.state.get() == TaskState::Dirty && is_same
}

/// Whether the number that the home gave is above all that is known here.
fn is_enough(task: &Task, given: u64) -> bool {
    given > task.current().map_or(0, |version| version.generation).max(task.reserved.get())
}
