//! `dfstore prefetch` and `dfstore evict`: one object, or all below a prefix, on every node of the cluster.
//!
//! A prefix is listed page by page, and a few objects at a time are worked on; a line for each is printed as it ends.
//! All are tried: a node that fails is named, and makes the command fail in the end. A peer that is gone, or cannot do
//! this at all, ends it at once.

use anyhow::{Context, Result, anyhow, ensure};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::{Evict, List, ListOk, Message, NodeFailure, Prefetch, Scope, Target, Worked};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;

use crate::args::WorkArgs;
use crate::client::Peer;
use crate::client::error::ClientError;
use crate::commands::{note, parse_url, print_line};
use crate::error::{show, usage, with_hint};
use crate::progress::Progress;
use crate::url::{DfsUrl, encode};

/// Objects that are worked on at once: enough to hide round trips, few for the cluster, where each is fetched by many.
const AT_ONCE_MAX: usize = 8;

/// What to do with each object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Fetch it into the caches.
    Prefetch,
    /// Drop it from the caches.
    Evict,
}

impl Work {
    fn verb(self) -> &'static str {
        match self {
            Work::Prefetch => "prefetch",
            Work::Evict => "evict",
        }
    }

    fn message(self, target: Target) -> Message {
        let scope = Scope::Cluster;
        match self {
            Work::Prefetch => Prefetch { target, scope }.into(),
            Work::Evict => Evict { target, scope }.into(),
        }
    }
}

/// Works on what the URL names.
pub async fn run(peer: &Peer, work: Work, args: &WorkArgs) -> Result<()> {
    let url = parse_url(&args.target)?;
    let is_prefix = url.has_path && (url.key.is_empty() || url.key.ends_with('/'));
    if is_prefix {
        return below(peer, work, args, &url).await;
    }
    if args.recursive {
        let error = usage(format!("--recursive is for prefixes, and '{url}' does not end in '/'"));
        return Err(with_hint(error, "write a slash behind the prefix, or leave --recursive out"));
    }
    let object = url.object().map_err(usage)?;
    let outcome = {
        let title = if work == Work::Prefetch { "Prefetching" } else { "Evicting" };
        let _busy = Progress::new(!args.json, title, None);
        one(peer, work, object).await
    };
    let mut failures = outcome.print(work, args.json)?;
    match failures.pop() {
        None => Ok(()),
        Some(last) => {
            failures.iter().for_each(show);
            Err(last)
        }
    }
}

/// Works on all objects below a prefix.
async fn below(peer: &Peer, work: Work, args: &WorkArgs, url: &DfsUrl) -> Result<()> {
    let delimiter = if args.recursive { String::new() } else { "/".to_string() };
    let (bucket, prefix) = (url.bucket.clone(), url.key.clone());
    let mut request = List { bucket, prefix, marker: String::new(), delimiter, limit: 0 };
    let (mut tried, mut failed, mut folders) = (0_u64, 0_u64, 0_u64);
    loop {
        // On a connection of its own: the work on a page may take longer than an idle connection lives.
        let page = next_page(peer, &request).await.with_context(|| format!("failed to list {url}"))?;
        folders += page.common_prefixes.len() as u64;
        let objects = page.entries.into_iter().map(|entry| ObjectName::new(url.bucket.clone(), entry.key));
        let mut outcomes = stream::iter(objects.map(|object| one(peer, work, object))).buffer_unordered(AT_ONCE_MAX);
        while let Some(outcome) = outcomes.next().await {
            let is_over = outcome.is_over();
            let mut failures = outcome.print(work, args.json)?;
            if is_over && let Some(error) = failures.pop() {
                return Err(error);
            }
            failures.iter().for_each(show);
            tried += 1;
            failed += u64::from(!failures.is_empty());
        }
        if !page.truncated {
            break;
        }
        ensure!(page.next_marker > request.marker, "failed to list {url}: the peer repeats a page");
        request.marker = page.next_marker;
    }
    if folders > 0 {
        note(format_args!("Note: {folders} prefixes below {url} were left out; --recursive takes them too"));
    }
    ensure!(tried > 0 || folders > 0, "failed to {} {url}: there are no objects below it", work.verb());
    ensure!(failed == 0, "failed to {} {failed} of {tried} objects below {url} on all nodes", work.verb());
    Ok(())
}

async fn next_page(peer: &Peer, request: &List) -> Result<ListOk> {
    match peer.call(None, request.clone()).await? {
        Message::ListOk(page) => Ok(page),
        other => Err(peer.unexpected(&other).into()),
    }
}

/// What became of one object.
struct Outcome {
    object: ObjectName,
    result: Result<Worked>,
}

async fn one(peer: &Peer, work: Work, object: ObjectName) -> Outcome {
    let target = Target::new(object.clone());
    let result = match peer.call(target.task(), work.message(target)).await {
        Ok(Message::Worked(worked)) => Ok(worked),
        Ok(other) => Err(peer.unexpected(&other).into()),
        Err(error) => Err(error.into()),
    };
    Outcome { object, result }
}

impl Outcome {
    /// Whether the other objects need not be tried.
    fn is_over(&self) -> bool {
        let cause = self.result.as_ref().err().and_then(|error| error.downcast_ref::<ClientError>());
        cause.is_some_and(ClientError::is_about_the_peer)
    }

    /// Prints the line of this object. Returns what failed, for standard error.
    fn print(self, work: Work, json: bool) -> Result<Vec<anyhow::Error>> {
        if json {
            print_line(self.as_json())?;
        }
        let Outcome { object, result } = self;
        let (verb, name) = (work.verb(), encode(&object.bucket, &object.key));
        let worked = match result {
            Ok(worked) => worked,
            Err(error) => return Ok(vec![error.context(format!("failed to {verb} {name}"))]),
        };
        if !json {
            let (key, bucket, bytes, nodes) = (&object.key, &object.bucket, worked.bytes, worked.nodes);
            print_line(format_args!("{verb} {key} in bucket {bucket}: {bytes} bytes on {nodes} nodes"))?;
        }
        let failed = |NodeFailure { node, message }| anyhow!("failed to {verb} {name} on node {node}: {message}");
        Ok(worked.failures.into_iter().map(failed).collect())
    }

    fn as_json(&self) -> serde_json::Value {
        let (bucket, key) = (&self.object.bucket, &self.object.key);
        match &self.result {
            Ok(worked) => {
                let failures =
                    worked.failures.iter().map(|failure| json!({ "node": failure.node, "message": failure.message }));
                let failures: Vec<_> = failures.collect();
                json!({
                    "bucket": bucket,
                    "key": key,
                    "nodes": worked.nodes,
                    "bytes": worked.bytes,
                    "failures": failures,
                })
            }
            Err(error) => json!({ "bucket": bucket, "key": key, "error": format!("{error:#}") }),
        }
    }
}
