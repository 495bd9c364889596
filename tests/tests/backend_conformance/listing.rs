//! Listings against a model: a sorted set of keys.

use std::collections::BTreeSet;

use dfstore_peer::sidecar::backend::{ListPage, ListRequest};
use dfstore_proto::ids::ObjectName;

use crate::rig::wait;
use crate::servers::Server;

/// No key is a folder of another one: that is impossible on s3s-fs.
const KEYS: &[&str] = &["a b", "a+b", "a/1", "a/2", "a/b/3", "b%2F", "b0", "c/4", "c/5/6", "d"];

pub fn pages_like_the_model(server: &Server) {
    let bucket = server.bucket();
    for key in KEYS {
        server.rig.put(&ObjectName::new(&bucket, *key), key.as_bytes()).expect("put");
    }
    for prefix in ["", "a", "a/", "b", "c/5/", "x"] {
        for delimiter in ["", "/"] {
            for limit in [1, 2, 3, 1000] {
                let asked = ListRequest {
                    bucket: bucket.clone(),
                    prefix: prefix.to_owned(),
                    delimiter: delimiter.to_owned(),
                    marker: String::new(),
                    limit,
                };
                let expected = rolled_up(prefix, delimiter);
                assert_eq!(walk(server, asked), expected, "prefix {prefix:?}, delimiter {delimiter:?}, limit {limit}");
            }
        }
    }
    starts_after_any_marker(server, &bucket);
}

/// A marker need not be a key that was listed.
fn starts_after_any_marker(server: &Server, bucket: &str) {
    for marker in ["a", "a/1", "a/1x", "b0", "c/4", "zzz"] {
        let asked =
            ListRequest { bucket: bucket.to_owned(), marker: marker.to_owned(), limit: 1000, ..ListRequest::default() };
        let page = wait(server.rig.handle.list(asked)).expect("list");
        let keys: Vec<&str> = page.entries.iter().map(|entry| entry.key.as_str()).collect();
        let order = |key: &str| match server.limits.lists_in_path_order {
            true => key.split('/').map(ToOwned::to_owned).collect(),
            false => vec![key.to_owned()],
        };
        let mut expected: Vec<&str> = KEYS.iter().copied().filter(|key| order(key) > order(marker)).collect();
        expected.sort_by_key(|key| order(key));
        if server.limits.lists_in_path_order {
            // There, a marker that is a folder comes after all that is in it.
            expected.retain(|key| !key.starts_with(&format!("{marker}/")));
        }
        assert_eq!(keys, expected, "after {marker:?}");
        for entry in &page.entries {
            assert_eq!(entry.meta.length, entry.key.len() as u64);
            assert_eq!(entry.meta.etag.is_empty(), server.limits.no_etags_in_listings);
            assert!(entry.meta.last_modified_ms > 1_600_000_000_000);
        }
    }
}

/// All names, page by page; each page at most as long as asked for.
fn walk(server: &Server, mut asked: ListRequest) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    loop {
        let ListPage { entries, common_prefixes, truncated, next_marker } =
            wait(server.rig.handle.list(asked.clone())).expect("list");
        assert!(entries.len() + common_prefixes.len() <= asked.limit);
        for name in entries.into_iter().map(|entry| entry.key).chain(common_prefixes) {
            assert!(found.insert(name.clone()), "{name:?} is given twice");
        }
        if !truncated {
            assert_eq!(next_marker, "");
            return found;
        }
        assert!(next_marker > asked.marker || server.limits.lists_in_path_order);
        asked.marker = next_marker;
    }
}

fn rolled_up(prefix: &str, delimiter: &str) -> BTreeSet<String> {
    let matching = KEYS.iter().filter_map(|key| Some((key, key.strip_prefix(prefix)?)));
    matching
        .map(|(key, rest)| match rest.split_once(delimiter) {
            Some((head, _)) if !delimiter.is_empty() => format!("{prefix}{head}{delimiter}"),
            _ => (*key).to_owned(),
        })
        .collect()
}
