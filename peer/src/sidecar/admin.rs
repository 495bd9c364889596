//! The admin listener: `/metrics`, `/healthy` and `/readyz` over plain HTTP/1.
//!
//! Owns its connections, at most [`ADMIN_CONNECTIONS_MAX`] of them; further ones wait in the listen queue. It calls
//! nothing but [`Metrics`] and [`Health`]. A failing connection is dropped; nothing in here stops the peer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::health::Health;
use crate::limits::{ADMIN_CONNECTIONS_MAX, HEAD_TIMEOUT, IDLE_TIMEOUT};
use crate::metrics::{self, Metrics};

/// Pause after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until the task is aborted.
pub(super) async fn serve(listener: std::net::TcpListener, metrics: Metrics, health: Health) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin listener cannot be used"),
    };
    let free = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (metrics, health) = (metrics.clone(), health.clone());
                tokio::spawn(async move {
                    let served = tokio::time::timeout(IDLE_TIMEOUT, serve_connection(stream, metrics, health)).await;
                    tracing::trace!(?served, "admin connection ended");
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an admin connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, metrics: Metrics, health: Health) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let answer = answer(&request, &metrics, &health);
        async move { Ok::<_, Infallible>(answer) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, health: &Health) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".into());
    }
    match request.uri().path() {
        "/metrics" => reply(StatusCode::OK, metrics::CONTENT_TYPE, metrics.encode()),
        "/healthy" => reply(StatusCode::OK, "application/json; charset=utf-8", "\"OK\"".into()),
        "/readyz" => {
            let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            reply(status, "text/plain; charset=utf-8", health.describe() + "\n")
        }
        _ => reply(StatusCode::NOT_FOUND, "text/plain", "try /metrics, /healthy or /readyz\n".into()),
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
