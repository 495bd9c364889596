//! What the tasks of one connection share: the session's state, the frames on their way out, credits, the end.
//!
//! All of it lives on one shard, so nothing here is locked; borrows never last over an await. A frame is encoded and
//! queued in one step, after there was room for it: so frames leave in the order the session agreed to. The queue is
//! bounded; who finds it full waits for the writer. Once the link has ended every call fails with [`Gone`], and the
//! tasks of the connection end by that.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::message::{Message, Role};
use dfstore_proto::session::{Event as Incident, SendError, Session, SessionError};
use event_listener::Event;

use crate::limits::{NATIVE_OUT_BYTES_MAX, NATIVE_QUEUE_FRAMES_MAX};
use crate::native::Context;
use crate::native::objects::Pins;
use crate::native::put::Puts;
use crate::native::read::Reads;
use crate::native::watch::Waiting;
use crate::rt::net::Door;

/// The connection is at its end: whoever works for it stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// The shared state of one connection.
pub(super) struct Link {
    pub context: Context,
    /// Which listener the connection came in by, and where from.
    pub door: Door,
    pub remote: IpAddr,
    role: Cell<Role>,
    session: RefCell<Session>,
    queue: RefCell<VecDeque<Frame>>,
    /// Credits for the client that the writer has not announced yet.
    to_grant: Cell<u32>,
    /// Credits of ours that READs have set aside for pieces they are about to send.
    reserved: Cell<u32>,
    /// Bytes of pieces that READs work on, or that wait for the socket.
    piece_bytes: Cell<usize>,
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
    pub fn new(context: Context, door: Door, remote: IpAddr) -> Rc<Link> {
        Rc::new(Link {
            context,
            door,
            remote,
            role: Cell::new(Role::Client),
            session: RefCell::new(Session::accepting()),
            queue: RefCell::new(VecDeque::new()),
            to_grant: Cell::new(0),
            reserved: Cell::new(0),
            piece_bytes: Cell::new(0),
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

    /// What the other side is. A client, until HELLO said more and was believed.
    pub fn role(&self) -> Role {
        self.role.get()
    }

    /// The other side was admitted as this.
    pub fn set_role(&self, role: Role) {
        self.role.set(role);
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
        self.room().await?;
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

    /// Waits until a frame may be queued.
    pub async fn room(&self) -> Result<(), Gone> {
        self.until(&self.roomy, || (self.queue.borrow().len() < NATIVE_QUEUE_FRAMES_MAX).then_some(())).await
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

    /// Waits until a piece of `bytes` may be sent: the client has granted a credit, and not too much waits for the
    /// socket. `None` when the request was cancelled.
    pub async fn piece_turn(self: &Rc<Self>, request: RequestId, bytes: usize) -> Result<Option<PieceTurn>, Gone> {
        self.until(&self.credited, || {
            let session = self.session.borrow();
            let (reserved, sum) = (self.reserved.get(), self.piece_bytes.get() + bytes);
            if session.is_cancelled(request) {
                return Some(None);
            }
            (session.credits_to_send() > reserved && sum <= NATIVE_OUT_BYTES_MAX).then(|| {
                self.reserved.set(reserved + 1);
                self.piece_bytes.set(sum);
                Some(PieceTurn { link: self.clone(), bytes, sent: false })
            })
        })
        .await
    }

    /// Whether READs work on a piece, or one waits for the socket.
    pub fn sends_pieces(&self) -> bool {
        self.piece_bytes.get() > 0
    }

    /// Queues a piece whose turn it is.
    pub fn send_piece(
        &self,
        request: RequestId,
        head: &PieceHead,
        body: Bytes,
        mut turn: PieceTurn,
    ) -> Result<(), SendError> {
        assert_eq!(body.len(), turn.bytes, "the turn was for this piece");
        let head = self.session.borrow_mut().send_piece(request, head)?;
        turn.sent = true;
        self.enqueue(Frame { head: Bytes::copy_from_slice(&head), body });
        Ok(())
    }

    /// The client may send this many pieces more. Told with the next write.
    pub fn grant(&self, pieces: u32) {
        self.to_grant.set(self.to_grant.get() + pieces);
        self.pushed.notify(usize::MAX);
    }

    /// Waits for frames to write and takes them all. `None` after the end, when nothing is left.
    pub async fn take_frames(&self) -> Option<Frames> {
        loop {
            let pieces = self.to_grant.take();
            if pieces > 0 {
                // Fails only when the session is over: then nobody needs credits.
                let _ = self.push(|session, out| session.grant(pieces, out));
            }
            let frames = std::mem::take(&mut *self.queue.borrow_mut());
            if !frames.is_empty() {
                self.roomy.notify(usize::MAX);
                let piece_bytes = frames.iter().map(|frame| frame.body.len()).sum();
                let parts = frames.into_iter().flat_map(|frame| [frame.head, frame.body]).collect();
                return Some(Frames { parts, piece_bytes });
            }
            if self.has_ended() {
                return None;
            }
            self.pushed.listen().await;
        }
    }

    /// So many bytes of pieces are with the kernel.
    pub fn written(&self, piece_bytes: usize) {
        if piece_bytes > 0 {
            self.piece_bytes.set(self.piece_bytes.get() - piece_bytes);
            self.credits_changed();
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

/// Frames to write with one operation.
pub(super) struct Frames {
    pub parts: Vec<Bytes>,
    /// Bytes of pieces among them.
    pub piece_bytes: usize,
}

/// The right to send one piece; given back when dropped.
pub(super) struct PieceTurn {
    link: Rc<Link>,
    bytes: usize,
    sent: bool,
}

impl Drop for PieceTurn {
    fn drop(&mut self) {
        let link = &self.link;
        link.reserved.set(link.reserved.get() - 1);
        if !self.sent {
            link.piece_bytes.set(link.piece_bytes.get() - self.bytes);
        }
        link.credits_changed();
    }
}
