//! Dragonfly's object API over HTTP: the face that existing clients of dfstore know.
//!
//! [`serve`] owns one connection on one shard until it ends: hyper parses, [`guard`] refuses ambiguous heads,
//! [`route`] finds the route, and the other files answer, each for its routes. Speaks to the [`Engine`] only; never
//! touches a file or the backend. What can fail becomes a status ([`answer`]), or after the head a connection that ends
//! short of its `Content-Length`. Invariant: no byte of an answer comes from another version than its head announced.

pub mod guard;
pub mod route;

mod answer;
mod condition;
mod form;
mod get;
mod ingest;
mod list;
mod object_body;
mod put;
mod range;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use serde::Serialize;

use crate::engine::request::{DeleteDone, Target};
use crate::engine::{Engine, target_of};
use crate::http::answer::{Answer, RequestError, Sending};
use crate::http::guard::{HeadGuard, Verdict};
use crate::http::route::{ObjectAction, Route};
use crate::limits::{HTTP_BUFFER_BYTES_MAX, HTTP_HEAD_BYTES_MAX};
use crate::metrics::{self, Face, Metrics, Operation};
use crate::rt::hyper_io::{Activity, HyperIo, drive};
use crate::rt::net::Connection;

/// The face of one shard.
pub struct HttpFace {
    engine: Engine,
    metrics: Metrics,
}

impl HttpFace {
    /// The face over this engine.
    pub fn new(engine: Engine, metrics: Metrics) -> HttpFace {
        HttpFace { engine, metrics }
    }

    /// What the provider means when it names no storage class.
    fn storage_class(&self) -> &'static str {
        if self.engine.backend_info().name == "oss" { "Standard" } else { "STANDARD" }
    }
}

/// One connection: the face, and what only its requests share.
struct Session {
    face: Rc<HttpFace>,
    verdict: Verdict,
    activity: Rc<Activity>,
    requests: Cell<u64>,
}

/// Serves requests until the client has gone or is overdue. When `stop` completes, the request in flight is finished
/// and the connection closed.
pub async fn serve(connection: Connection, face: Rc<HttpFace>, stop: impl Future<Output = ()>) {
    let _open = face.metrics.shard(face.engine.shard()).connection(Face::Http);
    let (guard, verdict) = HeadGuard::new();
    let io = match HyperIo::new(connection, guard) {
        Ok(io) => io,
        Err(error) => return tracing::warn!(%error, "cannot serve a connection"),
    };
    let activity = io.activity();
    let session = Rc::new(Session { face, verdict, activity: activity.clone(), requests: Cell::new(0) });
    let service = service_fn(move |request| -> Pin<Box<dyn Future<Output = _>>> {
        let session = session.clone();
        Box::pin(async move { Ok::<_, Infallible>(session.answer(request).await) })
    });
    // Header timeouts are the activity's; hyper's own would need a timer per request.
    let connection = http1::Builder::new()
        .half_close(true)
        .header_read_timeout(None)
        .max_header_size(HTTP_HEAD_BYTES_MAX)
        .max_buf_size(HTTP_BUFFER_BYTES_MAX)
        .serve_connection(io, service);
    match drive(connection, activity, stop, |connection| connection.graceful_shutdown()).await {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "a connection broke off"),
        None => tracing::debug!("a connection was cut: its client was silent for too long"),
    }
}

impl Session {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Sending> {
        let in_flight = self.activity.request();
        let number = self.requests.replace(self.requests.get() + 1);
        if let Some(reason) = self.verdict.on(number).or_else(|| host_problem(&request)) {
            let timer = self.face.metrics.request(Face::Http, Operation::Other);
            let mut answer = answer::refusal(StatusCode::BAD_REQUEST, reason);
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return Sending::attach(answer, Some(timer), in_flight);
        }
        let route = route::route(request.method(), request.uri().path());
        // As in the original, asking for the metrics is not counted.
        let operation = operation_of(&route, &request).filter(|_| route != Route::Metrics);
        let timer = operation.map(|operation| self.face.metrics.request(Face::Http, operation));
        let mut answer = self.face.dispatch(route, &mut request).await.unwrap_or_else(|error| answer::error(&error));
        if !form::read_to_end(&mut request).await {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Sending::attach(answer, timer, in_flight)
    }
}

/// HTTP/1.1 wants exactly one `Host`.
fn host_problem(request: &Request<Incoming>) -> Option<&'static str> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let wrong = hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11);
    wrong.then_some("a request has exactly one Host header")
}

fn operation_of(route: &Route, request: &Request<Incoming>) -> Option<Operation> {
    Some(match route {
        Route::Metrics => return None,
        Route::Healthy | Route::Ready => Operation::Health,
        Route::Metadata => Operation::Metadata,
        Route::CreateBucket(_) => Operation::CreateBucket,
        Route::List(_) => Operation::List,
        Route::Object(ObjectAction::Head, _) => Operation::Head,
        Route::Object(ObjectAction::Get, _) => Operation::Get,
        Route::Object(ObjectAction::Put, _) if put::is_copy(request.headers()) => Operation::Copy,
        Route::Object(ObjectAction::Put, _) => Operation::Put,
        Route::Object(ObjectAction::Delete, _) => Operation::Delete,
        Route::Redirect { .. } | Route::NotFound | Route::Invalid(_) => Operation::Other,
    })
}

impl HttpFace {
    async fn dispatch(&self, route: Route, request: &mut Request<Incoming>) -> Result<Answer, RequestError> {
        match route {
            Route::Healthy => Ok(answer::json(&"OK")),
            Route::Ready => {
                let (ready, text) = self.engine.readiness();
                let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                Ok(answer::text(status, text + "\n"))
            }
            Route::Metadata => Ok(self.metadata()),
            Route::Metrics => {
                let content_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
                Ok(answer::with_bytes(StatusCode::OK, Some(content_type), Bytes::from(self.metrics.encode())))
            }
            Route::CreateBucket(bucket) => {
                // No key is named; any valid one lets the bucket be checked by the same rule.
                target_of(&bucket, "-")?;
                self.engine.create_bucket(&bucket).await?;
                Ok(answer::empty(StatusCode::OK))
            }
            Route::List(bucket) => Ok(list::list(self, &bucket, request.uri().query()).await?),
            Route::Object(action, target) => self.object(action, &target, request).await,
            Route::Redirect { add } => Ok(redirect(request, add)),
            Route::NotFound => Ok(answer::no_route()),
            Route::Invalid(error) => Err(error.into()),
        }
    }

    async fn object(
        &self,
        action: ObjectAction,
        target: &Target,
        request: &mut Request<Incoming>,
    ) -> Result<Answer, RequestError> {
        match action {
            ObjectAction::Head => Ok(get::head(self, target, request.headers()).await?),
            ObjectAction::Get => Ok(get::get(self, target, request.headers()).await?),
            ObjectAction::Put if put::is_copy(request.headers()) => put::copy(self, target, request).await,
            ObjectAction::Put => put::put(self, target, request).await,
            ObjectAction::Delete => {
                // Gone for every client of this peer either way; 202: the backend is told later.
                Ok(answer::empty(match self.engine.delete(target).await? {
                    DeleteDone::Deleted => StatusCode::OK,
                    DeleteDone::Pending => StatusCode::ACCEPTED,
                }))
            }
        }
    }

    /// What JuiceFS asks first: it accepts the names `s3` and `oss`.
    fn metadata(&self) -> Answer {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Metadata<'a> {
            name: &'a str,
            region: &'a str,
            endpoint: &'a str,
        }
        let backend = self.engine.backend_info();
        answer::json(&Metadata { name: &backend.name, region: &backend.region, endpoint: &backend.endpoint })
    }
}

/// 301 for a GET, 307 for what must be sent again as it is.
fn redirect(request: &Request<Incoming>, add: bool) -> Answer {
    let get = *request.method() == http::Method::GET;
    let mut answer = answer::empty(if get { StatusCode::MOVED_PERMANENTLY } else { StatusCode::TEMPORARY_REDIRECT });
    let location = route::redirect_target(request.uri().path(), request.uri().query(), add);
    if let Ok(location) = HeaderValue::from_str(&location) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}
