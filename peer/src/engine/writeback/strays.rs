//! Multipart uploads that the backend may know: none of ours is left lying there.
//!
//! Storage providers keep the parts of an upload, and charge for them, until it is completed or aborted. So each upload
//! is in the catalog before the backend is asked for it, and stays there until one of the two has happened. What serves
//! nobody any more (its version was replaced or deleted, its answer was lost, this process was killed) is aborted by the
//! housekeeping. An upload whose name was never heard is looked for by its key and the time it was begun.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use dfstore_proto::ids::{ObjectName, TaskId};

use crate::catalog::{Change, Durability, UploadRecord};
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::limits::{STRAY_UPLOAD_RETRY, STRAY_UPLOAD_WINDOW, STRAY_UPLOADS_AT_ONCE_MAX};
use crate::metrics::BackendOperation;
use crate::rt::shard::spawn_local;
use crate::rt::time::{milliseconds, unix_ms};
use crate::sidecar::backend::{BackendError, BackendErrorKind, ListedUpload, PutRequest, Upload};

/// Names an upload: its task, and a number that no other upload of the task has.
type Key = (TaskId, u64);

/// The uploads of one shard.
#[derive(Default)]
pub struct Strays {
    known: RefCell<BTreeMap<Key, Rc<Known>>>,
    aborting: Cell<usize>,
}

/// An upload that the backend may know.
struct Known {
    key: Key,
    name: ObjectName,
    upload_id: RefCell<String>,
    asked_at_ms: u64,
    user: Cell<User>,
    /// It is not aborted before this time (Unix ms).
    due_ms: Cell<u64>,
}

/// Who is busy with an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Nobody,
    /// Whoever sends parts of it, or is about to.
    Sender,
    /// Whoever has it aborted.
    Janitor,
}

/// An upload that is being fed. When this is dropped, the upload is aborted unless an entry of the queue goes on with it.
pub struct Begun {
    upload: Upload,
    resumed: bool,
    /// `None` for one that the catalog does not know: an earlier program began it.
    known: Option<Rc<Known>>,
}

impl Begun {
    /// The upload.
    pub fn upload(&self) -> Upload {
        self.upload.clone()
    }

    /// Whether an earlier attempt began it.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(known) = &self.known {
            known.user.set(User::Nobody);
        }
    }
}

impl Strays {
    /// Takes what an earlier run has left.
    pub fn restore(&self, task: TaskId, number: u64, record: UploadRecord) {
        let (known, mut all) = (Known::new((task, number), record), self.known.borrow_mut());
        known.user.set(User::Nobody);
        all.insert((task, number), known);
    }

    /// Whether another upload of the same task has no name yet, and somebody waits for it.
    fn is_beginning(&self, known: &Known) -> bool {
        let all = self.known.borrow();
        let of_task = all.range((known.key.0, 0)..=(known.key.0, u64::MAX)).map(|(_, other)| other);
        of_task.filter(|other| other.key != known.key).any(|other| other.user.get() == User::Sender && other.is(""))
    }

    fn find(&self, task: TaskId, upload_id: &str) -> Option<Rc<Known>> {
        let known = self.known.borrow();
        known.range((task, 0)..=(task, u64::MAX)).map(|(_, known)| known).find(|known| known.is(upload_id)).cloned()
    }
}

impl Known {
    fn new(key: Key, record: UploadRecord) -> Rc<Known> {
        Rc::new(Known {
            key,
            name: record.name,
            upload_id: RefCell::new(record.upload_id),
            asked_at_ms: record.asked_at_ms,
            user: Cell::new(User::Sender),
            due_ms: Cell::new(0),
        })
    }

    fn is(&self, upload_id: &str) -> bool {
        *self.upload_id.borrow() == upload_id
    }

    fn record_change(&self) -> Change {
        let (name, upload_id) = (self.name.clone(), self.upload_id.borrow().clone());
        let record = UploadRecord { name, upload_id, asked_at_ms: self.asked_at_ms };
        Change::PutUpload { task: self.key.0, number: self.key.1, record }
    }

    /// Whether a listed upload may be the one whose name was lost.
    fn may_be(&self, listed: &ListedUpload) -> bool {
        let apart_ms = listed.begun_at_ms.abs_diff(self.asked_at_ms);
        listed.upload.name == self.name && apart_ms <= milliseconds(STRAY_UPLOAD_WINDOW)
    }
}

impl Owner {
    /// Begins a multipart upload. The catalog knows of it before the backend does.
    pub async fn begin_upload(&self, task: TaskId, request: PutRequest) -> Result<Begun, ObjectError> {
        let asked_at_ms = unix_ms();
        let key = (task, asked_at_ms.saturating_mul(1000) + self.context.unique_id() % 1000);
        let record = UploadRecord { name: request.name.clone(), upload_id: String::new(), asked_at_ms };
        let known = Known::new(key, record);
        self.context.catalog.commit(vec![known.record_change()], Durability::Durable).await?;
        self.strays.known.borrow_mut().insert(key, known.clone());
        let upload = Upload { name: request.name.clone(), upload_id: String::new() };
        // From here on, whatever happens, it is looked after.
        let mut begun = Begun { upload, resumed: false, known: Some(known.clone()) };
        match self.context.backend.create_upload(request).await {
            Ok(upload) => {
                known.upload_id.replace(upload.upload_id.clone());
                begun.upload = upload;
                self.context.catalog.commit(vec![known.record_change()], Durability::Durable).await?;
                Ok(begun)
            }
            Err(error) => {
                if !error.is_retryable() {
                    // It was refused: there is none.
                    self.upload_completed(begun).await;
                }
                Err(error.into())
            }
        }
    }

    /// Goes on with an upload of this task.
    pub fn upload_resumed(&self, task: TaskId, upload: Upload) -> Begun {
        let known = self.strays.find(task, &upload.upload_id);
        if let Some(known) = &known {
            known.user.set(User::Sender);
        }
        Begun { upload, resumed: true, known }
    }

    /// The backend has made the object of it, or has never begun it: nothing is left lying there.
    pub async fn upload_completed(&self, begun: Begun) {
        if let Some(known) = &begun.known {
            self.forget_upload(known).await;
        }
    }

    async fn forget_upload(&self, known: &Known) {
        self.strays.known.borrow_mut().remove(&known.key);
        let (task, number) = known.key;
        self.commit_lazily(vec![Change::RemoveUpload { task, number }]).await;
    }

    /// Has the backend drop the uploads that serve nobody, a few at once.
    pub fn abort_strays(self: &std::rc::Rc<Self>) {
        let now_ms = unix_ms();
        let due: Vec<Rc<Known>> = {
            let known = self.strays.known.borrow();
            let stray = known.values().filter(|known| known.user.get() == User::Nobody && known.due_ms.get() <= now_ms);
            let room = STRAY_UPLOADS_AT_ONCE_MAX.saturating_sub(self.strays.aborting.get());
            stray.filter(|known| !self.resumes(known)).take(room).cloned().collect()
        };
        for known in due {
            known.user.set(User::Janitor);
            self.strays.aborting.set(self.strays.aborting.get() + 1);
            let owner = self.clone();
            spawn_local(async move {
                owner.abort_stray(&known).await;
                known.user.set(User::Nobody);
                owner.strays.aborting.set(owner.strays.aborting.get() - 1);
            });
        }
    }

    /// Whether an entry of the queue will go on with an upload.
    fn resumes(&self, known: &Known) -> bool {
        let entry = self.queue.entry(&known.key.0);
        let started = entry.and_then(|entry| entry.record.borrow().upload.clone());
        started.is_some_and(|started| known.is(&started.upload_id))
    }

    async fn abort_stray(&self, known: &Known) {
        match self.abort_at_backend(known).await {
            Ok(aborted) => {
                self.metrics.strays_aborted(aborted);
                tracing::debug!(object = %known.name, aborted, "a multipart upload that serves nobody was aborted");
                self.forget_upload(known).await;
            }
            Err(error) if error.is_retryable() => {
                known.due_ms.set(unix_ms().saturating_add(milliseconds(STRAY_UPLOAD_RETRY)));
            }
            Err(error) => {
                let upload_id = known.upload_id.borrow().clone();
                tracing::warn!(%error, object = %known.name, upload_id, "a multipart upload of ours may be left in the bucket");
                self.forget_upload(known).await;
            }
        }
    }

    /// Gives how many uploads were aborted.
    async fn abort_at_backend(&self, known: &Known) -> Result<u64, BackendError> {
        let backend = &self.context.backend;
        let upload_id = known.upload_id.borrow().clone();
        if !upload_id.is_empty() {
            backend.abort_upload(Upload { name: known.name.clone(), upload_id }).await?;
            return Ok(1);
        }
        let listed = backend.list_uploads(known.name.bucket.clone(), known.name.key.clone()).await?;
        if self.strays.is_beginning(known) {
            // Another one, which may be in the list and has no name here yet, is not to be taken for this one.
            let (kind, operation) = (BackendErrorKind::Unavailable, BackendOperation::ListUploads);
            let message = "another upload of the object is just beginning".to_owned();
            return Err(BackendError { kind, operation, target: known.name.to_string(), message });
        }
        let mut aborted = 0;
        for listed in listed.into_iter().filter(|listed| known.may_be(listed)) {
            if self.strays.find(known.key.0, &listed.upload.upload_id).is_none() {
                backend.abort_upload(listed.upload).await?;
                aborted += 1;
            }
        }
        Ok(aborted)
    }
}
