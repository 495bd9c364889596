//! The one seam to the machine: threads, sockets, direct-I/O files, timers, mailboxes and the piece arena.
//!
//! Only this module names monoio, and only this module holds `unsafe` code. Everything above it sees owned
//! buffers ([`arena::SlotMut`], [`arena::Slot`]), [`file::DirectFile`], [`net`] streams and [`mailbox`] ends.

pub mod aligned;
pub mod arena;
#[cfg(test)]
pub mod disk_log;
pub mod file;
pub mod hyper_io;
pub mod interfaces;
pub mod mailbox;
pub mod net;
pub mod permits;
pub mod probe;
pub mod rouse;
pub mod shard;
pub mod stream;
pub mod time;
