//! `dfstore stat`: what the peer knows about one object.

use std::fmt::Write;

use anyhow::{Context, Result};
use dfstore_proto::message::{Message, Stat, Target, VersionInfo};
use serde_json::json;

use crate::args::StatArgs;
use crate::client::Peer;
use crate::commands::date::rfc3339;
use crate::commands::{parse_object, print_line, state_name, whereabouts};

/// Prints the attributes of the object.
pub async fn run(peer: &Peer, args: &StatArgs) -> Result<()> {
    let object = parse_object(&args.target)?;
    let target = Target::new(object.clone());
    if args.whereabouts {
        return whereabouts::run(peer, &object, args.json).await;
    }
    let answer = peer.call(target.task(), Stat { target, fresh: false }).await;
    match answer.with_context(|| format!("failed to stat {object}"))? {
        Message::StatOk(info) if args.json => print_line(as_json(&object.bucket, &object.key, &info)),
        Message::StatOk(info) => print_line(as_text(&object.to_string(), &info).trim_end()),
        other => Err(peer.unexpected(&other).into()),
    }
}

/// What is known of a version, for programs.
pub fn as_json(bucket: &str, key: &str, info: &VersionInfo) -> serde_json::Value {
    let meta = &info.meta;
    json!({
        "bucket": bucket,
        "key": key,
        "length": meta.length,
        "etag": meta.etag,
        "last_modified": rfc3339(meta.last_modified_ms),
        "last_modified_ms": meta.last_modified_ms,
        "content_type": meta.content_type,
        "content_encoding": meta.content_encoding,
        "content_disposition": meta.content_disposition,
        "content_language": meta.content_language,
        "storage_class": meta.storage_class,
        "digest": meta.digest,
        "crc32": info.crc32.map(|crc32| format!("{crc32:08x}")),
        "state": state_name(info.state),
        "source": info.source.name(),
        "generation": info.generation,
        "task": info.task.to_string(),
        "piece_bytes": info.piece_bytes,
        "pieces": info.pieces(),
        "pieces_local": info.pieces_local,
    })
}

/// What is known of a version, for people: a line for each attribute it has.
pub fn as_text(object: &str, info: &VersionInfo) -> String {
    let meta = &info.meta;
    let rows = [
        ("object", object.to_string()),
        ("length", meta.length.to_string()),
        ("last modified", rfc3339(meta.last_modified_ms)),
        ("etag", meta.etag.clone()),
        ("content type", meta.content_type.clone()),
        ("content encoding", meta.content_encoding.clone()),
        ("content disposition", meta.content_disposition.clone()),
        ("content language", meta.content_language.clone()),
        ("storage class", meta.storage_class.clone()),
        ("digest", meta.digest.clone()),
        ("crc32", info.crc32.map(|crc32| format!("{crc32:08x}")).unwrap_or_default()),
        ("state", state_name(info.state).to_string()),
        ("source", info.source.name().to_string()),
        ("generation", info.generation.to_string()),
        ("task", info.task.to_string()),
        ("pieces", format!("{} of {} bytes, {} on this peer", info.pieces(), info.piece_bytes, info.pieces_local)),
    ];
    rows.iter().filter(|(_, value)| !value.is_empty()).fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<20} {value}");
        text
    })
}
