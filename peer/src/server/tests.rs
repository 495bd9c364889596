//! A shard with all its doors and the links of another node, in one process: who gets in, and what they get.

mod power_cut;
mod publishing;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use dfstore_proto::decoder::{Decoder, Frame};
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::FrameLimits;
use dfstore_proto::ids::ObjectName;
use dfstore_proto::limits::{CONTROL_BYTES_MAX, VERSION_OF_PEERS};
use dfstore_proto::message::{Fetch, GetConfig, Hello, Message, NodeRole, Open, Role, Route, Target, Token};
use dfstore_proto::preface::Versions;
use dfstore_proto::session::Session;
use tempfile::TempDir;

use super::shard::{ShardSetup, run_shard};
use super::{Resources, close, open_resources, watermarks};
use crate::config::{Config, Overrides};
use crate::engine::call::ShardMessage;
use crate::engine::{Context, DirtyBudget, Inventory, RepairPlan, ScrubPlan};
use crate::limits::{PIECE_BYTES, SHARD_MAILBOX};
use crate::links::{FetchedPiece, LinkError, Links, LinksSetup};
use crate::membership::{Members, Node, NodeState};
use crate::metrics::Metrics;
use crate::native::ClusterFace;
use crate::rt::arena::{Arena, Holder};
use crate::rt::mailbox::{Sender, mailbox};
use crate::rt::net::Door;
use crate::rt::shard::{ShardThread, block_on};
use crate::rt::time::{sleep, timeout};
use crate::sidecar::health::Health;

/// A node of one shard. Its backend does not exist, unless said otherwise.
struct Served {
    api: SocketAddr,
    peer: SocketAddr,
    manager: SocketAddr,
    face: Arc<ClusterFace>,
    metrics: Metrics,
    mailbox: Option<Sender<ShardMessage>>,
    thread: Option<ShardThread>,
    resources: Option<Resources>,
    _folder: TempDir,
}

impl Served {
    fn start() -> Served {
        Served::before(([127, 0, 0, 1], 1).into())
    }

    /// With the backend at this address.
    fn before(backend: SocketAddr) -> Served {
        let parent = env!("CARGO_MANIFEST_DIR").to_owned() + "/../target";
        let folder = tempfile::tempdir_in(parent).expect("target can be written");
        let yaml = format!(
            "objectStorage: {{ enable: true, name: s3, region: us-east-1, endpoint: \"http://{backend}\", \
             accessKey: a, secretKey: b }}\nstorage: {{ dataPath: {:?}, capacity: 128MiB }}\nshards: 1\n",
            folder.path().display().to_string()
        );
        let config = Config::parse("test", &yaml, &Overrides::default()).expect("valid");
        let (metrics, health) = (Metrics::new(1, ""), Health::new());
        let (resources, loaded, _) = open_resources(&config, &metrics, &health, None).expect("they open");
        let face = ClusterFace::new("b".into(), Token::new("secret"), None);
        let members = Members { cluster: "c".into(), me: "b".into(), live: Vec::new(), dead: Vec::new() };
        let doors = [Door::Api, Door::Peer, Door::Manager]
            .map(|door| (door, TcpListener::bind("127.0.0.1:0").expect("a free port")));
        let [api, peer, manager] = doors.each_ref().map(|(_, listener)| listener.local_addr().expect("bound"));
        let (sender, receiver) = mailbox(SHARD_MAILBOX);
        let (drained, _) = mailbox(1);
        let inventory = Inventory::new(loaded, &resources.seed, 1);
        let context = Context {
            arena: Arena::new(128 << 20).expect("mapped"),
            catalog: resources.catalog.handle(),
            backend: resources.backend.clone(),
            background: resources.background.handle(),
            metrics: metrics.clone(),
            health,
            freshness: config.freshness.clone(),
            conflict: config.conflict.clone(),
            scrub: ScrubPlan::of(&config.store, 1),
            dirty: DirtyBudget::new(config.store.dirty_limit_bytes),
            shards: vec![sender.clone()],
            repair: RepairPlan::of(None, 1),
            replicas_default: config.http.replicas_default,
            uploads: face.uploads_counter(),
            evictions: Arc::default(),
            outages_ended: Arc::default(),
            next_id: Arc::default(),
        };
        let setup = ShardSetup {
            shard: 0,
            context,
            seed: resources.seed.clone(),
            inventory: inventory.shards.into_iter().next().expect("one shard"),
            watermarks: watermarks(&config.store),
            listeners: doors.into(),
            mailbox: receiver,
            http: config.http.clone(),
            cluster: Some((face.clone(), Arc::new(members))),
            work: None,
            drained,
        };
        let thread = ShardThread::start("shard-0".into(), 0, move || run_shard(setup)).expect("it starts");
        let (mailbox, thread, resources) = (Some(sender), Some(thread), Some(resources));
        Served { api, peer, manager, face, metrics, mailbox, thread, resources, _folder: folder }
    }

    /// This node as others see it, at one of its addresses.
    fn node(&self, address: SocketAddr) -> Node {
        Node {
            id: "b".into(),
            started_us: 1,
            role: NodeRole::Peer,
            peer: address,
            api: self.api,
            shards: 1,
            capacity_bytes: 0,
            version: String::new(),
            state: NodeState::default(),
        }
    }

    /// Writes an ephemeral object.
    fn put(&self, key: &str, bytes: &[u8]) {
        let length = bytes.len();
        let mut request = format!(
            "PUT /buckets/bucket/objects/{key}?mode=2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(bytes);
        let answer = exchange(self.api, &request);
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }

    fn sample(&self, name: &str) -> u64 {
        let text = self.metrics.encode();
        let value = text.lines().find_map(|line| line.strip_prefix(name)).expect("it is there");
        value.trim().parse().expect("a number")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let (Some(mailbox), Some(thread)) = (self.mailbox.take(), self.thread.take()) {
            mailbox.send_blocking(ShardMessage::End).expect("it runs");
            thread.join();
        }
        if let Some(resources) = self.resources.take() {
            close(resources);
        }
    }
}

/// A backend whose only object has these bytes: it answers HEAD and GET of a range, whatever the name.
fn bucket_of(bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let bytes = Arc::new(bytes);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let bytes = bytes.clone();
            std::thread::spawn(move || serve_object(stream, &bytes));
        }
    });
    address
}

fn serve_object(stream: TcpStream, bytes: &[u8]) {
    let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
    let (mut stream, total) = (stream, bytes.len());
    loop {
        let head: Vec<String> =
            reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let Some(request) = head.first() else { return };
        let range =
            head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let range = range.and_then(|range| {
            let (first, last) = range.split_once('-')?;
            Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1)
        });
        let body = range.clone().map_or(bytes, |range| &bytes[range]);
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let content_range = range.map_or(String::new(), |range| {
            format!("Content-Range: bytes {}-{}/{total}\r\n", range.start, range.end - 1)
        });
        let answer = format!(
            "HTTP/1.1 {status}\r\nETag: \"e\"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n{content_range}\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        let body = if request.starts_with("HEAD") { &[][..] } else { body };
        if stream.write_all(&[answer.as_bytes(), body].concat()).is_err() {
            return;
        }
    }
}

/// Sends bytes and reads to the end.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    stream.write_all(bytes).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered and closed");
    answer
}

/// The ERROR that ends a native connection.
fn refusal(answer: &[u8]) -> ErrorReply {
    let mut decoder = Decoder::new(FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: 0 });
    let mut input = answer;
    match decoder.push(&mut input) {
        Ok(Some(Frame::Message { message: Message::Error(reply), .. })) => reply,
        other => panic!("no ERROR but {other:?}"),
    }
}

fn hello(role: Role, max: u8, token: &str) -> BytesMut {
    hello_with_pieces(role, max, token, PIECE_BYTES)
}

fn hello_with_pieces(role: Role, max: u8, token: &str, piece_bytes_max: u32) -> BytesMut {
    let hello = Hello {
        versions: Versions { min: 1, max },
        role,
        route: Route::Any,
        token: Token::new(token),
        agent: "test".into(),
        piece_bytes_max,
        credits: 8,
    };
    let mut out = BytesMut::new();
    Session::connecting(hello, &mut out).expect("within limits");
    out
}

fn links(token: &str) -> Links {
    Links::new(LinksSetup { shard: 0, credential: Token::new(token), metrics: Metrics::new(1, "") })
}

#[test]
fn a_peer_fetches_what_another_one_holds() {
    let served = Served::start();
    let bytes: Vec<u8> =
        (0..PIECE_BYTES * 2 + 1000).map(|index| index.to_le_bytes()[0] ^ index.to_le_bytes()[2]).collect();
    served.put("key", &bytes);
    let target = Target::new(ObjectName::new("bucket", "key"));
    let (node, arena) = (served.node(served.peer), Arena::new(128 << 20).expect("mapped"));
    block_on(async {
        let links = links("secret");
        let open = Open { target: target.clone(), no_cache: false };
        let answer = links.ask(&node, Some(&target.task()), open.into()).await.expect("opened");
        let Message::OpenOk(info) = answer else { panic!("{answer:?}") };
        let fetch = async |number, generation, local_only| -> Result<FetchedPiece, LinkError> {
            let slot = arena.try_take(PIECE_BYTES as usize, Holder::Fetch).expect("free");
            links.fetch(&node, Fetch { task: target.task(), generation, number, local_only }, slot, None).await
        };
        for (number, wanted) in (0..).zip(bytes.chunks(PIECE_BYTES as usize)) {
            let piece = fetch(number, info.generation, number % 2 == 0).await.expect("it is there");
            assert!(piece.slot[..] == *wanted, "piece {number}");
            assert!(piece.head.fits(PIECE_BYTES, Some(bytes.len() as u64)));
        }
        let beyond = fetch(3, info.generation, true).await.err().expect("three pieces");
        assert_eq!(beyond.code(), Some(ErrorCode::RangeNotSatisfiable));
        let other = fetch(0, info.generation + 1, true).await.err().expect("no such version");
        assert_eq!(other.code(), Some(ErrorCode::VersionChanged));
        let all_sent = async {
            while served.face.uploads() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), all_sent).await.expect("nothing is on its way");
    })
    .expect("a runtime");
    assert_eq!(served.sample("dfstore_peer_sent_bytes_total"), bytes.len() as u64);
    assert!(!served.metrics.encode().contains("dfstore_served_bytes_total{"), "no client was served");
}

#[test]
fn a_piece_that_is_not_here_is_fetched_for_another_peer_only_when_that_is_wanted() {
    let bytes: Vec<u8> = (0..PIECE_BYTES + 1000).map(|index| index.to_le_bytes()[1]).collect();
    let served = Served::before(bucket_of(bytes.clone()));
    let target = Target::new(ObjectName::new("bucket", "key"));
    let (node, arena) = (served.node(served.peer), Arena::new(128 << 20).expect("mapped"));
    block_on(async {
        let links = links("secret");
        let open = Open { target: target.clone(), no_cache: false };
        let answer = links.ask(&node, Some(&target.task()), open.into()).await.expect("opened");
        let Message::OpenOk(info) = answer else { panic!("{answer:?}") };
        let fetch = async |local_only| -> Result<FetchedPiece, LinkError> {
            let slot = arena.try_take(PIECE_BYTES as usize, Holder::Fetch).expect("free");
            let fetch = Fetch { task: target.task(), generation: info.generation, number: 1, local_only };
            links.fetch(&node, fetch, slot, None).await
        };
        assert_eq!(fetch(true).await.err().and_then(|error| error.code()), Some(ErrorCode::NotFound));
        for (local_only, wanted) in [(false, "backend"), (true, "now it is here")] {
            let piece = fetch(local_only).await.expect(wanted);
            assert!(piece.slot[..] == bytes[PIECE_BYTES as usize..], "{wanted}");
        }
        assert_eq!(fetch(true).await.expect("still here").sources.len(), 1);
    })
    .expect("a runtime");
    assert_eq!(served.sample("dfstore_backend_received_bytes_total"), 1000, "read once");
}

#[test]
fn only_peers_with_the_credential_get_in_and_only_by_their_doors() {
    let served = Served::start();
    let get_config = || Message::from(GetConfig {});
    block_on(async {
        let code = async |token: &str, address| {
            let error = links(token).ask(&served.node(address), None, get_config()).await.expect_err("no answer");
            (error.is_unreachable(), error.code())
        };
        assert_eq!(code("wrong", served.peer).await, (true, Some(ErrorCode::AccessDenied)));
        assert_eq!(code("wrong", served.manager).await, (true, Some(ErrorCode::AccessDenied)));
        assert_eq!(code("secret", served.api).await, (true, Some(ErrorCode::AccessDenied)));
        // These get in; the question itself is refused.
        assert_eq!(code("secret", served.peer).await, (false, Some(ErrorCode::Unsupported)));
        let answer = links("secret").ask_at(served.manager, get_config()).await;
        assert_eq!(answer.expect_err("refused").code(), Some(ErrorCode::Unsupported));
    })
    .expect("a runtime");
}

#[test]
fn whoever_is_turned_away_learns_why() {
    let served = Served::start();
    let too_old = refusal(&exchange(served.peer, &hello(Role::Peer, VERSION_OF_PEERS - 1, "secret")));
    assert_eq!(too_old.code, ErrorCode::Unsupported);
    assert!(too_old.message.contains("version"), "{too_old}");
    let larger = hello_with_pieces(Role::Peer, VERSION_OF_PEERS, "secret", 2 * PIECE_BYTES);
    let larger = refusal(&exchange(served.peer, &larger));
    assert_eq!(larger.code, ErrorCode::Unsupported);
    assert!(larger.message.contains("pieces of this node are of 2097152 bytes"), "{larger}");
    let client = refusal(&exchange(served.peer, &hello(Role::Client, 1, "")));
    assert!(client.message.contains("clients connect to the object port"), "{client}");
    for door in [served.peer, served.manager] {
        let http = refusal(&exchange(door, b"GET /healthy HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(http.code, ErrorCode::ProtocolError);
    }
    let answer = exchange(served.api, b"GET /healthy HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn a_client_is_not_answered_what_only_peers_may_ask() {
    let served = Served::start();
    let mut opening = BytesMut::new();
    let task = Target::new(ObjectName::new("bucket", "key")).task();
    let fetch = Fetch { task, generation: 1, number: 0, local_only: true };
    Message::from(fetch).encode(dfstore_proto::frame::RequestId(1), &mut opening).expect("within limits");
    let mut stream = TcpStream::connect(served.api).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    stream.write_all(&[&hello(Role::Client, VERSION_OF_PEERS, "")[..], &opening[..]].concat()).expect("sent");
    let mut decoder = Decoder::new(FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: 0 });
    let mut messages = Vec::new();
    while messages.len() < 2 {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).expect("answered");
        assert!(count > 0, "closed after {messages:?}");
        let mut input = &chunk[..count];
        while let Some(Frame::Message { message, .. }) = decoder.push(&mut input).expect("frames") {
            messages.push(message);
        }
    }
    let [Message::HelloAck(ack), Message::Error(reply)] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!((ack.node.as_str(), ack.version), ("b", VERSION_OF_PEERS));
    assert_eq!(reply.code, ErrorCode::ProtocolError);
}
