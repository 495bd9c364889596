//! The other side of a link, for tests: a thread that accepts connections and does with each what the test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use dfstore_proto::decoder::Need;
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::limits::{PIECE_BYTES_MAX, VERSION_MAX};
use dfstore_proto::message::{
    Fetch, Hello, HelloAck, Message, NodeRole, ReadEnd, Reserve, Reserved, SourceCount, Target,
};
use dfstore_proto::object::Source;
use dfstore_proto::session::{Event, Session};

use crate::limits::PIECE_BYTES;
use crate::membership::{Node, NodeState};

/// Nothing takes longer than this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// One accepted connection.
pub struct Other {
    stream: TcpStream,
    session: Session,
    buffer: Vec<u8>,
}

impl Other {
    /// The HELLO of a fresh connection.
    pub fn greet(stream: TcpStream) -> (Other, Hello) {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut other = Other { stream, session: Session::accepting(), buffer: Vec::new() };
        match other.next() {
            Some(Event::Hello(hello)) => (other, hello),
            event => panic!("no HELLO but {event:?}"),
        }
    }

    /// A connection whose HELLO was accepted.
    pub fn accept(stream: TcpStream, requests_max: u16) -> Other {
        let (mut other, hello) = Other::greet(stream);
        assert_eq!(hello.token.reveal(), "secret");
        let ack = HelloAck {
            version: VERSION_MAX,
            node: "b".into(),
            agent: "test".into(),
            shards: 1,
            shard: 0,
            piece_bytes: PIECE_BYTES,
            piece_bytes_max: PIECE_BYTES_MAX,
            requests_max,
            credits: 4,
        };
        other.write(|session, out| session.accept(ack, out).expect("HELLO waits"));
        other
    }

    /// The next event; `None` when the other side has closed.
    pub fn next(&mut self) -> Option<Event> {
        loop {
            let mut input = &self.buffer[..];
            let event = self.session.receive(&mut input).expect("the peer keeps the rules");
            self.buffer.drain(..self.buffer.len() - input.len());
            if event.is_some() {
                return event;
            }
            assert!(!matches!(self.session.need(), Need::Raw(_)), "the peer sends no pieces");
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the test hangs: {error}"),
            }
        }
    }

    /// The next request.
    pub fn request(&mut self) -> Option<(RequestId, Message)> {
        loop {
            match self.next()? {
                Event::Request { request, message } => return Some((request, message)),
                Event::Credit(_) => {}
                event => panic!("no request but {event:?}"),
            }
        }
    }

    pub fn write(&mut self, encode: impl FnOnce(&mut Session, &mut BytesMut)) {
        let mut out = BytesMut::new();
        encode(&mut self.session, &mut out);
        self.raw(&out);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the peer reads");
    }

    pub fn answer(&mut self, request: RequestId, message: impl Into<Message>) {
        self.write(|session, out| {
            session.send(request, message, out).expect("may be sent");
        });
    }

    /// The head of a piece; its raw bytes are to follow.
    pub fn head(&mut self, request: RequestId, fetch: &Fetch, bytes: &[u8]) -> PieceHead {
        let head = head(fetch, bytes);
        let front = self.session.send_piece(request, &head).expect("a credit is there");
        self.raw(&front);
        head
    }

    /// Answers FETCH.
    pub fn serve(&mut self, request: RequestId, fetch: &Fetch, bytes: &[u8]) {
        self.head(request, fetch, bytes);
        self.raw(bytes);
        let source = SourceCount { source: Source::Local, pieces: 1, bytes: bytes.len() as u64 };
        self.answer(request, ReadEnd { sources: vec![source] });
    }

    /// Answers all requests until the peer closes.
    pub fn serve_all(mut self) {
        while let Some((request, message)) = self.request() {
            match message {
                Message::Fetch(fetch) => self.serve(request, &fetch, &content(fetch.number)),
                _ => self.answer(request, Reserved { generation: request.0 }),
            }
        }
    }

    pub fn session(&self) -> &Session {
        &self.session
    }
}

pub fn head(fetch: &Fetch, bytes: &[u8]) -> PieceHead {
    PieceHead {
        task: fetch.task,
        generation: fetch.generation,
        offset: u64::from(fetch.number) * u64::from(PIECE_BYTES),
        number: fetch.number,
        length: u32::try_from(bytes.len()).expect("a piece"),
        crc32: crc32fast::hash(bytes),
    }
}

/// The bytes of a piece, different for each and longer than one read.
pub fn content(number: u32) -> Vec<u8> {
    (0..700_000 + number).map(|index| (index.wrapping_mul(31).wrapping_add(number) % 251) as u8).collect()
}

pub fn target() -> Target {
    Target::new(dfstore_proto::ids::ObjectName::new("bucket", "key"))
}

pub fn question() -> Message {
    Reserve { target: target() }.into()
}

pub fn fetch_of(number: u32) -> Fetch {
    Fetch { task: target().task(), generation: 7, number, local_only: true }
}

/// A node at this address, in its first life.
pub fn node_at(address: SocketAddr) -> Node {
    Node {
        id: "b".into(),
        started_us: 1,
        role: NodeRole::Peer,
        peer: address,
        api: address,
        shards: 1,
        capacity_bytes: 0,
        version: String::new(),
        state: NodeState::default(),
    }
}

/// Listens, and runs `script` with each connection and its number, on a thread of its own. Gives the node and how
/// many connections there were.
pub fn listen(script: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> (Node, Arc<AtomicUsize>) {
    serve_on(TcpListener::bind("127.0.0.1:0").expect("a free port"), script)
}

/// As [`listen`], on a listener that is there.
pub fn serve_on(
    listener: TcpListener,
    script: impl Fn(usize, TcpStream) + Send + Sync + 'static,
) -> (Node, Arc<AtomicUsize>) {
    let address = listener.local_addr().expect("bound");
    let count = Arc::new(AtomicUsize::new(0));
    let (counted, script) = (count.clone(), Arc::new(script));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (number, script) = (counted.fetch_add(1, Ordering::AcqRel), script.clone());
            std::thread::spawn(move || script(number, stream));
        }
    });
    (node_at(address), count)
}
