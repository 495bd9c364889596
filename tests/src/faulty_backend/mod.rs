//! An S3 server that fails as told: s3s-fs inside this program with rules around it.
//!
//! A [`Rule`] says which requests (method, bucket/key prefix, part of the query), how many of them, and what goes wrong.
//! The first rule that fits is used up by one. The server counts requests and body bytes and keeps a list of what it was
//! asked, so that a test can say not only what the client got but also what it cost. Everything else is answered as
//! [`crate::s3s_server`] does. Signatures are checked before and after: nothing about the request is changed.

mod body;

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::bucket::{Bucket, S3Endpoint};
use crate::dirs;
use crate::eventually;
use crate::relay::LOOPBACK;
use crate::s3s_server::uploads::InProgress;
use crate::s3s_server::{self, Cut, FolderService, Front, Served};

/// Copying some MiB takes no longer, nor giving up an upload.
const QUIET_WITHIN: Duration = Duration::from_secs(30);

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This answer, in S3's XML, instead of the real one.
    Status {
        /// HTTP status.
        status: u16,
        /// S3's error code.
        code: &'static str,
        /// `Retry-After` in seconds.
        retry_after_s: Option<u32>,
    },
    /// The real answer, later.
    Delay(Duration),
    /// The real answer, once [`FaultyBackend::release`] is called.
    Hold,
    /// The real answer as of now, given later.
    AnswerLate(Duration),
    /// No answer, ever; the connection stays.
    Hang,
    /// The connection is cut before anything is done.
    Cut,
    /// Everything is done as asked, but the connection is cut instead of answered.
    LoseAnswer,
    /// The body of the answer breaks off after this many bytes: the connection is cut.
    BodyBreaks(u64),
    /// The body of the answer stops after this many bytes; the connection stays.
    BodyHangs(u64),
    /// The body comes with a pause after each chunk of this many bytes.
    BodyTrickles(u64, Duration),
    /// The body and `Content-Length` are this many bytes shorter than `Content-Range` says.
    BodyShort(u64),
    /// The body and `Content-Length` are this many bytes longer than they should be: zeros at the end.
    BodyLong(u64),
    /// The byte at this place of the body is another one, and nothing says so.
    BodyFlips(u64),
    /// Somebody else replaces the object by these bytes just before the request is looked at.
    Overwritten(Arc<[u8]>),
    /// This `Content-Range`, with the real body.
    ContentRange(String),
    /// No `Content-Range` and status 200, with the real body.
    RangeIgnored,
    /// This entity tag instead of the real one.
    Etag(String),
    /// This `x-amz-checksum-crc32` in the answer.
    Crc32(String),
}

impl Fault {
    /// 500 InternalError.
    pub fn internal_error() -> Fault {
        Fault::Status { status: 500, code: "InternalError", retry_after_s: None }
    }

    /// 503 SlowDown.
    pub fn slow_down(retry_after_s: Option<u32>) -> Fault {
        Fault::Status { status: 503, code: "SlowDown", retry_after_s }
    }

    /// 403 RequestTimeTooSkewed: one of the two clocks is wrong.
    pub fn clock_skew() -> Fault {
        Fault::Status { status: 403, code: "RequestTimeTooSkewed", retry_after_s: None }
    }

    /// 403 AccessDenied.
    pub fn access_denied() -> Fault {
        Fault::Status { status: 403, code: "AccessDenied", retry_after_s: None }
    }
}

/// Which requests fail, how often, and how.
#[derive(Clone, Debug)]
pub struct Rule {
    method: Option<Method>,
    path_prefix: String,
    query_part: String,
    range_part: String,
    skip: u64,
    times: u64,
    fault: Fault,
}

impl Rule {
    /// Every request fails like this.
    pub fn always(fault: Fault) -> Rule {
        let (path_prefix, query_part, range_part) = (String::new(), String::new(), String::new());
        Rule { method: None, path_prefix, query_part, range_part, skip: 0, times: u64::MAX, fault }
    }

    /// Every request of this method fails like this.
    pub fn on(method: Method, fault: Fault) -> Rule {
        Rule { method: Some(method), ..Rule::always(fault) }
    }

    /// Only if the path, `bucket/key` as in the request, starts with this.
    pub fn at(self, path_prefix: impl Into<String>) -> Rule {
        Rule { path_prefix: path_prefix.into(), ..self }
    }

    /// Only if the query contains this, e.g. `partNumber=2`.
    pub fn with_query(self, query_part: impl Into<String>) -> Rule {
        Rule { query_part: query_part.into(), ..self }
    }

    /// Only if the header `Range` contains this, e.g. `bytes=0-`.
    pub fn with_range(self, range_part: impl Into<String>) -> Rule {
        Rule { range_part: range_part.into(), ..self }
    }

    /// Only this many times.
    pub fn times(self, times: u64) -> Rule {
        Rule { times, ..self }
    }

    /// Not the first `skip` times.
    pub fn after(self, skip: u64) -> Rule {
        Rule { skip, ..self }
    }

    fn fits(&self, request: &Request<Incoming>) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method())
            && request.uri().path().trim_start_matches('/').starts_with(&self.path_prefix)
            && request.uri().query().unwrap_or_default().contains(&self.query_part)
            && text(request, header::RANGE).unwrap_or_default().contains(&self.range_part)
    }
}

/// A request that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its path, as sent: `/bucket/key`.
    pub path: String,
    /// Its query, as sent.
    pub query: String,
    /// Its `Range`.
    pub range: Option<String>,
    /// Its `If-Match`.
    pub if_match: Option<String>,
    /// Its `If-None-Match`.
    pub if_none_match: Option<String>,
    /// Its `x-amz-copy-source`, as sent.
    pub copy_source: Option<String>,
    /// Its session token.
    pub session_token: Option<String>,
    /// When it came.
    pub at: Instant,
}

impl Seen {
    /// Whether it has this method, a path that ends in this key, and a query that contains this.
    pub fn is(&self, method: &Method, key: &str, query_part: &str) -> bool {
        self.method == method && self.path.ends_with(&format!("/{key}")) && self.query.contains(query_part)
    }
}

/// The running server.
pub struct FaultyBackend {
    served: Served,
    untroubled: Served,
    state: Arc<State>,
    folder: TempDir,
}

struct State {
    service: FolderService,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    down: AtomicBool,
    held: AtomicU64,
    released: watch::Sender<bool>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    open: AtomicU64,
    open_max: AtomicU64,
}

impl FaultyBackend {
    /// Starts one without rules.
    pub fn start() -> Result<FaultyBackend> {
        FaultyBackend::start_on(LOOPBACK)
    }

    /// As [`start`](Self::start), on another address of this machine.
    pub fn start_on(listen: IpAddr) -> Result<FaultyBackend> {
        let folder = dirs::temporary("faulty")?;
        let state = Arc::new(State {
            service: FolderService::new(folder.path(), None)?,
            rules: Mutex::default(),
            seen: Mutex::default(),
            down: AtomicBool::new(false),
            held: AtomicU64::new(0),
            released: watch::Sender::new(false),
            counts: Arc::default(),
        });
        let untroubled = state.service.clone().serve()?;
        let served = Served::start_on(listen, |_| Ok(state.clone()))?;
        Ok(FaultyBackend { served, untroubled, state, folder })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.served.address()
    }

    /// Where it listens, and the keys.
    pub fn endpoint(&self) -> S3Endpoint {
        s3s_server::endpoint(format!("http://{}", self.served.address()))
    }

    /// The same objects, where no rule holds and nothing is counted: for what others do behind the peers' back.
    pub fn untroubled_endpoint(&self) -> S3Endpoint {
        s3s_server::endpoint(format!("http://{}", self.untroubled.address()))
    }

    /// A new bucket, made without a request.
    pub fn make_bucket_folder(&self, name: &str) -> Result<()> {
        Ok(std::fs::create_dir(self.state.service.bucket_folder(name))?)
    }

    /// A new bucket.
    pub fn bucket(&self, name: &str) -> Result<Bucket> {
        let bucket = self.endpoint().bucket(name);
        bucket.create()?;
        Ok(bucket)
    }

    /// An object's bytes as they lie in the server's folder, without a request; `None` when there is none. The key must
    /// be plain: no characters that a URL escapes, no empty or dotted parts.
    pub fn stored(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        std::fs::read(self.state.service.bucket_folder(bucket).join(key)).ok()
    }

    /// Multipart uploads in progress.
    pub fn uploads(&self) -> Vec<InProgress> {
        self.state.service.uploads()
    }

    /// Waits until no multipart upload is in progress; an error names those that stay.
    pub fn until_no_uploads(&self) -> Result<()> {
        eventually("no upload is left in the bucket", QUIET_WITHIN, || self.uploads().is_empty().then_some(()))
            .with_context(|| format!("{:?}", self.uploads()))
    }

    /// From now on an upload counts as begun so long ago.
    pub fn age_upload(&self, upload: &InProgress, age: Duration) -> Result<()> {
        let file = self.folder.path().join(format!(".upload-{}.json", upload.upload_id));
        Ok(File::options().write(true).open(file)?.set_modified(SystemTime::now() - age)?)
    }

    /// How many requests had this method, were about this key and had this in their query.
    pub fn requests_for(&self, method: &Method, key: &str, query_part: &str) -> usize {
        lock(&self.state.seen).iter().filter(|seen| seen.is(method, key, query_part)).count()
    }

    /// These rules from now on, instead of those before.
    pub fn set_rules(&self, rules: impl IntoIterator<Item = Rule>) {
        self.state.released.send_replace(false);
        *lock(&self.state.rules) = rules.into_iter().collect();
    }

    /// As [`set_rules`](Self::set_rules), for the paths below this prefix only: other rules stay. The new ones must be
    /// about such paths.
    pub fn set_rules_at(&self, path_prefix: &str, new: impl IntoIterator<Item = Rule>) {
        let mut rules = lock(&self.state.rules);
        rules.retain(|rule| !rule.path_prefix.starts_with(path_prefix));
        rules.extend(new);
    }

    /// Lets go what [`Fault::Hold`] holds, now and later, until the rules change.
    pub fn release(&self) {
        self.state.released.send_replace(true);
    }

    /// Cuts every connection without an answer, until told otherwise.
    pub fn set_down(&self, down: bool) {
        self.state.down.store(down, Ordering::SeqCst);
    }

    /// Requests that arrived since the start or [`forget`](Self::forget).
    pub fn requests(&self) -> usize {
        lock(&self.state.seen).len()
    }

    /// The requests themselves, in the order they arrived.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// How many of them had this method.
    pub fn requests_of(&self, method: &Method) -> usize {
        lock(&self.state.seen).iter().filter(|seen| seen.method == method).count()
    }

    /// Bytes of bodies sent.
    pub fn bytes_sent(&self) -> u64 {
        self.state.counts.bytes_sent.load(Ordering::SeqCst)
    }

    /// Bytes of bodies announced by requests.
    pub fn bytes_received(&self) -> u64 {
        self.state.counts.bytes_received.load(Ordering::SeqCst)
    }

    /// Most requests that were being answered at once.
    pub fn open_max(&self) -> u64 {
        self.state.counts.open_max.load(Ordering::SeqCst)
    }

    /// How many answers have been made and held back ([`Fault::AnswerLate`]).
    pub fn held(&self) -> u64 {
        self.state.held.load(Ordering::SeqCst)
    }

    /// Waits until nothing is done any more for clients that are gone: for a test that has killed one and looks at what
    /// it left.
    pub fn until_quiet(&self) -> Result<()> {
        // A connection of ours is answered by its end, after all that was there before has been looked at.
        let mut last = TcpStream::connect(self.address())?;
        last.shutdown(Shutdown::Write)?;
        last.read_to_end(&mut Vec::new())?;
        let is_quiet = || (self.state.service.running() == 0).then_some(());
        eventually("the backend has nothing to do", QUIET_WITHIN, is_quiet)
    }

    /// Starts counting anew.
    pub fn forget(&self) {
        lock(&self.state.seen).clear();
        let counts = &self.state.counts;
        counts.bytes_sent.store(0, Ordering::SeqCst);
        counts.bytes_received.store(0, Ordering::SeqCst);
        counts.open_max.store(counts.open.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

impl Front for State {
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Result<Response<s3s::Body>, Cut>> {
        Box::pin(async move {
            if self.down.load(Ordering::SeqCst) {
                return Err(Cut);
            }
            let open = Open::new(self.counts.clone());
            self.note(&request);
            let fault = self.fault_of(&request);
            let response = self.faulty(request, fault.as_ref()).await?;
            Ok(body::watched(response, open, fault))
        })
    }
}

impl State {
    fn note(&self, request: &Request<Incoming>) {
        let text = |name| text(request, name);
        let length: u64 = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()).unwrap_or(0);
        self.counts.bytes_received.fetch_add(length, Ordering::SeqCst);
        lock(&self.seen).push(Seen {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            range: text(header::RANGE),
            if_match: text(header::IF_MATCH),
            if_none_match: text(header::IF_NONE_MATCH),
            copy_source: text(header::HeaderName::from_static("x-amz-copy-source")),
            session_token: text(header::HeaderName::from_static("x-amz-security-token")),
            at: Instant::now(),
        });
    }

    fn fault_of(&self, request: &Request<Incoming>) -> Option<Fault> {
        let mut rules = lock(&self.rules);
        let rule = rules.iter_mut().find(|rule| rule.times > 0 && rule.fits(request))?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault.clone())
    }

    fn overwrite(&self, path: &str, bytes: &[u8]) {
        if let Some((bucket, key)) = path.trim_start_matches('/').split_once('/') {
            self.service.overwrite(bucket, key, bytes).expect("the object's file can be written");
        }
    }

    async fn faulty(&self, request: Request<Incoming>, fault: Option<&Fault>) -> Result<Response<s3s::Body>, Cut> {
        match fault {
            Some(Fault::Status { status, code, retry_after_s }) => return Ok(refusal(*status, code, *retry_after_s)),
            Some(Fault::Cut) => return Err(Cut),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Hold) => {
                // Closed only when the server is gone.
                let _ = self.released.subscribe().wait_for(|released| *released).await;
            }
            Some(Fault::Delay(delay)) => tokio::time::sleep(*delay).await,
            Some(Fault::Overwritten(bytes)) => self.overwrite(request.uri().path(), bytes),
            _ => {}
        }
        let mut response = self.service.call(request.map(s3s::Body::from)).await?;
        match fault {
            Some(Fault::LoseAnswer) => return Err(Cut),
            Some(Fault::AnswerLate(delay)) => {
                self.held.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(*delay).await;
            }
            Some(Fault::ContentRange(range)) => set(&mut response, header::CONTENT_RANGE, range),
            Some(Fault::Etag(etag)) => set(&mut response, header::ETAG, etag),
            Some(Fault::Crc32(crc32)) => {
                set(&mut response, header::HeaderName::from_static("x-amz-checksum-crc32"), crc32);
            }
            Some(Fault::RangeIgnored) => {
                *response.status_mut() = StatusCode::OK;
                response.headers_mut().remove(header::CONTENT_RANGE);
            }
            _ => {}
        }
        Ok(response)
    }
}

fn text(request: &Request<Incoming>, name: header::HeaderName) -> Option<String> {
    request.headers().get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned)
}

fn set(response: &mut Response<s3s::Body>, name: header::HeaderName, value: &str) {
    response.headers_mut().insert(name, HeaderValue::from_str(value).expect("a header value"));
}

fn refusal(status: u16, code: &str, retry_after_s: Option<u32>) -> Response<s3s::Body> {
    let mut response = s3s_server::refusal(status, code, "as told");
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A request being answered.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: Arc<Counts>) -> Open {
        let open = counts.open.fetch_add(1, Ordering::SeqCst) + 1;
        counts.open_max.fetch_max(open, Ordering::SeqCst);
        Open(counts)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
