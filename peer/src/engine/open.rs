//! Finding the current version of an object, and when who is asked about it.
//!
//! The peer that decides about a task asks the backend; every other one asks that peer ([`locate`](super::locate)). A version that the backend does not have is newest by definition. A clean one is served without a question while it
//! is fresh; then one HEAD asks for all who wait. An answer that is older than a local change says nothing and is
//! asked again. If the backend cannot be asked, what is cached is served as stale, and the backend is left alone for
//! [`CHECK_PAUSE`].

use std::rc::Rc;

use dfstore_proto::ids::TaskId;
use dfstore_proto::object::ObjectMeta;
use futures_util::FutureExt;

use crate::catalog::{CatalogHandle, Change, Durability, TaskState};
use crate::config::options::Freshness;
use crate::engine::call::Opened;
use crate::engine::cluster::Place;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::request::Target;
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::limits::{CHECK_PAUSE, CHECK_ROUNDS_MAX, RESERVATION_POLL};
use crate::rt::shard::{begun, spawn_local};
use crate::rt::time::{milliseconds, sleep, unix_ms};
use crate::sidecar::backend::BackendErrorKind;

/// A question to the backend that was answered.
struct Checked {
    /// No local change crossed the answer.
    counted: bool,
    /// It was asked after the call.
    began_now: bool,
}

impl Owner {
    /// The current version, opened.
    pub async fn open(self: &Rc<Self>, target: &Target, no_cache: bool) -> Result<Opened, ObjectError> {
        self.open_from(target, no_cache, false).await
    }

    /// The current version, opened by this peer as the one that decides about it, whoever does.
    pub async fn open_as_home(self: &Rc<Self>, target: &Target, no_cache: bool) -> Result<Opened, ObjectError> {
        self.open_from(target, no_cache, true).await
    }

    async fn open_from(self: &Rc<Self>, target: &Target, no_cache: bool, as_home: bool) -> Result<Opened, ObjectError> {
        let task = self.task(target);
        let mut checked = false;
        for round in 0..CHECK_ROUNDS_MAX {
            let place = match self.place(&target.task) {
                Place::Away { .. } if as_home => Place::Alone,
                place => place,
            };
            if let Place::Home { others } = &place {
                self.settle(&task, others).await?;
            }
            let is_away = matches!(place, Place::Away { .. });
            let known = task.current();
            match &known {
                Some(version) if version.state.get() == TaskState::Deleted && (checked || !is_away) => {
                    return Err(ObjectError::NotFound(target.name.to_string()));
                }
                Some(version) if checked || self.is_servable(&task, version, no_cache, is_away) => {
                    self.eviction.borrow_mut().touch(&target.task);
                    return Ok(version.open(false));
                }
                _ => {}
            }
            match self.check(&task, no_cache, place).await {
                // An answer that crossed a local change was dropped: the next round sees the change and asks again.
                // A question that was under way when we came may be older than a write that our client knows of; one
                // that began after that one's end is not.
                Ok(Checked { counted, began_now }) => checked = counted && (began_now || round > 0),
                Err(error) => {
                    self.forget_if_unknown(&task);
                    if known.is_none() && error.is_retryable() && self.graves.borrow().is_closed(&target.task) {
                        // What is known last is that it was deleted: whoever has an old copy is to hear that.
                        return Err(ObjectError::NotFound(target.name.to_string()));
                    }
                    return stale_or(&task, known, error);
                }
            }
        }
        Err(ObjectError::VersionChanged(target.name.to_string()))
    }

    /// A version that was opened before, by its number.
    pub fn reopen(&self, task: &TaskId, generation: u64) -> Result<Opened, ObjectError> {
        let version = self.opened_version(task, generation)?;
        if version.state.get() == TaskState::Deleted {
            return Err(ObjectError::VersionChanged(format!("task {task}")));
        }
        Ok(version.open(false))
    }

    /// Whether a version is served without a question. A peer that does not decide about the task asks its home each
    /// time, unless what it holds never changes.
    fn is_servable(&self, task: &Task, version: &Version, force: bool, is_away: bool) -> bool {
        if is_away {
            let policy = self.context.freshness.for_bucket(&task.target.name.bucket);
            return !force && policy == Freshness::Immutable && version.is_clean() && version.is_whole();
        }
        match version.state.get() {
            TaskState::Dirty | TaskState::Ephemeral => true,
            TaskState::Deleted => false,
            TaskState::Clean if force => false,
            TaskState::Clean => match self.context.freshness.for_bucket(&task.target.name.bucket) {
                Freshness::Immutable => true,
                Freshness::Always => false,
                Freshness::Ttl(ttl) => {
                    u128::from(unix_ms().saturating_sub(version.validated_at_ms.get())) < ttl.as_millis()
                }
            },
        }
    }

    /// Asks whoever knows the current version, the backend or the home, once for all who ask now. Tells whether the
    /// question began with this call and its answer counted.
    async fn check(self: &Rc<Self>, task: &Rc<Task>, force: bool, place: Place) -> Result<Checked, ObjectError> {
        let running = task.check.borrow().clone();
        if let Some((forced, check)) = running {
            // A question that the home may answer from its memory is not one that the backend was asked for.
            let counts = forced || !force;
            return check.await.map(|counted| Checked { counted: counted && counts, began_now: false });
        }
        let (owner, asked) = (self.clone(), task.clone());
        let check = async move {
            let result = match place {
                Place::Away { .. } => owner.ask_home(&asked, force).await,
                Place::Alone | Place::Home { .. } if owner.leaves_backend_alone(&asked, force) => {
                    asked.check.borrow_mut().take();
                    return Err(ObjectError::BackendUnavailable("it did not answer a moment ago".into()));
                }
                Place::Alone | Place::Home { .. } => owner.ask_backend(&asked).await,
            };
            asked.check.borrow_mut().take();
            let failed = matches!(&result, Err(error) if error.is_retryable());
            asked.check_failed_at_ms.set(if failed { unix_ms() } else { 0 });
            result
        };
        let check = check.boxed_local().shared();
        task.check.replace(Some((force, check.clone())));
        // It runs to its end even if all who ask go away: an answer that nobody took would be told to whoever asks
        // next, as if it were new.
        let driven = check.clone();
        spawn_local(async move { drop(driven.await) });
        check.await.map(|counted| Checked { counted, began_now: true })
    }

    /// Whether the backend failed to answer about this task a moment ago, and there is something to serve instead.
    fn leaves_backend_alone(&self, task: &Task, force: bool) -> bool {
        let paused_ms = milliseconds(CHECK_PAUSE);
        !force && task.current().is_some() && unix_ms() < task.check_failed_at_ms.get().saturating_add(paused_ms)
    }

    /// Asks the backend; true when its answer counted, false when a local change crossed it.
    pub async fn ask_backend(self: &Rc<Self>, task: &Rc<Task>) -> Result<bool, ObjectError> {
        let epoch = task.epoch.get();
        let answer = self.context.backend.head(task.target.name.clone()).await;
        if task.epoch.get() != epoch {
            return Ok(false);
        }
        match answer {
            Ok(meta) => self.confirm(task, meta).await,
            Err(error) if error.kind == BackendErrorKind::NotFound => {
                let _commit = task.commit_lock.lock().await;
                if task.epoch.get() == epoch
                    && let Some(version) = task.current()
                    && version.state.get() == TaskState::Clean
                {
                    self.supersede(task, None);
                }
                Err(ObjectError::NotFound(task.target.name.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The backend has this version now: the same as ours, or a new one. False when a local change came first.
    pub async fn confirm(self: &Rc<Self>, task: &Rc<Task>, meta: ObjectMeta) -> Result<bool, ObjectError> {
        let epoch = task.epoch.get();
        let is_same = |version: &Version| version.is_clean() && is_same_content(&version.meta.borrow(), &meta);
        let is_moot = || task.epoch.get() != epoch || task.current().is_some_and(|version| is_same(&version));
        while !is_moot() && task.awaits_writer(unix_ms()) {
            sleep(RESERVATION_POLL).await;
        }
        let _commit = task.commit_lock.lock().await;
        if task.epoch.get() != epoch || task.current().is_some_and(|version| !version.is_clean()) {
            return Ok(false);
        }
        let now_ms = unix_ms();
        if let Some(version) = task.current().filter(|version| is_same(version)) {
            version.validated_at_ms.set(now_ms);
            version.afar.set(None);
            return Ok(true);
        }
        let after_deletion = self.graves.borrow().after(&task.target.task);
        let generation = task.generation_for(&meta, now_ms).max(after_deletion);
        let version = Version::new(task.target.task, generation, meta, TaskState::Clean, None);
        version.validated_at_ms.set(now_ms);
        if let Some((_, holders)) = task.evicted.take().filter(|(evicted, _)| *evicted == generation) {
            version.holders.replace(holders);
        }
        self.supersede(task, Some(Rc::new(version)));
        Ok(true)
    }

    /// Makes the catalog's record of a clean version, with its first piece or when it is empty.
    pub fn record_change(&self, task: &Task, version: &Version) -> Change {
        version.recorded.set(true);
        Change::PutTask { task: task.target.task, record: version.to_record(&task.target) }
    }

    /// Commits the record of a version, lazily, unless it has been replaced. Before the commit of whatever replaces it,
    /// never after: the catalog must not end with the older one.
    pub async fn record_lazily(&self, task: &Task, version: &Rc<Version>) {
        let rest = {
            let _commit = task.commit_lock.lock().await;
            if !task.is_current(version) {
                return;
            }
            self.give_to_catalog(vec![self.record_change(task, version)])
        };
        rest.await;
    }

    /// Gives changes to the catalog; what comes back waits for them to be durable. For callers that hold `commit_lock`
    /// and need only the order.
    pub fn give_to_catalog(&self, changes: Vec<Change>) -> impl Future<Output = ()> + use<> {
        begun(commit_lazily(self.context.catalog.clone(), changes))
    }

    /// Commits changes that nobody waits for: losing them in a crash loses cache, or has something done again, never truth.
    pub async fn commit_lazily(&self, changes: Vec<Change>) {
        commit_lazily(self.context.catalog.clone(), changes).await;
    }
}

async fn commit_lazily(catalog: CatalogHandle, changes: Vec<Change>) {
    if let Err(error) = catalog.commit(changes, Durability::Lazy).await {
        tracing::warn!(%error, "the catalog did not take a record that nobody waits for");
    }
}

/// Two answers of the backend about the same bytes.
fn is_same_content(ours: &ObjectMeta, theirs: &ObjectMeta) -> bool {
    ours.length == theirs.length
        && ours.etag == theirs.etag
        && (!ours.etag.is_empty() || ours.last_modified_ms == theirs.last_modified_ms)
}

/// What is cached, if the backend merely could not be asked.
fn stale_or(task: &Task, known: Option<Rc<Version>>, error: ObjectError) -> Result<Opened, ObjectError> {
    match known {
        Some(version) if error.is_retryable() && task.is_current(&version) => {
            if version.state.get() == TaskState::Deleted {
                // What is known last is that it was deleted.
                return Err(ObjectError::NotFound(task.target.name.to_string()));
            }
            tracing::debug!(object = %task.target.name, %error, "served without asking the backend");
            Ok(version.open(true))
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfstore_proto::ids::ObjectName;
    use dfstore_proto::object::Source;

    fn opened(state: TaskState) -> Result<Opened, ObjectError> {
        let task = Task::new(Target::of(ObjectName::new("bucket", "key")));
        let version = Rc::new(Version::new(task.target.task, 7, ObjectMeta::default(), state, None));
        drop(task.replace(Some(version.clone())));
        stale_or(&task, Some(version), ObjectError::BackendUnavailable("down".into()))
    }

    #[test]
    fn while_nobody_can_be_asked_what_is_cached_is_served_and_what_was_deleted_is_not() {
        assert_eq!(opened(TaskState::Clean).map(|opened| opened.stat.source), Ok(Source::Stale));
        assert!(matches!(opened(TaskState::Deleted), Err(ObjectError::NotFound(_))));
    }
}
