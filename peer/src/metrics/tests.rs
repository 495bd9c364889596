//! What a scrape shows after each kind of event, in the names that dashboards know.

use std::time::Duration;

use dfstore_proto::object::Source;

use super::{BackendOperation, BackendOutcome, CacheSize, Face, Metrics, Operation, PeerFailure, WriteBackState};
use crate::rt::arena::{Arena, Holder};
use crate::rt::time::unix_ms;

/// The value of the one sample that starts with this text.
fn value(text: &str, sample: &str) -> f64 {
    let found: Vec<&str> = text.lines().filter(|line| line.starts_with(sample)).collect();
    assert_eq!(found.len(), 1, "{sample}: {found:?} in\n{text}");
    found[0].rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a sample ends with a number")
}

#[test]
fn counts_requests_by_face_operation_and_code() {
    let metrics = Metrics::new(1, "127.0.0.1:65004");
    let mut timer = metrics.request(Face::Http, Operation::Get);
    timer.first_byte();
    timer.first_byte();
    assert!(metrics.encode().contains("dfstore_requests_in_flight{face=\"http\"} 1\n"));
    timer.finish(206);
    metrics.request(Face::Http, Operation::Get).finish(418);
    drop(metrics.request(Face::Native, Operation::Put));
    let text = metrics.encode();
    let requests = "dfstore_requests_total{face=";
    assert_eq!(value(&text, &format!("{requests}\"http\",operation=\"get\",code=\"206\"}}")), 1.0);
    assert_eq!(value(&text, &format!("{requests}\"http\",operation=\"get\",code=\"418\"}}")), 1.0);
    assert_eq!(value(&text, &format!("{requests}\"native\",operation=\"put\",code=\"499\"}}")), 1.0);
    assert_eq!(value(&text, "dfstore_requests_in_flight{face=\"http\"}"), 0.0);
    assert_eq!(value(&text, "dfstore_request_first_byte_seconds_count"), 1.0);
    assert_eq!(value(&text, "dfstore_request_duration_seconds_count{face=\"http\",operation=\"get\"}"), 2.0);
}

#[test]
fn keeps_the_names_of_the_original() {
    let metrics = Metrics::new(1, "127.0.0.1:65004");
    metrics.request(Face::Http, Operation::Head).finish(200);
    metrics.request(Face::Native, Operation::Head).finish(200);
    let text = metrics.encode();
    let requests = "dragonfly_dfdaemon_object_storage_requests_total{code=\"200\",method=\"HEAD\",url=\"/buckets\",\
                    handler=\"headObject\",host=\"127.0.0.1:65004\"}";
    assert_eq!(value(&text, requests), 1.0);
    let duration = "dragonfly_dfdaemon_object_storage_request_duration_seconds_count\
                    {code=\"200\",method=\"HEAD\",url=\"/buckets\"}";
    assert_eq!(value(&text, duration), 1.0);
}

#[test]
fn histograms_are_cumulative_and_end_with_all() {
    let metrics = Metrics::new(1, "");
    for us in [50, 100, 101, 200_000_000] {
        metrics.catalog_committed(3, Duration::from_micros(us));
    }
    let text = metrics.encode();
    let bucket = |le: &str| value(&text, &format!("dfstore_catalog_commit_duration_seconds_bucket{{le=\"{le}\"}}"));
    assert_eq!(bucket("0.0001"), 2.0);
    assert_eq!(bucket("0.00025"), 3.0);
    assert_eq!(bucket("120.0"), 3.0);
    assert_eq!(bucket("+Inf"), 4.0);
    assert_eq!(value(&text, "dfstore_catalog_changes_total"), 12.0);
    assert!((value(&text, "dfstore_catalog_commit_duration_seconds_sum") - 200.000_251).abs() < 1e-6);
}

#[test]
fn shards_and_backend_are_labelled() {
    let metrics = Metrics::new(2, "");
    metrics.shard(1).set_cache(CacheSize { bytes: 8192, pieces: 2, tasks: 1 });
    metrics.shard(1).evicted(2, 8192);
    metrics.shard(0).crc_failed();
    metrics.shard(0).piece_quarantined();
    let connection = metrics.shard(1).connection(Face::Native);
    metrics.backend_started();
    metrics.backend_finished(BackendOperation::Get, BackendOutcome::Throttled, Duration::from_millis(3));
    metrics.served(Source::Backend, 10);
    metrics.received(Face::Http, 11);
    [false, true, false].into_iter().for_each(|from_memory| metrics.piece_read(from_memory));
    let text = metrics.encode();
    assert_eq!(value(&text, "dfstore_cache_bytes{shard=\"1\"}"), 8192.0);
    assert_eq!(value(&text, "dfstore_evicted_pieces_total{shard=\"1\"}"), 2.0);
    assert_eq!(value(&text, "dfstore_quarantined_pieces_total{shard=\"0\"}"), 1.0);
    assert_eq!(value(&text, "dfstore_connections{shard=\"1\",face=\"native\"}"), 1.0);
    assert_eq!(value(&text, "dfstore_backend_requests_total{operation=\"get\",outcome=\"throttled\"}"), 1.0);
    assert_eq!(value(&text, "dfstore_backend_requests_in_flight"), 0.0);
    assert_eq!(value(&text, "dfstore_served_bytes_total{source=\"backend\"}"), 10.0);
    assert_eq!(value(&text, "dfstore_received_bytes_total{face=\"http\"}"), 11.0);
    assert_eq!(value(&text, "dfstore_piece_reads_total{from=\"disk\"}"), 2.0);
    drop(connection);
    assert_eq!(value(&metrics.encode(), "dfstore_connections{shard=\"1\",face=\"native\"}"), 0.0);
}

#[test]
fn traffic_between_peers_is_counted() {
    let metrics = Metrics::new(1, "");
    let link = metrics.peer_link();
    metrics.peer_fetched(10);
    metrics.peer_sent(11);
    metrics.peer_failed(PeerFailure::WrongBytes);
    let text = metrics.encode();
    assert_eq!(value(&text, "dfstore_peer_links"), 1.0);
    assert_eq!(value(&text, "dfstore_peer_fetched_bytes_total"), 10.0);
    assert_eq!(value(&text, "dfstore_peer_sent_bytes_total"), 11.0);
    assert_eq!(value(&text, "dfstore_peer_failures_total{kind=\"wrong_bytes\"}"), 1.0);
    drop(link);
    assert_eq!(value(&metrics.encode(), "dfstore_peer_links"), 0.0);
}

#[test]
fn oldest_dirty_age_is_that_of_the_oldest_shard_at_the_time_of_asking() {
    let metrics = Metrics::new(2, "");
    assert_eq!(value(&metrics.encode(), "dfstore_dirty_oldest_age_seconds"), 0.0);
    let hour_ago = unix_ms() - 3_600_000;
    let state = WriteBackState { dirty_bytes: 5, queued: 1, dead_letters: 0, oldest_unix_ms: Some(hour_ago) };
    metrics.shard(0).set_writeback(state);
    metrics.shard(1).set_writeback(WriteBackState { oldest_unix_ms: Some(unix_ms()), ..state });
    assert!((3600.0..3660.0).contains(&value(&metrics.encode(), "dfstore_dirty_oldest_age_seconds")));
    metrics.shard(0).set_writeback(WriteBackState::default());
    metrics.shard(1).set_writeback(WriteBackState::default());
    assert_eq!(value(&metrics.encode(), "dfstore_dirty_oldest_age_seconds"), 0.0);
}

#[test]
fn arena_use_and_process_facts_are_read_when_asked() {
    let metrics = Metrics::new(1, "");
    let arena = Arena::new(64 << 20).expect("64 MiB can be mapped");
    metrics.watch_arena(arena.clone());
    let slot = arena.try_take(1, Holder::Ingest).expect("a fresh arena has free slots");
    let text = metrics.encode();
    assert_eq!(value(&text, "dfstore_arena_held_bytes{holder=\"ingest\"}"), 4096.0);
    assert!(value(&text, "process_resident_memory_bytes") > 1e6);
    assert!(value(&text, "process_open_fds") >= 3.0);
    assert!(text.contains("dfstore_build_info{version="));
    assert!(text.ends_with("# EOF\n"));
    drop(slot);
    assert_eq!(value(&metrics.encode(), "dfstore_arena_held_bytes{holder=\"ingest\"}"), 0.0);
}

/// Series with labels show only once they have a member.
fn one_of_each() -> Metrics {
    let metrics = Metrics::new(1, "");
    let mut timer = metrics.request(Face::Http, Operation::Get);
    timer.first_byte();
    timer.finish(200);
    metrics.served(Source::Local, 1);
    metrics.received(Face::Native, 1);
    metrics.piece_read(true);
    metrics.backend_started();
    metrics.backend_finished(BackendOperation::Put, BackendOutcome::Ok, Duration::ZERO);
    metrics.writeback_attempted(true);
    metrics.peer_failed(PeerFailure::Silent);
    metrics.set_cluster_nodes(2, 1);
    metrics.watch_arena(Arena::new(64 << 20).expect("64 MiB can be mapped"));
    metrics
}

#[test]
fn every_metric_is_in_the_manual_and_the_manual_names_no_other() {
    let manual = include_str!("../../../docs/OPERATIONS.md");
    let table = manual.split("## Metrics").nth(1).and_then(|rest| rest.split("## Logs").next()).expect("a section");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let mut documented: Vec<String> =
        rows.map(|(name, _)| name.to_owned()).filter(|name| !name.contains(['(', ' ', '{'])).collect();
    let text = one_of_each().encode();
    let named = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut existing: Vec<String> = named
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect();
    documented.sort_unstable();
    existing.sort_unstable();
    assert_eq!(documented, existing);
}
