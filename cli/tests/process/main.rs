//! The real `dfstore` process against a fake peer of this process, which speaks the protocol through its own session
//! state machine and breaks it on demand.

mod cluster;
mod download;
mod fake;
mod objects;
mod run;
mod upload;
mod usage;
