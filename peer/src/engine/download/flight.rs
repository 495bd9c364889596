//! Flights of a download: one ordered piece each, from its source to [`Owner::deliver`].

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;

use dfstore_proto::error::ErrorCode;
use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::Fetch;
use futures_util::future::{Either, select};

use crate::engine::cluster::Place;
use crate::engine::download::{Download, Flight, forget_unwanted, has_waiters, is_here, is_hopeless};
use crate::engine::error::ObjectError;
use crate::engine::fetch::{Arrived, arrived, sized, source_of};
use crate::engine::owner::Owner;
use crate::engine::request::Standing;
use crate::engine::version::{PieceState, Version};
use crate::limits::{DOWNLOAD_SLOTS_MAX, HOMES_ASKED_MAX};
use crate::links::LinkError;
use crate::rt::arena::{Holder, SlotMut};
use crate::rt::mailbox::oneshot;
use crate::rt::shard::spawn_local;
use crate::rt::time::since_start;
use crate::swarm::{Failure, Order, Source};

impl Owner {
    /// Orders what the planner wants, as far as there is memory.
    pub(super) async fn start_flights(self: &Rc<Self>, version: &Rc<Version>, download: &Rc<Download>) {
        let length = version.piece_length(0) as usize;
        let places = DOWNLOAD_SLOTS_MAX.saturating_sub(download.flights.borrow().len());
        let mut slots: Vec<SlotMut> = Vec::new();
        while slots.len() < places
            && let Some(slot) = self.context.arena.try_take(length, Holder::Fetch)
        {
            slots.push(slot);
        }
        if slots.is_empty() && download.flights.borrow().is_empty() && has_waiters(version) {
            match self.take_fetch_slot(length).await {
                Ok(slot) => slots.push(slot),
                Err(error) => return self.fail_waiters(version, &error).await,
            }
        }
        let orders = download.planner.borrow_mut().plan(since_start(), slots.len());
        for (order, slot) in orders.into_iter().zip(slots) {
            self.start_flight(version, download, order, slot);
        }
    }

    fn start_flight(self: &Rc<Self>, version: &Rc<Version>, download: &Rc<Download>, order: Order, slot: SlotMut) {
        match version.pieces.borrow_mut().entry(order.piece).or_insert_with(|| PieceState::Fetching(Vec::new())) {
            PieceState::Fetching(_) => {}
            // It is here, however it came.
            PieceState::Stored(_) | PieceState::Memory { .. } => {
                return download.planner.borrow_mut().done(order.piece, &order.from, 0, since_start());
            }
        }
        let (cancel, cancelled) = oneshot::channel();
        let bytes = Rc::new(Cell::new(0));
        let flight = Flight { bytes: bytes.clone(), told_bytes: 0, _cancel: cancel };
        download.flights.borrow_mut().insert((order.piece, order.from.clone()), flight);
        let (owner, version, download) = (self.clone(), version.clone(), download.clone());
        spawn_local(async move {
            let fetch = pin!(owner.fly(&version, &download, &order, slot, bytes));
            if let Either::Left((came, _)) = select(fetch, cancelled).await {
                download.flights.borrow_mut().remove(&(order.piece, order.from.clone()));
                owner.land(&version, &download, &order, came).await;
            }
        });
    }

    /// Carries one order out.
    async fn fly(
        self: &Rc<Self>,
        version: &Rc<Version>,
        download: &Download,
        order: &Order,
        slot: SlotMut,
        bytes: Rc<Cell<u64>>,
    ) -> Result<Arrived, Lost> {
        let Some(cluster) = &self.cluster else { return Err(Lost::at_source(Failure::Missing)) };
        let fetch = Fetch {
            task: version.task,
            generation: version.generation,
            number: order.piece,
            local_only: matches!(order.from, Source::Parent(_)),
        };
        if let Source::Parent(id) = &order.from {
            let members = cluster.members();
            let node = members.find(id).ok_or(Lost::at_source(Failure::Unreachable))?;
            let slot = sized(slot, version.piece_length(order.piece));
            let piece =
                cluster.links.fetch(node, fetch, slot, Some(bytes)).await.map_err(|error| Lost::from(&error))?;
            return Ok(arrived(piece.slot, piece.head.crc32, source_of(node)));
        }
        let Place::Away { homes, .. } = self.place(&version.task) else {
            return self.fetch_alone(version, order.piece, slot).await;
        };
        let name =
            self.known(&version.task).map(|task| task.target.name.clone()).ok_or(Lost::at_source(Failure::Missing))?;
        let mut slot = Some(slot);
        for home in homes.iter().take(HOMES_ASKED_MAX) {
            for attempt in 0..2 {
                let buffer = match slot.take() {
                    Some(slot) => slot,
                    None => {
                        self.take_fetch_slot(version.piece_length(order.piece) as usize).await.map_err(Lost::Told)?
                    }
                };
                let buffer = sized(buffer, version.piece_length(order.piece));
                let error = match cluster.links.fetch(home, fetch.clone(), buffer, Some(bytes.clone())).await {
                    Ok(piece) => return Ok(arrived(piece.slot, piece.head.crc32, source_of(home))),
                    Err(error) => error,
                };
                tracing::debug!(%error, home = %home.id, number = order.piece, "a piece did not come from the home");
                if error.is_unreachable() {
                    break;
                }
                let is_unknown = error.code() == Some(ErrorCode::VersionChanged);
                if attempt > 0 || !is_unknown || !self.relocate(version, download).await {
                    return Err(Lost::of_home(error, &name));
                }
            }
        }
        let buffer = self.take_fetch_slot(version.piece_length(order.piece) as usize).await.map_err(Lost::Told)?;
        self.fetch_alone(version, order.piece, buffer).await
    }

    /// No home can be reached: the backend is all there is.
    async fn fetch_alone(&self, version: &Version, number: u32, slot: SlotMut) -> Result<Arrived, Lost> {
        if version.standing() != Standing::Clean {
            let why = format!("piece {number}: the seed that decides about the object cannot be reached");
            return Err(Lost::Told(ObjectError::PeerUnavailable(why)));
        }
        self.fetch_from_backend(version, number, Some(slot)).await.map_err(Lost::Told)
    }

    async fn land(
        self: &Rc<Self>,
        version: &Rc<Version>,
        download: &Rc<Download>,
        order: &Order,
        came: Result<Arrived, Lost>,
    ) {
        let now = since_start();
        match came {
            Ok(arrived) => {
                let bytes = arrived.0.len() as u64;
                download.planner.borrow_mut().done(order.piece, &order.from, bytes, now);
                download.wake.notify(usize::MAX);
                if !is_here(version, order.piece) {
                    self.deliver(version, order.piece, Ok(arrived)).await;
                }
            }
            Err(lost) => {
                let (failure, told) = match lost {
                    Lost::AtSource(failure) => (failure, None),
                    Lost::Told(error) => (Failure::Busy, Some(error)),
                };
                download.planner.borrow_mut().failed(order.piece, &order.from, failure, now);
                let is_final = |error: &ObjectError| {
                    let may_heal = error.is_retryable() && !matches!(error, ObjectError::VersionChanged(_));
                    !may_heal || is_hopeless(&download.planner.borrow())
                };
                match told.filter(is_final) {
                    Some(error) => self.deliver(version, order.piece, Err(error)).await,
                    // Nobody waits for it and nothing brings it now: as if it had never been ordered.
                    None => forget_unwanted(version, order.piece),
                }
                download.wake.notify(usize::MAX);
            }
        }
    }
}

/// Why a flight brought nothing.
enum Lost {
    /// This source failed; another may not.
    AtSource(Failure),
    /// What to tell those who wait, if nothing else helps.
    Told(ObjectError),
}

impl Lost {
    fn at_source(failure: Failure) -> Lost {
        Lost::AtSource(failure)
    }

    /// The home answered with an error, which is about the object.
    fn of_home(error: LinkError, name: &ObjectName) -> Lost {
        match error {
            LinkError::Refused(_) => match ObjectError::from_peer(error, name) {
                // What was opened is there no longer.
                ObjectError::NotFound(name) => Lost::Told(ObjectError::VersionChanged(name)),
                error => Lost::Told(error),
            },
            other => Lost::from(&other),
        }
    }
}

impl From<&LinkError> for Lost {
    fn from(error: &LinkError) -> Lost {
        Lost::AtSource(match error {
            LinkError::WrongBytes { .. } | LinkError::WrongLength { .. } | LinkError::Protocol { .. } => Failure::Wrong,
            LinkError::Refused(reply) if reply.code == ErrorCode::Busy => Failure::Busy,
            LinkError::Refused(_) => Failure::Missing,
            _ => Failure::Unreachable,
        })
    }
}
