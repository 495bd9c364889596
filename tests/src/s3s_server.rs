//! An S3 server inside this program: the crate `s3s-fs` over a folder of its own, on a free port of loopback.
//!
//! It starts in a millisecond and shares nothing, so tests take one each. [`Served`] is the part that other fronts
//! ([`crate::oss_front`], [`crate::faulty_backend`]) build on: a thread that answers HTTP by asking a [`Front`]. The
//! server ends, and its folder goes, when it is dropped.
//!
//! What s3s-fs does differently from S3, and is left so: it ignores conditions on reads, gives no entity tags in
//! listings, and keys are paths of a file system. Two things are mended here: it says that the keys of a listing are
//! URL-encoded, and does not encode them; and it does not know ListMultipartUploads.

pub mod uploads;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::host::SingleDomain;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::RwLock;

use crate::bucket::{Bucket, S3Endpoint};
use crate::dirs;
use crate::relay::{LOOPBACK, Link, Relay};

/// The one user's keys. No log of a peer may ever show them.
pub const ACCESS_KEY: &str = "CANARYS3SACCESSKEY";
/// See [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "canary-s3s-secret-3c91";

/// The connection is to be cut instead of answered.
#[derive(Debug)]
pub struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut on purpose")
    }
}

impl std::error::Error for Cut {}

/// What stands between the socket and the S3 service.
pub trait Front: Send + Sync + 'static {
    /// Answers a request, or has its connection cut.
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Result<Response<s3s::Body>, Cut>>;
}

/// A front that is being served by a thread.
pub struct Served(Relay);

impl Served {
    /// Serves on a free port of loopback. `front` is made when the port is known.
    pub fn start<F: Front>(front: impl FnOnce(SocketAddr) -> Result<Arc<F>>) -> Result<Served> {
        Served::start_on(LOOPBACK, front)
    }

    /// As [`start`](Self::start), on another address of this machine.
    pub fn start_on<F: Front>(listen: IpAddr, front: impl FnOnce(SocketAddr) -> Result<Arc<F>>) -> Result<Served> {
        Relay::start("s3s", listen, |address| Ok(Arc::new(Http(front(address)?)))).map(Served)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }
}

struct Http<F>(Arc<F>);

impl<F: Front> Link for Http<F> {
    fn carry(self: Arc<Self>, client: TcpStream) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let service = service_fn(move |request| self.0.clone().answer(request));
            // An error is a connection that ended in the middle, often on purpose.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
        })
    }
}

/// The service of s3s-fs over a folder, with the mended listing.
///
/// s3s-fs writes bytes, attributes and entity tag one after the other. As S3 does, this service does one thing at a
/// time with an object: nobody sees the bytes of one write under the tag of another.
#[derive(Clone)]
pub struct FolderService {
    service: S3Service,
    root: PathBuf,
    objects: Arc<Mutex<HashMap<String, Arc<RwLock<()>>>>>,
    running: Arc<AtomicU64>,
}

/// Counts a request while it is being carried out.
struct Running(Arc<AtomicU64>);

impl Running {
    fn new(count: &Arc<AtomicU64>) -> Running {
        count.fetch_add(1, Ordering::SeqCst);
        Running(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FolderService {
    /// Buckets are folders in `root`. With a `domain` (and port), they may also be asked for as a part of the host.
    pub fn new(root: &Path, domain: Option<&str>) -> Result<FolderService> {
        let files = FileSystem::new(root).map_err(|error| anyhow!("s3s-fs on {}: {error:?}", root.display()))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        if let Some(domain) = domain {
            builder.set_host(SingleDomain::new(domain).context("the domain")?);
        }
        Ok(FolderService {
            service: builder.build(),
            root: root.to_owned(),
            objects: Arc::default(),
            running: Arc::default(),
        })
    }

    /// The folder of a bucket.
    pub fn bucket_folder(&self, bucket: &str) -> PathBuf {
        self.root.join(bucket)
    }

    /// How many requests are being carried out, also for clients that are gone.
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::SeqCst)
    }

    /// Replaces an object behind the server's back, at once: an answer under way goes on with what it has opened. The
    /// server forgets the entity tags that it had noted, and makes them of the bytes that it finds.
    pub fn overwrite(&self, bucket: &str, key: &str, bytes: &[u8]) -> std::io::Result<()> {
        // First the tags: the other way round new bytes could go out under the old one.
        for entry in std::fs::read_dir(&self.root)?.flatten() {
            if entry.file_name().to_string_lossy().ends_with(".internal.json") {
                std::fs::remove_file(entry.path())?;
            }
        }
        let new = self.root.join("overwritten");
        std::fs::write(&new, bytes)?;
        std::fs::rename(new, self.bucket_folder(bucket).join(key))
    }

    /// Answers on a free port of loopback, with nothing in between.
    pub fn serve(self) -> Result<Served> {
        Served::start(|_| Ok(Arc::new(Plain(self))))
    }

    /// Whether an upload of this name is in progress.
    pub fn has_upload(&self, upload_id: &str) -> bool {
        self.root.join(format!(".upload-{upload_id}.json")).is_file()
    }

    /// Uploads in progress.
    pub fn uploads(&self) -> Vec<uploads::InProgress> {
        uploads::in_progress(&self.root)
    }

    /// The answer to ListMultipartUploads, if that is asked for.
    fn uploads_listing(&self, request: &Request<s3s::Body>) -> Option<String> {
        let query = request.uri().query().filter(|_| request.method() == http::Method::GET)?;
        let mut parts = query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
        parts.clone().find(|(name, _)| *name == "uploads")?;
        let prefix = parts.find(|(name, _)| *name == "prefix").map_or("", |(_, prefix)| prefix);
        let prefix = percent_encoding::percent_decode_str(prefix).decode_utf8_lossy();
        // Named by the path, or by the host.
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let bucket = match request.uri().path().trim_matches('/') {
            "" => host.split('.').next().unwrap_or_default(),
            bucket => bucket,
        };
        Some(uploads::listing(&self.root, bucket, &prefix))
    }

    /// Answers as S3 does.
    pub async fn call(&self, request: Request<s3s::Body>) -> Result<Response<s3s::Body>, Cut> {
        if let Some(listing) = self.uploads_listing(&request) {
            let mut response = Response::new(s3s::Body::from(Bytes::from(listing)));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
            return Ok(response);
        }
        let lists = request.uri().query().is_some_and(|query| query.contains("encoding-type="));
        let object = self.lock_of(request.uri().path());
        let is_part = request.uri().query().is_some_and(|query| query.contains("partNumber="));
        let service = self.service.clone();
        let running = Running::new(&self.running);
        // To its end, though the client goes away: s3s-fs writes bytes and attributes one after the other, and one
        // without the other is what no real server shows.
        let called = tokio::spawn(async move {
            let _running = running;
            let (_read, _write) = match *request.method() {
                // Parts are sent side by side, and nobody sees them.
                _ if is_part => (None, None),
                Method::GET | Method::HEAD => (Some(object.read().await), None),
                _ => (None, Some(object.write().await)),
            };
            service.call(request).await
        });
        let Ok(Ok(response)) = called.await else {
            return Ok(refusal(500, "InternalError", "s3s-fs cannot do this"));
        };
        if !lists || !response.status().is_success() {
            return Ok(response);
        }
        let (parts, text) = text_of(response).await?;
        Ok(with_text(parts, &encoded_listing(&text)))
    }

    fn lock_of(&self, path: &str) -> Arc<RwLock<()>> {
        let mut objects = self.objects.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        objects.entry(path.to_owned()).or_default().clone()
    }
}

/// An error as S3 writes it.
pub fn refusal(status: u16, code: &str, message: &str) -> Response<s3s::Body> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
         <RequestId>0000</RequestId><HostId>test</HostId></Error>"
    );
    let mut response = Response::new(s3s::Body::from(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

/// The listing with its names URL-encoded, as it says they are.
fn encoded_listing(text: &str) -> String {
    let elements = ["Key", "Prefix", "NextMarker"];
    elements.iter().fold(text.to_owned(), |text, element| encode_element(&text, element))
}

fn encode_element(text: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let mut parts = text.split(&open);
    let mut encoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(&close).unwrap_or((part, ""));
        let plain = name.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
        let plain = plain.replace("&amp;", "&");
        let name = percent_encoding::utf8_percent_encode(&plain, percent_encoding::NON_ALPHANUMERIC);
        encoded.push_str(&format!("{open}{name}{close}{rest}"));
    }
    encoded
}

/// Takes a response with a short text for a body apart.
async fn text_of(response: Response<s3s::Body>) -> Result<(http::response::Parts, String), Cut> {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|_| Cut)?.to_bytes();
    Ok((parts, String::from_utf8_lossy(&bytes).into_owned()))
}

/// Puts it together again.
fn with_text(mut parts: http::response::Parts, text: &str) -> Response<s3s::Body> {
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::TRANSFER_ENCODING);
    Response::from_parts(parts, s3s::Body::from(Bytes::copy_from_slice(text.as_bytes())))
}

/// A running server.
pub struct S3sServer {
    served: Served,
    _folder: TempDir,
}

struct Plain(FolderService);

impl Front for Plain {
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Result<Response<s3s::Body>, Cut>> {
        Box::pin(async move { self.0.call(request.map(s3s::Body::from)).await })
    }
}

impl S3sServer {
    /// Starts one.
    pub fn start() -> Result<S3sServer> {
        S3sServer::start_in(dirs::temporary("s3s")?)
    }

    /// Starts one that keeps its objects there.
    pub fn start_in(folder: TempDir) -> Result<S3sServer> {
        let service = FolderService::new(folder.path(), None)?;
        let served = service.serve()?;
        Ok(S3sServer { served, _folder: folder })
    }

    /// Where it listens, and the keys.
    pub fn endpoint(&self) -> S3Endpoint {
        endpoint(format!("http://{}", self.served.address()))
    }

    /// A new bucket.
    pub fn bucket(&self, name: &str) -> Result<Bucket> {
        let bucket = self.endpoint().bucket(name);
        bucket.create()?;
        Ok(bucket)
    }
}

/// The keys of this module's user, at this URL.
pub fn endpoint(url: String) -> S3Endpoint {
    S3Endpoint { url, access_key: ACCESS_KEY.to_owned(), secret_key: SECRET_KEY.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_listings_are_encoded_once() {
        let text = "<R><Prefix>a b</Prefix><Contents><Key>a b/&amp;+\u{1}</Key></Contents></R>";
        let expected = "<R><Prefix>a%20b</Prefix><Contents><Key>a%20b%2F%26%2B%01</Key></Contents></R>";
        assert_eq!(encoded_listing(text), expected);
    }

    #[test]
    fn objects_come_back_and_are_listed_as_they_were_named() {
        let server = S3sServer::start().expect("a server");
        let bucket = server.bucket("some-bucket").expect("a bucket");
        bucket.put("a+b %41", b"bytes").expect("put");
        assert_eq!(bucket.get("a+b %41").expect("get").as_deref(), Some(&b"bytes"[..]));
        assert_eq!(bucket.keys().expect("list"), ["a+b %41"]);
        assert!(bucket.put("..", b"bytes").is_err());
    }
}
