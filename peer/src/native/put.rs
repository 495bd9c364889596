//! Uploads: PUT_BEGIN or PUT_JOIN, pieces, then PUT_COMMIT, PUT_ABORT or PUT_LEAVE.
//!
//! The raw bytes of a piece are received straight into a slot of the arena; the engine sums them once, compares with
//! the sum that travelled, and writes from the same slot. While it does, the next piece is received: how many are on
//! their way at once is what the credits allow. A credit is granted again when its piece is written, so a disk that is
//! behind slows the sender down, and nothing piles up.
//!
//! The first failure of an upload ends its request with an ERROR; pieces still on their way are received and dropped.
//! An upload that PUT_BEGIN began is forgotten by the engine with the first failure, an abort, or the end of the
//! connection; one that was joined is left to whoever began it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::ids::TaskId;
use dfstore_proto::message::{Done, Message, PieceAck, PutBegin, PutCommit, PutDone, PutJoin, PutReady, WrittenTo};
use event_listener::Event;

use crate::engine::request::{self, CommitRequest, PutRequest, Standing, piece_count};
use crate::engine::{ObjectError, Upload};
use crate::limits::{INGEST_WINDOW_PIECES, REPLICAS_MAX};
use crate::metrics::{Face, Operation, RequestTimer};
use crate::native::answer::{error_reply, status_of};
use crate::native::link::{Gone, Link};
use crate::native::objects::target_from;
use crate::native::watch::Waiting;
use crate::rt::arena::SlotMut;
use crate::rt::shard::spawn_local;
use crate::rt::stream::Incoming;

/// The uploads a connection feeds. At most as many as requests may be in flight.
#[derive(Default)]
pub(super) struct Puts(RefCell<HashMap<RequestId, Rc<Put>>>);

impl Puts {
    fn find(&self, request: RequestId) -> Option<Rc<Put>> {
        self.0.borrow().get(&request).cloned()
    }

    /// Gives all uploads up but those that are being committed.
    pub fn clear(&self) {
        let puts = std::mem::take(&mut *self.0.borrow_mut());
        puts.into_values().for_each(|put| put.give_up());
    }
}

/// One upload on one connection.
struct Put {
    request: RequestId,
    upload: Upload,
    /// Whether PUT_JOIN began it: then another connection decides what becomes of the upload.
    joined: bool,
    /// Pieces received and not yet written and acknowledged.
    writing: Cell<usize>,
    written: Event,
    timer: RefCell<Option<RequestTimer>>,
}

impl Put {
    /// Waits until no piece is being written.
    async fn settled(&self) {
        while self.writing.get() > 0 {
            self.written.listen().await;
        }
    }

    /// Has the engine forget the upload at once, pieces under way or not.
    fn give_up(&self) {
        if !self.joined {
            self.upload.abort();
        }
    }

    fn count(&self, status: u16) {
        if let Some(timer) = self.timer.take() {
            timer.finish(status);
        }
    }
}

/// PUT_BEGIN.
pub(super) fn begin(link: &Rc<Link>, request: RequestId, asked: PutBegin) {
    let link = link.clone();
    spawn_local(async move {
        let timer = link.context.metrics.request(Face::Native, Operation::Put);
        let opened = match put_request(&link, asked) {
            Ok(put) => {
                let task = put.target.task;
                let upload = link.context.engine.put(put).await;
                upload.map(|upload| (upload, task)).map_err(|error| error_reply(&error))
            }
            Err(reply) => Err(reply),
        };
        ready(&link, request, opened, Some(timer)).await;
    });
}

/// PUT_JOIN.
pub(super) fn join(link: &Rc<Link>, request: RequestId, asked: PutJoin) {
    let link = link.clone();
    spawn_local(async move {
        let upload = link.context.engine.join_upload(asked.task, asked.upload).await;
        let opened = upload.map(|upload| (upload, asked.task)).map_err(|error| error_reply(&error));
        ready(&link, request, opened, None).await;
    });
}

fn put_request(link: &Link, asked: PutBegin) -> Result<PutRequest, ErrorReply> {
    let ack_peers = link.context.engine.check_ack(asked.ack_peers).map_err(|error| error_reply(&error))?;
    let replicas = match u16::try_from(asked.max_replicas).ok().filter(|replicas| *replicas <= REPLICAS_MAX) {
        Some(0) => link.context.engine.replicas_default(),
        Some(replicas) => replicas,
        None => {
            let why = format!("{} replicas are asked for; allowed are 1 to {REPLICAS_MAX}", asked.max_replicas);
            return Err(ErrorReply::new(ErrorCode::InvalidArgument, why));
        }
    };
    Ok(PutRequest {
        target: target_from(&asked.target)?,
        mode: asked.mode,
        replicas,
        ack_peers,
        length: asked.length,
        meta: asked.meta,
    })
}

/// Tells the client that pieces may come, or why not.
async fn ready(
    link: &Rc<Link>,
    request: RequestId,
    opened: Result<(Upload, TaskId), ErrorReply>,
    timer: Option<RequestTimer>,
) {
    let opened = match opened {
        Ok(_) if link.session().is_cancelled(request) => Err(cancelled()),
        opened => opened,
    };
    let sent = match opened {
        Ok(_) if link.has_ended() => return,
        Ok((upload, task)) => {
            let answer = PutReady {
                upload: upload.id(),
                task,
                // The version gets its number when it is committed; until then its pieces carry the upload's.
                generation: upload.id(),
                piece_bytes: upload.piece_bytes(),
                window_pieces: u32::try_from(INGEST_WINDOW_PIECES).expect("a small constant"),
            };
            let (joined, writing, written) = (timer.is_none(), Cell::new(0), Event::new());
            let put = Put { request, upload, joined, writing, written, timer: RefCell::new(timer) };
            link.puts.0.borrow_mut().insert(request, Rc::new(put));
            link.send(request, answer).await
        }
        Err(reply) => {
            if let Some(timer) = timer {
                timer.finish(status_of(reply.code));
            }
            link.send(request, reply).await
        }
    };
    if sent == Err(Gone) {
        link.puts.clear();
    }
}

/// PIECE: receives its raw bytes and has them written.
pub(super) async fn piece(
    link: &Rc<Link>,
    incoming: &mut Incoming,
    request: RequestId,
    head: PieceHead,
    discard: bool,
) -> std::io::Result<()> {
    let length = head.length as usize;
    let put = if discard { None } else { link.puts.find(request) };
    let wanted = match put {
        Some(put) => match put.upload.take_slot(length).await {
            Ok(slot) => Some((put, slot)),
            Err(error) => {
                fail(link, &put, &error);
                None
            }
        },
        None => None,
    };
    link.waiting.set(Waiting::Raw(std::time::Instant::now()));
    match wanted {
        Some((put, slot)) => {
            let slot = incoming.read_slot(slot, length).await?;
            link.raw_taken(length);
            link.context.metrics.received(Face::Native, u64::from(head.length));
            put.writing.set(put.writing.get() + 1);
            spawn_local(write(link.clone(), put, head, slot));
        }
        None => {
            incoming.skip(length).await?;
            link.raw_taken(length);
            link.grant(1);
        }
    }
    link.waiting.set(Waiting::Nothing);
    Ok(())
}

async fn write(link: Rc<Link>, put: Rc<Put>, head: PieceHead, slot: SlotMut) {
    let written = put.upload.write_piece(head.number, slot, Some(head.crc32)).await;
    link.grant(1);
    match written {
        Ok(_) => {
            let _ = link.send(put.request, PieceAck { number: head.number }).await;
        }
        Err(error) => fail(&link, &put, &error),
    }
    put.writing.set(put.writing.get() - 1);
    put.written.notify(usize::MAX);
}

/// Takes an upload out of the table; `None` when it has ended.
fn take(link: &Link, request: RequestId) -> Option<Rc<Put>> {
    link.puts.0.borrow_mut().remove(&request)
}

/// Ends an upload that went wrong. The first failure is the one that is told.
fn fail(link: &Rc<Link>, put: &Rc<Put>, error: &ObjectError) {
    if take(link, put.request).is_some() {
        put.give_up();
        answer(link, put, error_reply(error));
    }
}

/// Ends the request of an upload that is no longer in the table.
fn answer(link: &Rc<Link>, put: &Rc<Put>, message: impl Into<Message>) {
    let message = message.into();
    put.count(if let Message::Error(reply) = &message { status_of(reply.code) } else { 200 });
    let (link, request) = (link.clone(), put.request);
    spawn_local(async move {
        // If the connection is gone nobody waits for the answer.
        let _ = link.send(request, message).await;
    });
}

/// PUT_COMMIT, PUT_ABORT or PUT_LEAVE, once all pieces received before are written.
pub(super) fn follow(link: &Rc<Link>, request: RequestId, message: Message) {
    let Some(put) = link.puts.find(request) else { return };
    let link = link.clone();
    spawn_local(async move {
        put.settled().await;
        // A piece that failed has ended the request already, or the connection has.
        if take(&link, request).is_none() {
            return;
        }
        match message {
            Message::PutCommit(asked) => {
                let done = commit(&put.upload, asked).await;
                match done {
                    Ok(done) => answer(&link, &put, done),
                    Err(reply) => {
                        put.give_up();
                        answer(&link, &put, reply);
                    }
                }
            }
            _ => {
                put.give_up();
                answer(&link, &put, Done {});
            }
        }
    });
}

/// CANCEL.
pub(super) fn cancel(link: &Rc<Link>, request: RequestId) {
    if let Some(put) = take(link, request) {
        put.give_up();
        answer(link, &put, cancelled());
    }
}

fn cancelled() -> ErrorReply {
    ErrorReply::new(ErrorCode::Cancelled, "cancelled")
}

async fn commit(upload: &Upload, asked: PutCommit) -> Result<PutDone, ErrorReply> {
    let pieces = piece_count(asked.length, upload.piece_bytes());
    if asked.pieces != pieces {
        let why = format!("{} bytes are {pieces} pieces, not {}", asked.length, asked.pieces);
        return Err(ErrorReply::new(ErrorCode::InvalidArgument, why));
    }
    let commit = CommitRequest { length: asked.length, crc32: Some(asked.crc32), mode: None, replicas: None };
    let done = upload.commit(commit).await;
    done.map(put_done).map_err(|error| error_reply(&error))
}

fn put_done(done: request::PutDone) -> PutDone {
    PutDone {
        generation: done.generation,
        etag: done.meta.etag,
        written_to: if done.standing == Standing::Clean { WrittenTo::Backend } else { WrittenTo::Local },
        replicas: done.copies.into(),
    }
}
