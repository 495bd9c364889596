//! A real peer in front of a small S3 server, for measuring.
//!
//! The peer is the binary of the same build profile, with the memory budget that users get by default. The S3 server
//! runs inside this program; what is measured does not wait for it. Everything goes away when the lab is dropped.

use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use dfstore_tests::binaries::binary;
use dfstore_tests::bucket::Bucket;
use dfstore_tests::dirs;
use dfstore_tests::peer::{Peer, PeerSpec};
use dfstore_tests::s3s_server::S3sServer;

use crate::is_smoke;

/// A peer and its backend. Fields are dropped in this order.
pub struct Lab {
    /// What is measured.
    pub peer: Peer,
    /// Its bucket.
    pub bucket: Bucket,
    _server: S3sServer,
}

impl Lab {
    /// Starts both. Under `cargo bench` the peer is built first where it is missing or out of date.
    pub fn start() -> Result<Lab> {
        Lab::start_with(sizes)
    }

    /// A peer with the defaults of users, and an S3 server that takes nothing from it, for in use it has a machine of its
    /// own: it has no files on the disk and, unless it shares the cores, gets only the time that nothing else wants.
    pub fn start_with_distant_server(shares_cores: bool) -> Result<Lab> {
        let server = thread::spawn(move || {
            if !shares_cores {
                only_when_idle()?;
            }
            S3sServer::start_in(dirs::in_memory("s3s")?)
        });
        let server = server.join().map_err(|_| anyhow!("the S3 server's start panicked"))??;
        Lab::start_before(server, |_| ())
    }

    /// Starts both, the peer with these changes to the defaults of users.
    pub fn start_with(change: impl FnOnce(&mut PeerSpec)) -> Result<Lab> {
        Lab::start_before(S3sServer::start()?, change)
    }

    fn start_before(server: S3sServer, change: impl FnOnce(&mut PeerSpec)) -> Result<Lab> {
        ensure_built("dfstore-peer")?;
        let bucket = server.bucket("bench")?;
        let mut spec = PeerSpec::new(&bucket.endpoint);
        (spec.memory_budget, spec.shards) = ("1GiB".to_owned(), "auto".to_owned());
        change(&mut spec);
        let peer = Peer::start_with(spec)?;
        Ok(Lab { peer, bucket, _server: server })
    }
}

/// The sizes of a peer for a smoke run, or for a real one.
fn sizes(spec: &mut PeerSpec) {
    let (capacity, budget) = if is_smoke() { ("2GiB", "128MiB") } else { ("12GiB", "1GiB") };
    (spec.capacity, spec.memory_budget) = (capacity.to_owned(), budget.to_owned());
}

/// Has this thread, and those that it starts from now on, run only when a core has nothing else to do.
fn only_when_idle() -> Result<()> {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let set = Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status();
    ensure!(set.context("chrt (of util-linux)")?.success(), "chrt could not set the scheduling of a thread");
    Ok(())
}

/// Builds the binaries of this profile unless `name` is there and up to date. Cargo builds no binaries of other
/// packages for a bench; by the time a bench runs it has let go of its lock.
pub fn ensure_built(name: &str) -> Result<()> {
    if binary(name).is_ok() {
        return Ok(());
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(["build", "--workspace", "--bins"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    eprintln!("building {name}");
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    binary(name).map(drop)
}
