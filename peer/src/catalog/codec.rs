//! How records and keys become bytes, and back.
//!
//! A value is a version byte, the record in postcard, and a CRC32 (little-endian) over key, version and record: a
//! damaged or misplaced value is found, never believed. Keys are fixed-size and big-endian, so that they sort by
//! task, version, number.

use serde::{Deserialize, Serialize};

use dfstore_proto::ids::TaskId;

use crate::catalog::records::{PartRecord, PieceKey, PieceRecord, TaskRecord, UploadRecord, WriteBackRecord};

/// A record with a version of its encoding.
pub trait Record: Serialize + for<'de> Deserialize<'de> {
    /// Version of the encoding; to be raised with every change of a field.
    const VERSION: u8;
    /// Earlier versions that are still read: each with the bytes that, put behind it, make it this version (fields
    /// are only ever added, at the end).
    const EARLIER: &[(u8, &[u8])] = &[];
}

impl Record for TaskRecord {
    const VERSION: u8 = 2;
    /// Version 1 knew no cluster: no replicas, not published.
    const EARLIER: &[(u8, &[u8])] = &[(1, &[0, 0])];
}
impl Record for PieceRecord {
    const VERSION: u8 = 1;
}
impl Record for WriteBackRecord {
    const VERSION: u8 = 2;
    /// Version 1 did not say what was replaced: an empty tag.
    const EARLIER: &[(u8, &[u8])] = &[(1, &[0])];
}
impl Record for UploadRecord {
    const VERSION: u8 = 1;
}
impl Record for PartRecord {
    const VERSION: u8 = 1;
}

/// The bytes are not a record that this program wrote under this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

const CRC_BYTES: usize = 4;

/// The value of `record` under `key`.
pub fn encode<R: Record>(key: &[u8], record: &R) -> Vec<u8> {
    let bytes = postcard::to_extend(record, vec![R::VERSION]);
    let mut bytes = bytes.expect("records hold nothing that postcard cannot write");
    let crc32 = checksum(key, &bytes);
    bytes.extend_from_slice(&crc32.to_le_bytes());
    bytes
}

/// The record in a value found under `key`.
pub fn decode<R: Record>(key: &[u8], value: &[u8]) -> Result<R, Damaged> {
    let (body, crc32) = value.split_last_chunk::<CRC_BYTES>().ok_or(Damaged)?;
    let (version, record) = body.split_first().ok_or(Damaged)?;
    if u32::from_le_bytes(*crc32) != checksum(key, body) {
        return Err(Damaged);
    }
    if *version == R::VERSION {
        return decode_body(record);
    }
    let (_, added) = R::EARLIER.iter().find(|(earlier, _)| earlier == version).ok_or(Damaged)?;
    decode_body(&[record, added].concat())
}

fn decode_body<R: Record>(record: &[u8]) -> Result<R, Damaged> {
    match postcard::take_from_bytes(record) {
        Ok((record, [])) => Ok(record),
        _ => Err(Damaged),
    }
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

/// Key of a piece: task, generation, number.
pub fn piece_key(key: &PieceKey) -> [u8; 44] {
    let mut bytes = [0; 44];
    bytes[..32].copy_from_slice(key.task.as_bytes());
    bytes[32..40].copy_from_slice(&key.generation.to_be_bytes());
    bytes[40..].copy_from_slice(&key.number.to_be_bytes());
    bytes
}

/// Key of a part: task, number.
pub fn part_key(task: &TaskId, number: u32) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[..32].copy_from_slice(task.as_bytes());
    bytes[32..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Key of a multipart upload: task, number.
pub fn upload_key(task: &TaskId, number: u64) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[..32].copy_from_slice(task.as_bytes());
    bytes[32..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// The task that a key starts with, and the rest of the key.
fn split_key(key: &[u8]) -> Result<(TaskId, &[u8]), Damaged> {
    let (task, rest) = key.split_first_chunk::<32>().ok_or(Damaged)?;
    Ok((TaskId::from_bytes(*task), rest))
}

/// Reads the key of a task or of a write-back entry.
pub fn decode_task_key(key: &[u8]) -> Result<TaskId, Damaged> {
    match split_key(key)? {
        (task, []) => Ok(task),
        _ => Err(Damaged),
    }
}

/// Reads what [`piece_key`] made.
pub fn decode_piece_key(key: &[u8]) -> Result<PieceKey, Damaged> {
    let (task, rest) = split_key(key)?;
    let (generation, number) = rest.split_first_chunk::<8>().ok_or(Damaged)?;
    let number = u32::from_be_bytes(number.try_into().map_err(|_| Damaged)?);
    Ok(PieceKey { task, generation: u64::from_be_bytes(*generation), number })
}

/// Reads what [`part_key`] made.
pub fn decode_part_key(key: &[u8]) -> Result<(TaskId, u32), Damaged> {
    let (task, number) = split_key(key)?;
    Ok((task, u32::from_be_bytes(number.try_into().map_err(|_| Damaged)?)))
}

/// Reads what [`upload_key`] made.
pub fn decode_upload_key(key: &[u8]) -> Result<(TaskId, u64), Damaged> {
    let (task, number) = split_key(key)?;
    Ok((task, u64::from_be_bytes(number.try_into().map_err(|_| Damaged)?)))
}
