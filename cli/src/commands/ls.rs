//! `dfstore ls`: lists objects, page by page until there are no more or enough.
//!
//! A line is time, length and URL. URLs are written so that they can be pasted back: bytes that would not survive
//! (spaces, `?`, `%`, control characters) are percent-encoded. Keys in JSON are as they are.

use anyhow::{Context, Result, ensure};
use dfstore_proto::limits::LIST_ENTRIES_MAX;
use dfstore_proto::message::{List, ListEntry, ListOk, Message};
use serde_json::json;

use crate::args::LsArgs;
use crate::client::{Peer, Session};
use crate::commands::date::rfc3339;
use crate::commands::{parse_url, print_line, state_name};
use crate::url::encode;

/// Prints the listing.
pub async fn run(peer: &Peer, args: &LsArgs) -> Result<()> {
    let url = parse_url(&args.target)?;
    let delimiter = if args.recursive { String::new() } else { "/".to_string() };
    let mut request =
        List { bucket: url.bucket.clone(), prefix: url.key.clone(), marker: String::new(), delimiter, limit: 0 };
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut session = peer.connect(None).await.with_context(|| format!("failed to list {url}"))?;
    while left > 0 {
        request.limit = u32::try_from(left.min(LIST_ENTRIES_MAX as u64)).expect("at most a page");
        let page = next_page(peer, &mut session, &request).await.with_context(|| format!("failed to list {url}"))?;
        left -= print_page(&url.bucket, &page, args.json, left)?;
        if !page.truncated {
            break;
        }
        ensure!(page.next_marker > request.marker, "failed to list {url}: the peer repeats a page");
        request.marker = page.next_marker;
    }
    Ok(())
}

async fn next_page(peer: &Peer, session: &mut Session, request: &List) -> Result<ListOk> {
    match session.call(request.clone()).await? {
        Message::ListOk(page) => Ok(page),
        other => Err(peer.unexpected(&other).into()),
    }
}

/// Prints at most `left` items in the byte order of their keys; returns how many.
fn print_page(bucket: &str, page: &ListOk, json: bool, left: u64) -> Result<u64> {
    let entries = page.entries.iter().map(|entry| (&entry.key, Some(entry)));
    let prefixes = page.common_prefixes.iter().map(|prefix| (prefix, None));
    let mut items: Vec<(&String, Option<&ListEntry>)> = entries.chain(prefixes).collect();
    items.sort_by_key(|(key, _)| *key);
    items.truncate(usize::try_from(left).unwrap_or(usize::MAX));
    for (key, entry) in &items {
        match entry {
            Some(entry) if json => print_line(entry_as_json(entry))?,
            None if json => print_line(json!({ "prefix": key }))?,
            Some(entry) => {
                let (time, url) = (rfc3339(entry.last_modified_ms), encode(bucket, key));
                print_line(format_args!("{time} {:>15} {url}", entry.length))?;
            }
            None => print_line(format_args!("{:20} {:>15} {}", "-", "-", encode(bucket, key)))?,
        }
    }
    Ok(items.len() as u64)
}

fn entry_as_json(entry: &ListEntry) -> serde_json::Value {
    json!({
        "key": entry.key,
        "length": entry.length,
        "etag": entry.etag,
        "last_modified": rfc3339(entry.last_modified_ms),
        "last_modified_ms": entry.last_modified_ms,
        "storage_class": entry.storage_class,
        "state": state_name(entry.state),
    })
}
