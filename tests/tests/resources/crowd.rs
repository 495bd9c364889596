//! Two thousand connections that are idle, silent or slow, and others that work beside them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfstore_tests::crowd::Crowd;
use dfstore_tests::data::Payload;
use dfstore_tests::eventually;
use dfstore_tests::http::Connection;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, Scene, right};

/// A request head must come within 10 s; a busy machine gets some more.
const SENT_AWAY_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn two_thousand_idle_and_slow_clients_hold_up_nobody() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(1, 100_000);
    scene.put("warm", EPHEMERAL, payload)?;
    let open = |metrics: &dfstore_tests::samples::Samples| metrics.sum("process_open_fds", &[]);
    let before = open(&scene.peer.metrics()?);
    let mut crowd = Crowd::gather(scene.peer.address(), 1000, 500, 500)?;
    // The others may be gone soon.
    ensure!(open(&scene.peer.metrics()?) >= before + 1000.0, "not all of the idle ones are there");
    let (began, mut held, mut served) = (Instant::now(), Connection::open(scene.peer.address())?, 0);
    while crowd.lingering() > 0 {
        ensure!(
            began.elapsed() < SENT_AWAY_WITHIN,
            "{} are still there after {:?}",
            crowd.lingering(),
            began.elapsed()
        );
        crowd.trickle();
        right(&held.request("GET", &Scene::path("warm"), &[], b"")?, payload)?;
        scene.read("warm", payload).context("a new connection")?;
        scene.put(&format!("beside/{}", served % 10), ASYNC, payload)?;
        served += 1;
    }
    eprintln!("the slow ones were gone after {:?}; {served} rounds of work beside them", began.elapsed());
    crowd.use_idle().context("those that had asked before are kept")?;
    drop((crowd, held));
    eventually("descriptors come back", PATIENCE, || {
        // The backend's connections are kept for a while.
        scene.peer.metrics().ok().filter(|metrics| open(metrics) < before + 40.0)
    })?;
    for number in 0..served.min(10) {
        let key = format!("beside/{number}");
        scene.until_written_back(&key, payload)?;
        scene.until_clean(&key)?;
    }
    ensure!(scene.peer.request("GET", &format!("/buckets/{BUCKET}/metadatas"), &[], b"")?.status() == 200);
    scene.rests()
}
