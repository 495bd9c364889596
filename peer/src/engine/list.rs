//! Listing a bucket: the backend's page with what is written or deleted here laid over it.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::engine::call::{PendingEntry, TaskCall};
use crate::engine::error::ObjectError;
use crate::engine::request::{ListEntry, ListPage, ListRequest};
use crate::limits::LIST_LIMIT_MAX;
use crate::sidecar::backend::BackendErrorKind;

/// One page.
pub async fn list(engine: &Engine, request: &ListRequest) -> Result<ListPage, ObjectError> {
    let request = ListRequest { limit: request.limit.clamp(1, LIST_LIMIT_MAX), ..request.clone() };
    // First what is pending here, then the backend: an object that is written back in between is seen twice, not never.
    let mut pending = Vec::new();
    for shard in 0..engine.0.context.shards.len() {
        if shard == engine.shard() {
            pending.extend(engine.0.pending_of(&request.bucket, &request.prefix, &request.marker));
        } else {
            let (bucket, prefix, marker) = (request.bucket.clone(), request.prefix.clone(), request.marker.clone());
            let remote = engine.shard_at(shard);
            pending.extend(remote.ask(|reply| TaskCall::Pending { bucket, prefix, marker, reply }).await?);
        }
    }
    let page = match engine.0.context.backend.list(request.clone()).await {
        Ok(page) => page,
        // A bucket that so far exists only here.
        Err(error) if error.kind == BackendErrorKind::NoSuchBucket && !pending.is_empty() => ListPage::default(),
        Err(error) => return Err(error.into()),
    };
    Ok(overlay(&request, page, pending))
}

/// What a page shows at each place: an object, or a group.
type Shown = BTreeMap<String, Option<ListEntry>>;

/// Lays pending objects over a page of the backend. Pure.
fn overlay(request: &ListRequest, page: ListPage, pending: Vec<PendingEntry>) -> ListPage {
    // Beyond the backend's last entry of a truncated page there may be entries that are not known yet.
    let horizon = page.truncated.then(|| page.next_marker.clone());
    let mut shown = Shown::new();
    shown.extend(page.common_prefixes.into_iter().map(|prefix| (prefix, None)));
    shown.extend(page.entries.into_iter().map(|entry| (entry.key.clone(), Some(entry))));
    for entry in pending {
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
                // A marker that names a group has shown it already.
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
    use dfstore_proto::object::ObjectMeta;
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
                overlay(request, backend_page(&stored, request), pending)
            });
            let truth: BTreeSet<String> = stored.union(&written).filter(|key| !deleted.contains(*key)).cloned().collect();
            let expected = all(delimiter, limit, |request| backend_page(&truth, request));
            prop_assert_eq!(&overlaid.0, &expected.0);
            // A group whose last object is deleted here shows until the backend knows; no group is missing.
            prop_assert!(expected.1.iter().all(|group| overlaid.1.contains(group)));
        }
    }
}
