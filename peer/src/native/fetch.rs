//! FETCH: one piece to another peer, sent from the slot it was read into.
//!
//! Unlike READs these do not wait in line for each other: the other peer chooses what it needs next, and its credits
//! bound how many it gets at once. A piece is taken from the engine only when it may be sent.

use std::rc::Rc;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::message::{Fetch, ReadEnd};

use crate::engine::request::piece_length;
use crate::engine::{PeerPiece, Reader};
use crate::limits::{BODY_IDLE_TIMEOUT, PEER_UPLOADS_MAX};
use crate::native::admission::UploadGuard;
use crate::native::answer::error_reply;
use crate::native::link::{Gone, Link, PieceTurn};
use crate::native::objects::or_gone;
use crate::rt::arena::Slot;
use crate::rt::shard::spawn_local;
use crate::rt::time::timeout;

/// Starts a FETCH of a peer.
pub(super) fn begin(link: &Rc<Link>, request: RequestId, asked: Fetch) {
    let link = link.clone();
    spawn_local(async move {
        // The link is at its end, and so is this.
        let Ok(answer) = run(&link, request, &asked).await else { return };
        let _ = match answer {
            Ok(end) => link.send(request, end).await,
            Err(reply) => link.send(request, reply).await,
        };
    });
}

async fn run(link: &Rc<Link>, request: RequestId, asked: &Fetch) -> Result<Result<ReadEnd, ErrorReply>, Gone> {
    let is_busy = link.context.cluster.as_ref().is_some_and(|cluster| cluster.uploads() >= PEER_UPLOADS_MAX);
    if is_busy && asked.local_only {
        // Whoever asks may have the piece from others: fewer pieces at once are each passed on sooner.
        return Ok(Err(ErrorReply::new(ErrorCode::Busy, "as many pieces as make sense are being sent")));
    }
    let upload = link.context.cluster.as_ref().map(|cluster| cluster.upload());
    let (reader, length) = match or_gone(link, open(link, asked)).await? {
        Ok(found) => found,
        Err(reply) => return Ok(Err(reply)),
    };
    let turn = match timeout(BODY_IDLE_TIMEOUT, link.piece_turn(request, length)).await {
        Ok(turn) => turn?,
        Err(_) => return Ok(Err(ErrorReply::new(ErrorCode::Timeout, "no credit came for the piece"))),
    };
    let Some(turn) = turn else { return Ok(Err(ErrorReply::new(ErrorCode::Cancelled, "cancelled"))) };
    let piece = match or_gone(link, reader.piece_for_peer(asked)).await? {
        Ok(piece) => piece,
        Err(error) => return Ok(Err(error_reply(&error))),
    };
    Ok(send(link, request, asked, piece, Sending { turn, upload }))
}

/// The version, and the length of the piece.
async fn open(link: &Link, asked: &Fetch) -> Result<(Reader, usize), ErrorReply> {
    let reader = link.context.engine.reopen(asked.task, asked.generation).await.map_err(|error| error_reply(&error))?;
    let stat = reader.stat();
    let length = piece_length(stat.meta.length, stat.piece_bytes, asked.number) as usize;
    if length == 0 {
        let why = format!("piece {} of {}", asked.number, stat.piece_count());
        return Err(ErrorReply::new(ErrorCode::RangeNotSatisfiable, why));
    }
    Ok((reader, length))
}

struct Sending {
    turn: PieceTurn,
    upload: Option<UploadGuard>,
}

fn send(
    link: &Link,
    request: RequestId,
    asked: &Fetch,
    piece: PeerPiece,
    sending: Sending,
) -> Result<ReadEnd, ErrorReply> {
    let length = u32::try_from(piece.slot.len()).expect("at most a piece");
    let head = PieceHead {
        task: asked.task,
        generation: asked.generation,
        offset: piece.offset,
        number: asked.number,
        length,
        crc32: piece.crc32,
    };
    let mut sent = ReadEnd::default();
    sent.count(piece.source, length);
    let body = bytes::Bytes::from_owner(Body { slot: piece.slot, _upload: sending.upload });
    let queued = link.send_piece(request, &head, body, sending.turn);
    queued.map_err(|error| ErrorReply::new(ErrorCode::InvalidArgument, error.to_string()))?;
    link.context.metrics.peer_sent(u64::from(length));
    Ok(sent)
}

/// The bytes of a piece; it counts as an upload until they are with the kernel.
struct Body {
    slot: Slot,
    _upload: Option<UploadGuard>,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.slot
    }
}
