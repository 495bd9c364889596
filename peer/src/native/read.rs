//! READ: pieces of one version to the client, each sent from the slot it was read into.
//!
//! A few READs of a connection stream at once, the others wait in line. A piece is taken from the engine only once the
//! client has granted a credit for it, so a client that grants none holds what was read ahead for a moment
//! ([`NATIVE_CREDIT_PATIENCE`]) and then nothing; one that grants none for [`BODY_IDLE_TIMEOUT`] loses the request.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::ids::TaskId;
use dfstore_proto::message::{Read, ReadEnd};

use crate::engine::request::Stat;
use crate::engine::{Chunk, PieceStream, Reader};
use crate::limits::{BODY_IDLE_TIMEOUT, NATIVE_CREDIT_PATIENCE, NATIVE_READS_ACTIVE_MAX};
use crate::metrics::{Face, Operation, RequestTimer};
use crate::native::answer::{error_reply, status_of};
use crate::native::link::{CreditHold, Gone, Link};
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
        let mut stream = None;
        let mut sent = ReadEnd::default();
        for number in first..self.end {
            let credit = match self.credit(&mut stream).await? {
                Ok(credit) => credit,
                Err(reply) => return Ok(Err(reply)),
            };
            let pieces = stream.get_or_insert_with(|| self.stream_from(number));
            let chunk = match or_gone(self.link, pieces.next()).await? {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Ok(Err(error_reply(&error))),
                None => return Ok(Err(ErrorReply::new(ErrorCode::Internal, "the object ended early"))),
            };
            timer.first_byte();
            if let Err(reply) = self.send(chunk, credit, &mut sent).await? {
                return Ok(Err(reply));
            }
        }
        Ok(Ok(sent))
    }

    fn stream_from(&self, number: u32) -> PieceStream {
        self.reader.stream(bytes_of(self.reader.stat(), number..self.end))
    }

    /// Waits for a credit. What was read ahead is given back when that takes long.
    async fn credit(&self, stream: &mut Option<PieceStream>) -> Result<Result<CreditHold, ErrorReply>, Gone> {
        let mut wait = std::pin::pin!(self.link.reserve_credit(self.request));
        let reserved = match timeout(NATIVE_CREDIT_PATIENCE, wait.as_mut()).await {
            Ok(reserved) => reserved?,
            Err(_) => {
                *stream = None;
                match timeout(BODY_IDLE_TIMEOUT, wait).await {
                    Ok(reserved) => reserved?,
                    Err(_) => return Ok(Err(ErrorReply::new(ErrorCode::Timeout, "no credit came for the next piece"))),
                }
            }
        };
        Ok(reserved.ok_or_else(|| ErrorReply::new(ErrorCode::Cancelled, "cancelled")))
    }

    async fn send(&self, chunk: Chunk, credit: CreditHold, sent: &mut ReadEnd) -> Result<Result<(), ErrorReply>, Gone> {
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
        let queued = self.link.send_piece(self.request, &head, body, credit).await?;
        sent.count(source, length);
        Ok(queued.map_err(|error| ErrorReply::new(ErrorCode::InvalidArgument, error.to_string())))
    }
}

/// Where pieces lie in their object.
fn bytes_of(stat: &Stat, pieces: Range<u32>) -> Range<u64> {
    let piece_bytes = u64::from(stat.piece_bytes);
    let start = u64::from(pieces.start) * piece_bytes;
    let end = u64::from(pieces.end) * piece_bytes;
    start..end.min(stat.meta.length)
}
