//! What a peer does when something runs short: time at the start, descriptors, connections, memory, the disk's speed.
//!
//! A full disk is in `disk.rs`. What needs root says so and passes where it is not given. `DFSTORE_TEST_LONG=1` in the
//! environment makes the transfers as large as the promise says; else they are large enough to show that it holds.

mod backlog;
mod crowd;
mod descriptors;
mod full_disk;
mod memory;
mod slow_disk;
