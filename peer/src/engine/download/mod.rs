//! A download: the pieces of one version on their way to a peer that does not decide about its task.
//!
//! What to get from whom is the planner's ([`crate::swarm`]); this is its executor. One loop per version runs while
//! somebody reads: it reports to the home, starts and gives up flights, and hands each verified piece to
//! [`Owner::deliver`]. A flight to the home tries the next seeds when the home cannot be reached, and the backend when
//! none can. Memory for a flight is taken before it is planned, so an order never waits for memory; only when a reader
//! waits and none is free does the loop wait for some.

mod flight;
mod report;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dfstore_proto::ids::TaskId;
use event_listener::Event;
use futures_util::future::select;

use crate::engine::call::Wanted;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::version::{PieceState, Version};
use crate::limits::{DOWNLOAD_IDLE_MAX, DOWNLOAD_READER_IDLE, DOWNLOAD_WAKE_MAX, HOME_FAILURES_MAX};
use crate::metrics::ShardMetrics;
use crate::rt::mailbox::oneshot;
use crate::rt::shard::spawn_local;
use crate::rt::time::{since_start, sleep};
use crate::swarm::{Planner, Source};

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
            let uploads = self.context.uploads.load(Ordering::Relaxed);
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
                self.fail_waiters(&version, &nobody_gives()).await;
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

    /// The home fails again and again: whoever waits is told.
    async fn give_up_if_lost(self: &Rc<Self>, version: &Rc<Version>, download: &Download) {
        if is_hopeless(&download.planner.borrow()) && download.flights.borrow().is_empty() && has_waiters(version) {
            self.fail_waiters(version, &nobody_gives()).await;
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

fn nobody_gives() -> ObjectError {
    ObjectError::PeerUnavailable("neither the home nor another peer gives the object".into())
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

#[cfg(test)]
mod tests {
    use super::*;

    use dfstore_proto::message::{Holder as Named, PieceRuns, Tracked};
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
