//! The native wire protocol of dfstore, without I/O.
//!
//! Peers and the command line share this crate. Bytes come in through a [`session::Session`], which cuts them into
//! frames with a [`decoder::Decoder`] and checks that each may come now; messages go out through the same session.
//! There is no socket and no clock in here: the driver reads, writes and keeps the time. `PROTOCOL.md` is the
//! specification, [`limits`] names every maximum.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod ids;
pub mod object;

pub mod limits;
pub mod preface;

pub mod frame;
pub mod message;
pub mod wire;

pub mod crc;
pub mod decoder;
pub mod error;
pub mod session;
