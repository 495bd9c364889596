//! Finding the current version at a peer that does not decide about the task: its home is asked at each open.
//!
//! What the home names is taken over under the same number, so that pieces of it mean the same everywhere. What this
//! peer wrote and the home was not told of yet is newer than what the home says, or will be found out to be older when
//! the queue tells it. When no home can be reached, this peer decides alone, as a standalone one does.

use std::rc::Rc;

use dfstore_proto::message::{KnownVersion, Locate, Message, VersionInfo, VersionState};
use dfstore_proto::object::Source;

use crate::catalog::TaskState;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::request::takes_pieces;
use crate::engine::task::Task;
use crate::engine::version::{Afar, Version};
use crate::rt::time::unix_ms;

impl Owner {
    /// Asks the home which version is current; true when its answer counted, false when a local change crossed it.
    pub async fn ask_home(self: &Rc<Self>, task: &Rc<Task>, no_cache: bool) -> Result<bool, ObjectError> {
        let epoch = task.epoch.get();
        let locate = || Locate { target: task.target.to_message(), no_cache, known: known_version(task) };
        let answer = self.ask_homes(task, locate).await;
        if answer
            .as_ref()
            .is_err_and(|error| !matches!(error, ObjectError::NotFound(_) | ObjectError::PeerUnavailable(_)))
        {
            // The home has answered, and does not know that a deletion was the last.
            self.graves.borrow_mut().reopen(&task.target.task);
        }
        match answer {
            Ok(Some(Message::Located(info))) => return self.adopt(task, epoch, info).await,
            Ok(Some(other)) => return Err(ObjectError::unexpected(&other)),
            Ok(None) => {}
            Err(ObjectError::NotFound(_)) => return self.adopt_absence(task, epoch).await,
            Err(ObjectError::PreconditionFailed) => {
                // What is held here was deleted; the home cannot see what has come after that.
                return self.adopt_absence(task, epoch).await.map_err(|error| match error {
                    ObjectError::NotFound(name) => ObjectError::BackendUnavailable(format!(
                        "{name} was deleted, and what was written after that cannot be looked at"
                    )),
                    error => error,
                });
            }
            Err(error) => {
                if task.current().is_some_and(|version| !version.is_clean() && !version.published.get()) {
                    // Written here, and the home does not know of it yet.
                    return Ok(task.epoch.get() == epoch);
                }
                return Err(error);
            }
        }
        if task.current().is_some_and(|version| version.state.get() != TaskState::Clean) {
            return Ok(task.epoch.get() == epoch);
        }
        self.ask_backend(task).await
    }

    /// The home says that this version is current.
    async fn adopt(self: &Rc<Self>, task: &Rc<Task>, epoch: u64, info: VersionInfo) -> Result<bool, ObjectError> {
        if task.epoch.get() != epoch {
            return Ok(false);
        }
        if !takes_pieces(info.meta.length, info.piece_bytes) {
            let why = format!("its home has it in pieces of {} bytes, which are not taken here", info.piece_bytes);
            return Err(ObjectError::PeerUnavailable(why));
        }
        let commit = task.commit_lock.lock().await;
        if task.epoch.get() != epoch {
            return Ok(false);
        }
        let afar = Afar { state: info.state, source: info.source };
        if let Some(version) = task.current() {
            if version.generation == info.generation && !is_other_content(&version, &info) {
                version.afar.set(Some(afar));
                version.validated_at_ms.set(unix_ms());
                if info.state == VersionState::Clean || version.state.get() == TaskState::Clean {
                    version.meta.replace(info.meta);
                }
                return Ok(true);
            }
            if version.generation > info.generation && !version.is_clean() {
                if !version.published.get() {
                    return Ok(true);
                }
                drop(commit);
                return self.remind(task, &version).await;
            }
        }
        let version = Version {
            piece_bytes: info.piece_bytes,
            ..Version::new(task.target.task, info.generation, info.meta, TaskState::Clean, info.crc32)
        };
        version.afar.set(Some(afar));
        version.validated_at_ms.set(unix_ms());
        self.supersede(task, Some(Rc::new(version)));
        Ok(true)
    }

    /// The home says that there is no such object.
    async fn adopt_absence(self: &Rc<Self>, task: &Rc<Task>, epoch: u64) -> Result<bool, ObjectError> {
        if task.epoch.get() != epoch {
            return Ok(false);
        }
        let commit = task.commit_lock.lock().await;
        if task.epoch.get() != epoch {
            return Ok(false);
        }
        match task.current() {
            // Written here, and the home does not know of it yet.
            Some(version) if !version.is_clean() && !version.published.get() => return Ok(true),
            Some(version) if matches!(version.state.get(), TaskState::Dirty | TaskState::Ephemeral) => {
                drop(commit);
                return self.remind(task, &version).await;
            }
            Some(_) => self.supersede(task, None),
            None => {}
        }
        Err(ObjectError::NotFound(task.target.name.to_string()))
    }

    /// The home was told of what this peer keeps for it, and does not know it now: either it was deleted there, or the
    /// home is another one or has lost what it had. So it is told once more before anything is let go here.
    async fn remind(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>) -> Result<bool, ObjectError> {
        if let Some(told) = self.tell_home(task, version, 0).await? {
            self.take_verdict(task, version, &told).await;
            if version.state.get() == TaskState::Deleted && told.state == VersionState::Clean {
                // Deleted there and in the backend; what the home named came later.
                self.give_way(task, version).await;
            }
        }
        Ok(false)
    }
}

/// Whether what the home names cannot be what this peer has under the same number.
fn is_other_content(version: &Version, info: &VersionInfo) -> bool {
    let was_clean = version.afar.get().is_some_and(|afar| afar.state == VersionState::Clean);
    let meta = version.meta.borrow();
    let is_renamed = was_clean && info.state == VersionState::Clean && meta.etag != info.meta.etag;
    let is_other = meta.length != info.meta.length || is_renamed;
    version.state.get() == TaskState::Deleted || (version.is_clean() && is_other)
}

/// What this peer holds of a task, for a home that may have forgotten its number.
fn known_version(task: &Task) -> Option<KnownVersion> {
    let version = task.current().filter(|version| version.state.get() == TaskState::Clean)?;
    let meta = version.meta.borrow();
    let known = KnownVersion { generation: version.generation, etag: meta.etag.clone(), length: meta.length };
    (!known.etag.is_empty()).then_some(known)
}

/// Where the bytes come from at a peer that does not have them all, as far as the home knows.
pub fn source_at_home(version: &Version, is_held_by_peer: bool) -> Source {
    if is_held_by_peer {
        Source::Peer
    } else if version.is_whole() {
        Source::Seed
    } else {
        Source::Backend
    }
}
