//! What the demo plays on: a folder, an S3 server over it, and a peer.
//!
//! Lies under `target/tmp` (see `dfstore_tests::dirs`), on a disk of the developer's, because the peer wants direct I/O
//! and the files are large. Everything is stopped and removed when the stage is dropped, the processes first.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use dfstore_tests::binaries::binary;
use dfstore_tests::bucket::{Bucket, S3Endpoint};
use dfstore_tests::data::Payload;
use dfstore_tests::peer::{Peer, PeerSpec, listening_address};
use dfstore_tests::process::{Process, leashed};
use dfstore_tests::{dirs, eventually};
use tempfile::TempDir;

use super::compare;
use super::size::Size;

const ACCESS_KEY: &str = "demo-access-key";
const SECRET_KEY: &str = "demo-secret-key";
const BUCKET: &str = "demo";
/// At the same time on disk: the file, the peer's pieces, the bucket's object and its parts, a copy.
const DISK_COPIES: u64 = 5;
const DISK_RESERVE_BYTES: u64 = 1 << 30;

/// Everything that must be stopped and removed in the end. Fields are dropped in this order.
pub struct Stage {
    /// The peer under show.
    pub peer: Peer,
    _s3: Process,
    /// The bucket behind the peer, seen directly.
    pub bucket: Bucket,
    /// What is copied.
    pub payload: Payload,
    folder: TempDir,
}

impl Stage {
    /// Makes the file up and starts the servers.
    pub fn set_up(length: u64) -> Result<Stage> {
        let folder = dirs::temporary("demo")?;
        check_space(&folder, length)?;
        // Not the same file twice, so that nothing left over anywhere can pass for the right bytes.
        let seed = u64::from(std::process::id()) ^ dfstore_seed();
        let payload = Payload::new(seed, length);
        eprintln!("a file of {}, in {}", Size(length), folder.path().display());
        compare::make(&payload, &folder.path().join("original"))?;
        let (s3, endpoint) = start_s3(&folder)?;
        let bucket = endpoint.bucket(BUCKET);
        bucket.create()?;
        let mut spec = PeerSpec::new(&endpoint);
        spec.data_path = Some(folder.path().join("data"));
        spec.capacity = format!("{}MiB", ((2 * length) >> 20) + 1024);
        spec.memory_budget = "512MiB".to_owned();
        spec.shards = "auto".to_owned();
        eprintln!("S3 server at {}", endpoint.url);
        let peer = Peer::start_with(spec).context("the peer does not start")?;
        eprintln!("dfstore-peer at {}", peer.endpoint());
        Ok(Stage { peer, _s3: s3, bucket, payload, folder })
    }

    /// The object that everything is about.
    pub fn object(&self) -> String {
        format!("dfs://{BUCKET}/{}", self.key())
    }

    /// Its key.
    pub fn key(&self) -> &'static str {
        "models/weights.bin"
    }

    /// The file that was made up.
    pub fn original(&self) -> PathBuf {
        self.folder.path().join("original")
    }

    /// Where copies go.
    pub fn copy(&self) -> PathBuf {
        self.folder.path().join("copy")
    }

    /// Stops the peer, removes all it has, and starts it again.
    pub fn wipe_peer(&mut self) -> Result<()> {
        self.peer.terminate()?;
        fs::remove_dir_all(self.peer.data_path()).context("removing the peer's data")?;
        self.peer.restart()
    }
}

fn dfstore_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap_or_default()
}

fn check_space(folder: &TempDir, length: u64) -> Result<()> {
    let disk = rustix::fs::statvfs(folder.path()).context("the free space of the disk")?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = length.saturating_mul(DISK_COPIES).saturating_add(DISK_RESERVE_BYTES);
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

fn start_s3(folder: &TempDir) -> Result<(Process, S3Endpoint)> {
    let objects = folder.path().join("bucket");
    fs::create_dir(&objects)?;
    let mut command = leashed(binary("dfstore-test-s3")?);
    command.arg("--dir").arg(&objects).args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]);
    let mut process = Process::start("dfstore-test-s3", command, &folder.path().join("s3.log"))?;
    let started = Instant::now();
    let found = eventually("the S3 server listens", Duration::from_secs(20), || match process.ended() {
        Ok(None) => listening_address(&process.log()).map(Ok),
        _ => Some(Err(anyhow!("the S3 server ended after {} ms", started.elapsed().as_millis()))),
    });
    let address = match found.and_then(|address| address) {
        Ok(address) => address,
        Err(error) => return Err(process.explain(error)),
    };
    let url = format!("http://{address}");
    Ok((process, S3Endpoint { url, access_key: ACCESS_KEY.to_owned(), secret_key: SECRET_KEY.to_owned() }))
}
