//! The small S3 server of the tools (`dfstore-test-s3`) as a process over a folder.
//!
//! For what needs a server outside of this program: the demo, and benches that give it a network of its own. The
//! server ends when it is dropped; its folder is the caller's.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::binaries::binary;
use crate::bucket::S3Endpoint;
use crate::eventually;
use crate::peer::listening_address;
use crate::process::{Process, leashed_in};

const ACCESS_KEY: &str = "demo-access-key";
const SECRET_KEY: &str = "demo-secret-key";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running server.
pub struct FolderS3 {
    process: Process,
    address: SocketAddr,
}

impl FolderS3 {
    /// Serves `folder/bucket`, which it makes, on a free port of this address; logs to `folder/s3.log`.
    pub fn start(folder: &Path, listen: IpAddr, namespace: Option<&str>) -> Result<FolderS3> {
        let objects = folder.join("bucket");
        std::fs::create_dir_all(&objects)?;
        let mut command = leashed_in(namespace, binary("dfstore-test-s3")?);
        command.arg("--dir").arg(&objects).args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]);
        command.arg("--listen").arg(SocketAddr::new(listen, 0).to_string());
        let mut process = Process::start("dfstore-test-s3", command, &folder.join("s3.log"))?;
        let found = eventually("the S3 server listens", START_TIMEOUT, || match process.ended() {
            Ok(None) => listening_address(&process.log()).map(Ok),
            _ => Some(Err(anyhow!("the S3 server ended while it started"))),
        });
        match found.and_then(|address| address) {
            Ok(address) => Ok(FolderS3 { process, address }),
            Err(error) => Err(process.explain(error)),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, and its keys.
    pub fn endpoint(&self) -> S3Endpoint {
        FolderS3::endpoint_at(self.address)
    }

    /// Its keys, at another address that leads to it.
    pub fn endpoint_at(address: SocketAddr) -> S3Endpoint {
        let url = format!("http://{address}");
        S3Endpoint { url, access_key: ACCESS_KEY.to_owned(), secret_key: SECRET_KEY.to_owned() }
    }

    /// The process, for its CPU time and log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
