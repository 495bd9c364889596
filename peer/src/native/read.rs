//! READ: pieces of one version to the client, each sent from the slot it was read into.
//!
//! A few READs of a connection stream at once, the others wait in line. A piece is taken from the engine only when it
//! may be sent: the client has granted a credit for it, and little else waits for the socket. What was read ahead
//! for a client that takes nothing is given back after a moment ([`NATIVE_TURN_PATIENCE`]). A READ that is granted no
//! credit for [`BODY_IDLE_TIMEOUT`] fails.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::ids::TaskId;
use dfstore_proto::message::{Read, ReadEnd};

use crate::engine::request::{Stat, piece_length};
use crate::engine::{Chunk, PieceStream, Reader};
use crate::limits::{BODY_IDLE_TIMEOUT, NATIVE_READS_ACTIVE_MAX, NATIVE_TURN_PATIENCE};
use crate::metrics::{Face, Operation, RequestTimer};
use crate::native::answer::{error_reply, status_of};
use crate::native::link::{Gone, Link, PieceTurn};
use crate::native::objects::{or_gone, target_from};
use crate::rt::shard::spawn_local;
use crate::rt::time::timeout;

/// The READs of a connection. At most as many as requests may be in flight.
#[derive(Default)]
pub(super) struct Reads {
    active: Cell<usize>,
    in_line: RefCell<VecDeque<(RequestId, Read, RequestTimer)>>,
}

/// Starts a READ, or puts it in line.
pub(super) fn begin(link: &Rc<Link>, request: RequestId, asked: Read) {
    let timer = link.context.metrics.request(Face::Native, Operation::Get);
    link.reads.in_line.borrow_mut().push_back((request, asked, timer));
    if link.reads.active.get() < NATIVE_READS_ACTIVE_MAX {
        link.reads.active.set(link.reads.active.get() + 1);
        spawn_local(work(link.clone()));
    }
}

/// Serves READs until none is in line.
async fn work(link: Rc<Link>) {
    loop {
        let next = link.reads.in_line.borrow_mut().pop_front();
        let Some((request, asked, mut timer)) = next else { break };
        match run(&link, request, &asked, &mut timer).await {
            Ok(status) => timer.finish(status),
            Err(Gone) => break,
        }
    }
    link.reads.active.set(link.reads.active.get() - 1);
    if link.has_ended() {
        link.reads.in_line.borrow_mut().clear();
    }
}

/// Serves one READ; gives the status to count it under.
async fn run(link: &Rc<Link>, request: RequestId, asked: &Read, timer: &mut RequestTimer) -> Result<u16, Gone> {
    let answer = match or_gone(link, find(link, asked)).await? {
        Ok((reader, task)) => {
            let reading = Reading { link, request, task, reader, end: asked.first_piece + asked.piece_count };
            reading.run(asked.first_piece, timer).await?
        }
        Err(reply) => Err(reply),
    };
    match answer {
        Ok(end) => link.send(request, end).await.map(|()| 200),
        Err(reply) => {
            let status = status_of(reply.code);
            link.send(request, reply).await.map(|()| status)
        }
    }
}

/// The version a READ names.
async fn find(link: &Link, asked: &Read) -> Result<(Reader, TaskId), ErrorReply> {
    let task = target_from(&asked.target)?.task;
    let reader = match link.pins.find(&task, asked.generation) {
        Some(reader) => reader,
        None => {
            let found = link.context.engine.reopen(task, asked.generation).await;
            found.map_err(|error| error_reply(&error))?
        }
    };
    let pieces = reader.stat().piece_count();
    if asked.first_piece + asked.piece_count > pieces {
        let why = format!("pieces {} to {} of {pieces}", asked.first_piece, asked.first_piece + asked.piece_count - 1);
        return Err(ErrorReply::new(ErrorCode::RangeNotSatisfiable, why));
    }
    Ok((reader, task))
}

/// A READ that streams.
struct Reading<'link> {
    link: &'link Rc<Link>,
    request: RequestId,
    task: TaskId,
    reader: Reader,
    /// The piece after the last one.
    end: u32,
}

impl Reading<'_> {
    async fn run(&self, first: u32, timer: &mut RequestTimer) -> Result<Result<ReadEnd, ErrorReply>, Gone> {
        let mut ahead = None;
        let mut sent = ReadEnd::default();
        for number in first..self.end {
            let turn = match self.turn(&mut ahead, number).await? {
                Ok(turn) => turn,
                Err(reply) => return Ok(Err(reply)),
            };
            let ReadAhead { pieces, end } = ahead.get_or_insert_with(|| self.read_ahead(number..self.end));
            let chunk = match or_gone(self.link, pieces.next()).await? {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Ok(Err(error_reply(&error))),
                None => return Ok(Err(ErrorReply::new(ErrorCode::Internal, "the object ended early"))),
            };
            if number + 1 == *end {
                ahead = None;
            }
            timer.first_byte();
            if let Err(reply) = self.send(chunk, turn, &mut sent) {
                return Ok(Err(reply));
            }
        }
        Ok(Ok(sent))
    }

    fn read_ahead(&self, pieces: Range<u32>) -> ReadAhead {
        let end = pieces.end;
        ReadAhead { pieces: self.reader.stream(bytes_of(self.reader.stat(), pieces)), end }
    }

    /// Waits for the turn to send piece `number`. When that takes long, what was read ahead is given back, and the
    /// next piece is read alone: read-ahead is of no use to a slow client, and its memory is to others.
    async fn turn(&self, ahead: &mut Option<ReadAhead>, number: u32) -> Result<Result<PieceTurn, ErrorReply>, Gone> {
        let stat = self.reader.stat();
        let bytes = piece_length(stat.meta.length, stat.piece_bytes, number) as usize;
        let mut wait = pin!(self.link.piece_turn(self.request, bytes));
        let mut patience = NATIVE_TURN_PATIENCE;
        let turn = loop {
            if let Ok(turn) = timeout(patience, wait.as_mut()).await {
                break turn?;
            }
            // While pieces wait for the socket, the watch decides whether the client still reads.
            if patience == BODY_IDLE_TIMEOUT && !self.link.sends_pieces() {
                return Ok(Err(ErrorReply::new(ErrorCode::Timeout, "no credit came for the next piece")));
            }
            patience = BODY_IDLE_TIMEOUT;
            *ahead = None;
        };
        if patience == BODY_IDLE_TIMEOUT {
            *ahead = Some(self.read_ahead(number..number + 1));
        }
        Ok(turn.ok_or_else(|| ErrorReply::new(ErrorCode::Cancelled, "cancelled")))
    }

    fn send(&self, chunk: Chunk, turn: PieceTurn, sent: &mut ReadEnd) -> Result<(), ErrorReply> {
        let stat = self.reader.stat();
        let (source, number, crc32) = (chunk.source, chunk.number, chunk.crc32);
        let body = chunk.slot.into_bytes();
        let length = u32::try_from(body.len()).expect("at most a piece");
        let head = PieceHead {
            task: self.task,
            generation: stat.generation,
            offset: u64::from(number) * u64::from(stat.piece_bytes),
            number,
            length,
            crc32,
        };
        sent.count(source, length);
        let queued = self.link.send_piece(self.request, &head, body, turn);
        queued.map_err(|error| ErrorReply::new(ErrorCode::InvalidArgument, error.to_string()))
    }
}

/// Pieces that are read while earlier ones are sent.
struct ReadAhead {
    pieces: PieceStream,
    /// The piece after the last one.
    end: u32,
}

/// Where pieces lie in their object.
fn bytes_of(stat: &Stat, pieces: Range<u32>) -> Range<u64> {
    let piece_bytes = u64::from(stat.piece_bytes);
    let start = u64::from(pieces.start) * piece_bytes;
    let end = u64::from(pieces.end) * piece_bytes;
    start..end.min(stat.meta.length)
}
