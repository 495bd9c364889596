//! The thread as a whole: starting, answering, stopping.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::NodeRole;

use super::backend::{BackendErrorKind, BackendHandle, BackendTuning};
use super::gossip::{GossipSetup, GossipTuning};
use super::health::{Health, Phase};
use super::{Sidecar, SidecarError, SidecarOptions};
use crate::config::{BackendOptions, Credentials, MetricsOptions, Provider, Secret};
use crate::membership::{Node, NodeState};
use crate::metrics::Metrics;

const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn backend(endpoint: SocketAddr) -> BackendOptions {
    BackendOptions {
        provider: Provider::S3,
        region: Some("us-east-1".into()),
        endpoint: Some(format!("http://{endpoint}")),
        credentials: Some(Credentials {
            access_key: Secret::new("key"),
            secret_key: Secret::new("secret"),
            session_token: None,
        }),
        path_style: true,
    }
}

fn options(endpoint: SocketAddr) -> SidecarOptions {
    SidecarOptions {
        backend: Some(backend(endpoint)),
        cluster: None,
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

/// Reads a request and answers that there is no such object.
fn answer_not_found(mut connection: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).expect("a request head");
        head.push(byte[0]);
    }
    let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    connection.write_all(answer.as_bytes()).expect("still there");
}

#[test]
fn without_a_backend_calls_fail_until_one_is_configured() {
    let server = silent_backend();
    let address = server.local_addr().expect("bound");
    let options = SidecarOptions { backend: None, ..options(address) };
    let health = options.health.clone();
    let (_sidecar, handle) = Sidecar::start(options).expect("started");
    assert_eq!((handle.options(), handle.description().name.as_str()), (None, ""));
    let refused = ask_backend(&handle).join().expect("answered");
    assert_eq!(refused, BackendErrorKind::NotConfigured);
    assert!(refused.is_retryable() && refused.is_outage());

    assert!(handle.configure(backend(address)));
    let asking = ask_backend(&handle);
    answer_not_found(server.accept().expect("the request arrives").0);
    assert_eq!(asking.join().expect("answered"), BackendErrorKind::NotFound);
    assert!(health.backend_reachable());
    assert_eq!(handle.description().endpoint, format!("http://{address}"));
    assert_eq!(handle.options().as_deref(), Some(&backend(address)));
}

#[test]
fn another_backend_takes_new_calls_and_the_one_before_ends_its_own() {
    let (first, second) = (silent_backend(), silent_backend());
    let (first_address, second_address) = (first.local_addr().expect("bound"), second.local_addr().expect("bound"));
    let (_sidecar, handle) = Sidecar::start(options(first_address)).expect("started");
    let before = ask_backend(&handle);
    let (in_flight, _) = first.accept().expect("the request arrives");

    assert!(handle.configure(backend(second_address)));
    let after = ask_backend(&handle);
    answer_not_found(second.accept().expect("the other one is asked").0);
    assert_eq!(after.join().expect("answered"), BackendErrorKind::NotFound);
    assert!(!before.is_finished(), "it waits for the first one");
    answer_not_found(in_flight);
    assert_eq!(before.join().expect("answered"), BackendErrorKind::NotFound);

    assert!(!handle.configure(backend(second_address)), "the same again");
    assert!(handle.configure(backend(first_address)), "and back");
    let again = ask_backend(&handle);
    answer_not_found(first.accept().expect("the first one is asked").0);
    assert_eq!(again.join().expect("answered"), BackendErrorKind::NotFound);
}

#[test]
fn a_node_of_a_cluster_gossips_and_says_whose_port_is_taken() {
    let (address, any) = (SocketAddr::from(LOCAL), SocketAddr::from(([127, 0, 0, 1], 9)));
    let node = Node {
        id: "a".into(),
        started_us: 1,
        role: NodeRole::Peer,
        peer: any,
        api: any,
        shards: 1,
        capacity_bytes: 1,
        version: "test".into(),
        state: NodeState::default(),
    };
    let started = |listen| {
        let (deliver, delivered) = sync_channel(16);
        let setup = GossipSetup {
            credential: Secret::new("credential"),
            cluster: "demo".into(),
            listen,
            advertise: listen.ip(),
            seeds: Vec::new(),
            me: node.clone(),
            deliver: Box::new(move |members| drop(deliver.try_send(members))),
            tuning: GossipTuning::default(),
        };
        let options = SidecarOptions { backend: None, cluster: Some(setup), ..options(any) };
        Sidecar::start(options).map(|(sidecar, _)| (sidecar, delivered))
    };
    let (sidecar, delivered) = started(address).expect("started");
    let members = delivered.recv_timeout(Duration::from_secs(30)).expect("the first snapshot");
    assert_eq!(members.live, [node.clone().into()]);
    let taken = sidecar.gossip().expect("a node of a cluster").address();
    let error = started(taken).err().expect("in use");
    assert!(error.to_string().contains("gossip.listen"), "{error}");
    sidecar.stop(Duration::ZERO);
    started(taken).expect("the port is free again");
}
