//! A real `dfstore-peer` process: its configuration file, its start, its end, and what can be seen from outside.
//!
//! The peer listens on ports the system chooses and names them in its log (`listening on ADDRESS`, and `metrics on
//! URL` for the admin listener; in a cluster also `peers on`, `manager on` and `gossip on`). Killed when dropped; its data folder goes with it unless the test brought one.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;

use crate::binaries::binary;
use crate::bucket::{Bucket, S3Endpoint};
use crate::cli::{self, Output};
use crate::data::Payload;
use crate::dirs;
use crate::http::{self, Response};
use crate::process::{Process, leashed_in, watch_over_this_program};
use crate::samples::Samples;
use crate::until::{eventually, let_pass};

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A little more than the peer gives requests in flight after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How to start a peer.
#[derive(Clone, Debug)]
pub struct PeerSpec {
    /// The backend; `None` for a peer that gets it from a manager.
    pub backend: Option<S3Endpoint>,
    /// `objectStorage.name`: `s3` or `oss`.
    pub provider: String,
    /// Data folder; `None` makes one that goes away with the peer.
    pub data_path: Option<PathBuf>,
    /// `storage.capacity`.
    pub capacity: String,
    /// `memory.budget`. Small by default: tests run several peers at once.
    pub memory_budget: String,
    /// `memory.hot`: off for who wants every read to be one of the disk.
    pub hot: bool,
    /// Further keys of the section `storage`, such as `scrubRate: 1GiB`.
    pub storage: String,
    /// `shards`.
    pub shards: String,
    /// Further lines of the configuration file, at the top level.
    pub extra: String,
    /// Further lines of the section `objectStorage`, such as `freshness: always`; all but the first are indented by two.
    pub object_storage: String,
    /// Environment variables, for example `DFSTORE_LOG_LEVEL`.
    pub environment: Vec<(String, String)>,
    /// Where the object API and the metrics listen.
    pub listen: IpAddr,
    /// Port of the object API; 0 lets the system choose.
    pub listen_port: u16,
    /// Port of the metrics; 0 lets the system choose.
    pub metrics_port: u16,
    /// Network namespace that it runs in.
    pub namespace: Option<String>,
}

impl PeerSpec {
    /// The defaults of tests, in front of this backend.
    pub fn new(backend: &S3Endpoint) -> PeerSpec {
        PeerSpec {
            backend: Some(backend.clone()),
            provider: "s3".to_owned(),
            data_path: None,
            capacity: "4GiB".to_owned(),
            memory_budget: "128MiB".to_owned(),
            hot: true,
            storage: String::new(),
            shards: "2".to_owned(),
            extra: String::new(),
            object_storage: String::new(),
            environment: Vec::new(),
            listen: Ipv4Addr::LOCALHOST.into(),
            listen_port: 0,
            metrics_port: 0,
            namespace: None,
        }
    }

    /// The configuration file of a peer that keeps its data in this folder.
    pub fn yaml(&self, data_path: &Path) -> String {
        let PeerSpec { provider, capacity, storage, memory_budget, hot, shards, extra, object_storage, listen, .. } =
            self;
        let backend = self.backend.as_ref().map_or(String::new(), |S3Endpoint { url, access_key, secret_key }| {
            format!(
                "name: {provider}\n  region: us-east-1\n  endpoint: {url}\n  \
                 accessKey: {access_key}\n  secretKey: {secret_key}\n  "
            )
        });
        format!(
            "objectStorage:\n  enable: true\n  {backend}tcpListen: {{ listen: {listen}, port: {} }}\n\
             \x20 {object_storage}\n\
             storage: {{ dataPath: {path:?}, capacity: {capacity}, {storage} }}\n\
             memory: {{ budget: {memory_budget}, hot: {hot} }}\n\
             metrics: {{ listen: \"{}\" }}\n\
             shards: {shards}\n{extra}\n",
            self.listen_port,
            SocketAddr::new(*listen, self.metrics_port),
            path = data_path.display().to_string(),
        )
    }
}

/// A running peer.
pub struct Peer {
    /// How it was started; [`Peer::restart`] uses it again.
    pub spec: PeerSpec,
    process: Process,
    addresses: Addresses,
    data_path: PathBuf,
    folder: TempDir,
    starts: u32,
}

#[derive(Clone, Copy)]
struct Addresses {
    api: SocketAddr,
    metrics: SocketAddr,
}

impl Peer {
    /// Starts a peer with the defaults of tests in front of this bucket's server.
    pub fn start(bucket: &Bucket) -> Result<Peer> {
        Peer::start_with(PeerSpec::new(&bucket.endpoint))
    }

    /// Starts a peer and waits until it is ready.
    pub fn start_with(spec: PeerSpec) -> Result<Peer> {
        watch_over_this_program();
        let folder = dirs::temporary("peer")?;
        let data_path = spec.data_path.clone().unwrap_or_else(|| folder.path().join("data"));
        let (process, addresses) = launch(&spec, &data_path, folder.path(), 1)?;
        Ok(Peer { spec, process, addresses, data_path, folder, starts: 1 })
    }

    /// Runs a peer that is expected to end by itself; gives its exit status and its log.
    pub fn start_and_fail(spec: &PeerSpec, timeout: Duration) -> Result<(ExitStatus, String)> {
        let folder = dirs::temporary("peer")?;
        let data_path = spec.data_path.clone().unwrap_or_else(|| folder.path().join("data"));
        let mut process = run(spec, &data_path, folder.path(), 1)?;
        let status = process.wait(timeout)?;
        Ok((status, process.log()))
    }

    /// Starts it again on the same data (after an end of any kind) and waits until it is ready. Ports change.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.ended()?.is_none() {
            self.terminate()?;
        }
        self.starts += 1;
        (self.process, self.addresses) = launch(&self.spec, &self.data_path, self.folder.path(), self.starts)?;
        Ok(())
    }

    /// Starts it again on the same data and kills it after this time, ready or not; it has ended when this returns.
    pub fn restart_and_kill9(&mut self, after: Duration) -> Result<()> {
        self.starts += 1;
        self.process = run(&self.spec, &self.data_path, self.folder.path(), self.starts)?;
        let_pass(after);
        self.process.kill9()
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.terminate(STOP_TIMEOUT)
    }

    /// `kill -9`, and waits for the end.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// The process, for its memory, CPU time, log and signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where the object API (and the native protocol) listens.
    pub fn address(&self) -> SocketAddr {
        self.addresses.api
    }

    /// Where its metrics listen.
    pub fn metrics_address(&self) -> SocketAddr {
        self.addresses.metrics
    }

    /// The address that it has logged behind these words, such as `manager on`.
    pub fn listens(&self, words: &str) -> Option<SocketAddr> {
        address_behind(&self.process.log(), words)
    }

    /// Its log since it was started last.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The last lines of its log, indented.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// The endpoint as the command line wants it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addresses.api)
    }

    /// Its data folder.
    pub fn data_path(&self) -> &Path {
        &self.data_path
    }

    /// Names and lengths of its piece files, sorted.
    pub fn piece_files(&self) -> Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.data_path).context("the data folder")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("pieces-") {
                files.push((path.clone(), fs::metadata(&path)?.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    /// Flips one bit of what the disk holds of this payload at this offset.
    pub fn flip_on_disk(&self, payload: Payload, offset: u64) -> Result<()> {
        let block_start = offset / 4096 * 4096;
        let block = payload.range(block_start..(block_start + 4096).min(payload.length));
        for (path, _) in self.piece_files()? {
            let bytes = fs::read(&path)?;
            let place = bytes.chunks(4096).position(|found| found.starts_with(&block));
            if let Some(place) = place {
                let at = place as u64 * 4096 + (offset - block_start);
                let file = File::options().write(true).open(&path)?;
                file.write_all_at(&[bytes[usize::try_from(at)?] ^ 0x10], at)?;
                return file.sync_all().map_err(Into::into);
            }
        }
        anyhow::bail!("no piece file holds {payload:?} at {offset}")
    }

    /// One HTTP request on a connection of its own.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response> {
        http::request(self.address(), method, path, headers, body)
    }

    /// Copies an object within its bucket.
    pub fn copy(&self, bucket: &str, source: &str, key: &str) -> Result<Response> {
        let headers = [("X-Dragonfly-Object-Operation", "copy"), ("Content-Type", "application/x-www-form-urlencoded")];
        let form = format!("source_object_key={source}");
        self.request("PUT", &Peer::object_path(bucket, key), &headers, form.as_bytes())
    }

    /// The path of an object in the object API. The key goes in as it is: escape what must be escaped.
    pub fn object_path(bucket: &str, key: &str) -> String {
        format!("/buckets/{bucket}/objects/{key}")
    }

    /// GET of an object.
    pub fn get(&self, bucket: &str, key: &str) -> Result<Response> {
        self.request("GET", &Peer::object_path(bucket, key), &[], b"")
    }

    /// PUT of an object as the Go client does it: a form with the mode and the file.
    pub fn put(&self, bucket: &str, key: &str, mode: u8, bytes: &[u8]) -> Result<Response> {
        let (content_type, body) = http::multipart(&[("mode", &mode.to_string())], bytes);
        self.request("PUT", &Peer::object_path(bucket, key), &[("Content-Type", &content_type)], &body)
    }

    /// DELETE of an object.
    pub fn delete(&self, bucket: &str, key: &str) -> Result<Response> {
        self.request("DELETE", &Peer::object_path(bucket, key), &[], b"")
    }

    /// Its metrics.
    pub fn metrics(&self) -> Result<Samples> {
        let answer = http::get(self.addresses.metrics, "/metrics")?;
        anyhow::ensure!(answer.status() == 200, "/metrics: {} {}", answer.status(), answer.text());
        Samples::parse(&answer.text())
    }

    /// Waits until the metrics say so.
    pub fn metrics_until(&self, what: &str, timeout: Duration, holds: impl Fn(&Samples) -> bool) -> Result<()> {
        eventually(what, timeout, || self.metrics().is_ok_and(|samples| holds(&samples)).then_some(()))
    }

    /// Runs `dfstore` against this peer.
    pub fn dfstore(&self, arguments: &[&str]) -> Result<Output> {
        let endpoint = self.endpoint();
        let mut all = vec!["--endpoint", endpoint.as_str()];
        all.extend(arguments);
        cli::dfstore(&all)
    }
}

fn run(spec: &PeerSpec, data_path: &Path, folder: &Path, start: u32) -> Result<Process> {
    let config = folder.join("peer.yaml");
    fs::write(&config, spec.yaml(data_path)).context("the configuration file")?;
    fs::create_dir_all(data_path).context("the data folder")?;
    let mut command = leashed_in(spec.namespace.as_deref(), binary("dfstore-peer")?);
    command.arg("--config").arg(&config).env("NO_COLOR", "1").env("AWS_EC2_METADATA_DISABLED", "true");
    command.envs(spec.environment.iter().map(|(name, value)| (name, value)));
    Process::start("dfstore-peer", command, &folder.join(format!("peer-{start}.log")))
}

/// Starts the process and waits until it says where it listens and that it is ready.
fn launch(spec: &PeerSpec, data_path: &Path, folder: &Path, start: u32) -> Result<(Process, Addresses)> {
    let mut process = run(spec, data_path, folder, start)?;
    let ready = eventually("dfstore-peer is ready", START_TIMEOUT, || match process.ended() {
        Ok(None) => ready_at(&process.log()).map(Ok),
        Ok(Some(_)) => Some(Err(anyhow!("dfstore-peer ended while it started"))),
        Err(error) => Some(Err(error)),
    });
    match ready.and_then(|addresses| addresses) {
        Ok(addresses) => Ok((process, addresses)),
        Err(error) => Err(process.explain(error)),
    }
}

/// The addresses in the log, once both are there and the peer says it is ready.
fn ready_at(log: &str) -> Option<Addresses> {
    let addresses = listening(log)?;
    let answer = http::get(addresses.metrics, "/readyz");
    answer.is_ok_and(|answer| answer.status() == 200).then_some(addresses)
}

fn listening(log: &str) -> Option<Addresses> {
    Some(Addresses { api: listening_address(log)?, metrics: address_behind(log, "metrics on")? })
}

/// The address in the first line that says "listening on".
pub fn listening_address(log: &str) -> Option<SocketAddr> {
    address_behind(log, "listening on")
}

/// The address behind these words, in the first line that has both.
fn address_behind(log: &str, words: &str) -> Option<SocketAddr> {
    log.lines().filter_map(|line| line.split_once(words)).find_map(|(_, rest)| address_in(rest))
}

/// The first word of a line that is a socket address, also within a URL.
fn address_in(line: &str) -> Option<SocketAddr> {
    let words = line.split(|character: char| character.is_whitespace() || "=\",;/".contains(character));
    words.filter_map(|word| word.parse().ok()).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_addresses_in_a_log() {
        let log = "INFO dfstore_peer: listening on 127.0.0.1:65004 address=127.0.0.1:65004\n\
                   INFO dfstore_peer: metrics on http://127.0.0.1:9/metrics address=127.0.0.1:9\n";
        let found = listening(log).expect("both");
        assert_eq!((found.api.port(), found.metrics.port()), (65004, 9));
        assert!(listening("INFO listening on 127.0.0.1:7\n").is_none(), "waits for both lines");
        let manager = address_behind("INFO manager on 10.0.0.1:3 address=10.0.0.1:3\n", "manager on");
        assert_eq!(manager.map(|address| address.port()), Some(3));
        assert_eq!(listening_address("listening on http://127.0.0.1:8\n").map(|address| address.port()), Some(8));
    }

    #[test]
    fn file_without_a_backend_names_none() {
        let backend = S3Endpoint { url: "http://h:1".into(), access_key: "a".into(), secret_key: "s".into() };
        let mut spec = PeerSpec::new(&backend);
        assert!(spec.yaml(Path::new("/d")).contains("endpoint: http://h:1"));
        spec.backend = None;
        spec.listen = Ipv4Addr::new(10, 0, 0, 2).into();
        let text = spec.yaml(Path::new("/d"));
        assert!(
            text.starts_with("objectStorage:\n  enable: true\n  tcpListen: { listen: 10.0.0.2, port: 0 }\n"),
            "{text}"
        );
        assert!(text.contains("metrics: { listen: \"10.0.0.2:0\" }"), "{text}");
    }
}
