//! What the demo plays on: a folder, an S3 server over it, and a peer or a cluster.
//!
//! Lies under `target/tmp` (see `dfstore_tests::dirs`), on a disk of the developer's, because the peer wants direct I/O
//! and the files are large. Everything is stopped and removed when the stage is dropped, the processes first.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dfstore_tests::bucket::{Bucket, S3Endpoint};
use dfstore_tests::cluster::{BackendKind, Cluster};
use dfstore_tests::data::Payload;
use dfstore_tests::dirs;
use dfstore_tests::folder_s3::FolderS3;
use dfstore_tests::peer::{Peer, PeerSpec};
use tempfile::TempDir;

use super::compare;
use super::size::Size;

const BUCKET: &str = "demo";
/// At the same time on disk: the file, the bucket's object and its parts.
const DISK_COPIES_BUCKET: u64 = 3;
/// And the peer's pieces, and a copy.
const DISK_COPIES_ALONE: u64 = DISK_COPIES_BUCKET + 2;
const DISK_RESERVE_BYTES: u64 = 1 << 30;

/// Everything that must be stopped and removed in the end. Fields are dropped in this order.
pub struct Stage<P> {
    /// The peer, or the cluster, under show.
    pub peers: P,
    _s3: FolderS3,
    /// The bucket behind it, seen directly.
    pub bucket: Bucket,
    /// What is copied.
    pub payload: Payload,
    folder: TempDir,
}

impl<P> Stage<P> {
    /// Makes the file up and starts the servers. `start` starts the peers, which keep their data below the folder that
    /// it is given. `disk_copies`: how often the file is on the disk at the same time.
    fn set_up_with(
        length: u64,
        disk_copies: u64,
        start: impl FnOnce(&S3Endpoint, &Path) -> Result<(P, Bucket)>,
    ) -> Result<Stage<P>> {
        let folder = dirs::temporary("demo")?;
        check_space(&folder, length, disk_copies)?;
        // Not the same file twice, so that nothing left over anywhere can pass for the right bytes.
        let seed = u64::from(std::process::id()) ^ dfstore_seed();
        let payload = Payload::new(seed, length);
        eprintln!("a file of {}, in {}", Size(length), folder.path().display());
        compare::make(&payload, &folder.path().join("original"))?;
        let s3 = FolderS3::start(folder.path(), Ipv4Addr::LOCALHOST.into(), None)?;
        eprintln!("S3 server at {}", s3.endpoint().url);
        let (peers, bucket) = start(&s3.endpoint(), folder.path())?;
        Ok(Stage { peers, _s3: s3, bucket, payload, folder })
    }

    /// The object that everything is about.
    pub fn object(&self) -> String {
        format!("dfs://{}/{}", self.bucket.name, self.key())
    }

    /// Its key.
    pub fn key(&self) -> &'static str {
        "models/weights.bin"
    }

    /// The file that was made up.
    pub fn original(&self) -> PathBuf {
        self.folder.path().join("original")
    }

    /// Where the copy that is made by this peer goes.
    pub fn copy(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("copy-{number}"))
    }
}

impl Stage<Peer> {
    /// One peer.
    pub fn set_up(length: u64) -> Result<Stage<Peer>> {
        Stage::set_up_with(length, DISK_COPIES_ALONE, |endpoint, folder| {
            let bucket = endpoint.bucket(BUCKET);
            bucket.create()?;
            let mut spec = PeerSpec::new(endpoint);
            spec.data_path = Some(folder.join("data"));
            spec.capacity = capacity(length);
            spec.memory_budget = "512MiB".to_owned();
            spec.shards = "auto".to_owned();
            let peer = Peer::start_with(spec).context("the peer does not start")?;
            eprintln!("dfstore-peer at {}", peer.endpoint());
            Ok((peer, bucket))
        })
    }

    /// Stops the peer, removes all it has, and starts it again.
    pub fn wipe_peer(&mut self) -> Result<()> {
        self.peers.terminate()?;
        fs::remove_dir_all(self.peers.data_path()).context("removing the peer's data")?;
        self.peers.restart()
    }
}

impl Stage<Cluster> {
    /// A seed and `nodes - 1` peers, with a relay in front of the bucket that counts.
    pub fn set_up(length: u64, nodes: usize) -> Result<Stage<Cluster>> {
        let disk_copies = DISK_COPIES_BUCKET + 2 * nodes as u64;
        Stage::set_up_with(length, disk_copies, |endpoint, folder| {
            let builder = Cluster::builder().seeds(1).peers(nodes - 1);
            let builder = builder.backend(BackendKind::Metered(endpoint.clone())).all(|index, options| {
                options.data_path = Some(folder.join(format!("data-{index}")));
                options.capacity = capacity(length);
                options.memory_budget = "256MiB".to_owned();
            });
            let cluster = builder.start().context("the cluster does not start")?;
            // Past the relay: our own looking does not count.
            let bucket = endpoint.bucket(&cluster.bucket.name);
            Ok((cluster, bucket))
        })
    }
}

/// Room for the file and an older version of it.
fn capacity(length: u64) -> String {
    format!("{}MiB", ((2 * length) >> 20) + 1024)
}

fn dfstore_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap_or_default()
}

fn check_space(folder: &TempDir, length: u64, disk_copies: u64) -> Result<()> {
    let disk = rustix::fs::statvfs(folder.path()).context("the free space of the disk")?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = length.saturating_mul(disk_copies).saturating_add(DISK_RESERVE_BYTES);
    ensure!(
        free >= needed,
        "{} MiB free where {} lies, and {} needed: choose a smaller --size, or another disk with {}",
        free >> 20,
        folder.path().display(),
        needed >> 20,
        dirs::SCRATCH_VARIABLE,
    );
    Ok(())
}
