//! The thread as a whole: starting, answering, stopping.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use dfstore_proto::ids::ObjectName;

use super::backend::{BackendErrorKind, BackendHandle, BackendTuning};
use super::health::{Health, Phase};
use super::{Sidecar, SidecarError, SidecarOptions};
use crate::config::{BackendOptions, Credentials, MetricsOptions, Provider, Secret};
use crate::metrics::Metrics;

const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn options(endpoint: SocketAddr) -> SidecarOptions {
    SidecarOptions {
        backend: BackendOptions {
            provider: Provider::S3,
            region: Some("us-east-1".into()),
            endpoint: Some(format!("http://{endpoint}")),
            credentials: Some(Credentials {
                access_key: Secret::new("key"),
                secret_key: Secret::new("secret"),
                session_token: None,
            }),
            path_style: true,
        },
        tuning: BackendTuning::default(),
        admin: MetricsOptions { listen: Some(LOCAL.into()) },
        metrics: Metrics::new(1, "test"),
        health: Health::new(),
    }
}

/// A backend that accepts connections and says nothing.
fn silent_backend() -> TcpListener {
    TcpListener::bind(SocketAddr::from(LOCAL)).expect("a port")
}

fn ask(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    write!(stream, "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    answer
}

#[test]
fn admin_listener_tells_metrics_and_health() {
    let backend = silent_backend();
    let options = options(backend.local_addr().expect("bound"));
    let health = options.health.clone();
    let (sidecar, _handle) = Sidecar::start(options).expect("started");
    let address = sidecar.admin_address().expect("listening");
    assert!(ask(address, "GET /healthy").starts_with("HTTP/1.1 200"));
    assert!(ask(address, "GET /readyz").starts_with("HTTP/1.1 503"));
    health.set_phase(Phase::Ready);
    assert!(ask(address, "GET /readyz").ends_with("ready\n"));
    health.poison_store();
    let poisoned = ask(address, "GET /readyz");
    assert!(poisoned.starts_with("HTTP/1.1 503") && poisoned.contains("store poisoned"), "{poisoned}");
    let metrics = ask(address, "GET /metrics");
    assert!(metrics.contains("openmetrics-text") && metrics.contains("dfstore_build_info"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"));
    assert!(ask(address, "GET /else").starts_with("HTTP/1.1 404"));
    assert!(ask(address, "POST /metrics").starts_with("HTTP/1.1 405"));
}

#[test]
fn address_in_use_is_named() {
    let taken = silent_backend();
    let mut options = options(taken.local_addr().expect("bound"));
    options.admin.listen = Some(taken.local_addr().expect("bound"));
    let error = Sidecar::start(options).err().expect("in use");
    assert!(matches!(error, SidecarError::Listen { .. }));
    assert!(error.to_string().contains("metrics.listen"), "{error}");
}

/// Asks for an object; gives the kind of the failure.
fn ask_backend(handle: &BackendHandle) -> std::thread::JoinHandle<BackendErrorKind> {
    let handle = handle.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(handle.head(ObjectName::new("bucket", "key"))).expect_err("no answer").kind
    })
}

#[test]
fn stopping_waits_no_longer_than_told() {
    let backend = silent_backend();
    let (sidecar, handle) = Sidecar::start(options(backend.local_addr().expect("bound"))).expect("started");
    let asking = ask_backend(&handle);
    let _connection = backend.accept().expect("the request arrives");
    let started = Instant::now();
    sidecar.stop(Duration::from_millis(100));
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(asking.join().expect("answered"), BackendErrorKind::Internal);
    assert_eq!(ask_backend(&handle).join().expect("answered"), BackendErrorKind::Internal, "also later");
}
