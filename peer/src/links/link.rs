//! One connection to another peer, as those who ask on it see it: requests in flight, frames on their way out, the end.
//!
//! Many ask at once. A request is sent when the other side takes one more, and a fetch when one of
//! [`LINK_FETCHES_MAX`] places is free as well; until then it waits, first come first served. Whoever drops the future
//! of a request has it cancelled: it stays in flight, without anybody who waits, until the other side ends it. All of
//! this lives on one shard; no borrow lasts over an await. After the end everything fails with what ended it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use dfstore_proto::error::ErrorReply;
use dfstore_proto::frame::RequestId;
use dfstore_proto::message::{Fetch, Message};
use dfstore_proto::session::{Event as Incident, SendError, Session, SessionError};
use event_listener::{Event, IntoNotification};

use crate::limits::{LINK_FETCHES_MAX, LINK_OUT_BYTES_MAX};
use crate::links::LinkError;
use crate::links::fetching::{Fetched, Fetching};
use crate::rt::arena::SlotMut;
use crate::rt::mailbox::oneshot;
use crate::rt::stream::Incoming;

/// Why a request got no answer.
pub(super) enum Lost<T> {
    /// It was not taken, and left no trace: it may be made on another link. What it needs comes back.
    NotTaken(T),
    /// It failed.
    Failed(LinkError),
}

/// Who waits for a request.
enum Waiter {
    /// For one message; nobody when the asker has gone.
    Answer(Option<oneshot::Sender<Result<Message, Lost<()>>>>),
    /// For a piece.
    Piece(Rc<Fetching>),
}

/// The shared state of one connection.
pub(super) struct Link {
    /// The other peer's id, or its address.
    pub node: Arc<str>,
    pub address: SocketAddr,
    session: RefCell<Session>,
    out: RefCell<BytesMut>,
    waiters: RefCell<HashMap<RequestId, Waiter>>,
    requests_max: usize,
    fetches: Cell<u32>,
    idle_since: Cell<Instant>,
    ended: RefCell<Option<LinkError>>,
    /// Whether somebody waited when it ended.
    lost_requests: Cell<bool>,
    /// A request has ended, the frames were taken, or the end.
    roomy: Event,
    /// A fetch has ended, or the end.
    fetch_roomy: Event,
    /// Something to write, or the end.
    pushed: Event,
    /// The end.
    over: Event,
}

impl Link {
    /// A link over a session that is open.
    pub fn new(node: Arc<str>, address: SocketAddr, session: Session, requests_max: u16) -> Rc<Link> {
        Rc::new(Link {
            node,
            address,
            session: RefCell::new(session),
            out: RefCell::default(),
            waiters: RefCell::default(),
            requests_max: requests_max.into(),
            fetches: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            ended: RefCell::default(),
            lost_requests: Cell::new(false),
            roomy: Event::new(),
            fetch_roomy: Event::new(),
            pushed: Event::new(),
            over: Event::new(),
        })
    }

    /// One question, one answer.
    pub async fn ask(self: &Rc<Self>, message: Message) -> Result<Message, Lost<()>> {
        self.room().await.map_err(|Over| Lost::NotTaken(()))?;
        let request = self.request(message)?;
        let (reply, answer) = oneshot::channel();
        let _interest = self.wait(request, Waiter::Answer(Some(reply)));
        answer.await.unwrap_or(Err(Lost::Failed(LinkError::ShuttingDown)))
    }

    /// One piece. The length of `slot` is that of the piece, or zero when it is not known.
    pub async fn fetch(self: &Rc<Self>, fetch: Fetch, slot: SlotMut, progress: Option<Rc<Cell<u64>>>) -> Fetched {
        let Ok(place) = self.fetch_place().await else { return Err(Lost::NotTaken(slot)) };
        if self.room().await.is_err() {
            return Err(Lost::NotTaken(slot));
        }
        let number = fetch.number;
        let request = match self.request(fetch.into()) {
            Ok(request) => request,
            Err(lost) => return Err(lost.with(slot)),
        };
        let (reply, answer) = oneshot::channel();
        let fetching = Fetching::new(number, slot, progress, reply, place);
        let _interest = self.wait(request, Waiter::Piece(fetching));
        answer.await.unwrap_or(Err(Lost::Failed(LinkError::ShuttingDown)))
    }

    /// Waits until one more request may be sent.
    async fn room(&self) -> Result<(), Over> {
        let has_room = || self.requests_in_flight() < self.requests_max && self.out.borrow().len() < LINK_OUT_BYTES_MAX;
        self.until(&self.roomy, || has_room().then_some(())).await
    }

    async fn fetch_place(self: &Rc<Self>) -> Result<FetchPlace, Over> {
        self.until(&self.fetch_roomy, || {
            (self.fetches.get() < LINK_FETCHES_MAX).then(|| {
                self.fetches.set(self.fetches.get() + 1);
                FetchPlace(self.clone())
            })
        })
        .await
    }

    /// Waits until `ready` gives something. It is asked again when woken by `event`.
    async fn until<T>(&self, event: &Event, mut ready: impl FnMut() -> Option<T>) -> Result<T, Over> {
        loop {
            if !self.takes_requests() {
                return Err(Over);
            }
            if let Some(value) = ready() {
                return Ok(value);
            }
            event.listen().await;
        }
    }

    fn request(&self, message: Message) -> Result<RequestId, Lost<()>> {
        let made = self.push(|session, out| session.request(message, out));
        made.map_err(|error| match error {
            SendError::GoingAway | SendError::NotOpen => Lost::NotTaken(()),
            error => Lost::Failed(self.protocol(&error)),
        })
    }

    /// Has the answer of `request` given to `waiter`, as long as the result lives.
    fn wait(self: &Rc<Self>, request: RequestId, waiter: Waiter) -> Interest {
        self.waiters.borrow_mut().insert(request, waiter);
        Interest { link: self.clone(), request }
    }

    /// The next event in what was received.
    pub fn next_event(&self, incoming: &mut Incoming) -> Result<Option<Incident>, SessionError> {
        next_event(&mut self.session.borrow_mut(), incoming)
    }

    /// The raw bytes of the current piece have been received.
    pub fn raw_taken(&self, bytes: usize) {
        self.session.borrow_mut().raw_taken(bytes);
    }

    /// Whether the other side takes no more requests.
    pub fn is_going_away(&self) -> bool {
        self.session.borrow().is_going_away()
    }

    /// Appends a frame to what will be sent.
    pub fn push<T>(
        &self,
        encode: impl FnOnce(&mut Session, &mut BytesMut) -> Result<T, SendError>,
    ) -> Result<T, SendError> {
        let encoded = encode(&mut self.session.borrow_mut(), &mut self.out.borrow_mut())?;
        self.pushed.notify(usize::MAX);
        Ok(encoded)
    }

    /// Waits until what is to be sent does not pile up. Also over when the link has ended.
    pub async fn drained(&self) {
        while self.out.borrow().len() >= LINK_OUT_BYTES_MAX && !self.has_ended() {
            self.roomy.listen().await;
        }
    }

    /// Waits for frames to write and takes them all. `None` after the end, when nothing is left.
    pub async fn take_frames(&self) -> Option<Bytes> {
        loop {
            let frames = self.out.borrow_mut().split().freeze();
            if !frames.is_empty() {
                if frames.len() >= LINK_OUT_BYTES_MAX {
                    self.roomy.notify(usize::MAX);
                }
                return Some(frames);
            }
            if self.has_ended() {
                return None;
            }
            self.pushed.listen().await;
        }
    }

    /// The last frame of a request has come.
    pub fn answered(&self, request: RequestId, message: Message) {
        match self.waiters.borrow_mut().remove(&request) {
            Some(Waiter::Answer(Some(reply))) => {
                let answer = match message {
                    Message::Error(error) => Err(Lost::Failed(LinkError::Refused(error))),
                    message => Ok(message),
                };
                drop(reply.send(answer));
            }
            Some(Waiter::Piece(fetching)) => fetching.answered(&self.node, message),
            Some(Waiter::Answer(None)) | None => {}
        }
        self.freed(1);
    }

    /// These requests were not taken.
    pub fn abandoned(&self, requests: &[RequestId]) {
        for request in requests {
            match self.waiters.borrow_mut().remove(request) {
                Some(Waiter::Answer(Some(reply))) => drop(reply.send(Err(Lost::NotTaken(())))),
                Some(Waiter::Piece(fetching)) => fetching.not_taken(),
                Some(Waiter::Answer(None)) | None => {}
            }
        }
        // Who waits for room finds out that no more requests are taken.
        self.freed(usize::MAX);
        self.fetch_roomy.notify(usize::MAX);
    }

    fn freed(&self, places: usize) {
        if self.requests_in_flight() == 0 {
            self.idle_since.set(Instant::now());
        }
        self.roomy.notify(places.additional());
    }

    /// The fetch that this request is, if somebody waits for it.
    pub fn fetching(&self, request: RequestId) -> Option<Rc<Fetching>> {
        match self.waiters.borrow().get(&request) {
            Some(Waiter::Piece(fetching)) => Some(fetching.clone()),
            _ => None,
        }
    }

    /// Nobody waits for this request any more.
    fn forget(&self, request: RequestId) {
        match self.waiters.borrow_mut().get_mut(&request) {
            Some(Waiter::Answer(reply)) => drop(reply.take()),
            Some(Waiter::Piece(fetching)) => fetching.forget(),
            None => return,
        }
        // Fails only when the session is over: then nothing comes any more.
        let _ = self.push(|session, out| session.cancel(request, out));
    }

    /// Requests in flight.
    pub fn requests_in_flight(&self) -> usize {
        self.session.borrow().requests_in_flight()
    }

    /// Whether a request may be made here, now or after a wait.
    pub fn takes_requests(&self) -> bool {
        !self.has_ended() && !self.is_going_away()
    }

    /// How long nothing was asked.
    pub fn idle(&self) -> Duration {
        if self.requests_in_flight() > 0 { Duration::ZERO } else { self.idle_since.get().elapsed() }
    }

    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Completes when the link has ended.
    pub async fn until_ended(&self) {
        while !self.has_ended() {
            self.over.listen().await;
        }
    }

    /// What ended it, if somebody's request was lost by that.
    pub fn loss(&self) -> Option<LinkError> {
        self.ended.borrow().clone().filter(|_| self.lost_requests.get())
    }

    /// Ends the link because of what the other side did, and tells it why.
    pub fn close(&self, reply: ErrorReply, error: LinkError) {
        if !self.has_ended() {
            // A text that cannot be encoded is not told.
            let _ = self.session.borrow_mut().close(reply, &mut self.out.borrow_mut());
            self.end(error);
        }
    }

    /// Ends the link: what is queued is still written, all requests fail.
    pub fn end(&self, error: LinkError) {
        if self.has_ended() {
            return;
        }
        self.ended.replace(Some(error.clone()));
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        self.lost_requests.set(!waiters.is_empty());
        for waiter in waiters.into_values() {
            match waiter {
                Waiter::Answer(Some(reply)) => drop(reply.send(Err(Lost::Failed(error.clone())))),
                Waiter::Piece(fetching) => fetching.fail(error.clone()),
                Waiter::Answer(None) => {}
            }
        }
        for event in [&self.roomy, &self.fetch_roomy, &self.pushed, &self.over] {
            event.notify(usize::MAX);
        }
    }

    /// The other side cannot be reached any more.
    pub fn unreachable(&self, reason: impl ToString) -> LinkError {
        LinkError::Unreachable { node: self.node.clone(), reason: reason.to_string().into() }
    }

    /// A rule was broken.
    pub fn protocol(&self, reason: &impl ToString) -> LinkError {
        LinkError::Protocol { node: self.node.clone(), reason: reason.to_string().into() }
    }
}

/// The link takes no more requests.
#[derive(Debug)]
struct Over;

/// Gives what was received to the session, up to the next event.
pub(super) fn next_event(session: &mut Session, incoming: &mut Incoming) -> Result<Option<Incident>, SessionError> {
    let mut input = incoming.buffered();
    let before = input.len();
    let event = session.receive(&mut input);
    let consumed = before - input.len();
    incoming.consume(consumed);
    event
}

impl Lost<()> {
    fn with<T>(self, needed: T) -> Lost<T> {
        match self {
            Lost::NotTaken(()) => Lost::NotTaken(needed),
            Lost::Failed(error) => Lost::Failed(error),
        }
    }
}

/// One of the places for fetches; free again when dropped.
pub(super) struct FetchPlace(Rc<Link>);

impl Drop for FetchPlace {
    fn drop(&mut self) {
        self.0.fetches.set(self.0.fetches.get() - 1);
        self.0.fetch_roomy.notify(1.additional());
    }
}

/// Somebody waits for a request; dropped, nobody does.
struct Interest {
    link: Rc<Link>,
    request: RequestId,
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.link.forget(self.request);
    }
}
