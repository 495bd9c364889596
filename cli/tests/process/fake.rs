//! A peer in this process: objects in memory, a thread for each connection, faults on demand.
//!
//! It answers only what the session state machine of `dfstore-proto` allows, so a client that breaks a rule fails its
//! test. Nothing here sleeps: where a test has to catch the client in the middle, the fake stops at a [`Gate`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::BytesMut;
use dfstore_proto::crc::whole_crc32;
use dfstore_proto::decoder::Need;
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::limits::PIECE_BYTES_MAX;
use dfstore_proto::message::{
    Done, HelloAck, List, ListEntry, ListOk, ListPage, Message, PieceAck, PutBegin, PutDone, PutReady,
    Read as ReadPieces, ReadEnd, Target, VersionInfo, VersionState, WrittenTo,
};
use dfstore_proto::object::{ObjectMeta, Source};
use dfstore_proto::session::{Event, Session};

/// Small, so that small objects have many pieces.
pub const PIECE_BYTES: u32 = 64 << 10;

type Name = (String, String);

/// One object.
#[derive(Clone)]
pub struct Object {
    pub data: Arc<Vec<u8>>,
    pub meta: ObjectMeta,
    pub generation: u64,
}

/// What goes wrong. Counts go down as they are used up.
#[derive(Default)]
pub struct Faults {
    /// These many pieces go out with one bit flipped.
    pub damaged_pieces: usize,
    /// These many connections break instead of sending a piece.
    pub broken_reads: usize,
    /// These many connections break when a piece comes in on a connection that began (`true`) or joined (`false`).
    pub broken_writes: Vec<bool>,
    /// The whole-object CRC32 in OPEN_OK is wrong.
    pub wrong_whole: bool,
    /// The next READ replaces its object by this one first.
    pub replace_on_read: Option<Vec<u8>>,
    /// The next requests of any kind are refused.
    pub refusals: VecDeque<ErrorReply>,
    /// The first piece, in or out, stops here.
    pub gate: Option<Gate>,
}

/// A place where the fake waits for the test.
pub struct Gate {
    reached: Sender<()>,
    go_on: Receiver<()>,
}

/// The test's side of a [`Gate`].
pub struct GateKeeper {
    reached: Receiver<()>,
    go_on: Sender<()>,
}

impl Gate {
    pub fn new() -> (Gate, GateKeeper) {
        let (reached, is_reached) = channel();
        let (open, go_on) = channel();
        (Gate { reached, go_on }, GateKeeper { reached: is_reached, go_on: open })
    }

    fn pass(self) {
        let _ = self.reached.send(());
        let _ = self.go_on.recv();
    }
}

impl GateKeeper {
    /// Until the client has come to the gate.
    pub fn wait(&self) {
        self.reached.recv().expect("the client comes this far");
    }

    pub fn open(&self) {
        let _ = self.go_on.send(());
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Name, Object>,
    uploads: HashMap<u64, Upload>,
    generation: u64,
    faults: Faults,
    /// Names of all requests so far, and pieces that came in.
    log: Vec<&'static str>,
    connections: usize,
    begins: Vec<PutBegin>,
    /// Connections on which the client broke a rule: their threads have panicked and said which.
    violations: usize,
}

struct Upload {
    begin: PutBegin,
    ready: PutReady,
    pieces: BTreeMap<u32, Vec<u8>>,
}

/// A running fake peer. Its threads end with the process.
pub struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                lock(&state).connections += 1;
                std::thread::spawn(move || {
                    let watched = state.clone();
                    let serve = AssertUnwindSafe(|| Connection::new(stream, state).serve());
                    if std::panic::catch_unwind(serve).is_err() {
                        lock(&watched).violations += 1;
                    }
                });
            }
        });
        Fake { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// With these faults.
    pub fn with(self, faults: Faults) -> Fake {
        lock(&self.state).faults = faults;
        self
    }

    pub fn put(&self, bucket: &str, key: &str, data: &[u8]) {
        lock(&self.state).store(&(bucket.into(), key.into()), data.to_vec(), ObjectMeta::default());
    }

    pub fn get(&self, bucket: &str, key: &str) -> Option<Object> {
        lock(&self.state).objects.get(&(bucket.into(), key.into())).cloned()
    }

    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let state = lock(&self.state);
        state.objects.keys().filter(|name| name.0 == bucket).map(|name| name.1.clone()).collect()
    }

    /// How often a message of this name came in.
    pub fn count(&self, name: &str) -> usize {
        lock(&self.state).log.iter().filter(|known| **known == name).count()
    }

    pub fn connections(&self) -> usize {
        lock(&self.state).connections
    }

    pub fn begins(&self) -> Vec<PutBegin> {
        lock(&self.state).begins.clone()
    }

    pub fn uploads_open(&self) -> usize {
        lock(&self.state).uploads.len()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let violations = lock(&self.state).violations;
        assert!(std::thread::panicking() || violations == 0, "the client broke the protocol");
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn name(target: &Target) -> Name {
    (target.object.bucket.clone(), target.object.key.clone())
}

impl State {
    fn store(&mut self, name: &Name, data: Vec<u8>, meta: ObjectMeta) -> Object {
        self.generation += 1;
        let generation = self.generation;
        let meta = ObjectMeta {
            length: data.len() as u64,
            etag: format!("\"{generation}\""),
            last_modified_ms: 1_672_629_845_000,
            ..meta
        };
        let object = Object { data: Arc::new(data), meta, generation };
        self.objects.insert(name.clone(), object.clone());
        object
    }

    fn info(&self, target: &Target) -> Result<VersionInfo, ErrorReply> {
        let object = self.objects.get(&name(target)).ok_or_else(|| not_found(target))?;
        let crcs = object.data.chunks(PIECE_BYTES as usize).map(crc32fast::hash);
        let crc32 = whole_crc32(object.meta.length, PIECE_BYTES, crcs);
        Ok(VersionInfo {
            task: target.task(),
            generation: object.generation,
            meta: object.meta.clone(),
            piece_bytes: PIECE_BYTES,
            state: VersionState::Clean,
            source: Source::Local,
            crc32: Some(crc32 ^ u32::from(self.faults.wrong_whole)),
            pieces_local: 0,
        })
    }

    fn list(&self, list: &List) -> ListOk {
        let mut page = ListPage::new(list.limit);
        let mut last_prefix = None;
        for (name, object) in self.objects.iter().filter(|(name, _)| name.0 == list.bucket) {
            let key = &name.1;
            if !key.starts_with(&list.prefix) || *key <= list.marker {
                continue;
            }
            let rest = &key[list.prefix.len()..];
            let cut = (!list.delimiter.is_empty()).then(|| rest.find(&list.delimiter)).flatten();
            let pushed = match cut {
                Some(at) => {
                    let prefix = &key[..list.prefix.len() + at + list.delimiter.len()];
                    if last_prefix.as_deref() == Some(prefix) || list.marker.starts_with(prefix) {
                        continue;
                    }
                    last_prefix = Some(prefix.to_string());
                    page.push_common_prefix(prefix.to_string())
                }
                None => page.push_entry(ListEntry {
                    key: key.clone(),
                    length: object.meta.length,
                    etag: object.meta.etag.clone(),
                    last_modified_ms: object.meta.last_modified_ms,
                    storage_class: String::new(),
                    state: VersionState::Clean,
                }),
            };
            if !pushed {
                return page.finish(true);
            }
        }
        page.finish(false)
    }

    fn commit(&mut self, upload: u64, length: u64, crc32: u32) -> Result<PutDone, ErrorReply> {
        let unknown = || ErrorReply::new(ErrorCode::UploadUnknown, "no such upload");
        let upload = self.uploads.remove(&upload).ok_or_else(unknown)?;
        let data: Vec<u8> = upload.pieces.into_values().flatten().collect();
        if data.len() as u64 != length || crc32fast::hash(&data) != crc32 {
            return Err(ErrorReply::new(ErrorCode::InvalidArgument, "length or CRC32 of the whole is wrong"));
        }
        let object = self.store(&name(&upload.begin.target), data, upload.begin.meta);
        Ok(PutDone { generation: object.generation, etag: object.meta.etag, written_to: WrittenTo::Local, replicas: 1 })
    }
}

fn not_found(target: &Target) -> ErrorReply {
    ErrorReply::new(ErrorCode::NotFound, format!("{} does not exist", target.object))
}

/// The connection has ended, on purpose or not.
struct Ended;

struct Connection {
    stream: TcpStream,
    session: Session,
    input: Vec<u8>,
    out: BytesMut,
    state: Arc<Mutex<State>>,
    /// Pieces that READs still wait for, while there is no credit.
    reads: VecDeque<(RequestId, ReadPieces, u32)>,
    /// The uploads that requests of this connection belong to, and whether they began them.
    uploads: HashMap<RequestId, (u64, bool)>,
}

impl Connection {
    fn new(stream: TcpStream, state: Arc<Mutex<State>>) -> Connection {
        let session = Session::accepting();
        let (input, out, reads, uploads) = (Vec::new(), BytesMut::new(), VecDeque::new(), HashMap::new());
        Connection { stream, session, input, out, state, reads, uploads }
    }

    fn serve(mut self) {
        while self.step().is_ok() {}
        // An upload lives as long as the connection that began it.
        let mut state = lock(&self.state);
        for (upload, began) in self.uploads.values() {
            if *began {
                state.uploads.remove(upload);
            }
        }
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn step(&mut self) -> Result<(), Ended> {
        let event = self.next_event()?;
        match event {
            Event::Hello(_) => self.accept(),
            Event::Request { request, message } => self.on_request(request, message)?,
            Event::Piece { request, head, discard } => self.on_piece(request, &head, discard)?,
            Event::Message { request, message, .. } => self.on_follow(request, message),
            Event::Ping(nonce) => self.session.pong(nonce, &mut self.out).expect("open"),
            Event::Closed(error) => panic!("the client closed: {error}"),
            _ => {}
        }
        self.send_pieces()?;
        self.flush()
    }

    fn next_event(&mut self) -> Result<Event, Ended> {
        loop {
            let mut rest = &self.input[..];
            let received = self.session.receive(&mut rest);
            let used = self.input.len() - rest.len();
            self.input.drain(..used);
            match received.expect("the client keeps the rules") {
                Some(event) => return Ok(event),
                None => self.read_more()?,
            }
        }
    }

    fn read_more(&mut self) -> Result<(), Ended> {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) | Err(_) => Err(Ended),
            Ok(n) => {
                self.input.extend_from_slice(&chunk[..n]);
                Ok(())
            }
        }
    }

    fn raw(&mut self) -> Result<Vec<u8>, Ended> {
        let mut raw = Vec::new();
        while let Need::Raw(_) = self.session.need() {
            if self.input.is_empty() {
                self.read_more()?;
            }
            let mut rest = &self.input[..];
            raw.extend_from_slice(self.session.take_raw(&mut rest));
            let used = self.input.len() - rest.len();
            self.input.drain(..used);
        }
        Ok(raw)
    }

    fn flush(&mut self) -> Result<(), Ended> {
        let out = self.out.split();
        self.stream.write_all(&out).map_err(|_| Ended)
    }

    fn accept(&mut self) {
        let ack = HelloAck {
            version: 0,
            node: "fake".into(),
            agent: "fake".into(),
            shards: 1,
            shard: 0,
            piece_bytes: PIECE_BYTES,
            piece_bytes_max: PIECE_BYTES_MAX,
            requests_max: 16,
            credits: 2,
        };
        self.session.accept(ack, &mut self.out).expect("a hello was there");
    }

    fn answer(&mut self, request: RequestId, answer: Result<Message, ErrorReply>) {
        let message = answer.unwrap_or_else(Message::from);
        self.session.send(request, message, &mut self.out).expect("the answer fits");
    }

    fn on_request(&mut self, request: RequestId, message: Message) -> Result<(), Ended> {
        let state = self.state.clone();
        let mut state = lock(&state);
        state.log.push(message.frame_type().name());
        if let Some(refusal) = state.faults.refusals.pop_front() {
            self.answer(request, Err(refusal));
            return Ok(());
        }
        let answer = match message {
            Message::Stat(stat) => state.info(&stat.target).map(Message::StatOk),
            Message::Open(open) => state.info(&open.target).map(Message::OpenOk),
            Message::List(list) => Ok(state.list(&list).into()),
            Message::Delete(delete) => {
                state.objects.remove(&name(&delete.target));
                Ok(Done {}.into())
            }
            Message::Copy(copy) => match state.objects.get(&name(&copy.source)).cloned() {
                None => Err(not_found(&copy.source)),
                Some(object) => {
                    state.store(&name(&copy.target), object.data.to_vec(), object.meta);
                    state.info(&copy.target).map(Message::CopyOk)
                }
            },
            Message::Read(read) => {
                self.reads.push_back((request, read, 0));
                return Ok(());
            }
            Message::PutBegin(begin) => Ok(self.begin(&mut state, request, begin)),
            Message::PutJoin(join) => match state.uploads.get(&join.upload) {
                None => Err(ErrorReply::new(ErrorCode::UploadUnknown, "no such upload")),
                Some(upload) => {
                    self.uploads.insert(request, (join.upload, false));
                    Ok(upload.ready.into())
                }
            },
            other => panic!("unexpected {other:?}"),
        };
        self.answer(request, answer);
        Ok(())
    }

    fn begin(&mut self, state: &mut State, request: RequestId, begin: PutBegin) -> Message {
        state.generation += 1;
        let ready = PutReady {
            upload: state.generation,
            task: begin.target.task(),
            generation: state.generation,
            piece_bytes: PIECE_BYTES,
            window_pieces: 4,
        };
        state.begins.push(begin.clone());
        state.uploads.insert(ready.upload, Upload { begin, ready, pieces: BTreeMap::new() });
        self.uploads.insert(request, (ready.upload, true));
        ready.into()
    }

    fn on_follow(&mut self, request: RequestId, message: Message) {
        let state = self.state.clone();
        let mut state = lock(&state);
        state.log.push(message.frame_type().name());
        let answer = match message {
            Message::PutCommit(commit) => {
                state.commit(commit.upload, commit.length, commit.crc32).map(Message::PutDone)
            }
            Message::PutLeave(_) => Ok(Done {}.into()),
            Message::PutAbort(_) => {
                state.uploads.remove(&self.uploads[&request].0);
                Ok(Done {}.into())
            }
            other => panic!("unexpected {other:?}"),
        };
        self.uploads.remove(&request);
        self.answer(request, answer);
    }

    fn on_piece(&mut self, request: RequestId, head: &PieceHead, discard: bool) -> Result<(), Ended> {
        let raw = self.raw()?;
        let gate = lock(&self.state).faults.gate.take();
        if let Some(gate) = gate {
            gate.pass();
        }
        if discard {
            return Ok(());
        }
        let state = self.state.clone();
        let mut state = lock(&state);
        state.log.push("PIECE");
        let (upload, began) = self.uploads[&request];
        if let Some(at) = state.faults.broken_writes.iter().position(|of_first| *of_first == began) {
            state.faults.broken_writes.remove(at);
            return Err(Ended);
        }
        assert_eq!(crc32fast::hash(&raw), head.crc32, "the CRC32 of piece {}", head.number);
        if let Some(upload) = state.uploads.get_mut(&upload) {
            upload.pieces.insert(head.number, raw);
        }
        self.session.grant(1, &mut self.out).expect("one piece was taken");
        self.answer(request, Ok(PieceAck { number: head.number }.into()));
        Ok(())
    }

    /// Sends what READs wait for, as far as the credits go.
    fn send_pieces(&mut self) -> Result<(), Ended> {
        while self.session.credits_to_send() > 0
            && let Some((request, read, sent)) = self.reads.pop_front()
        {
            if !self.send_piece(request, &read, sent)? {
                continue;
            }
            if sent + 1 < read.piece_count {
                self.reads.push_back((request, read, sent + 1));
                continue;
            }
            let mut end = ReadEnd::default();
            end.count(Source::Local, PIECE_BYTES);
            self.answer(request, Ok(end.into()));
        }
        Ok(())
    }

    /// `false` when the read was refused instead.
    fn send_piece(&mut self, request: RequestId, read: &ReadPieces, sent: u32) -> Result<bool, Ended> {
        let gate = lock(&self.state).faults.gate.take();
        if let Some(gate) = gate {
            gate.pass();
        }
        let number = read.first_piece + sent;
        let offset = u64::from(number) * u64::from(PIECE_BYTES);
        let (mut raw, damaged) = {
            let mut state = lock(&self.state);
            if let Some(data) = state.faults.replace_on_read.take() {
                state.store(&name(&read.target), data, ObjectMeta::default());
            }
            if state.faults.broken_reads > 0 {
                state.faults.broken_reads -= 1;
                return Err(Ended);
            }
            let object = state.objects.get(&name(&read.target)).filter(|object| object.generation == read.generation);
            let Some(object) = object else {
                drop(state);
                let changed = ErrorReply::new(ErrorCode::VersionChanged, "the object was replaced");
                self.answer(request, Err(changed));
                return Ok(false);
            };
            let start = usize::try_from(offset).expect("small objects");
            let end = object.data.len().min(start + PIECE_BYTES as usize);
            let raw = object.data[start..end].to_vec();
            let damaged = state.faults.damaged_pieces > 0;
            state.faults.damaged_pieces -= usize::from(damaged);
            (raw, damaged)
        };
        let length = u32::try_from(raw.len()).expect("a piece");
        let (task, generation, crc32) = (read.task(), read.generation, crc32fast::hash(&raw));
        let head = PieceHead { task, generation, offset, number, length, crc32 };
        raw[0] ^= u8::from(damaged);
        let front = self.session.send_piece(request, &head).expect("asked for and granted");
        self.flush()?;
        self.stream.write_all(&front).and_then(|()| self.stream.write_all(&raw)).map_err(|_| Ended)?;
        Ok(true)
    }
}
