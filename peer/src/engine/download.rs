//! A download: the pieces of one version on their way to a peer that does not decide about its task.
//!
//! What to get from whom is the planner's ([`crate::swarm`]); this is its executor. One loop per version runs while
//! somebody reads: it reports to the home, starts and gives up flights, and hands each verified piece to
//! [`Owner::deliver`]. A flight to the home tries the next seeds when the home cannot be reached, and the backend when
//! none can. Memory for a flight is taken before it is planned, so an order never waits for memory; only when a reader
//! waits and none is free does the loop wait for some.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use dfstore_proto::error::ErrorCode;
use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::message::{Fetch, Message, PieceRuns, Track};
use event_listener::Event;
use futures_util::future::{Either, select};

use crate::engine::call::Wanted;
use crate::engine::cluster::Place;
use crate::engine::error::ObjectError;
use crate::engine::fetch::{Arrived, arrived, sized, source_of};
use crate::engine::owner::Owner;
use crate::engine::version::{PieceState, Version};
use crate::limits::{
    DOWNLOAD_IDLE_MAX, DOWNLOAD_READER_IDLE, DOWNLOAD_SLOTS_MAX, DOWNLOAD_WAKE_MAX, HOME_FAILURES_MAX, HOMES_ASKED_MAX,
    RELOCATE_PAUSE,
};
use crate::links::LinkError;
use crate::metrics::ShardMetrics;
use crate::rt::arena::{Holder, SlotMut};
use crate::rt::mailbox::oneshot;
use crate::rt::shard::spawn_local;
use crate::rt::time::{since_start, sleep};
use crate::swarm::{Failure, Order, Planner, Source};

/// The download of one version.
pub struct Download {
    planner: RefCell<Planner>,
    flights: RefCell<HashMap<(u32, Source), Flight>>,
    /// When each reader last asked.
    readers: RefCell<HashMap<u64, Duration>>,
    wake: Event,
    is_running: Cell<bool>,
    relocated_at: Cell<Duration>,
    used_at: Cell<Duration>,
    /// Parents avoided so far, as counted.
    avoided: Cell<u64>,
}

/// A piece that was ordered.
struct Flight {
    bytes: Rc<Cell<u64>>,
    told_bytes: u64,
    /// Dropped, the flight ends.
    _cancel: oneshot::Sender<()>,
}

impl Download {
    fn new(version: &Version) -> Download {
        let seed = u64::from_le_bytes(version.task.as_bytes()[8..16].try_into().expect("eight of 32 bytes"));
        let now = since_start();
        // Peers must not choose alike: the time of their starts differs.
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut planner = Planner::new(version.piece_count(), seed ^ nanos ^ u64::from(std::process::id()));
        for (number, _) in version.stored_pieces() {
            planner.have(number);
        }
        Download {
            planner: RefCell::new(planner),
            flights: RefCell::default(),
            readers: RefCell::default(),
            wake: Event::new(),
            is_running: Cell::new(false),
            relocated_at: Cell::new(Duration::ZERO),
            used_at: Cell::new(now),
            avoided: Cell::new(0),
        }
    }

    /// A piece that was here is here no longer.
    pub fn lost(&self, number: u32) {
        self.planner.borrow_mut().lost(number);
        self.wake.notify(usize::MAX);
    }

    /// The version was let go of: the loop looks whether it is still needed.
    pub fn let_go(&self) {
        self.wake.notify(usize::MAX);
    }

    /// Forgets readers that have not asked for long: they have gone, or read very slowly and will ask again.
    fn forget_idle_readers(&self, version: &Version, now: Duration) {
        if has_waiters(version) {
            // Whoever waits for a piece cannot ask for the next one.
            return;
        }
        let mut planner = self.planner.borrow_mut();
        self.readers.borrow_mut().retain(|reader, asked_at| {
            let stays = now < *asked_at + DOWNLOAD_READER_IDLE;
            if !stays {
                planner.leave(*reader);
            }
            stays
        });
    }

    /// Counts parents that were found to be of no use.
    fn count_avoided(&self, metrics: &ShardMetrics) {
        let avoided = self.planner.borrow().avoided();
        metrics.parents_avoided(avoided - self.avoided.replace(avoided));
    }

    /// Tells the planner how far the flights are.
    fn note_progress(&self, now: Duration) {
        let mut planner = self.planner.borrow_mut();
        for ((piece, from), flight) in self.flights.borrow_mut().iter_mut() {
            let bytes = flight.bytes.get();
            if bytes > flight.told_bytes {
                planner.progress(*piece, from, bytes - flight.told_bytes, now);
                flight.told_bytes = bytes;
            }
        }
    }
}

impl Owner {
    /// A reader wants a piece, and then those after it.
    pub fn demand(self: &Rc<Self>, version: &Rc<Version>, wanted: Wanted) {
        let download = version.download.borrow_mut().get_or_insert_with(|| Rc::new(Download::new(version))).clone();
        let now = since_start();
        download.used_at.set(now);
        // What is asked for here is not here, whatever the planner was told.
        if download.planner.borrow().pieces().contains(wanted.number) && !is_here(version, wanted.number) {
            download.planner.borrow_mut().lost(wanted.number);
        }
        if wanted.urgent && download.planner.borrow_mut().want(wanted.reader, wanted.number..wanted.end, now) {
            download.readers.borrow_mut().insert(wanted.reader, now);
        }
        download.wake.notify(usize::MAX);
        if !download.is_running.replace(true) {
            let (owner, version) = (self.clone(), version.clone());
            spawn_local(async move { owner.run_download(version, download).await });
        }
    }

    /// A piece that was read ahead is the one that its reader needs now.
    pub fn hurry(self: &Rc<Self>, task: &TaskId, generation: u64, wanted: Wanted) {
        let Ok(version) = self.opened_version(task, generation) else { return };
        if !self.is_away(task) || is_here(&version, wanted.number) {
            return;
        }
        if let Some(PieceState::Fetching(waiters)) = version.pieces.borrow_mut().get_mut(&wanted.number) {
            waiters.iter_mut().for_each(|waiter| waiter.urgent = true);
        }
        self.demand(&version, wanted);
    }

    async fn run_download(self: Rc<Self>, version: Rc<Version>, download: Rc<Download>) {
        loop {
            let now = since_start();
            download.forget_idle_readers(&version, now);
            download.note_progress(now);
            for given_up in download.planner.borrow_mut().overdue(now) {
                download.flights.borrow_mut().remove(&given_up);
                forget_unwanted(&version, given_up.0);
            }
            download.count_avoided(&self.metrics);
            let uploads = self.context.uploads.load(std::sync::atomic::Ordering::Relaxed);
            if let Some(report) = download.planner.borrow_mut().report(now, uploads) {
                self.send_report(&version, &download, report);
            }
            if self.is_let_go(&version) && download.flights.borrow().is_empty() && !has_waiters(&version) {
                // Its blocks are free when the last one who holds it has let go.
                break;
            }
            self.start_flights(&version, &download).await;
            self.give_up_if_lost(&version, &download).await;
            if !download.flights.borrow().is_empty() {
                download.used_at.set(now);
            }
            if now > download.used_at.get() + DOWNLOAD_IDLE_MAX {
                if !has_waiters(&version) {
                    break;
                }
                // Nothing came and nothing is on its way: nobody is to wait for ever.
                let error = ObjectError::PeerUnavailable("neither the home nor another peer gives the object".into());
                self.fail_waiters(&version, &error).await;
            }
            let wake = download.wake.listen();
            let next = download.planner.borrow().next_wake(now).unwrap_or(Duration::MAX);
            let pause = next.saturating_sub(since_start()).clamp(Duration::from_millis(1), DOWNLOAD_WAKE_MAX);
            select(wake, pin!(sleep(pause))).await;
        }
        download.is_running.set(false);
        version.pieces.borrow_mut().retain(|_, state| !matches!(state, PieceState::Fetching(_)));
        // Whoever comes later starts anew.
        version.download.borrow_mut().take_if(|held| Rc::ptr_eq(held, &download));
    }

    /// Whether a version was replaced or evicted and nobody reads it any more.
    fn is_let_go(&self, version: &Rc<Version>) -> bool {
        !version.is_read() && self.known(&version.task).is_none_or(|task| !task.is_current(version))
    }

    /// Sends TRACK and hands the answer to the planner.
    fn send_report(self: &Rc<Self>, version: &Rc<Version>, download: &Rc<Download>, report: crate::swarm::Report) {
        let (owner, version, download) = (self.clone(), version.clone(), download.clone());
        spawn_local(async move {
            let answer = owner.track(&version, report).await;
            match answer {
                Ok(Some(Message::Tracked(tracked))) => download.planner.borrow_mut().tracked(&tracked, since_start()),
                other => {
                    download.planner.borrow_mut().untracked(since_start());
                    // The home is another one now, or was restarted, and does not know the version.
                    if matches!(other, Err(ObjectError::VersionChanged(_))) {
                        owner.relocate(&version, &download).await;
                    }
                }
            }
            download.wake.notify(usize::MAX);
        });
    }

    /// Tells the home that this peer has come to hold all of a version that was too small for a planned download.
    pub fn tell_whole(self: &Rc<Self>, version: &Rc<Version>) {
        if !self.is_away(&version.task) {
            return;
        }
        let (owner, version) = (self.clone(), version.clone());
        spawn_local(async move {
            let have = PieceRuns::new(version.stored_runs());
            let report = crate::swarm::Report { have, ..crate::swarm::Report::default() };
            // Only others would miss it: they ask the home for the bytes.
            drop(owner.track(&version, report).await);
        });
    }

    async fn track(&self, version: &Version, report: crate::swarm::Report) -> Result<Option<Message>, ObjectError> {
        let (Some(cluster), Some(task)) = (&self.cluster, self.known(&version.task)) else { return Ok(None) };
        let node = cluster.me().to_string();
        let make = || Track {
            task: version.task,
            generation: version.generation,
            node: node.clone(),
            have: report.have.clone(),
            fetching: report.fetching.clone(),
            uploads: report.uploads,
            window: report.window,
        };
        self.ask_homes(&task, make).await
    }

    /// Makes the version known to a home that does not know it, by asking for the current one. True when it is this.
    async fn relocate(self: &Rc<Self>, version: &Rc<Version>, download: &Download) -> bool {
        let (Some(task), Place::Away { homes, .. }) = (self.known(&version.task), self.place(&version.task)) else {
            return false;
        };
        let now = since_start();
        if now < download.relocated_at.get() + RELOCATE_PAUSE {
            sleep(RELOCATE_PAUSE).await;
            return task.is_current(version);
        }
        download.relocated_at.set(now);
        self.ask_home(&task, &homes, false).await.is_ok() && task.is_current(version)
    }

    /// Orders what the planner wants, as far as there is memory.
    async fn start_flights(self: &Rc<Self>, version: &Rc<Version>, download: &Rc<Download>) {
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
        if version.standing() != crate::engine::request::Standing::Clean {
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

    /// The home fails again and again: whoever waits is told.
    async fn give_up_if_lost(self: &Rc<Self>, version: &Rc<Version>, download: &Download) {
        if is_hopeless(&download.planner.borrow()) && download.flights.borrow().is_empty() && has_waiters(version) {
            let error = ObjectError::PeerUnavailable("neither the home nor another peer gives the object".into());
            self.fail_waiters(version, &error).await;
        }
    }

    async fn fail_waiters(self: &Rc<Self>, version: &Rc<Version>, error: &ObjectError) {
        let is_awaited = |state: &PieceState| matches!(state, PieceState::Fetching(waiters) if !waiters.is_empty());
        let awaited: Vec<u32> =
            version.pieces.borrow().iter().filter(|(_, state)| is_awaited(state)).map(|(number, _)| *number).collect();
        for number in awaited {
            self.deliver(version, number, Err(error.clone())).await;
        }
    }
}

/// Whether a piece is on disk or on its way there; it may have come twice.
fn is_here(version: &Version, number: u32) -> bool {
    matches!(version.pieces.borrow().get(&number), Some(PieceState::Stored(_) | PieceState::Memory { .. }))
}

fn is_hopeless(planner: &Planner) -> bool {
    planner.home_failures() >= HOME_FAILURES_MAX
}

fn has_waiters(version: &Version) -> bool {
    let pieces = version.pieces.borrow();
    pieces.values().any(|state| {
        matches!(state, PieceState::Fetching(waiters) if waiters.iter().any(|waiter| !waiter.reply.is_canceled()))
    })
}

fn forget_unwanted(version: &Version, number: u32) {
    let mut pieces = version.pieces.borrow_mut();
    if matches!(pieces.get(&number), Some(PieceState::Fetching(waiters)) if waiters.is_empty()) {
        pieces.remove(&number);
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

#[cfg(test)]
mod tests {
    use super::*;

    use dfstore_proto::message::{Holder as Named, Tracked};
    use dfstore_proto::object::{ObjectMeta, PieceRun};

    use crate::catalog::TaskState;
    use crate::limits::{PIECE_BYTES, SWARM_SLOW_FACTOR};

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn named(node: &str, first: u32, count: u32) -> Named {
        Named { node: node.to_owned(), have: PieceRuns::new([PieceRun { first, count }]), uploads: 0 }
    }

    #[test]
    fn bytes_that_came_in_many_steps_count_once() {
        let piece = u64::from(PIECE_BYTES);
        let meta = ObjectMeta { length: 64 * piece, ..ObjectMeta::default() };
        let version = Version::new(TaskId::from_bytes([1; 32]), 1, meta, TaskState::Clean, None);
        let download = Download::new(&version);
        let mut planner = download.planner.borrow_mut();
        let parents = vec![named("quick", 0, 60), named("slow", 63, 1)];
        planner.tracked(&Tracked { parents, counts: vec![9; 64], suggested: Vec::new(), again_ms: 0 }, at(0));
        for number in 0..8 {
            let now = at(u64::from(number) * 100);
            planner.want(1, number..64, now);
            for order in planner.plan(now, 2) {
                if order.from == Source::Parent("quick".into()) {
                    planner.done(order.piece, &order.from, piece, now + at(100));
                }
            }
        }
        planner.want(1, 63..64, at(1000));
        planner.plan(at(1000), 5);
        let from = Source::Parent("slow".into());
        let (bytes, (cancel, _cancelled)) = (Rc::new(Cell::new(0)), oneshot::channel());
        let flight = Flight { bytes: bytes.clone(), told_bytes: 0, _cancel: cancel };
        download.flights.borrow_mut().insert((63, from.clone()), flight);
        drop(planner);
        // Half of what would be just good enough in two seconds, in ten steps.
        let step = piece / u64::from(SWARM_SLOW_FACTOR);
        for number in 1..=10 {
            bytes.set(number * step);
            download.note_progress(at(1000 + number * 190));
        }
        assert_eq!(download.planner.borrow_mut().overdue(at(3000)), [(63, from)]);
    }
}
