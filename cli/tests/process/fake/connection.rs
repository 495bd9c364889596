//! One connection to the fake: drives the accepting side of a session with a blocking socket, and has the faults happen.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use dfstore_proto::decoder::Need;
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::limits::PIECE_BYTES_MAX;
use dfstore_proto::message::{Done, HelloAck, Message, PieceAck, PutBegin, PutReady, Read as ReadPieces, ReadEnd};
use dfstore_proto::object::{ObjectMeta, Source};
use dfstore_proto::session::{Event, Session};

use super::state::{State, Upload, not_found};
use super::{PIECE_BYTES, cluster, lock, name};

/// The connection has ended, on purpose or not.
struct Ended;

pub struct Connection {
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
    pub fn new(stream: TcpStream, state: Arc<Mutex<State>>) -> Connection {
        let session = Session::accepting();
        let (input, out, reads, uploads) = (Vec::new(), BytesMut::new(), VecDeque::new(), HashMap::new());
        Connection { stream, session, input, out, state, reads, uploads }
    }

    pub fn serve(mut self) {
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
        let mut refusal = state.faults.refusals.pop_front();
        if refusal.is_none() && !matches!(message, Message::List(_)) {
            refusal = state.faults.refusals_after_list.pop_front();
        }
        if let Some(refusal) = refusal {
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
            Message::Where(asked) => state.find(&asked.target).map(Message::from),
            Message::Nodes(asked) => Ok(state.page(&asked.after).into()),
            Message::Prefetch(asked) => {
                state = cluster::wait_for_others(state);
                let answer = state.work(&asked.target, asked.scope);
                state.together -= 1;
                answer.map(Message::from)
            }
            Message::Evict(asked) => state.work(&asked.target, asked.scope).map(Message::from),
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
