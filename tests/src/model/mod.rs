//! A reference model of what clients may see, and random histories that are compared with it.
//!
//! Three parts that know little of each other: [`history`] makes steps from a seed; [`world`] is the model, which takes
//! what was asked and what came back and complains when no order of events explains it; [`run`] asks the real
//! processes. [`suite`] runs many histories at once, makes a history that fails short, and says how to run it again.
//! The model follows `docs/SEMANTICS.md` and reads nothing of the product.

pub mod answer;
pub mod history;
pub mod run;
pub mod stage;
pub mod suite;
pub mod world;
