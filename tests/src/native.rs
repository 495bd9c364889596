//! A small blocking client of the native protocol, over the session state machine of `dfstore-proto`.
//!
//! For tests and benches that want the protocol without the command line around it. One connection, one request at a
//! time; pieces go out as credits allow. An ERROR from the peer is an error with its text.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use dfstore_proto::crc::WholeCrc;
use dfstore_proto::decoder::Need;
use dfstore_proto::error::ErrorReply;
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::limits::PIECE_BYTES_MAX;
use dfstore_proto::message::{
    Delete, Evict, Hello, Message, NodeInfo, Nodes, Open, Prefetch, PutBegin, PutCommit, PutDone, PutReady, Queue,
    QueueEntry, Read as ReadPieces, ReadEnd, Role, Route, Scope, Stat, Target, Token, VersionInfo, Where, WhereOk,
    Worked,
};
use dfstore_proto::object::{ObjectMeta, WriteMode};
use dfstore_proto::preface::Versions;
use dfstore_proto::session::{Event, Session};

/// Pieces the peer may send ahead.
const CREDITS: u32 = 8;
const BUFFER_BYTES: usize = 256 << 10;
const TIMEOUT: Duration = Duration::from_secs(60);

/// An open connection.
pub struct NativeClient {
    stream: TcpStream,
    session: Session,
    buffer: Vec<u8>,
    /// What of the buffer has been read and not used.
    unused: std::ops::Range<usize>,
}

/// An object whose pieces were sent.
pub struct Staged {
    request: RequestId,
    commit: PutCommit,
    /// Pieces of which the peer has said that they are written.
    acknowledged: u32,
}

impl NativeClient {
    /// Connects, for work on this object.
    pub fn connect(address: SocketAddr, target: &Target) -> Result<NativeClient> {
        NativeClient::open(address, Route::Task(target.task()))
    }

    /// Connects, for work on no object in particular.
    pub fn connect_any(address: SocketAddr) -> Result<NativeClient> {
        NativeClient::open(address, Route::Any)
    }

    /// As [`connect_any`](Self::connect_any); no read or write takes longer than this.
    pub fn connect_within(address: SocketAddr, timeout: Duration) -> Result<NativeClient> {
        NativeClient::open_within(address, Route::Any, timeout)
    }

    fn open(address: SocketAddr, route: Route) -> Result<NativeClient> {
        NativeClient::open_within(address, route, TIMEOUT)
    }

    fn open_within(address: SocketAddr, route: Route, timeout: Duration) -> Result<NativeClient> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let hello = Hello {
            versions: Versions::OURS,
            role: Role::Client,
            route,
            token: Token::default(),
            agent: "dfstore-tests".to_owned(),
            piece_bytes_max: PIECE_BYTES_MAX,
            credits: CREDITS,
        };
        let mut out = BytesMut::new();
        let session = Session::connecting(hello, &mut out)?;
        let mut client = NativeClient { stream, session, buffer: vec![0; BUFFER_BYTES], unused: 0..0 };
        client.stream.write_all(&out)?;
        match client.event()? {
            Event::Accepted(_) => Ok(client),
            other => bail!("no HELLO_ACK but {other:?}"),
        }
    }

    /// What the peer knows about an object.
    pub fn stat(&mut self, target: &Target) -> Result<VersionInfo> {
        match self.ask(Stat { target: target.clone(), fresh: false })? {
            Message::StatOk(info) => Ok(info),
            other => bail!("no STAT_OK but {other:?}"),
        }
    }

    /// Deletes an object.
    pub fn delete(&mut self, target: &Target) -> Result<()> {
        match self.ask(Delete { target: target.clone() })? {
            Message::Done(_) => Ok(()),
            other => bail!("no DONE but {other:?}"),
        }
    }

    /// The name of the node that is asked, and the nodes of its cluster, all pages.
    pub fn nodes(&mut self) -> Result<(String, Vec<NodeInfo>)> {
        let mut nodes: Vec<NodeInfo> = Vec::new();
        loop {
            let after = nodes.last().map_or(String::new(), |last| last.id.clone());
            match self.ask(Nodes { after })? {
                Message::NodesOk(page) => {
                    ensure!(!page.truncated || !page.nodes.is_empty(), "an empty page, and more to follow");
                    nodes.extend(page.nodes);
                    if !page.truncated {
                        return Ok((page.me, nodes));
                    }
                }
                other => bail!("no NODES_OK but {other:?}"),
            }
        }
    }

    /// The first page of the write-back queue.
    pub fn queue(&mut self) -> Result<Vec<QueueEntry>> {
        match self.ask(Queue { limit: 1000, ..Queue::default() })? {
            Message::QueueOk(page) => Ok(page.entries),
            other => bail!("no QUEUE_OK but {other:?}"),
        }
    }

    /// Who holds an object.
    pub fn locations(&mut self, target: &Target) -> Result<WhereOk> {
        match self.ask(Where { target: target.clone(), local_only: false })? {
            Message::WhereOk(found) => Ok(found),
            other => bail!("no WHERE_OK but {other:?}"),
        }
    }

    /// Drops an object from the cache.
    pub fn evict(&mut self, target: &Target, scope: Scope) -> Result<Worked> {
        match self.ask(Evict { target: target.clone(), scope })? {
            Message::Worked(worked) => Ok(worked),
            other => bail!("no WORKED but {other:?}"),
        }
    }

    /// Fetches an object into the cache.
    pub fn prefetch(&mut self, target: &Target, scope: Scope) -> Result<Worked> {
        match self.ask(Prefetch { target: target.clone(), scope })? {
            Message::Worked(worked) => Ok(worked),
            other => bail!("no WORKED but {other:?}"),
        }
    }

    /// Reads a whole object and hands its bytes on with their offsets (pieces may come in any order); gives its length.
    pub fn get(&mut self, target: &Target, take: impl FnMut(u64, &[u8])) -> Result<u64> {
        self.get_with_sources(target, take).map(|(length, _)| length)
    }

    /// As [`get`](Self::get); gives also where the bytes came from.
    pub fn get_with_sources(&mut self, target: &Target, mut take: impl FnMut(u64, &[u8])) -> Result<(u64, ReadEnd)> {
        let info = match self.ask(Open { target: target.clone(), no_cache: false })? {
            Message::OpenOk(info) => info,
            other => bail!("no OPEN_OK but {other:?}"),
        };
        if info.meta.length == 0 {
            return Ok((0, ReadEnd::default()));
        }
        let (generation, piece_count) = (info.generation, info.pieces());
        self.send(ReadPieces { target: target.clone(), generation, first_piece: 0, piece_count })?;
        loop {
            match self.event()? {
                Event::Piece { head, .. } => {
                    self.raw(&head, &mut take)?;
                    let mut out = BytesMut::new();
                    self.session.grant(1, &mut out)?;
                    self.stream.write_all(&out)?;
                }
                Event::Message { message: Message::ReadEnd(end), .. } => return Ok((info.meta.length, end)),
                other => refuse(other)?,
            }
        }
    }

    /// Writes a whole object; returns when the peer has acknowledged it.
    pub fn put(&mut self, target: &Target, bytes: &[u8], mode: WriteMode) -> Result<PutDone> {
        let staged = self.send_all(target, bytes, mode)?;
        self.commit(staged)
    }

    /// Writes the pieces of an object and waits until the peer has written each of them; it is not committed.
    pub fn stage(&mut self, target: &Target, bytes: &[u8], mode: WriteMode) -> Result<Staged> {
        let mut staged = self.send_all(target, bytes, mode)?;
        while staged.acknowledged < staged.commit.pieces {
            match self.event()? {
                Event::Message { message: Message::PieceAck(_), .. } => staged.acknowledged += 1,
                other => refuse(other)?,
            }
        }
        Ok(staged)
    }

    /// Commits what was sent; returns when the peer has acknowledged it.
    pub fn commit(&mut self, staged: Staged) -> Result<PutDone> {
        let mut out = BytesMut::new();
        self.session.send(staged.request, staged.commit, &mut out)?;
        self.stream.write_all(&out)?;
        loop {
            match self.event()? {
                Event::Message { message: Message::PutDone(done), .. } => return Ok(done),
                other => refuse(other)?,
            }
        }
    }

    fn send_all(&mut self, target: &Target, bytes: &[u8], mode: WriteMode) -> Result<Staged> {
        let begin = PutBegin {
            target: target.clone(),
            length: Some(bytes.len() as u64),
            mode,
            max_replicas: 0,
            ack_peers: 0,
            meta: ObjectMeta::default(),
        };
        let request = self.send(begin)?;
        let ready = loop {
            match self.event()? {
                Event::Message { message: Message::PutReady(ready), .. } => break ready,
                other => refuse(other)?,
            }
        };
        let (mut whole, mut number, mut acknowledged) = (WholeCrc::new(), 0, 0);
        for raw in bytes.chunks(ready.piece_bytes as usize) {
            while self.session.credits_to_send() == 0 {
                let event = self.event()?;
                acknowledged += u32::from(matches!(event, Event::Message { message: Message::PieceAck(_), .. }));
                refuse(event)?;
            }
            let crc32 = crc32fast::hash(raw);
            let (offset, length) = (whole.length_bytes(), u32::try_from(raw.len()).context("at most a piece")?);
            let PutReady { task, generation, .. } = ready;
            let head = PieceHead { task, generation, offset, number, length, crc32 };
            let front = self.session.send_piece(request, &head)?;
            self.stream.write_all(&front)?;
            self.stream.write_all(raw)?;
            whole.append(crc32, u64::from(length));
            number += 1;
        }
        let (length, crc32) = (bytes.len() as u64, whole.value());
        let commit = PutCommit { upload: ready.upload, length, crc32, pieces: number };
        Ok(Staged { request, commit, acknowledged })
    }

    fn send(&mut self, message: impl Into<Message>) -> Result<RequestId> {
        let mut out = BytesMut::new();
        let request = self.session.request(message, &mut out)?;
        self.stream.write_all(&out).context("sending a request")?;
        Ok(request)
    }

    /// Makes a request and waits for the message that answers it.
    fn ask(&mut self, message: impl Into<Message>) -> Result<Message> {
        self.send(message)?;
        loop {
            match self.event()? {
                Event::Message { message: Message::Error(error), .. } => return Err(described(&error)),
                Event::Message { message, .. } => return Ok(message),
                other => refuse(other)?,
            }
        }
    }

    fn event(&mut self) -> Result<Event> {
        loop {
            let mut input = &self.buffer[self.unused.clone()];
            let event = self.session.receive(&mut input)?;
            self.unused.start = self.unused.end - input.len();
            match event {
                Some(Event::Ping(nonce)) => {
                    let mut out = BytesMut::new();
                    self.session.pong(nonce, &mut out)?;
                    self.stream.write_all(&out)?;
                }
                Some(event) => return Ok(event),
                None => self.fill()?,
            }
        }
    }

    /// Reads the raw bytes of the piece that has begun; an error when they are not those that its head tells.
    fn raw(&mut self, piece: &PieceHead, take: &mut impl FnMut(u64, &[u8])) -> Result<()> {
        let (mut at, mut crc32) = (piece.offset, crc32fast::Hasher::new());
        while let Need::Raw(_) = self.session.need() {
            let mut input = &self.buffer[self.unused.clone()];
            let raw = self.session.take_raw(&mut input);
            crc32.update(raw);
            take(at, raw);
            at += raw.len() as u64;
            self.unused.start += raw.len();
            if self.unused.is_empty() && matches!(self.session.need(), Need::Raw(_)) {
                self.fill()?;
            }
        }
        ensure!(crc32.finalize() == piece.crc32, "the checksum of piece {} is wrong", piece.number);
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        debug_assert!(self.unused.is_empty(), "the session takes all it is given unless raw bytes are due");
        let count = self.stream.read(&mut self.buffer).context("reading from the peer")?;
        ensure!(count > 0, "the peer closed the connection");
        self.unused = 0..count;
        Ok(())
    }
}

/// An object without a query.
pub fn target(bucket: &str, key: &str) -> Target {
    Target::new(ObjectName::new(bucket, key))
}

fn described(error: &ErrorReply) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {} {}", error.code, error.message, error.detail)
}

/// Passes over what a busy connection may carry besides the answer; an error for what ends it.
fn refuse(event: Event) -> Result<()> {
    match event {
        Event::Credit(_) | Event::Pong(_) | Event::GoAway { .. } => Ok(()),
        Event::Message { message: Message::PieceAck(_), .. } => Ok(()),
        Event::Message { message: Message::Error(error), .. } | Event::Closed(error) => Err(described(&error)),
        other => bail!("unexpected: {other:?}"),
    }
}
