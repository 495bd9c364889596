//! Pieces that stay in memory after their use, in slots that nobody needs now: the hot tier.
//!
//! A [`Hot`] is where the bytes of one piece may stay. It belongs to whoever names the piece, and its bytes go with it, so
//! nothing that was replaced is ever found here. Which pieces stay is S3-FIFO (Yang et al., SOSP 2023) for each size of
//! slots: what is new comes into a small queue and leaves memory from there unless it was read meanwhile; what was read,
//! or comes back soon after it left, goes into the main queue, where each read is worth another round. So a large object
//! that is read once passes through without displacing what is read again and again.
//!
//! Nothing here decides how much stays: takers of slots [`shed`](HotTier::shed) what they need the room of. A slot that
//! somebody reads from is passed over, it would not become free.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::rt::arena::{CLASS_BYTES, Slot};

/// The small queue holds one of so many pieces.
const SMALL_DIVISOR: usize = 10;
/// Reads that count.
const READS_MAX: u8 = 3;

/// Where the bytes of one piece may stay in memory.
#[derive(Clone, Default)]
pub struct Hot(Arc<Mutex<Place>>);

#[derive(Default)]
struct Place {
    slot: Option<Slot>,
    reads: u8,
    /// When it last left memory: from slots of which size, and how many had left such slots by then. It may come back into
    /// larger ones.
    left: Option<(usize, usize)>,
}

impl Hot {
    /// The bytes, if they are in memory; counted as a read.
    pub fn read(&self) -> Option<Slot> {
        let mut place = lock(&self.0);
        let slot = place.slot.clone()?;
        place.reads = (place.reads + 1).min(READS_MAX);
        Some(slot)
    }

    /// The bytes, if they are in memory, for a use that says nothing about later ones.
    pub fn peek(&self) -> Option<Slot> {
        lock(&self.0).slot.clone()
    }

    /// The piece is gone: its bytes leave memory.
    pub fn clear(&self) {
        let slot = lock(&self.0).slot.take();
        drop(slot);
    }
}

/// The queues, one pair for each size of slots.
pub struct HotTier {
    classes: [Class; CLASS_BYTES.len()],
}

struct Class {
    /// Slots of this size that there are.
    slots: usize,
    /// Places in the queues; those whose piece has gone are among them for a while.
    count: AtomicUsize,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    small: VecDeque<Hot>,
    main: VecDeque<Hot>,
    /// Pieces that have left memory.
    left: usize,
}

/// What becomes of the oldest of a queue.
enum Fate {
    Gone,
    Again,
    Promoted,
    Leaves(Slot),
}

impl Class {
    /// Works on the queues, and notes how long they are then.
    fn with_queues<T>(&self, work: impl FnOnce(&mut Queues) -> T) -> T {
        let mut queues = lock(&self.queues);
        let done = work(&mut queues);
        self.count.store(queues.len(), Ordering::Release);
        done
    }
}

impl HotTier {
    /// Empty. `slots`: how many there are of each size.
    pub fn new(slots: &[usize; CLASS_BYTES.len()]) -> HotTier {
        let class = |slots| Class { slots, count: AtomicUsize::new(0), queues: Mutex::default() };
        HotTier { classes: slots.map(class) }
    }

    /// Keeps a piece, unless it is here already.
    pub fn keep(&self, hot: &Hot, slot: Slot) {
        let class = &self.classes[slot.class()];
        // What is not kept is dropped when the lock is free again.
        let _rest = class.with_queues(|queues| {
            let is_back = {
                let mut place = lock(&hot.0);
                if place.slot.is_some() {
                    return Some(slot);
                }
                let since = place.left.take().filter(|(size, _)| *size == slot.class()).map(|(_, at)| queues.left - at);
                (place.slot, place.reads) = (Some(slot), 0);
                since.is_some_and(|since| since <= queues.main.len().max(1))
            };
            if queues.len() > 2 * class.slots {
                queues.forget_gone();
            }
            let queue = if is_back { &mut queues.main } else { &mut queues.small };
            queue.push_back(hot.clone());
            None
        });
    }

    /// Frees a slot of this size; `false` when there is none that nobody reads from.
    pub fn shed(&self, class: usize) -> bool {
        let class = &self.classes[class];
        class.count.load(Ordering::Acquire) > 0 && class.with_queues(Queues::shed).is_some()
    }

    /// Lets the oldest piece of this size that somebody reads from leave memory: its slot becomes free when its present
    /// readers are done, and new ones come to stand in line for memory like everybody else.
    pub fn detach(&self, class: usize) {
        let _slot = self.classes[class].with_queues(|queues| {
            let slot = queues.main.iter().chain(&queues.small).find_map(|hot| lock(&hot.0).slot.take());
            queues.forget_gone();
            slot
        });
    }

    /// Whether at least so many slots of this size, or of a larger one, could be freed: nobody reads from them.
    pub fn has_idle(&self, class: usize, wanted: usize) -> bool {
        let mut found = 0;
        (class..CLASS_BYTES.len()).rev().any(|class| {
            found += self.idle(class, wanted - found);
            found >= wanted
        })
    }

    /// Whether slots of so many bytes together could be freed.
    pub fn has_idle_bytes(&self, wanted: usize) -> bool {
        let mut found = 0;
        CLASS_BYTES.iter().enumerate().rev().any(|(class, bytes)| {
            found += bytes * self.idle(class, wanted.saturating_sub(found).div_ceil(*bytes));
            found >= wanted
        })
    }

    /// How many slots of this size could be freed, up to `most`. With few that are read from, few are looked at.
    fn idle(&self, class: usize, most: usize) -> usize {
        let class = &self.classes[class];
        if most == 0 || class.count.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let queues = lock(&class.queues);
        let places = queues.small.iter().chain(&queues.main);
        places.filter(|hot| lock(&hot.0).slot.as_ref().is_some_and(Slot::is_sole)).take(most).count()
    }

    /// Bytes of all slots that could be freed. Looks at every one.
    pub fn idle_bytes(&self) -> usize {
        CLASS_BYTES.iter().enumerate().map(|(class, bytes)| bytes * self.idle(class, usize::MAX)).sum()
    }
}

impl Queues {
    fn shed(&mut self) -> Option<Slot> {
        // Those of each queue that were passed over in a row: when it is all of them, there is nothing in it to free.
        let (mut passed_small, mut passed_main) = (0, 0);
        loop {
            let (has_small, has_main) = (passed_small < self.small.len(), passed_main < self.main.len());
            let is_large = self.small.len() * SMALL_DIVISOR > self.len();
            let of_small = has_small && (is_large || !has_main);
            if !of_small && !has_main {
                return None;
            }
            let hot = if of_small { self.small.pop_front() } else { self.main.pop_front() }?;
            match self.judge(&hot, of_small) {
                Fate::Gone => {}
                Fate::Again if of_small => {
                    passed_small += 1;
                    self.small.push_back(hot);
                }
                Fate::Again => {
                    passed_main += 1;
                    self.main.push_back(hot);
                }
                // It has one read less to its name, so this comes to an end.
                Fate::Promoted => {
                    passed_main = 0;
                    self.main.push_back(hot);
                }
                Fate::Leaves(slot) => return Some(slot),
            }
        }
    }

    fn judge(&mut self, hot: &Hot, of_small: bool) -> Fate {
        let mut place = lock(&hot.0);
        match &place.slot {
            None => Fate::Gone,
            Some(_) if place.reads > 0 => {
                place.reads = if of_small { 0 } else { place.reads - 1 };
                Fate::Promoted
            }
            Some(slot) if !slot.is_sole() => Fate::Again,
            Some(slot) => {
                self.left += 1;
                place.left = Some((slot.class(), self.left));
                place.slot.take().map_or(Fate::Gone, Fate::Leaves)
            }
        }
    }

    fn len(&self) -> usize {
        self.small.len() + self.main.len()
    }

    fn forget_gone(&mut self) {
        for queue in [&mut self.small, &mut self.main] {
            queue.retain(|hot| lock(&hot.0).slot.is_some());
        }
    }
}

/// Nobody panics while he holds one of these locks, and what they guard is whole after each line.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PIECE_BYTES;
    use crate::rt::arena::{Arena, Holder};

    const PIECE: usize = PIECE_BYTES as usize;

    fn arena() -> Arena {
        Arena::new(64 << 20).expect("64 MiB can be mapped")
    }

    fn read_from_disk(arena: &Arena, hot: &Hot) {
        let slot = arena.try_take(PIECE, Holder::Serve).expect("what is hot makes room").freeze();
        arena.keep_hot(hot, slot);
    }

    fn is_there(hot: &Hot) -> bool {
        hot.peek().is_some()
    }

    #[test]
    fn what_is_hot_makes_room_for_whoever_needs_it() {
        let arena = arena();
        let pieces: Vec<Hot> = (0..20).map(|_| Hot::default()).collect();
        pieces.iter().for_each(|hot| read_from_disk(&arena, hot));
        let kept = pieces.iter().filter(|hot| is_there(hot)).count();
        assert!(kept >= 5, "only {kept} of the share of 24 MiB");
        assert_eq!(arena.held_bytes(Holder::Serve), 0, "nobody uses any");
        assert_eq!(arena.idle_hot_bytes(), kept * PIECE);
        let taken: Vec<_> = std::iter::from_fn(|| arena.try_take(PIECE, Holder::Serve)).collect();
        assert_eq!(taken.len(), kept, "all of the share");
        assert!(!pieces.iter().any(is_there));
        drop(taken);
        assert_eq!(arena.held_bytes(Holder::Serve), 0);
    }

    #[test]
    fn the_share_of_others_is_theirs_when_their_slots_are_hot() {
        let arena = arena();
        let all: Vec<_> =
            Holder::ALL.iter().flat_map(|holder| std::iter::from_fn(|| arena.try_take(PIECE, *holder))).collect();
        let most = all.len();
        drop(all);
        let pieces: Vec<Hot> = (0..20).map(|_| Hot::default()).collect();
        pieces.iter().for_each(|hot| read_from_disk(&arena, hot));
        let all: Vec<_> =
            Holder::ALL.iter().rev().flat_map(|holder| std::iter::from_fn(|| arena.try_take(PIECE, *holder))).collect();
        assert_eq!(all.len(), most);
    }

    #[test]
    fn what_is_read_from_stays_and_is_counted_as_used() {
        let arena = arena();
        let hot = Hot::default();
        read_from_disk(&arena, &hot);
        let reader = hot.read().expect("it is in memory");
        assert_eq!(arena.held_bytes(Holder::Serve), PIECE);
        let others: Vec<_> = std::iter::from_fn(|| arena.try_take(PIECE, Holder::Serve)).collect();
        assert!(!others.is_empty() && is_there(&hot));
        drop((reader, others));
        assert_eq!((arena.held_bytes(Holder::Serve), arena.idle_hot_bytes()), (0, PIECE));
        hot.clear();
        assert_eq!((arena.idle_hot_bytes(), hot.read().is_none()), (0, true));
    }

    #[test]
    fn one_that_is_read_does_not_keep_the_others_from_making_room() {
        let arena = arena();
        let places: Vec<Hot> = (0..4).map(|_| Hot::default()).collect();
        places.iter().for_each(|hot| read_from_disk(&arena, hot));
        // Three that were read go to the main queue, the one that is read from stays alone in the small one, or the other
        // way round.
        for held in 0..4 {
            places.iter().filter(|hot| is_there(hot)).for_each(|hot| drop(hot.read()));
            let reader = places[held].peek();
            let taken: Vec<_> = std::iter::from_fn(|| arena.try_take(PIECE, Holder::Serve)).collect();
            assert!(taken.len() >= 3, "{held}: only {}", taken.len());
            drop((taken, reader));
            places.iter().filter(|hot| !is_there(hot)).for_each(|hot| read_from_disk(&arena, hot));
        }
    }

    #[test]
    fn who_waits_is_not_kept_out_by_those_who_read_what_is_hot() {
        let arena = arena();
        let places: Vec<Hot> = (0..20).map(|_| Hot::default()).collect();
        places.iter().for_each(|hot| read_from_disk(&arena, hot));
        // All that is there is read by somebody, again and again.
        let mut readers: Vec<Option<Slot>> = places.iter().map(Hot::read).collect();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut waiting = std::pin::pin!(arena.take(PIECE, Holder::Serve));
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        let came = (0..places.len()).any(|at| {
            readers[at] = None;
            readers[at] = places[at].read();
            waiting.as_mut().poll(&mut cx).is_ready()
        });
        assert!(came);
    }

    #[test]
    fn nothing_is_given_up_where_it_would_not_do() {
        let arena = arena();
        let small = Hot::default();
        arena.keep_hot(&small, arena.try_take(1, Holder::Serve).expect("free").freeze());
        let other_small = arena.try_take(1, Holder::Serve);
        let held: Vec<_> = std::iter::from_fn(|| arena.try_take(PIECE, Holder::Serve)).collect();
        assert!(other_small.is_some() && !held.is_empty());
        assert!(is_there(&small), "4 KiB are not what is missing");
    }

    #[test]
    fn what_others_still_use_does_not_fill_the_share_of_serving() {
        let arena = arena();
        let fetched = arena.try_take(PIECE, Holder::Fetch).expect("free").freeze();
        let (hot, reader) = (Hot::default(), fetched.clone());
        arena.keep_hot(&hot, fetched);
        assert!(!is_there(&hot) && arena.held_bytes(Holder::Fetch) == PIECE, "it is being read");
        arena.keep_hot(&hot, reader);
        assert!(is_there(&hot) && arena.held_bytes(Holder::Fetch) == 0);
        let taken: Vec<_> = std::iter::from_fn(|| arena.try_take(PIECE, Holder::Serve)).collect();
        let all = taken.len();
        drop(taken);
        assert!(arena.has_room(PIECE, Holder::Serve, all) && !arena.has_room(PIECE, Holder::Serve, all + 1));
    }

    #[test]
    fn reading_ahead_leaves_memory_for_what_is_needed_now() {
        let arena = arena();
        let hot: Vec<Hot> = (0..20).map(|_| Hot::default()).collect();
        hot.iter().for_each(|hot| read_from_disk(&arena, hot));
        let ahead = hot.iter().take_while(|_| arena.may_read_ahead(PIECE)).filter_map(Hot::read);
        let ahead: Vec<Slot> = ahead.collect();
        assert!(!ahead.is_empty());
        let now: Vec<_> = std::iter::from_fn(|| arena.try_take(PIECE, Holder::Serve)).collect();
        assert!(now.len() >= 2, "only {}, with {} ahead", now.len(), ahead.len());
        drop(ahead);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let all: Vec<_> = std::iter::from_fn(|| arena.try_take(PIECE, Holder::Serve)).collect();
        assert!(std::pin::pin!(arena.take(PIECE, Holder::Serve)).poll(&mut cx).is_pending());
        drop((now, all));
        assert!(arena.may_read_ahead(PIECE));
    }

    #[test]
    fn what_is_read_again_and_again_outlives_a_scan() {
        let arena = arena();
        let (first, second) = (Hot::default(), Hot::default());
        read_from_disk(&arena, &first);
        read_from_disk(&arena, &second);
        for _ in 0..100 {
            assert!(first.read().is_some(), "it is read between the others");
            read_from_disk(&arena, &Hot::default());
        }
        assert!(!is_there(&second), "nobody reads it");
    }

    #[test]
    fn what_comes_back_soon_is_kept_longer() {
        let arena = arena();
        let scan = |count| (0..count).for_each(|_| read_from_disk(&arena, &Hot::default()));
        let regular: Vec<Hot> = (0..3).map(|_| Hot::default()).collect();
        regular.iter().for_each(|hot| read_from_disk(&arena, hot));
        regular.iter().for_each(|hot| drop(hot.read()));
        scan(10);
        let hot = Hot::default();
        read_from_disk(&arena, &hot);
        while is_there(&hot) {
            scan(1);
        }
        read_from_disk(&arena, &hot);
        scan(20);
        assert!(is_there(&hot), "it was read twice within a short time");
    }

    #[test]
    fn a_piece_may_come_back_into_a_larger_slot() {
        let arena = arena();
        let small: Vec<Hot> = (0..500).map(|_| Hot::default()).collect();
        for hot in small.iter().chain(&small) {
            let slot = arena.try_take(1, Holder::Fetch).expect("what is hot makes room").freeze();
            arena.keep_hot(hot, slot);
        }
        let of_next_size: Vec<_> = (0..4).flat_map(|_| arena.try_take(5000, Holder::Serve)).collect();
        assert!(small.iter().any(|hot| !is_there(hot)), "there are fewer slots of that size");
        for (hot, slot) in small.iter().filter(|hot| !is_there(hot)).zip(of_next_size) {
            arena.keep_hot(hot, slot.freeze());
            assert!(is_there(hot));
        }
    }

    #[test]
    fn pieces_that_are_gone_leave_nothing_behind() {
        let arena = arena();
        for _ in 0..1000 {
            let hot = Hot::default();
            let slot = arena.try_take(1, Holder::Fetch).expect("free").freeze();
            arena.keep_hot(&hot, slot);
            assert_eq!(arena.held_bytes(Holder::Fetch), 0, "it is counted as what it is now");
            hot.clear();
        }
        let class = &arena.0.hot.classes[0];
        let (count, slots) = (class.count.load(Ordering::Acquire), class.slots);
        assert!(count <= 2 * slots + 1, "{count} of {slots}");
        assert_eq!(arena.idle_hot_bytes(), 0);
    }
}
