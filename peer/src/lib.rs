//! The dfstore peer as a library: the binary `dfstore-peer` is a thin shell around it.
//!
//! Layers, each of which may use those below it and none above:
//!
//! | layer | modules |
//! |---|---|
//! | start | [`server`]: puts the layers together, runs the shards |
//! | faces | [`http`] (Dragonfly's object API), [`native`] (sessions of the command line and of peers) |
//! | use cases | [`engine`]: get, put, copy, delete, list, write-back |
//! | cluster | [`membership`] (who is there), [`placement`] (whose task it is), `swarm` (what to get from whom), [`links`] (connections to other peers) |
//! | resources | [`store`] (piece files), [`catalog`] (redb), [`background`] (glommio), [`sidecar`] (backend, metrics listener) |
//! | ground | [`rt`] (monoio, arena), [`limits`], [`config`], [`metrics`], [`logging`], [`probe`] |
//!
//! [`server`] puts the layers together.

pub mod background;
pub mod catalog;
pub mod config;
pub mod engine;
pub mod http;
pub mod limits;
pub mod links;
pub mod logging;
pub mod membership;
pub mod metrics;
pub mod native;
pub mod placement;
pub mod probe;
pub mod rt;
pub mod server;
pub mod sidecar;
pub mod store;
pub mod swarm;
