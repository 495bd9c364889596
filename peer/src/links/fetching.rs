//! One piece on its way from another peer: the slot it is received into, and who waits for it.
//!
//! The raw bytes go from the socket straight into the slot and are summed while they are in the processor's cache.
//! When nobody wants the piece any more the slot is given back at once, and the rest is received and dropped.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use dfstore_proto::frame::PieceHead;
use dfstore_proto::message::{Message, ReadEnd, SourceCount};

use crate::limits::LINK_RECEIVE_BYTES_MAX;
use crate::links::LinkError;
use crate::links::link::{FetchPlace, Lost};
use crate::metrics::Metrics;
use crate::rt::arena::SlotMut;
use crate::rt::mailbox::oneshot;
use crate::rt::stream::Incoming;

/// A piece that another peer sent.
pub struct FetchedPiece {
    /// Its bytes, verified.
    pub slot: SlotMut,
    /// What the other peer says about it: the checksum is right, and it is the piece that was asked for.
    pub head: PieceHead,
    /// Where the other peer has it from.
    pub sources: Vec<SourceCount>,
}

/// What becomes of a fetch.
pub(super) type Fetched = Result<FetchedPiece, Lost<SlotMut>>;

/// A fetch in flight.
pub(super) struct Fetching {
    number: u32,
    /// Until the first byte comes.
    slot: Cell<Option<SlotMut>>,
    progress: Option<Rc<Cell<u64>>>,
    arrived: Cell<Option<Result<(SlotMut, PieceHead), LinkError>>>,
    /// Gone when nobody wants it any more.
    reply: Cell<Option<oneshot::Sender<Fetched>>>,
    wanted: Cell<bool>,
    /// Kept until the request has ended on the wire.
    _place: FetchPlace,
}

impl Fetching {
    /// A fetch of piece `number` into `slot`, whose length is that of the piece; zero when that is not known.
    pub fn new(
        number: u32,
        slot: SlotMut,
        progress: Option<Rc<Cell<u64>>>,
        reply: oneshot::Sender<Fetched>,
        place: FetchPlace,
    ) -> Rc<Fetching> {
        Rc::new(Fetching {
            number,
            slot: Cell::new(Some(slot)),
            progress,
            arrived: Cell::new(None),
            reply: Cell::new(Some(reply)),
            wanted: Cell::new(true),
            _place: place,
        })
    }

    /// Receives the raw bytes that belong to `head`.
    pub async fn receive(
        &self,
        node: &Arc<str>,
        incoming: &mut Incoming,
        head: PieceHead,
        metrics: &Metrics,
    ) -> io::Result<()> {
        let length = head.length as usize;
        let Some(slot) = self.slot.take() else { return incoming.skip(length).await };
        let expected = if slot.is_empty() { slot.capacity() } else { slot.len() };
        if length > expected || (length < expected && !slot.is_empty()) {
            let wrong =
                LinkError::WrongLength { node: node.clone(), number: self.number, expected, actual: head.length };
            self.arrived.set(Some(Err(wrong)));
            return incoming.skip(length).await;
        }
        let Some((slot, actual)) = self.fill(incoming, slot, length).await? else { return Ok(()) };
        metrics.peer_fetched(u64::from(head.length));
        let (node, number, expected) = (node.clone(), self.number, head.crc32);
        let right = actual == expected;
        let wrong = || LinkError::WrongBytes { node, number, expected, actual };
        self.arrived.set(Some(if right { Ok((slot, head)) } else { Err(wrong()) }));
        Ok(())
    }

    /// The slot filled, and the checksum of its bytes; `None` when it was given up on the way.
    async fn fill(
        &self,
        incoming: &mut Incoming,
        mut slot: SlotMut,
        length: usize,
    ) -> io::Result<Option<(SlotMut, u32)>> {
        slot.set_len(length);
        let mut hasher = crc32fast::Hasher::new();
        let mut filled = 0;
        while filled < length {
            let end = length.min(filled + LINK_RECEIVE_BYTES_MAX);
            let count;
            (count, slot) = incoming.read_part(slot, filled..end).await?;
            if !self.wanted.get() {
                drop(slot);
                incoming.skip(length - filled - count).await?;
                return Ok(None);
            }
            hasher.update(&slot[filled..filled + count]);
            filled += count;
            if let Some(progress) = &self.progress {
                progress.set(filled as u64);
            }
        }
        Ok(Some((slot, hasher.finalize())))
    }

    /// Nobody waits any more.
    pub fn forget(&self) {
        self.wanted.set(false);
        self.reply.take();
        self.slot.take();
        self.arrived.take();
    }

    /// The last frame of the request has come.
    pub fn answered(&self, node: &Arc<str>, message: Message) {
        let fetched = match (message, self.arrived.take()) {
            (Message::Error(reply), _) => Err(LinkError::Refused(reply)),
            (_, Some(Err(error))) => Err(error),
            (Message::ReadEnd(ReadEnd { sources }), Some(Ok((slot, head)))) => Ok(FetchedPiece { slot, head, sources }),
            // The session has seen the piece before it lets READ_END pass.
            _ => Err(LinkError::Protocol { node: node.clone(), reason: "no piece came".into() }),
        };
        self.reply(fetched.map_err(Lost::Failed));
    }

    /// The other side did not take the request.
    pub fn not_taken(&self) {
        if let Some(slot) = self.slot.take() {
            self.reply(Err(Lost::NotTaken(slot)));
        }
    }

    /// The link has ended.
    pub fn fail(&self, error: LinkError) {
        self.reply(Err(Lost::Failed(error)));
    }

    fn reply(&self, fetched: Fetched) {
        if let Some(reply) = self.reply.take() {
            // Who dropped the other end has no use for it.
            drop(reply.send(fetched));
        }
    }
}
