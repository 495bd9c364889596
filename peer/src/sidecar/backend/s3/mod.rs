//! The backend on aws-sdk-s3.
//!
//! Owns the SDK's client and the provider's [`Profile`]. One file for each kind of request: [`read`], [`mod@write`],
//! [`upload`] (multipart), [`bucket`]. Every request is an [`Attempt`], which watches its time, translates its failure,
//! counts it and tells [`Health`] whether the backend answers.

mod bucket;
mod read;
mod upload;
mod write;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::object::ObjectMeta;
use futures_util::future::{BoxFuture, FutureExt};

use super::body::{Progress, TimedOut, watched};
use super::error::{BackendError, BackendErrorKind};
use super::failure::{Refusal, classify};
use super::provider::Profile;
use super::tuning::BackendTuning;
use super::{
    Backend, BodySource, GetRequest, Head, ListPage, ListRequest, ListedUpload, PutRequest, Result, Stored, Upload,
    UploadedPart, client,
};
use crate::config::BackendOptions;
use crate::metrics::{BackendOperation, BackendOutcome, Metrics};
use crate::rt::arena::SlotMut;
use crate::sidecar::health::Health;

/// The client of one backend.
pub struct S3Backend {
    client: Client,
    profile: Profile,
    tuning: BackendTuning,
    metrics: Metrics,
    health: Health,
}

/// One request on its way, from its first byte to the check of its answer. When it is dropped without an end, because
/// whoever asked has gone, it is counted too.
struct Attempt<'a> {
    backend: &'a S3Backend,
    operation: BackendOperation,
    target: &'a (dyn Display + Sync),
    started: Instant,
    outcome: BackendOutcome,
}

impl S3Backend {
    /// Makes the client. Asks nobody yet.
    pub async fn new(options: &BackendOptions, tuning: BackendTuning, metrics: Metrics, health: Health) -> S3Backend {
        let region = client::region(options).await;
        let profile = Profile::of(options, &region);
        let client = client::make(options, &profile, &tuning).await;
        S3Backend { client, profile, tuning, metrics, health }
    }

    fn attempt<'a>(&'a self, operation: BackendOperation, target: &'a (dyn Display + Sync)) -> Attempt<'a> {
        self.metrics.backend_started();
        Attempt { backend: self, operation, target, started: Instant::now(), outcome: BackendOutcome::Other }
    }

    /// A request without a body whose answer needs no further check.
    async fn ask<T, E>(
        &self,
        operation: BackendOperation,
        target: &(dyn Display + Sync),
        request: impl Future<Output = std::result::Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> Result<T>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let attempt = self.attempt(operation, target);
        let answer = attempt.answer(request, None).await;
        attempt.end(answer)
    }

    /// Fails before anything is sent.
    fn refuse<T>(&self, operation: BackendOperation, target: impl Display, message: &str) -> Result<T> {
        let kind = BackendErrorKind::InvalidArgument;
        Err(BackendError { kind, operation, target: target.to_string(), message: message.to_owned() })
    }

    fn check_name(&self, operation: BackendOperation, name: &ObjectName) -> Result<()> {
        if let Err(message) = self.profile.check_bucket(&name.bucket) {
            return self.refuse(operation, name, message);
        }
        if name.key.is_empty() {
            return self.refuse(operation, name, "the key is empty");
        }
        Ok(())
    }

    fn check_bucket(&self, operation: BackendOperation, bucket: &str) -> Result<()> {
        self.profile.check_bucket(bucket).or_else(|message| self.refuse(operation, bucket, message))
    }

    /// Tries a request that may be done twice again when it failed in a way that may pass at once.
    async fn tried<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut pause = self.tuning.retry_pause;
        for _ in 1..self.tuning.attempts {
            match attempt().await {
                Err(error) if passes_soon(error.kind) => self.pause_before_retry(&mut pause).await,
                result => return result,
            }
        }
        attempt().await
    }

    async fn pause_before_retry(&self, pause: &mut Duration) {
        self.metrics.backend_retried();
        tokio::time::sleep(*pause).await;
        *pause *= 2;
    }
}

impl Attempt<'_> {
    /// Waits for the answer's head, or all of it if it has no body to stream, as long as it may take.
    async fn answer<T, E>(
        &self,
        request: impl Future<Output = std::result::Result<T, SdkError<E, HttpResponse>>> + Send,
        body: Option<Arc<Progress>>,
    ) -> std::result::Result<T, Refusal>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let tuning = &self.backend.tuning;
        let slow = matches!(self.operation, BackendOperation::CompleteUpload | BackendOperation::Copy);
        let timeout = if slow { tuning.server_work_timeout } else { tuning.first_byte_timeout };
        match watched(request, body, tuning, timeout).await {
            Ok(answer) => answer.map_err(|error| classify(self.operation, &error)),
            Err(TimedOut(what)) => Err((BackendErrorKind::Timeout, what.to_owned())),
        }
    }

    fn end<T>(mut self, result: std::result::Result<T, Refusal>) -> Result<T> {
        let failure = result.as_ref().err().map(|(kind, _)| *kind);
        self.outcome = failure.map_or(BackendOutcome::Ok, BackendErrorKind::outcome);
        let silent = matches!(failure, Some(BackendErrorKind::Unreachable | BackendErrorKind::Timeout));
        self.backend.health.set_backend_reachable(!silent);
        result.map_err(|(kind, message)| BackendError {
            kind,
            operation: self.operation,
            target: self.target.to_string(),
            message,
        })
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.backend.metrics.backend_finished(self.operation, self.outcome, self.started.elapsed());
    }
}

/// Not a timeout, after which the caller has waited long enough, and not a request to slow down, which is for the
/// caller to heed.
fn passes_soon(kind: BackendErrorKind) -> bool {
    matches!(kind, BackendErrorKind::Unreachable | BackendErrorKind::Unavailable | BackendErrorKind::BadAnswer)
}

impl Backend for S3Backend {
    fn head<'a>(&'a self, name: &'a ObjectName) -> BoxFuture<'a, Result<Head>> {
        self.tried(|| self.head_object(name)).boxed()
    }

    fn get<'a>(&'a self, request: &'a GetRequest, slot: &'a mut SlotMut) -> BoxFuture<'a, Result<(u32, ObjectMeta)>> {
        self.get_with_retries(request, slot).boxed()
    }

    fn put<'a>(&'a self, request: &'a PutRequest, body: BodySource) -> BoxFuture<'a, Result<Stored>> {
        self.put_object(request, body).boxed()
    }

    fn create_upload<'a>(&'a self, request: &'a PutRequest) -> BoxFuture<'a, Result<Upload>> {
        self.create_multipart(request).boxed()
    }

    fn put_part<'a>(
        &'a self,
        upload: &'a Upload,
        number: u32,
        crc32: u32,
        body: BodySource,
    ) -> BoxFuture<'a, Result<UploadedPart>> {
        self.upload_part(upload, number, crc32, body).boxed()
    }

    fn complete_upload<'a>(
        &'a self,
        upload: &'a Upload,
        request: &'a PutRequest,
        parts: &'a [UploadedPart],
    ) -> BoxFuture<'a, Result<Stored>> {
        self.complete_multipart(upload, request, parts).boxed()
    }

    fn abort_upload<'a>(&'a self, upload: &'a Upload) -> BoxFuture<'a, Result<()>> {
        self.tried(|| self.abort_multipart(upload)).boxed()
    }

    fn list_parts<'a>(&'a self, upload: &'a Upload) -> BoxFuture<'a, Result<Vec<UploadedPart>>> {
        self.tried(|| self.parts_of(upload)).boxed()
    }

    fn list_uploads<'a>(&'a self, bucket: &'a str, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ListedUpload>>> {
        self.tried(|| self.uploads_of(bucket, prefix)).boxed()
    }

    fn copy<'a>(&'a self, source: &'a ObjectName, target: &'a ObjectName) -> BoxFuture<'a, Result<Stored>> {
        self.tried(|| self.copy_object(source, target)).boxed()
    }

    fn delete<'a>(&'a self, name: &'a ObjectName) -> BoxFuture<'a, Result<()>> {
        self.tried(|| self.delete_object(name)).boxed()
    }

    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<ListPage>> {
        self.tried(|| self.list_page(request)).boxed()
    }

    fn create_bucket<'a>(&'a self, bucket: &'a str) -> BoxFuture<'a, Result<()>> {
        self.make_bucket(bucket).boxed()
    }

    fn head_bucket<'a>(&'a self, bucket: &'a str) -> BoxFuture<'a, Result<()>> {
        self.tried(|| self.ask_bucket(bucket)).boxed()
    }
}
