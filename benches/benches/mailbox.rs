//! A message that crosses shards or goes to a tokio thread such as the sidecar, and its answer: how long that takes while
//! the answering side is busy with others.
//!
//! Busy means that a crowd of tasks asks the same side all the time, each question costing it a checksum over 16 KiB. One
//! more task asks now and then and is timed. Prints the median and the 99th percentile of round trips; a message takes
//! half of one.

use std::cell::Cell;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dfstore_benches::is_smoke;
use dfstore_peer::rt::mailbox::{Receiver, Sender, mailbox, oneshot};
use dfstore_peer::rt::shard::{ShardThread, spawn_local};
use dfstore_peer::rt::time::sleep;
use futures_util::future::join_all;

/// Tasks that keep the answering side busy.
const CROWD: usize = 16;
/// Pause between two timed questions.
const PAUSE: Duration = Duration::from_millis(1);

/// A question: bytes to sum, where the answer goes.
struct Question(Vec<u8>, oneshot::Sender<(u32, Vec<u8>)>);

async fn answer(questions: Receiver<Question>) {
    while let Some(Question(bytes, reply)) = questions.recv().await {
        let sum = crc32fast::hash(&bytes);
        drop(reply.send((sum, bytes)));
    }
}

async fn ask(answerer: &Sender<Question>, bytes: Vec<u8>) -> Vec<u8> {
    answerer.call(|reply| Question(bytes, reply)).await.expect("it answers").1
}

/// One of those who keep the answering side busy; the result completes when it has stopped.
fn join_crowd(answerer: Sender<Question>, is_over: Rc<Cell<bool>>) -> oneshot::Receiver<()> {
    let (stopped, result) = oneshot::channel();
    spawn_local(async move {
        let mut bytes = vec![7; 16 << 10];
        while !is_over.get() {
            bytes = ask(&answerer, bytes).await;
        }
        let _ = stopped.send(());
    });
    result
}

/// Round trips from a shard of its own, sorted.
fn time(answerer: Sender<Question>, crowd: usize, rounds: usize) -> Vec<Duration> {
    let (sender, result) = std::sync::mpsc::channel();
    let asking = move || async move {
        let is_over = Rc::new(Cell::new(false));
        let crowd: Vec<_> = (0..crowd).map(|_| join_crowd(answerer.clone(), is_over.clone())).collect();
        let mut took = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            sleep(PAUSE).await;
            let began = Instant::now();
            ask(&answerer, vec![7; 64]).await;
            took.push(began.elapsed());
        }
        took.sort_unstable();
        is_over.set(true);
        join_all(crowd).await;
        let _ = sender.send(took);
    };
    let thread = ShardThread::start("asking".to_owned(), 0, asking).expect("it starts");
    let took = result.recv().expect("it ends");
    thread.join();
    took
}

fn row(name: &str, took: &[Duration]) {
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    println!("{name:<34} {:>9.1} us {:>9.1} us {:>9.1} us", at(50), at(99), at(99) / 2.0);
}

/// A thread that answers as the sidecar does: tokio's runtime instead of a shard's.
fn tokio_thread(questions: Receiver<Question>) -> JoinHandle<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    std::thread::spawn(move || runtime.block_on(answer(questions)))
}

fn main() {
    let rounds = if is_smoke() { 50 } else { 1_000 };
    println!("{:<34} {:>12} {:>12} {:>12}", "round trip", "median", "p99", "p99, one way");
    for (name, crowd) in [("idle", 0), ("busy", CROWD)] {
        let (answerer, questions) = mailbox(4096);
        let thread = ShardThread::start("answering".to_owned(), 1, move || answer(questions)).expect("it starts");
        row(&format!("shard to shard, {name}"), &time(answerer, crowd, rounds));
        thread.join();
        let (answerer, questions) = mailbox(4096);
        let thread = tokio_thread(questions);
        row(&format!("shard to a tokio thread, {name}"), &time(answerer, crowd, rounds));
        thread.join().expect("no panic");
    }
}
