//! The native wire protocol of dfstore, without I/O.
//!
//! Peers and the command line share this crate: ids, frames, messages, an incremental decoder, a session state
//! machine with credits, and limits. There is no socket and no clock in here. `PROTOCOL.md` is the specification.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod ids;
pub mod object;
