//! Permits of one shard: a bound on how many do something at once. Waiting is fair enough: all who wait look again.

use std::cell::Cell;
use std::rc::Rc;

use event_listener::Event;

/// How many permits are out.
#[derive(Clone, Default)]
pub struct Permits(Rc<Inner>);

#[derive(Default)]
struct Inner {
    out: Cell<usize>,
    back: Event,
}

/// The right to go on; given back when dropped.
pub struct Permit(Permits);

impl Permits {
    /// How many are out.
    pub fn out(&self) -> usize {
        self.0.out.get()
    }

    /// Takes one, however many are out.
    pub fn take(&self) -> Permit {
        self.0.out.set(self.0.out.get() + 1);
        Permit(self.clone())
    }

    /// Waits until fewer than `max` permits are out, and takes one. `max` is asked again each time one is given back, and
    /// is never 0.
    pub async fn acquire(&self, max: impl Fn() -> usize) -> Permit {
        loop {
            let max = max();
            assert!(max > 0, "nobody could ever go on");
            if self.0.out.get() < max {
                break;
            }
            self.0.back.listen().await;
        }
        self.take()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let inner = &self.0.0;
        inner.out.set(inner.out.get() - 1);
        inner.back.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn one_more_than_there_are_waits_until_one_is_given_back() {
        let permits = Permits::default();
        let first = permits.acquire(|| 2).now_or_never().expect("free");
        let _second = permits.acquire(|| 2).now_or_never().expect("free");
        let mut third = Box::pin(permits.acquire(|| 2));
        assert!(third.as_mut().now_or_never().is_none());
        assert_eq!(permits.out(), 2, "who waits has none");
        drop(first);
        assert!(third.now_or_never().is_some());
    }
}
