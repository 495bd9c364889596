//! The stage of most suites: one peer in front of a backend that fails as told, and short ways to ask both.
//!
//! Owns both of them and one bucket. What is in the bucket is read from the server's folder, so that looking costs no
//! request and works while the server plays dead. Answers are checked where they are asked for: an unexpected status is
//! an error with the peer's text.

use std::fs;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bucket::Bucket;
use crate::census::Census;
use crate::data::Payload;
use crate::faulty_backend::FaultyBackend;
use crate::http::Response;
use crate::peer::{Peer, PeerSpec};
use crate::until::eventually;

/// The bucket of every scene.
pub const BUCKET: &str = "scene";
/// How long a test waits for what happens in the background.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Write modes as requests name them.
pub const ASYNC: u8 = 0;
/// See [`ASYNC`].
pub const SYNC: u8 = 1;
/// See [`ASYNC`].
pub const EPHEMERAL: u8 = 2;

/// A peer, its backend and a bucket.
pub struct Scene {
    /// The peer; dropped before its backend.
    pub peer: Peer,
    /// The backend.
    pub backend: FaultyBackend,
    /// The bucket, behind the peer's back.
    pub bucket: Bucket,
    /// What the peer had open at its start.
    pub census: Census,
}

impl Scene {
    /// With the defaults of tests.
    pub fn start() -> Result<Scene> {
        Scene::start_with(|_| {})
    }

    /// With a peer that is configured otherwise.
    pub fn start_with(change: impl FnOnce(&mut PeerSpec)) -> Result<Scene> {
        let backend = FaultyBackend::start()?;
        let bucket = backend.bucket(BUCKET)?;
        let mut spec = PeerSpec::new(&bucket.endpoint);
        change(&mut spec);
        let scene = Scene::of(Peer::start_with(spec)?, backend, bucket)?;
        scene.backend.forget();
        Ok(scene)
    }

    /// Of what has been started.
    pub fn of(peer: Peer, backend: FaultyBackend, bucket: Bucket) -> Result<Scene> {
        let census = Census::take(&peer)?;
        Ok(Scene { peer, backend, bucket, census })
    }

    /// Waits until the peer has given back whatever it took for the requests so far.
    pub fn rests(&self) -> Result<()> {
        self.census.check(&self.peer, &[self.backend.address()])
    }

    /// The path of an object; the key goes in as it is.
    pub fn path(key: &str) -> String {
        Peer::object_path(BUCKET, key)
    }

    /// A request about an object.
    pub fn ask(&self, method: &str, key: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.peer.request(method, &Scene::path(key), headers, b"")
    }

    /// GET of an object.
    pub fn get(&self, key: &str) -> Result<Response> {
        self.ask("GET", key, &[])
    }

    /// GET that must give this payload, whole; gives `X-Dfs-Cache`.
    pub fn read(&self, key: &str, payload: Payload) -> Result<String> {
        right(&self.get(key)?, payload).with_context(|| format!("GET {key}"))
    }

    /// GET of a range that must give those bytes of this payload; gives `X-Dfs-Cache`.
    pub fn read_range(&self, key: &str, payload: Payload, range: Range<u64>) -> Result<String> {
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        right_range(&self.ask("GET", key, &[("Range", &header)])?, payload, range)
            .with_context(|| format!("GET {key} {header}"))
    }

    /// PUT of a payload in a mode, without a look at the answer.
    pub fn try_put(&self, key: &str, mode: u8, payload: Payload) -> Result<Response> {
        let path = format!("{}?mode={mode}", Scene::path(key));
        self.peer.request("PUT", &path, &[], &payload.bytes())
    }

    /// PUT that must be acknowledged.
    pub fn put(&self, key: &str, mode: u8, payload: Payload) -> Result<()> {
        let answer = self.try_put(key, mode, payload)?;
        ensure!(answer.status() == 200, "PUT {key}: {} {}", answer.status(), answer.text());
        Ok(())
    }

    /// Puts an object into the bucket behind the peer's back, and counts requests anew.
    pub fn place(&self, key: &str, payload: Payload) -> Result<()> {
        self.bucket.put(key, &payload.bytes())?;
        self.backend.forget();
        Ok(())
    }

    /// Whether the bucket has exactly this payload under this key.
    pub fn has(&self, key: &str, payload: Payload) -> bool {
        let found = self.backend.stored(BUCKET, key);
        found.is_some_and(|bytes| same(&bytes, payload))
    }

    /// Waits until the bucket has this payload.
    pub fn until_written_back(&self, key: &str, payload: Payload) -> Result<()> {
        eventually(&format!("{key} is in the bucket"), PATIENCE, || self.has(key, payload).then_some(()))
    }

    /// Waits until the peer owes its backend nothing for this object any more: a GET says so.
    pub fn until_clean(&self, key: &str) -> Result<()> {
        let clean = || {
            let head = self.ask("HEAD", key, &[]).ok()?;
            (head.header("x-dfs-cache") != Some("pending")).then_some(())
        };
        eventually(&format!("{key} is written back"), PATIENCE, clean)
    }

    /// Waits until all pieces of an object are on the peer's disk.
    pub fn until_local(&self, key: &str) -> Result<()> {
        let local = || {
            let head = self.ask("HEAD", key, &[]).ok()?;
            (head.header("x-dfs-cache") == Some("local")).then_some(())
        };
        eventually(&format!("{key} is local"), PATIENCE, local)
    }

    /// A page of a listing.
    pub fn list(&self, query: &str) -> Result<Value> {
        let answer = self.peer.request("GET", &format!("/buckets/{BUCKET}/metadatas?{query}"), &[], b"")?;
        ensure!(answer.status() == 200, "list {query}: {} {}", answer.status(), answer.text());
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// The keys of a page.
    pub fn keys(&self, query: &str) -> Result<Vec<String>> {
        let page = self.list(query)?;
        let entries = page["Metadatas"].as_array().context("entries")?;
        Ok(entries.iter().filter_map(|entry| entry["Key"].as_str()).map(str::to_owned).collect())
    }

    /// Bytes of disk that the piece files take.
    pub fn piece_file_bytes(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let mut bytes = 0;
        for (path, _) in self.peer.piece_files()? {
            bytes += fs::metadata(path)?.blocks() * 512;
        }
        Ok(bytes)
    }
}

/// A status that must be this one.
#[track_caller]
pub fn expect(response: &Response, status: u16) {
    assert_eq!(response.status(), status, "{:?} {}", response.head.headers, response.text());
}

/// Checks that a 200 carries this payload, whole; gives `X-Dfs-Cache`.
pub fn right(response: &Response, payload: Payload) -> Result<String> {
    ensure!(response.status() == 200, "{} {}", response.status(), response.text());
    ensure!(same(&response.body, payload), "wrong bytes: {} instead of {payload:?}", response.body.len());
    Ok(response.header("x-dfs-cache").context("no X-Dfs-Cache")?.to_owned())
}

/// Checks that a 206 carries these bytes of this payload; gives `X-Dfs-Cache`.
pub fn right_range(response: &Response, payload: Payload, range: Range<u64>) -> Result<String> {
    ensure!(response.status() == 206, "{} {}", response.status(), response.text());
    let content_range = format!("bytes {}-{}/{}", range.start, range.end - 1, payload.length);
    ensure!(response.header("content-range") == Some(&*content_range), "{:?}", response.head.headers);
    let wrong = payload.first_difference(range.start, &response.body);
    ensure!(response.body.len() as u64 == range.end - range.start && wrong.is_none(), "wrong bytes: {wrong:?}");
    Ok(response.header("x-dfs-cache").context("no X-Dfs-Cache")?.to_owned())
}

/// Whether these bytes are this payload.
pub fn same(bytes: &[u8], payload: Payload) -> bool {
    bytes.len() as u64 == payload.length && payload.first_difference(0, bytes).is_none()
}
