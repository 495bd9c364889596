//! Listing a bucket: the backend's page with what is written or deleted here laid over it.

use std::collections::BTreeMap;

use dfstore_proto::message::{self, Message};
use dfstore_proto::object::ObjectMeta;
use futures_util::future::join_all;

use crate::engine::Engine;
use crate::engine::call::{PendingEntry, TaskCall};
use crate::engine::error::ObjectError;
use crate::engine::request::{ListEntry, ListPage, ListRequest};
use crate::limits::{LIST_LIMIT_MAX, PENDING_ENTRIES_MAX};
use crate::links::LinkError;
use crate::membership::Node;
use crate::sidecar::backend::BackendErrorKind;

/// One page. It is empty only when nothing follows: not every client goes on after an empty one.
pub async fn list(engine: &Engine, request: &ListRequest) -> Result<ListPage, ObjectError> {
    let mut request = ListRequest { limit: request.limit.clamp(1, LIST_LIMIT_MAX), ..request.clone() };
    loop {
        let page = list_from(engine, &request).await?;
        let is_empty = page.entries.is_empty() && page.common_prefixes.is_empty();
        if !is_empty || !page.truncated || page.next_marker <= request.marker {
            return Ok(page);
        }
        request.marker = page.next_marker;
    }
}

async fn list_from(engine: &Engine, request: &ListRequest) -> Result<ListPage, ObjectError> {
    // First what is pending, then the backend: an object that is written back in between is seen twice, not never.
    let mut pending = pending_here(engine, &request.bucket, &request.prefix, &request.marker, false).await?;
    for at_seed in pending_elsewhere(engine, request).await {
        pending.add(at_seed);
    }
    let page = match engine.0.context.backend.list(request.clone()).await {
        Ok(page) => page,
        // A bucket that so far exists only here.
        Err(error) if error.kind == BackendErrorKind::NoSuchBucket && !pending.entries.is_empty() => {
            ListPage::default()
        }
        Err(error) => return Err(error.into()),
    };
    Ok(overlay(request, page, pending))
}

/// What is pending of a bucket, of several who were asked.
#[derive(Clone, Debug, Default)]
pub struct PendingList {
    /// The entries, in no order.
    pub entries: Vec<PendingEntry>,
    /// Somebody had more than he could say: beyond this key there may be others.
    pub horizon: Option<String>,
}

impl PendingList {
    /// Adds what one has said, in the order of its keys.
    fn add(&mut self, said: Vec<PendingEntry>) {
        if said.len() >= PENDING_ENTRIES_MAX
            && let Some(last) = said.iter().map(PendingEntry::key).max()
            && self.horizon.as_deref().is_none_or(|horizon| last < horizon)
        {
            self.horizon = Some(last.to_owned());
        }
        self.entries.extend(said);
    }
}

/// What is pending on this peer, of all its shards: for its own clients, or what it decides about for other peers.
pub async fn pending_here(
    engine: &Engine,
    bucket: &str,
    prefix: &str,
    marker: &str,
    as_home: bool,
) -> Result<PendingList, ObjectError> {
    let mut pending = PendingList::default();
    for shard in 0..engine.0.context.shards.len() {
        if shard == engine.shard() {
            pending.add(engine.0.pending_of(bucket, prefix, marker, as_home));
        } else {
            let (bucket, prefix, marker) = (bucket.to_owned(), prefix.to_owned(), marker.to_owned());
            let remote = engine.shard_at(shard);
            let call = |reply| TaskCall::Pending { bucket, prefix, marker, as_home, reply };
            pending.add(remote.ask(call).await?);
        }
    }
    Ok(pending)
}

/// What is pending at the seeds, which decide about it. One that cannot be asked is left out: the next in order has
/// been told of the same.
async fn pending_elsewhere(engine: &Engine, request: &ListRequest) -> Vec<Vec<PendingEntry>> {
    let Some(cluster) = &engine.0.cluster else { return Vec::new() };
    let members = cluster.members();
    let seeds = members.seeds().filter(|seed| seed.id != members.me);
    let answers = join_all(seeds.map(|seed| async move { (seed, pending_at(engine, seed, request).await) })).await;
    let known = answers.into_iter().filter_map(|(seed, answer)| match answer {
        Ok(pending) => Some(pending),
        Err(error) => {
            tracing::warn!(%error, node = %seed.id, "a listing leaves out what a seed may know");
            None
        }
    });
    known.collect()
}

async fn pending_at(engine: &Engine, seed: &Node, request: &ListRequest) -> Result<Vec<PendingEntry>, LinkError> {
    let Some(cluster) = &engine.0.cluster else { return Ok(Vec::new()) };
    let (bucket, prefix) = (request.bucket.clone(), request.prefix.clone());
    let mut asked = message::Pending { bucket, prefix, marker: request.marker.clone() };
    let mut pending = Vec::new();
    while pending.len() < PENDING_ENTRIES_MAX {
        let Message::PendingOk(page) = cluster.links.ask(seed, None, asked.clone().into()).await? else { break };
        pending.extend(page.deleted.into_iter().map(PendingEntry::Deleted));
        pending.extend(page.written.into_iter().map(|entry| PendingEntry::Present(from_message(entry))));
        if page.next_marker <= asked.marker {
            break;
        }
        asked.marker = page.next_marker;
    }
    Ok(pending)
}

fn from_message(entry: message::ListEntry) -> ListEntry {
    let meta = ObjectMeta {
        length: entry.length,
        etag: entry.etag,
        last_modified_ms: entry.last_modified_ms,
        storage_class: entry.storage_class,
        ..ObjectMeta::default()
    };
    ListEntry { key: entry.key, meta }
}

/// What a page shows at each place: an object, or a group.
type Shown = BTreeMap<String, Option<ListEntry>>;

/// Lays pending objects over a page of the backend. Pure.
fn overlay(request: &ListRequest, page: ListPage, pending: PendingList) -> ListPage {
    // Beyond the backend's last entry of a truncated page there may be entries that are not known yet.
    let horizon = page.truncated.then(|| page.next_marker.clone());
    let horizon = horizon.into_iter().chain(pending.horizon).min();
    let mut shown = Shown::new();
    shown.extend(page.common_prefixes.into_iter().map(|prefix| (prefix, None)));
    shown.extend(page.entries.into_iter().map(|entry| (entry.key.clone(), Some(entry))));
    if let Some(horizon) = &horizon {
        shown.retain(|place, _| place <= horizon);
    }
    // A marker within a group, or one that names it, has shown it already.
    shown.retain(|place, _| *place > request.marker);
    for entry in pending.entries {
        match entry {
            PendingEntry::Deleted(key) => {
                if matches!(shown.get(&key), Some(Some(_))) {
                    shown.remove(&key);
                }
            }
            PendingEntry::Present(entry) => {
                let place = match group_of(request, &entry.key) {
                    Some(group) => (group, None),
                    None => (entry.key.clone(), Some(entry)),
                };
                let in_reach = horizon.as_ref().is_none_or(|horizon| place.0 <= *horizon);
                if in_reach && place.0 > request.marker {
                    shown.insert(place.0, place.1);
                }
            }
        }
    }
    cut(request.limit, shown, horizon)
}

/// The group that a key is rolled up into.
fn group_of(request: &ListRequest, key: &str) -> Option<String> {
    if request.delimiter.is_empty() {
        return None;
    }
    let rest = key.strip_prefix(&request.prefix)?;
    let at = rest.find(&request.delimiter)?;
    Some(format!("{}{}", request.prefix, &rest[..at + request.delimiter.len()]))
}

fn cut(limit: usize, shown: Shown, horizon: Option<String>) -> ListPage {
    let mut page = ListPage { truncated: horizon.is_some() || shown.len() > limit, ..ListPage::default() };
    let whole = shown.len() <= limit;
    for (name, shown) in shown.into_iter().take(limit) {
        page.next_marker.clone_from(&name);
        match shown {
            Some(entry) => page.entries.push(entry),
            None => page.common_prefixes.push(name),
        }
    }
    match horizon {
        // All that the backend gave is shown or deleted here: go on where it ended.
        Some(horizon) if whole => page.next_marker = horizon,
        _ if !page.truncated => page.next_marker.clear(),
        _ => {}
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn entry(key: &str) -> ListEntry {
        ListEntry { key: key.to_owned(), meta: ObjectMeta::default() }
    }

    fn request(marker: &str, delimiter: &str, limit: usize) -> ListRequest {
        ListRequest {
            bucket: "b".into(),
            prefix: String::new(),
            marker: marker.into(),
            delimiter: delimiter.into(),
            limit,
        }
    }

    /// A page as a backend that holds `keys` would give it.
    fn backend_page(keys: &BTreeSet<String>, request: &ListRequest) -> ListPage {
        let mut shown = Shown::new();
        for key in keys.iter().filter(|key| key.starts_with(&request.prefix)) {
            match group_of(request, key) {
                Some(group) if group > request.marker => shown.insert(group, None),
                None if *key > request.marker => shown.insert(key.clone(), Some(entry(key))),
                _ => None,
            };
        }
        cut(request.limit, shown, None)
    }

    /// Pages until the end, as a client does.
    fn all(delimiter: &str, limit: usize, page_of: impl Fn(&ListRequest) -> ListPage) -> (Vec<String>, Vec<String>) {
        let (mut keys, mut groups, mut marker) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..100 {
            let page = page_of(&request(&marker, delimiter, limit));
            assert!(page.entries.len() + page.common_prefixes.len() <= limit);
            keys.extend(page.entries.into_iter().map(|entry| entry.key));
            groups.extend(page.common_prefixes);
            if !page.truncated {
                return (keys, groups);
            }
            assert!(page.next_marker > marker, "paging goes on");
            marker = page.next_marker;
        }
        panic!("paging does not end");
    }

    fn keys() -> impl Strategy<Value = BTreeSet<String>> {
        proptest::collection::btree_set("[ab]{1,2}(/[ab]{1,2})?", 0..8)
    }

    proptest! {
        #[test]
        fn pages_show_what_a_bucket_with_the_pending_writes_would(
            stored in keys(), written in keys(), deleted in keys(), limit in 1usize..4, grouped: bool,
        ) {
            let delimiter = if grouped { "/" } else { "" };
            let written: BTreeSet<String> = written.difference(&deleted).cloned().collect();
            let overlaid = all(delimiter, limit, |request| {
                let pending = deleted.iter().map(|key| PendingEntry::Deleted(key.clone()))
                    .chain(written.iter().map(|key| PendingEntry::Present(entry(key))))
                    .filter(|pending| match pending {
                        PendingEntry::Present(entry) => entry.key > request.marker,
                        PendingEntry::Deleted(key) => *key > request.marker,
                    })
                    .collect();
                let pending = PendingList { entries: pending, horizon: None };
                overlay(request, backend_page(&stored, request), pending)
            });
            let truth: BTreeSet<String> = stored.union(&written).filter(|key| !deleted.contains(*key)).cloned().collect();
            let expected = all(delimiter, limit, |request| backend_page(&truth, request));
            prop_assert_eq!(&overlaid.0, &expected.0);
            // A group whose last object is deleted here shows until the backend knows; no group is missing.
            prop_assert!(expected.1.iter().all(|group| overlaid.1.contains(group)));
        }
    }

    #[test]
    fn a_page_ends_where_an_answer_was_cut_and_goes_on_behind_it() {
        let present = |keys: &[&str]| keys.iter().map(|key| PendingEntry::Present(entry(key))).collect::<Vec<_>>();
        let stored = BTreeSet::from(["z".to_owned()]);
        let first = request("", "/", 10);
        let cut = PendingList { entries: present(&["a/1", "a/2", "b"]), horizon: Some("a/2".to_owned()) };
        let page = overlay(&first, backend_page(&stored, &first), cut);
        assert_eq!((page.common_prefixes, page.entries.len()), (vec!["a/".to_owned()], 0));
        assert_eq!((page.truncated, &*page.next_marker), (true, "a/2"));
        let second = request("a/2", "/", 10);
        let rest = PendingList { entries: present(&["a/3", "b"]), horizon: None };
        let page = overlay(&second, backend_page(&stored, &second), rest);
        let keys: Vec<_> = page.entries.iter().map(|entry| &*entry.key).collect();
        assert_eq!((keys, page.common_prefixes.is_empty(), page.truncated), (vec!["b", "z"], true, false));
    }
}
