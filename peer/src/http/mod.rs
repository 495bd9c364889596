//! Dragonfly's object API over HTTP.
pub mod condition;
pub mod guard;
pub mod range;
pub mod route;
