//! How other threads ask the backend: a cloneable handle that sends closed messages to the sidecar.
//!
//! Owns the message enum `Call`. A caller that drops its future cancels the request. When the sidecar has ended,
//! every call fails with `Internal`; while nobody has told which backend there is, with `NotConfigured`.

use std::sync::Arc;

use dfstore_proto::ids::ObjectName;
use dfstore_proto::object::ObjectMeta;

use super::configured::Configured;
use super::error::{BackendError, BackendErrorKind};
use super::{
    Backend, BodySource, Fetched, GetRequest, Head, ListPage, ListRequest, ListedUpload, PutRequest, Result, Stored,
    Upload, UploadedPart,
};
use crate::config::{BackendDescription, BackendOptions};
use crate::metrics::BackendOperation;
use crate::rt::arena::SlotMut;
use crate::rt::mailbox::{Sender, oneshot};

type Reply<T> = oneshot::Sender<Result<T>>;

/// One request to the sidecar.
pub(in crate::sidecar) enum Call {
    Head(ObjectName, Reply<Head>),
    Get(GetRequest, SlotMut, Reply<Fetched>),
    Put(PutRequest, BodySource, Reply<Stored>),
    CreateUpload(PutRequest, Reply<Upload>),
    PutPart { upload: Upload, number: u32, crc32: u32, body: BodySource, reply: Reply<UploadedPart> },
    CompleteUpload { upload: Upload, request: PutRequest, parts: Vec<UploadedPart>, reply: Reply<Stored> },
    AbortUpload(Upload, Reply<()>),
    ListParts(Upload, Reply<Vec<UploadedPart>>),
    ListUploads { bucket: String, prefix: String, reply: Reply<Vec<ListedUpload>> },
    Copy { source: ObjectName, target: ObjectName, reply: Reply<Stored> },
    Delete(ObjectName, Reply<()>),
    List(ListRequest, Reply<ListPage>),
    CreateBucket(String, Reply<()>),
    HeadBucket(String, Reply<()>),
}

impl Call {
    /// Does what is asked and replies.
    pub(in crate::sidecar) async fn answer(self, backend: Arc<dyn Backend>) {
        match self {
            Call::Head(name, reply) => finish(reply, backend.head(&name)).await,
            Call::Get(request, mut slot, reply) => {
                let fetch = async {
                    let (crc32, meta) = backend.get(&request, &mut slot).await?;
                    Ok(Fetched { slot, crc32, meta })
                };
                finish(reply, fetch).await;
            }
            Call::Put(request, body, reply) => finish(reply, backend.put(&request, body)).await,
            Call::CreateUpload(request, reply) => finish(reply, backend.create_upload(&request)).await,
            Call::PutPart { upload, number, crc32, body, reply } => {
                finish(reply, backend.put_part(&upload, number, crc32, body)).await;
            }
            Call::CompleteUpload { upload, request, parts, reply } => {
                finish(reply, backend.complete_upload(&upload, &request, &parts)).await;
            }
            Call::AbortUpload(upload, reply) => finish(reply, backend.abort_upload(&upload)).await,
            Call::ListParts(upload, reply) => finish(reply, backend.list_parts(&upload)).await,
            Call::ListUploads { bucket, prefix, reply } => {
                finish(reply, backend.list_uploads(&bucket, &prefix)).await;
            }
            Call::Copy { source, target, reply } => finish(reply, backend.copy(&source, &target)).await,
            Call::Delete(name, reply) => finish(reply, backend.delete(&name)).await,
            Call::List(request, reply) => finish(reply, backend.list(&request)).await,
            Call::CreateBucket(bucket, reply) => finish(reply, backend.create_bucket(&bucket)).await,
            Call::HeadBucket(bucket, reply) => finish(reply, backend.head_bucket(&bucket)).await,
        }
    }
}

/// Runs `work` until it is done or nobody waits for it any more.
async fn finish<T>(mut reply: Reply<T>, work: impl Future<Output = Result<T>>) {
    tokio::select! {
        result = work => { let _ = reply.send(result); }
        () = reply.cancellation() => {}
    }
}

/// The backend, for the other threads. Clones share the mailbox.
#[derive(Clone)]
pub struct BackendHandle {
    calls: Sender<Call>,
    configured: Configured,
}

impl BackendHandle {
    pub(in crate::sidecar) fn new(calls: Sender<Call>, configured: Configured) -> BackendHandle {
        BackendHandle { calls, configured }
    }

    /// Uses this backend from now on; requests in flight end on the one before. The same options change nothing.
    /// Tells whether it is another one.
    pub fn configure(&self, options: BackendOptions) -> bool {
        self.configured.set(options)
    }

    /// Which backend is used; `None` while nobody has told.
    pub fn options(&self) -> Option<Arc<BackendOptions>> {
        self.configured.options()
    }

    /// What clients may know about it; all empty while nobody has told.
    pub fn description(&self) -> BackendDescription {
        self.options().map(|options| options.description()).unwrap_or_default()
    }

    /// Attributes of an object.
    pub async fn head(&self, name: ObjectName) -> Result<ObjectMeta> {
        Ok(self.find(name).await?.meta)
    }

    /// An object as the backend has it.
    pub async fn find(&self, name: ObjectName) -> Result<Head> {
        let target = name.to_string();
        self.call(BackendOperation::Head, target, |reply| Call::Head(name, reply)).await
    }

    /// Reads a range into `slot`. See [`GetRequest`].
    pub async fn get(&self, request: GetRequest, slot: SlotMut) -> Result<Fetched> {
        let target = request.name.to_string();
        self.call(BackendOperation::Get, target, |reply| Call::Get(request, slot, reply)).await
    }

    /// Writes an object in one request.
    pub async fn put(&self, request: PutRequest, body: BodySource) -> Result<Stored> {
        let target = request.name.to_string();
        self.call(BackendOperation::Put, target, |reply| Call::Put(request, body, reply)).await
    }

    /// Starts a multipart upload.
    pub async fn create_upload(&self, request: PutRequest) -> Result<Upload> {
        let target = request.name.to_string();
        self.call(BackendOperation::CreateUpload, target, |reply| Call::CreateUpload(request, reply)).await
    }

    /// Writes one part; a part written again replaces the earlier one.
    pub async fn put_part(&self, upload: Upload, number: u32, crc32: u32, body: BodySource) -> Result<UploadedPart> {
        let target = upload.name.to_string();
        let make = |reply| Call::PutPart { upload, number, crc32, body, reply };
        self.call(BackendOperation::UploadPart, target, make).await
    }

    /// Makes the object of all `parts`, which are in order. `request` is the one the upload was started with.
    pub async fn complete_upload(
        &self,
        upload: Upload,
        request: PutRequest,
        parts: Vec<UploadedPart>,
    ) -> Result<Stored> {
        let target = upload.name.to_string();
        let make = |reply| Call::CompleteUpload { upload, request, parts, reply };
        self.call(BackendOperation::CompleteUpload, target, make).await
    }

    /// Drops an upload and its parts.
    pub async fn abort_upload(&self, upload: Upload) -> Result<()> {
        let target = upload.name.to_string();
        self.call(BackendOperation::AbortUpload, target, |reply| Call::AbortUpload(upload, reply)).await
    }

    /// The parts that the backend has of an upload, in order.
    pub async fn list_parts(&self, upload: Upload) -> Result<Vec<UploadedPart>> {
        let target = upload.name.to_string();
        self.call(BackendOperation::ListParts, target, |reply| Call::ListParts(upload, reply)).await
    }

    /// Uploads in progress of keys that start with `prefix`.
    pub async fn list_uploads(&self, bucket: String, prefix: String) -> Result<Vec<ListedUpload>> {
        let target = bucket.clone();
        self.call(BackendOperation::ListUploads, target, |reply| Call::ListUploads { bucket, prefix, reply }).await
    }

    /// Copies an object within the backend.
    pub async fn copy(&self, source: ObjectName, target: ObjectName) -> Result<Stored> {
        let named = format!("{source} to {target}");
        self.call(BackendOperation::Copy, named, |reply| Call::Copy { source, target, reply }).await
    }

    /// Deletes an object. One that is not there is deleted.
    pub async fn delete(&self, name: ObjectName) -> Result<()> {
        let target = name.to_string();
        self.call(BackendOperation::Delete, target, |reply| Call::Delete(name, reply)).await
    }

    /// One page of a bucket.
    pub async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let target = request.bucket.clone();
        self.call(BackendOperation::List, target, |reply| Call::List(request, reply)).await
    }

    /// Makes a bucket.
    pub async fn create_bucket(&self, bucket: String) -> Result<()> {
        let target = bucket.clone();
        self.call(BackendOperation::CreateBucket, target, |reply| Call::CreateBucket(bucket, reply)).await
    }

    /// Asks whether a bucket is there and may be used.
    pub async fn head_bucket(&self, bucket: String) -> Result<()> {
        let target = bucket.clone();
        self.call(BackendOperation::HeadBucket, target, |reply| Call::HeadBucket(bucket, reply)).await
    }

    async fn call<T>(
        &self,
        operation: BackendOperation,
        target: String,
        make: impl FnOnce(Reply<T>) -> Call,
    ) -> Result<T> {
        if !self.configured.is_set() {
            let kind = BackendErrorKind::NotConfigured;
            return Err(BackendError { kind, operation, target, message: String::new() });
        }
        match self.calls.call(make).await {
            Ok(result) => result,
            Err(closed) => {
                let message = closed.to_string();
                Err(BackendError { kind: BackendErrorKind::Internal, operation, target, message })
            }
        }
    }
}
