//! `dfstore writeback`: what waits to be told to the backend; and waiting for it, as `cp --wait backend` does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dfstore_proto::error::ErrorCode;
use dfstore_proto::ids::ObjectName;
use dfstore_proto::limits::LIST_ENTRIES_MAX;
use dfstore_proto::message::{
    Message, Queue, QueueEntry, QueueOk, QueueState, Stat, Steer, SteerOrder, Target, VersionState,
};
use indicatif::BinaryBytes;
use serde_json::json;

use crate::args::{QueueArgs, SteerArgs, WaitArgs, WritebackCommand};
use crate::client::Peer;
use crate::client::error::ClientError;
use crate::commands::date::rfc3339;
use crate::commands::{note, parse_url, print_line};
use crate::error::{show, usage, with_hint};
use crate::progress::Progress;
use crate::rt::time;
use crate::url::{DfsUrl, encode};

/// First pause between two looks at the queue, and the longest.
const LOOK_DELAY: Duration = Duration::from_millis(50);
/// See [`LOOK_DELAY`].
const LOOK_DELAY_MAX: Duration = Duration::from_secs(1);
/// Entries of the queue of which one is shown to who waits.
const LOOKED_AT: usize = 100;
/// Who waits longer than this is told what for.
const NOTE_AFTER: Duration = Duration::from_secs(5);

/// Runs the command that was asked for.
pub async fn run(peer: &Peer, command: &WritebackCommand) -> Result<()> {
    match command {
        WritebackCommand::Ls(args) => list(peer, args).await,
        WritebackCommand::Wait(args) => wait(peer, args).await,
        WritebackCommand::Retry(args) => steer(peer, args, SteerOrder::Retry).await,
        WritebackCommand::Drop(args) => steer(peer, args, SteerOrder::Drop).await,
    }
}

/// Which part of the queue is meant: all of it without a URL, else the keys that begin like the URL's.
struct Part {
    bucket: String,
    prefix: String,
    dead_only: bool,
}

impl Part {
    fn of(target: Option<&String>, dead_only: bool) -> Result<Part> {
        let Some(target) = target else { return Ok(Part { bucket: String::new(), prefix: String::new(), dead_only }) };
        let url = parse_url(target)?;
        Ok(Part { bucket: url.bucket, prefix: url.key, dead_only })
    }

    fn first_page(&self, limit: usize) -> Queue {
        Queue {
            bucket: self.bucket.clone(),
            prefix: self.prefix.clone(),
            limit: u16::try_from(limit.min(LIST_ENTRIES_MAX)).expect("at most a page"),
            dead_only: self.dead_only,
            ..Queue::default()
        }
    }
}

async fn ask(peer: &Peer, request: &Queue) -> Result<QueueOk> {
    match peer.call(None, request.clone()).await.context("failed to ask for the write-back queue")? {
        Message::QueueOk(page) => Ok(page),
        other => Err(peer.unexpected(&other).into()),
    }
}

/// The page after this one; `None` when it was the last.
fn next_page(request: &Queue, page: &QueueOk) -> Result<Option<Queue>> {
    let Some(last) = page.entries.last().filter(|_| page.truncated) else { return Ok(None) };
    let (before, after) = ((&request.after_bucket, &request.after_key), (&last.bucket, &last.key));
    ensure!(after > before, "the peer repeats a page of its write-back queue");
    let (after_bucket, after_key) = (last.bucket.clone(), last.key.clone());
    Ok(Some(Queue { after_bucket, after_key, ..request.clone() }))
}

async fn list(peer: &Peer, args: &QueueArgs) -> Result<()> {
    let part = Part::of(args.target.as_ref(), args.dead)?;
    let mut left = args.limit.unwrap_or(usize::MAX);
    let (mut next, mut shown) = (Some(part.first_page(left)), 0_usize);
    if !args.json {
        print_line(format_args!("{:9} {:6} {:>8} {:>5} {:>21} OBJECT", "STATE", "KIND", "AGE", "TRIES", "SENT"))?;
    }
    while let Some(request) = next.filter(|_| left > 0) {
        let page = ask(peer, &request).await?;
        for entry in page.entries.iter().take(left) {
            if args.json { print_line(as_json(entry))? } else { print_line(as_line(entry))? }
        }
        left = left.saturating_sub(page.entries.len());
        shown += page.entries.len();
        next = next_page(&request, &page)?;
    }
    if shown == 0 && !args.json {
        note(format_args!(
            "Note: {}",
            if args.dead { "there are no dead letters" } else { "nothing waits for the backend" }
        ));
    }
    Ok(())
}

fn as_line(entry: &QueueEntry) -> String {
    let kind = if entry.deletes { "delete" } else { "put" };
    let age = seconds(now_ms().saturating_sub(entry.queued_at_ms));
    let sent = match entry.deletes {
        true => "-".to_string(),
        false => format!("{}/{}", BinaryBytes(entry.bytes_sent), BinaryBytes(entry.length)),
    };
    let url = encode(&entry.bucket, &entry.key);
    let line = format!("{:9} {kind:6} {age:>8} {:>5} {sent:>21} {url}", name_of(entry.state), entry.attempts);
    match (entry.last_error.as_str(), entry.state) {
        ("", _) => line,
        (error, QueueState::Delayed) => {
            let in_s = seconds(entry.due_at_ms.saturating_sub(now_ms()));
            format!("{line}\n          again in {in_s}: {error}")
        }
        (error, _) => format!("{line}\n          {error}"),
    }
}

fn as_json(entry: &QueueEntry) -> serde_json::Value {
    json!({
        "bucket": entry.bucket,
        "key": entry.key,
        "kind": if entry.deletes { "delete" } else { "put" },
        "state": name_of(entry.state),
        "generation": entry.generation,
        "length": entry.length,
        "bytes_sent": entry.bytes_sent,
        "queued_at": rfc3339(entry.queued_at_ms),
        "age_ms": now_ms().saturating_sub(entry.queued_at_ms),
        "next_attempt_at": (entry.due_at_ms > 0).then(|| rfc3339(entry.due_at_ms)),
        "attempts": entry.attempts,
        "last_error": entry.last_error,
    })
}

fn name_of(state: QueueState) -> &'static str {
    match state {
        QueueState::Waiting => "waiting",
        QueueState::Sending => "sending",
        QueueState::Verifying => "verifying",
        QueueState::Delayed => "delayed",
        QueueState::Elsewhere => "elsewhere",
        QueueState::Dead => "dead",
    }
}

/// A time for people, in its largest unit.
fn seconds(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Waits until nothing waits but dead letters, of which there must be none.
async fn wait(peer: &Peer, args: &WaitArgs) -> Result<()> {
    let dead = Part::of(args.target.as_ref(), true)?;
    let all = Part::of(args.target.as_ref(), false)?;
    let until = args.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let busy = Progress::new(!args.quiet, "Waiting", None);
    let mut delay = LOOK_DELAY;
    let mut note_at = (!args.quiet).then(|| Instant::now() + NOTE_AFTER);
    loop {
        if let Some(entry) = ask(peer, &dead.first_page(1)).await?.entries.into_iter().next() {
            return Err(set_aside(&entry));
        }
        let left = ask(peer, &all.first_page(LOOKED_AT)).await?;
        let Some(waiting) = what_waits(&left) else { return Ok(()) };
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(with_hint(anyhow!("the time is over: {waiting}"), "see 'dfstore writeback ls' for all"));
        }
        if note_at.take_if(|at| Instant::now() >= *at).is_some() {
            busy.note(format_args!("Note: {waiting}"));
        }
        time::sleep(delay).await;
        delay = (delay * 2).min(LOOK_DELAY_MAX);
    }
}

/// Names one of those that wait, with what went wrong last: one to which something did go wrong, if there is one.
fn what_waits(page: &QueueOk) -> Option<String> {
    let failed = page.entries.iter().find(|entry| !entry.last_error.is_empty());
    let shown = failed.or(page.entries.first())?;
    let name = encode(&shown.bucket, &shown.key);
    let who = if page.entries.len() > 1 { format!("{name} and others wait") } else { format!("{name} waits") };
    Some(format!("{who} for the backend{}", reason_of(shown)))
}

/// What went wrong with an entry last.
fn reason_of(entry: &QueueEntry) -> String {
    match entry.last_error.as_str() {
        "" => ", and nothing has failed so far".to_owned(),
        error => format!(": {error}"),
    }
}

fn set_aside(entry: &QueueEntry) -> anyhow::Error {
    let name = encode(&entry.bucket, &entry.key);
    let error = anyhow!("{name} was set aside, the backend does not take it: {}", entry.last_error);
    with_hint(error, "it stays on the peer; mend the cause, then 'dfstore writeback retry', or give it up with 'drop'")
}

/// Waits until the backend has this version of an object.
pub async fn wait_for_object(peer: &Peer, target: &Target, generation: u64) -> Result<()> {
    let name = encode(&target.object.bucket, &target.object.key);
    let mut delay = LOOK_DELAY;
    let mut note_at = Some(Instant::now() + NOTE_AFTER);
    loop {
        let answer = peer.call(target.task(), Stat { target: target.clone(), fresh: false }).await;
        let info = match answer.with_context(|| format!("failed to ask whether the backend has {name}"))? {
            Message::StatOk(info) => info,
            other => return Err(peer.unexpected(&other).into()),
        };
        match info.state {
            _ if info.generation != generation => {
                bail!("{name} was replaced by a newer write before it was known to be in the backend")
            }
            VersionState::Clean => return Ok(()),
            VersionState::Ephemeral => bail!("{name} is ephemeral: the backend never gets it"),
            VersionState::Dirty => {}
        }
        if let Some(entry) = entry_of(peer, target, generation, true).await {
            return Err(set_aside(&entry));
        }
        if note_at.take_if(|at| Instant::now() >= *at).is_some() {
            let entry = entry_of(peer, target, generation, false).await;
            let reason = entry.map(|entry| reason_of(&entry)).unwrap_or_default();
            note(format_args!(
                "Note: {name} is written, and interrupting this does not take it back; it waits for the backend{reason}"
            ));
        }
        time::sleep(delay).await;
        delay = (delay * 2).min(LOOK_DELAY_MAX);
    }
}

/// The queue's entry of a version. A node that cannot be asked is no reason to give up: whether the backend has the
/// version is known all the same.
async fn entry_of(peer: &Peer, target: &Target, generation: u64, dead_only: bool) -> Option<QueueEntry> {
    let (bucket, prefix) = (target.object.bucket.clone(), target.object.key.clone());
    let page = ask(peer, &Part { bucket, prefix, dead_only }.first_page(1)).await.ok()?;
    page.entries.into_iter().find(|entry| entry.key == target.object.key && entry.generation == generation)
}

/// Gives an order about one object, or about all below a prefix.
async fn steer(peer: &Peer, args: &SteerArgs, order: SteerOrder) -> Result<()> {
    let url = parse_url(&args.target)?;
    if !url.key.is_empty() && !url.key.ends_with('/') {
        let object = url.object().map_err(usage)?;
        return steer_one(peer, object, order, args.force).await;
    }
    steer_below(peer, &url, order, args.force).await
}

async fn steer_below(peer: &Peer, url: &DfsUrl, order: SteerOrder, force: bool) -> Result<()> {
    // Without force only dead letters can be given up; those are all that need to be tried again, too.
    let part = Part { bucket: url.bucket.clone(), prefix: url.key.clone(), dead_only: !force };
    let (mut tried, mut failed) = (0_u64, 0_u64);
    let mut next = Some(part.first_page(LIST_ENTRIES_MAX));
    while let Some(request) = next {
        let page = ask(peer, &request).await?;
        for entry in &page.entries {
            let object = ObjectName::new(entry.bucket.clone(), entry.key.clone());
            tried += 1;
            match steer_one(peer, object, order, force).await {
                Ok(()) => {}
                // It was settled between the list and the order.
                Err(error) if is_not_found(&error) => {}
                Err(error) => {
                    failed += 1;
                    show(&error);
                }
            }
        }
        next = next_page(&request, &page)?;
    }
    if tried == 0 {
        let which = if force { "nothing waits" } else { "there are no dead letters" };
        note(format_args!("Note: {which} below {url}"));
    }
    ensure!(failed == 0, "failed for {failed} of {tried} objects below {url}");
    Ok(())
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ClientError>().and_then(ClientError::code) == Some(ErrorCode::NotFound)
}

async fn steer_one(peer: &Peer, object: ObjectName, order: SteerOrder, force: bool) -> Result<()> {
    let name = encode(&object.bucket, &object.key);
    let verb = match order {
        SteerOrder::Retry => "retry",
        SteerOrder::Drop => "drop",
    };
    let target = Target::new(object);
    let answer = peer.call(target.task(), Steer { target, order, force }).await;
    match answer.with_context(|| format!("failed to {verb} {name}"))? {
        Message::Done(_) => print_line(format_args!("{verb} {name}")),
        other => Err(peer.unexpected(&other).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        for (ms, text) in [(0, "0s"), (119_999, "119s"), (120_000, "2m"), (7_200_000, "2h"), (864_000_000, "10d")] {
            assert_eq!(seconds(ms), text);
        }
    }

    #[test]
    fn pages_go_on_after_the_last_entry_and_never_back() {
        let entry = QueueEntry {
            bucket: "b".into(),
            key: "k".into(),
            deletes: false,
            generation: 1,
            length: 2 << 20,
            state: QueueState::Dead,
            queued_at_ms: 0,
            due_at_ms: 0,
            attempts: 2,
            last_error: "no".into(),
            bytes_sent: 1 << 20,
        };
        assert!(as_line(&entry).contains("1.00 MiB/2.00 MiB dfs://b/k\n          no"), "{}", as_line(&entry));
        let page = QueueOk { entries: vec![entry], truncated: true };
        let first = Queue::default();
        let second = next_page(&first, &page).expect("goes on").expect("there is more");
        assert_eq!((second.after_bucket.as_str(), second.after_key.as_str()), ("b", "k"));
        assert!(next_page(&second, &page).is_err(), "the same page again");
        assert_eq!(next_page(&first, &QueueOk { truncated: false, ..page }).expect("ends"), None);
    }
}
