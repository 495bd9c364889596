//! What the fake holds: objects, uploads, faults still to happen, and what was asked of it. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar};

use dfstore_proto::crc::whole_crc32;
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::message::{
    HolderInfo, List, ListEntry, ListOk, ListPage, NodeInfo, PutBegin, PutDone, PutReady, Target, VersionInfo,
    VersionState, WrittenTo,
};
use dfstore_proto::object::{ObjectMeta, Source};

use super::{Faults, Name, Object, PIECE_BYTES, name};

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<Name, Object>,
    pub uploads: HashMap<u64, Upload>,
    pub generation: u64,
    pub faults: Faults,
    /// Names of all requests so far, and pieces that came in.
    pub log: Vec<&'static str>,
    pub connections: usize,
    pub begins: Vec<PutBegin>,
    /// Connections on which the client broke a rule: their threads have panicked and said which.
    pub violations: usize,
    /// Nodes of the cluster, this peer first; empty for a peer that is alone.
    pub nodes: Vec<NodeInfo>,
    pub holders: Vec<HolderInfo>,
    pub worked_on: Vec<String>,
    /// PREFETCH requests in flight, and the most there were.
    pub together: usize,
    pub together_most: usize,
    /// Tells those that wait for each other that another one has come.
    pub arrived: Arc<Condvar>,
}

pub struct Upload {
    pub begin: PutBegin,
    pub ready: PutReady,
    pub pieces: BTreeMap<u32, Vec<u8>>,
}

impl State {
    /// Whether the connection that has come is closed without a word.
    pub fn hangs_up(&mut self) -> bool {
        let hangs_up = self.faults.hangups > 0 && self.faults.broken_writes.is_empty();
        self.faults.hangups -= usize::from(hangs_up);
        hangs_up
    }

    pub fn store(&mut self, name: &Name, data: Vec<u8>, meta: ObjectMeta) -> Object {
        self.generation += 1;
        let generation = self.generation;
        let meta = ObjectMeta {
            length: data.len() as u64,
            etag: format!("\"{generation}\""),
            last_modified_ms: 1_672_629_845_000,
            ..meta
        };
        let object = Object { data: Arc::new(data), meta, generation };
        self.objects.insert(name.clone(), object.clone());
        object
    }

    pub fn info(&self, target: &Target) -> Result<VersionInfo, ErrorReply> {
        let object = self.objects.get(&name(target)).ok_or_else(|| not_found(target))?;
        let crcs = object.data.chunks(PIECE_BYTES as usize).map(crc32fast::hash);
        let crc32 = whole_crc32(object.meta.length, PIECE_BYTES, crcs);
        Ok(VersionInfo {
            task: target.task(),
            generation: object.generation,
            meta: object.meta.clone(),
            piece_bytes: PIECE_BYTES,
            state: VersionState::Clean,
            source: Source::Local,
            crc32: Some(crc32 ^ u32::from(self.faults.wrong_whole)),
            pieces_local: 0,
        })
    }

    pub fn list(&self, list: &List) -> ListOk {
        let mut page = ListPage::new(list.limit);
        let mut last_prefix = None;
        for (name, object) in self.objects.iter().filter(|(name, _)| name.0 == list.bucket) {
            let key = &name.1;
            if !key.starts_with(&list.prefix) || *key <= list.marker {
                continue;
            }
            let rest = &key[list.prefix.len()..];
            let cut = (!list.delimiter.is_empty()).then(|| rest.find(&list.delimiter)).flatten();
            let pushed = match cut {
                Some(at) => {
                    let prefix = &key[..list.prefix.len() + at + list.delimiter.len()];
                    if last_prefix.as_deref() == Some(prefix) || list.marker.starts_with(prefix) {
                        continue;
                    }
                    last_prefix = Some(prefix.to_string());
                    page.push_common_prefix(prefix.to_string())
                }
                None => page.push_entry(ListEntry {
                    key: key.clone(),
                    length: object.meta.length,
                    etag: object.meta.etag.clone(),
                    last_modified_ms: object.meta.last_modified_ms,
                    storage_class: String::new(),
                    state: VersionState::Clean,
                }),
            };
            if !pushed {
                return page.finish(true);
            }
        }
        page.finish(false)
    }

    pub fn commit(&mut self, upload: u64, length: u64, crc32: u32) -> Result<PutDone, ErrorReply> {
        let unknown = || ErrorReply::new(ErrorCode::UploadUnknown, "no such upload");
        let upload = self.uploads.remove(&upload).ok_or_else(unknown)?;
        let data: Vec<u8> = upload.pieces.into_values().flatten().collect();
        if data.len() as u64 != length || crc32fast::hash(&data) != crc32 {
            return Err(ErrorReply::new(ErrorCode::InvalidArgument, "length or CRC32 of the whole is wrong"));
        }
        let replicas = self.faults.copies.unwrap_or(1 + upload.begin.ack_peers);
        let object = self.store(&name(&upload.begin.target), data, upload.begin.meta);
        Ok(PutDone { generation: object.generation, etag: object.meta.etag, written_to: WrittenTo::Local, replicas })
    }
}

pub fn not_found(target: &Target) -> ErrorReply {
    ErrorReply::new(ErrorCode::NotFound, format!("{} does not exist", target.object))
}
