//! The test kit: what suites, benches and the demo need around the peer.
//!
//! It starts real processes (the peer, the command line, an S3 server), gives them folders and free ports, talks raw
//! HTTP to them, and makes payloads that can be checked at any offset. Everything it starts is tied to the life of
//! this process (see [`process`]) and everything it writes lies under `target/tmp` (see [`dirs`]). It may call any
//! crate of the workspace; nothing outside tests, benches and tools calls it. Errors are `anyhow`, with the tail of
//! the log of the process that failed.

pub mod binaries;
pub mod bucket;
pub mod census;
pub mod cgroup;
pub mod choices;
pub mod cli;
pub mod cluster;
pub mod crowd;
pub mod data;
pub mod data_folder;
pub mod dirs;
pub mod faulty_backend;
pub mod folder_s3;
pub mod http;
pub mod ledger;
pub mod loopfs;
pub mod meter;
pub mod mixed_load;
pub mod model;
pub mod native;
pub mod netns;
pub mod oss_front;
pub mod peer;
pub mod peer_proxy;
pub mod ports;
pub mod process;
pub mod relay;
pub mod s3s_server;
pub mod samples;
pub mod scene;
pub mod seaweed;
pub mod source;
pub mod swarm_sim;
pub mod until;
pub mod wire;

pub use until::eventually;
