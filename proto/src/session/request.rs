//! The life of one request, the same on both sides: what may follow it, what may answer it, which pieces belong to it.
//!
//! Pure state. The side that sends applies the same steps as the side that receives, so a session of ours never sends
//! what a session of ours would refuse. Each step either moves on or names the rule that was broken.

use super::Violation;
use crate::frame::PieceHead;
use crate::ids::TaskId;
use crate::message::{Fetch, FrameType, Message, PutReady, Read};

/// Whether a request goes on after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    GoesOn,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// PUT_BEGIN or PUT_JOIN is sent.
    Opening,
    /// PUT_READY is there: pieces flow.
    Ready,
    /// COMMIT, ABORT or LEAVE is sent; this ends it.
    Finishing(FrameType),
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// One question, one answer of this type.
    Plain { answer: FrameType },
    /// Pieces from the answering side, then READ_END.
    Read { task: TaskId, generation: u64, first_piece: u32, piece_count: u32, pieces_sent: u32 },
    /// Pieces from the asking side.
    Upload { stage: Stage, joined: bool, ready: Option<PutReady>, pieces_unacked: u32 },
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    kind: Kind,
    pub(super) cancelled: bool,
}

impl Request {
    /// The request that a message opens; `None` when it opens none.
    pub(super) fn opened_by(message: &Message) -> Option<Request> {
        let plain = |answer| Some(Kind::Plain { answer });
        let upload = |joined| Some(Kind::Upload { stage: Stage::Opening, joined, ready: None, pieces_unacked: 0 });
        let kind = match message {
            Message::Stat(_) => plain(FrameType::StatOk),
            Message::List(_) => plain(FrameType::ListOk),
            Message::Delete(_) | Message::CreateBucket(_) | Message::Steer(_) => plain(FrameType::Done),
            Message::Copy(_) => plain(FrameType::CopyOk),
            Message::Open(_) => plain(FrameType::OpenOk),
            Message::Read(read) => Some(Request::read(read)),
            Message::Fetch(fetch) => Some(Request::fetch(fetch)),
            Message::Locate(_) => plain(FrameType::Located),
            Message::Recall(_) => plain(FrameType::Recalled),
            Message::Track(_) => plain(FrameType::Tracked),
            Message::Reserve(_) => plain(FrameType::Reserved),
            Message::Publish(_) => plain(FrameType::PublishOk),
            Message::Pending(_) => plain(FrameType::PendingOk),
            Message::GetConfig(_) => plain(FrameType::ConfigOk),
            Message::Where(_) => plain(FrameType::WhereOk),
            Message::Nodes(_) => plain(FrameType::NodesOk),
            Message::Prefetch(_) | Message::Evict(_) => plain(FrameType::Worked),
            Message::Queue(_) => plain(FrameType::QueueOk),
            Message::Scrub(_) => plain(FrameType::ScrubOk),
            Message::PutBegin(_) => upload(false),
            Message::PutJoin(_) => upload(true),
            _ => None,
        };
        kind.map(|kind| Request { kind, cancelled: false })
    }

    fn read(read: &Read) -> Kind {
        Kind::Read {
            task: read.task(),
            generation: read.generation,
            first_piece: read.first_piece,
            piece_count: read.piece_count,
            pieces_sent: 0,
        }
    }

    fn fetch(fetch: &Fetch) -> Kind {
        let (task, generation, first_piece) = (fetch.task, fetch.generation, fetch.number);
        Kind::Read { task, generation, first_piece, piece_count: 1, pieces_sent: 0 }
    }

    /// A further message of the asking side.
    pub(super) fn follow(&mut self, message: &Message) -> Result<(), Violation> {
        let refused = Violation::NotNow(message.frame_type());
        let Kind::Upload { stage, joined, ready, .. } = &mut self.kind else { return Err(refused) };
        let Some(ready) = ready.filter(|_| *stage == Stage::Ready) else { return Err(refused) };
        *stage = match message {
            Message::PutCommit(commit) if !*joined && commit.upload == ready.upload => {
                Stage::Finishing(FrameType::PutDone)
            }
            Message::PutAbort(_) if !*joined => Stage::Finishing(FrameType::Done),
            Message::PutLeave(_) if *joined => Stage::Finishing(FrameType::Done),
            _ => return Err(refused),
        };
        Ok(())
    }

    /// A message of the answering side. An error always ends a request.
    pub(super) fn answer(&mut self, message: &Message) -> Result<Progress, Violation> {
        let frame_type = message.frame_type();
        if frame_type == FrameType::Error {
            return Ok(Progress::Ended);
        }
        let cancelled = self.cancelled;
        match &mut self.kind {
            Kind::Plain { answer } if *answer == frame_type => Ok(Progress::Ended),
            Kind::Read { piece_count, pieces_sent, .. }
                if frame_type == FrameType::ReadEnd && (cancelled || pieces_sent == piece_count) =>
            {
                Ok(Progress::Ended)
            }
            Kind::Upload { stage, ready, pieces_unacked, .. } => match (*stage, message) {
                (Stage::Opening, Message::PutReady(answer)) => {
                    *stage = Stage::Ready;
                    *ready = Some(*answer);
                    Ok(Progress::GoesOn)
                }
                (Stage::Ready | Stage::Finishing(_), Message::PieceAck(_)) if *pieces_unacked > 0 => {
                    *pieces_unacked -= 1;
                    Ok(Progress::GoesOn)
                }
                (Stage::Finishing(last), _) if last == frame_type => Ok(Progress::Ended),
                _ => Err(Violation::NotNow(frame_type)),
            },
            _ => Err(Violation::NotNow(frame_type)),
        }
    }

    /// A piece from the answering side: it must be one that was asked for, and not one too many.
    pub(super) fn piece_down(&mut self, head: &PieceHead) -> Result<(), Violation> {
        let Kind::Read { task, generation, first_piece, piece_count, pieces_sent } = &mut self.kind else {
            return Err(Violation::NotNow(FrameType::Piece));
        };
        let asked = head.number.checked_sub(*first_piece).is_some_and(|index| index < *piece_count);
        if head.task != *task || head.generation != *generation || !asked || pieces_sent == piece_count {
            return Err(Violation::PieceNotAsked);
        }
        *pieces_sent += 1;
        Ok(())
    }

    /// A piece from the asking side: it must belong to the upload that is ready for it.
    pub(super) fn piece_up(&mut self, head: &PieceHead) -> Result<(), Violation> {
        let Kind::Upload { stage: Stage::Ready, ready: Some(ready), pieces_unacked, .. } = &mut self.kind else {
            return Err(Violation::NotNow(FrameType::Piece));
        };
        if head.task != ready.task || head.generation != ready.generation || !head.fits(ready.piece_bytes, None) {
            return Err(Violation::PieceNotAsked);
        }
        *pieces_unacked += 1;
        Ok(())
    }
}
