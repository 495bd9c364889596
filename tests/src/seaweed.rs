//! A real S3 server: SeaweedFS (`weed mini`), which `tools/test` installs into `target/venv`.
//!
//! One server is shared by all tests of a program; each test takes a bucket of its own. The server dies with the
//! program (see [`crate::process`]). Its ports are chosen beforehand, because it cannot say what it listens on: when one
//! was taken in between, it is started again with others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::bucket::{Bucket, S3Endpoint};
use crate::process::{Process, leashed, watch_over_this_program};
use crate::until::eventually;
use crate::{dirs, http, ports};

const START_ATTEMPTS: u32 = 3;
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// What no log of a peer may ever show.
pub const ACCESS_KEY: &str = "CANARYACCESSKEY";
/// What no log of a peer may ever show.
pub const SECRET_KEY: &str = "canary-secret-key-1f6b";

/// A running SeaweedFS with one user, who may do everything.
pub struct Seaweed {
    process: Process,
    endpoint: S3Endpoint,
    _folder: TempDir,
}

/// A new bucket on the server that all tests of this program share.
pub fn bucket() -> Result<Bucket> {
    static SHARED: OnceLock<Mutex<Option<Seaweed>>> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    watch_over_this_program();
    let mut shared = SHARED.get_or_init(Mutex::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if shared.is_none() {
        *shared = Some(Seaweed::start()?);
    }
    let server = shared.as_ref().context("started above")?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let bucket = server.endpoint().bucket(&format!("test-{}-{number}", process::id()));
    bucket.create()?;
    Ok(bucket)
}

impl Seaweed {
    /// Starts a server of one's own, for tests that stop it.
    pub fn start() -> Result<Seaweed> {
        let mut attempt = 1;
        loop {
            match Seaweed::start_once() {
                Ok(server) => return Ok(server),
                Err(error) if attempt == START_ATTEMPTS => return Err(error),
                Err(_) => attempt += 1,
            }
        }
    }

    fn start_once() -> Result<Seaweed> {
        let program = program()?;
        let folder = dirs::temporary("seaweed")?;
        let ports = ports::free(PORT_FLAGS.len())?;
        let s3_port = ports[0];
        let mut command = leashed(program);
        command.args(flags(folder.path(), &ports)?).current_dir(folder.path());
        // Untuned it takes over 1 GiB.
        command.env("GOMEMLIMIT", "400MiB").env("GOGC", "50");
        let mut process = Process::start("weed", command, &folder.path().join("log"))?;
        let address = ([127, 0, 0, 1], s3_port).into();
        let ready = eventually("SeaweedFS answers S3 requests", START_TIMEOUT, || match process.ended() {
            Ok(None) => {
                let refused = http::get(address, "/").is_ok_and(|answer| answer.status() == 403);
                refused.then_some(true)
            }
            _ => Some(false),
        });
        match ready {
            Ok(true) => {}
            Ok(false) => return Err(process.explain(anyhow::anyhow!("SeaweedFS ended while it started"))),
            Err(error) => return Err(process.explain(error)),
        }
        let url = format!("http://{address}");
        let endpoint = S3Endpoint { url, access_key: ACCESS_KEY.to_owned(), secret_key: SECRET_KEY.to_owned() };
        Ok(Seaweed { process, endpoint, _folder: folder })
    }

    /// Where it listens, and the keys.
    pub fn endpoint(&self) -> &S3Endpoint {
        &self.endpoint
    }

    /// Ends it at once.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }
}

/// Every listener of `weed mini` that cannot be switched off. The first one is S3.
const PORT_FLAGS: [&str; 10] = [
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
];

fn flags(folder: &Path, ports: &[u16]) -> Result<Vec<String>> {
    let keys = folder.join("keys.json");
    let user = format!(
        r#"{{"identities": [{{"name": "test", "credentials": [{{"accessKey": "{ACCESS_KEY}", "secretKey": "{SECRET_KEY}"}}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"]}}]}}"#
    );
    fs::write(&keys, user).context("the keys of SeaweedFS")?;
    let folder = folder.display();
    let mut flags = vec![
        "mini".to_owned(),
        format!("-dir={folder}"),
        "-ip=127.0.0.1".to_owned(),
        "-ip.bind=127.0.0.1".to_owned(),
        "-master.telemetry=false".to_owned(),
        // Each bucket has volumes of its own: many small ones leave room for many buckets.
        "-master.volumeSizeLimitMB=128".to_owned(),
        "-volume.max=1000".to_owned(),
        format!("-s3.config={}", keys.display()),
        format!("-s3.localSocket={folder}/s3.sock"),
        format!("-filer.localSocket={folder}/filer.sock"),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
        "-webdav=false".to_owned(),
        "-admin.ui=false".to_owned(),
    ];
    flags.extend(PORT_FLAGS.iter().zip(ports).map(|(flag, port)| format!("-{flag}={port}")));
    Ok(flags)
}

fn program() -> Result<PathBuf> {
    let program = dirs::target()?.join("venv/bin/weed");
    if !program.is_file() {
        bail!("{} is missing: run ./tools/test once, it installs it", program.display());
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_come_back_from_the_bucket() {
        let bucket = bucket().expect("a bucket");
        assert_eq!(bucket.get("a/b").expect("get"), None);
        assert_eq!(bucket.head("a/b").expect("head"), None);
        let etag = bucket.put("a/b", b"bytes").expect("put");
        assert_eq!(bucket.get("a/b").expect("get").as_deref(), Some(&b"bytes"[..]));
        let stored = bucket.head("a/b").expect("head").expect("stored");
        assert_eq!((stored.length, stored.etag), (5, etag));
        assert_eq!(bucket.keys().expect("list"), ["a/b"]);
        bucket.delete("a/b").expect("delete");
        assert!(bucket.keys().expect("list").is_empty());
    }
}
