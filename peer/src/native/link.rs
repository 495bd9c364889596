//! What the tasks of one connection share: the session's state, the frames on their way out, credits, the end.
//!
//! All of it lives on one shard, so nothing here is locked; borrows never last over an await. A frame is encoded and
//! queued in one step, after there was room for it: so frames leave in the order the session agreed to. The queue is
//! bounded; who finds it full waits for the writer. Once the link has ended every call fails with [`Gone`], and the
//! tasks of the connection end by that.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::message::Message;
use dfstore_proto::session::{Event as Incident, SendError, Session, SessionError};
use event_listener::Event;

use crate::limits::{NATIVE_QUEUE_FRAMES_MAX, NATIVE_QUEUE_PIECES_MAX};
use crate::native::Context;
use crate::native::objects::Pins;
use crate::native::put::Puts;
use crate::native::read::Reads;
use crate::native::watch::Waiting;

/// The connection is at its end: whoever works for it stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// The shared state of one connection.
pub(super) struct Link {
    pub context: Context,
    session: RefCell<Session>,
    queue: RefCell<VecDeque<Frame>>,
    /// Credits for the client that the writer has not announced yet.
    to_grant: Cell<u32>,
    /// Credits of ours that a READ has set aside for the piece it is about to send.
    reserved: Cell<u32>,
    /// READs, in `read`'s care.
    pub reads: Reads,
    /// Versions that OPEN found, for READs that follow here or on other connections of the client.
    pub pins: Pins,
    /// What the receiving task waits for.
    pub waiting: Cell<Waiting>,
    /// When the frame began that has come in part.
    pub frame_since: Cell<Option<Instant>>,
    /// Uploads that are fed here.
    pub puts: Puts,
    ended: Cell<Option<Instant>>,
    /// Room in the queue, or the end.
    roomy: Event,
    /// More credits, a cancelled request, or the end.
    credited: Event,
    /// Something to write, or the end.
    pushed: Event,
}

struct Frame {
    head: Bytes,
    /// The raw bytes of a piece.
    body: Bytes,
}

impl Link {
    pub fn new(context: Context) -> Rc<Link> {
        Rc::new(Link {
            context,
            session: RefCell::new(Session::accepting()),
            queue: RefCell::new(VecDeque::new()),
            to_grant: Cell::new(0),
            reserved: Cell::new(0),
            reads: Reads::default(),
            pins: Pins::default(),
            waiting: Cell::new(Waiting::Nothing),
            frame_since: Cell::new(None),
            puts: Puts::default(),
            ended: Cell::new(None),
            roomy: Event::new(),
            credited: Event::new(),
            pushed: Event::new(),
        })
    }

    /// Gives received bytes to the session, up to the next incident.
    pub fn receive(&self, input: &mut &[u8]) -> Result<Option<Incident>, SessionError> {
        self.session.borrow_mut().receive(input)
    }

    /// Looks at the session.
    pub fn session(&self) -> std::cell::Ref<'_, Session> {
        self.session.borrow()
    }

    /// The raw bytes of the current piece have been received.
    pub fn raw_taken(&self, bytes: usize) {
        self.session.borrow_mut().raw_taken(bytes);
    }

    /// Sends a message of a request. An answer that cannot be encoded is a defect of ours; the client is told.
    pub async fn send(&self, request: RequestId, message: impl Into<Message>) -> Result<(), Gone> {
        self.room(0).await?;
        let message = message.into();
        let sent = self.push(|session, out| session.send(request, message, out).map(drop));
        match sent {
            // The request has ended in the meantime: nobody waits for this.
            Ok(()) | Err(SendError::UnknownRequest(_)) => Ok(()),
            Err(SendError::NotOpen) => Err(Gone),
            Err(error) => {
                tracing::error!(%error, %request, "an answer cannot be sent");
                let reply = ErrorReply::new(ErrorCode::Internal, format!("the answer cannot be sent: {error}"));
                let _ = self.push(|session, out| session.send(request, reply, out).map(drop));
                Ok(())
            }
        }
    }

    /// Queues a frame about the connection itself, without waiting for room. Callers send few of them.
    pub fn push(
        &self,
        encode: impl FnOnce(&mut Session, &mut BytesMut) -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        let mut head = BytesMut::new();
        encode(&mut self.session.borrow_mut(), &mut head)?;
        self.enqueue(Frame { head: head.freeze(), body: Bytes::new() });
        Ok(())
    }

    fn enqueue(&self, frame: Frame) {
        self.queue.borrow_mut().push_back(frame);
        self.pushed.notify(usize::MAX);
    }

    /// Waits until a frame may be queued, `pieces` of which (none or one) is a piece.
    pub async fn room(&self, pieces: usize) -> Result<(), Gone> {
        self.until(&self.roomy, || {
            let queue = self.queue.borrow();
            let queued_pieces = queue.iter().filter(|frame| !frame.body.is_empty()).count();
            let fits = queue.len() < NATIVE_QUEUE_FRAMES_MAX && queued_pieces + pieces <= NATIVE_QUEUE_PIECES_MAX;
            fits.then_some(())
        })
        .await
    }

    /// Waits until `ready` gives something. It is asked again after each `event`.
    async fn until<T>(&self, event: &Event, mut ready: impl FnMut() -> Option<T>) -> Result<T, Gone> {
        loop {
            if self.has_ended() {
                return Err(Gone);
            }
            if let Some(value) = ready() {
                return Ok(value);
            }
            event.listen().await;
        }
    }

    /// The client has granted credits or cancelled a request.
    pub fn credits_changed(&self) {
        self.credited.notify(usize::MAX);
    }

    /// Waits for a credit and sets it aside. `None` when the request was cancelled.
    pub async fn reserve_credit(self: &Rc<Self>, request: RequestId) -> Result<Option<CreditHold>, Gone> {
        self.until(&self.credited, || {
            let session = self.session.borrow();
            let reserved = self.reserved.get();
            if session.is_cancelled(request) {
                Some(None)
            } else if session.credits_to_send() > reserved {
                self.reserved.set(reserved + 1);
                Some(Some(CreditHold(self.clone())))
            } else {
                None
            }
        })
        .await
    }

    /// Sends a piece with a credit set aside before.
    pub async fn send_piece(
        &self,
        request: RequestId,
        head: &PieceHead,
        body: Bytes,
        credit: CreditHold,
    ) -> Result<Result<(), SendError>, Gone> {
        self.room(1).await?;
        drop(credit);
        let head = self.session.borrow_mut().send_piece(request, head);
        Ok(head.map(|head| self.enqueue(Frame { head: Bytes::copy_from_slice(&head), body })))
    }

    /// The client may send this many pieces more. Told with the next write.
    pub fn grant(&self, pieces: u32) {
        self.to_grant.set(self.to_grant.get() + pieces);
        self.pushed.notify(usize::MAX);
    }

    /// Waits for frames to write and takes them all. `None` after the end, when nothing is left.
    pub async fn take_frames(&self) -> Option<Vec<Bytes>> {
        loop {
            let pieces = self.to_grant.take();
            if pieces > 0 {
                // Fails only when the session is over: then nobody needs credits.
                let _ = self.push(|session, out| session.grant(pieces, out));
            }
            let frames = std::mem::take(&mut *self.queue.borrow_mut());
            if !frames.is_empty() {
                self.roomy.notify(usize::MAX);
                return Some(frames.into_iter().flat_map(|frame| [frame.head, frame.body]).collect());
            }
            if self.has_ended() {
                return None;
            }
            self.pushed.listen().await;
        }
    }

    /// Ends the connection because of what the client did, and tells it why.
    pub fn close(&self, reply: ErrorReply) {
        if !self.has_ended() {
            tracing::debug!(%reply, "native connection closed");
            let mut head = BytesMut::new();
            let encoded = self.session.borrow_mut().close(reply, &mut head);
            if encoded.is_ok() {
                self.enqueue(Frame { head: head.freeze(), body: Bytes::new() });
            }
            self.end();
        }
    }

    /// Ends the connection: what is queued is still written, what was begun is given up.
    pub fn end(&self) {
        if !self.has_ended() {
            self.puts.clear();
            self.pins.clear();
            self.ended.set(Some(Instant::now()));
            self.roomy.notify(usize::MAX);
            self.credits_changed();
            self.pushed.notify(usize::MAX);
        }
    }

    /// Completes when the connection has ended.
    pub async fn until_ended(&self) {
        let _ = self.until::<()>(&self.credited, || None).await;
    }

    pub fn has_ended(&self) -> bool {
        self.ended.get().is_some()
    }

    /// When the connection ended.
    pub fn ended_at(&self) -> Option<Instant> {
        self.ended.get()
    }
}

/// A credit set aside; given back when dropped.
pub(super) struct CreditHold(Rc<Link>);

impl Drop for CreditHold {
    fn drop(&mut self) {
        self.0.reserved.set(self.0.reserved.get() - 1);
        self.0.credits_changed();
    }
}
