//! A start with a hundred thousand objects that the bucket does not have yet.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_tests::choices::is_long_run;
use dfstore_tests::data::Payload;
use dfstore_tests::data_folder::{BLOCK, Zeros};
use dfstore_tests::dirs;
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, FaultyBackend, Rule, Seen};
use dfstore_tests::peer::{Peer, PeerSpec};
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, Scene, expect};
use http::Method;

const BACKLOG: Zeros = Zeros { bucket: BUCKET, objects: 100_000, pieces: 1, piece_bytes: BLOCK, dirty: true };
const SHARDS: usize = 2;
/// Objects that one shard sends at once: so far from its place in the queue an upload may come.
const AT_ONCE: usize = 4;
/// Two seconds in a release build on a machine of its own; this one may have neither.
const START_MAX: Duration = Duration::from_secs(15);

#[test]
fn a_hundred_thousand_pending_writes_hold_up_neither_start_nor_order() -> Result<()> {
    let folder = dirs::temporary("backlog")?;
    BACKLOG.fill(folder.path(), 1 << 30)?;
    let backend = FaultyBackend::start()?;
    let bucket = backend.bucket(BUCKET)?;
    let hold = |prefix: &str| Rule::on(Method::PUT, Fault::Hold).at(format!("{BUCKET}/{prefix}"));
    backend.set_rules([hold("zeros/"), hold("new/")]);
    let mut spec = PeerSpec::new(&bucket.endpoint);
    spec.data_path = Some(folder.path().to_path_buf());
    spec.capacity = "1GiB".to_owned();
    spec.shards = SHARDS.to_string();
    let began = Instant::now();
    let mut scene = Scene::of(Peer::start_with(spec)?, backend, bucket)?;
    let last = scene.get(&Zeros::key(BACKLOG.objects - 1))?;
    let served_after = began.elapsed();
    eprintln!("served after {served_after:?}, {:?} of them of CPU", scene.peer.process().cpu_time()?);
    ensure!(served_after < START_MAX, "served after {served_after:?}");
    expect(&last, 200);
    ensure!(last.header("x-dfs-cache") == Some("pending") && last.body.iter().all(|byte| *byte == 0));
    everything_works(&scene)?;
    goes_on_in_order(&scene)
}

/// Reads, writes and listings, while the queue is long.
fn everything_works(scene: &Scene) -> Result<()> {
    let payload = Payload::new(1, 70_000);
    scene.put("new/ephemeral", EPHEMERAL, payload)?;
    scene.read("new/ephemeral", payload)?;
    scene.put("new/async", ASYNC, payload)?;
    ensure!(scene.read("new/async", payload)? == "pending");
    let page = scene.keys("limit=1000")?;
    let (known, zeros): (Vec<_>, Vec<_>) = page.iter().partition(|key| key.starts_with("new/"));
    ensure!(known == ["new/async", "new/ephemeral"], "{known:?}");
    let expected: Vec<String> = (0..998).map(Zeros::key).collect();
    ensure!(zeros.iter().copied().eq(&expected), "the first page is wrong from {:?} on", zeros.first());
    let middle = scene.keys(&format!("limit=10&marker={}", Zeros::key(77_777)))?;
    ensure!(middle == (77_778..77_788).map(Zeros::key).collect::<Vec<_>>(), "{middle:?}");
    groups_hide_nothing_behind_them(scene)?;
    let queued = BACKLOG.objects as f64;
    scene.peer.metrics_until("the queue is counted", PATIENCE, |metrics| {
        metrics.sum("dfstore_writeback_queue", &[]) >= queued
            && metrics.sum("dfstore_writeback_dead_letters", &[]) == 0.0
    })
}

/// A listing by groups, page by page, shows what comes after a group of very many pending objects.
fn groups_hide_nothing_behind_them(scene: &Scene) -> Result<()> {
    scene.put("zz/behind", EPHEMERAL, Payload::new(2, 10))?;
    scene.bucket.put("zzz", b"in the bucket")?;
    let (mut groups, mut keys, mut marker) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..100 {
        let page = scene.list(&format!("limit=1000&delimiter=/&marker={marker}"))?;
        let texts = |field: &str| page[field].as_array().into_iter().flatten().cloned().collect::<Vec<_>>();
        groups.extend(texts("CommonPrefixes").iter().filter_map(|group| group.as_str().map(str::to_owned)));
        keys.extend(texts("Metadatas").iter().filter_map(|entry| entry["Key"].as_str().map(str::to_owned)));
        if page["IsTruncated"] != true {
            ensure!(groups == ["new/", "zeros/", "zz/"] && keys == ["zzz"], "{groups:?} {keys:?}");
            return Ok(());
        }
        marker = page["NextMarker"].as_str().context("where to go on")?.to_owned();
    }
    anyhow::bail!("the listing does not end: {groups:?} {keys:?}")
}

/// The bucket gets the oldest objects first, each shard's in the order of its queue.
fn goes_on_in_order(scene: &Scene) -> Result<()> {
    let wanted = if is_long_run() { 10_000 } else { 1000 };
    scene.backend.release();
    eventually("uploads go on", PATIENCE * 4, || (scene.backend.requests_of(&Method::PUT) >= wanted).then_some(()))?;
    let seen = scene.backend.seen();
    for shard in 0..SHARDS {
        let sent: Vec<u64> = seen.iter().filter_map(|seen| upload_of(seen, shard)).collect();
        let queue: Vec<u64> =
            (0..BACKLOG.objects).filter(|object| shard_of(*object) == shard).take(sent.len()).collect();
        ensure!(sent.len() > wanted / 4, "shard {shard} sent {} of {wanted}", sent.len());
        for (place, object) in sent.iter().enumerate() {
            let due = queue.binary_search(object).ok().context("an object before its turn, or sent twice")?;
            ensure!(due.abs_diff(place) < AT_ONCE, "shard {shard}: object {object} was {place}th instead of {due}th");
        }
    }
    let object = Zeros::key(0);
    eventually("the first is there", PATIENCE, || scene.backend.stored(BUCKET, &object)).map(drop)
}

/// The number of the object that this request uploads, if this shard sent it.
fn upload_of(seen: &Seen, shard: usize) -> Option<u64> {
    let number = Zeros::number(&seen.path).filter(|_| seen.method == Method::PUT)?;
    (shard_of(number) == shard).then_some(number)
}

fn shard_of(object: u64) -> usize {
    TaskId::of(&ObjectName::new(BUCKET, Zeros::key(object)), "", "").owner(SHARDS)
}
