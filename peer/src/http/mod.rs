//! Dragonfly's object API over HTTP.
pub mod guard;
