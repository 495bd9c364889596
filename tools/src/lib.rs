//! Development commands: what stands behind the scripts in `tools/`.
//!
//! [`demo`] shows the product on real data, [`s3_server`] is the bucket it runs against. They build on the test kit and
//! on nothing of the peer: the demo sees of it what a user sees, its files, its metrics and the command line.

pub mod demo;
pub mod s3_server;
