//! Copying an object: by the backend when it has the source, else by reading and writing here.

use std::rc::Rc;

use dfstore_proto::object::WriteMode;

use crate::catalog::{Change, Durability, TaskState};
use crate::engine::Engine;
use crate::engine::call::TaskCall;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::request::{CommitRequest, PutRequest, Standing, Stat, Target};
use crate::engine::version::Version;
use crate::rt::time::unix_ms;

/// Copies `source` over `target`; gives what the target then is.
pub async fn copy(engine: &Engine, source: &Target, target: &Target) -> Result<Stat, ObjectError> {
    let at_home = match engine.remote(&target.task) {
        None => engine.0.copy_at_home(source, target).await?,
        Some(shard) => {
            let (source, target) = (source.clone(), target.clone());
            shard.ask(|reply| TaskCall::CopyAtHome { source, target, reply }).await?
        }
    };
    if at_home.is_some() {
        return engine.stat(target, false).await;
    }
    let reader = engine.open(source, true).await?;
    if reader.stat().standing == Standing::Clean {
        match engine.remote(&target.task) {
            None => engine.0.copy_from(source, target).await?,
            Some(shard) => {
                let (source, target) = (source.clone(), target.clone());
                shard.ask(|reply| TaskCall::CopyFrom { source, target, reply }).await?;
            }
        }
        return engine.stat(target, true).await;
    }
    let mode = match reader.stat().standing {
        Standing::Ephemeral => WriteMode::Ephemeral,
        _ => WriteMode::AsyncWriteBack,
    };
    let (length, crc32) = (reader.stat().meta.length, reader.stat().crc32);
    let meta = reader.stat().meta.clone();
    let (target_of_copy, replicas) = (target.clone(), engine.replicas_default());
    let request = PutRequest { target: target_of_copy, mode, replicas, ack_peers: 0, length: Some(length), meta };
    let upload = engine.put(request).await?;
    let mut pieces = reader.stream(0..length);
    while let Some(chunk) = pieces.next().await {
        let chunk = chunk?;
        let mut slot = upload.take_slot(chunk.slot.len()).await?;
        slot.append(&chunk.slot);
        upload.write_piece(chunk.number, slot, Some(chunk.crc32)).await?;
    }
    upload.commit(CommitRequest { length, crc32, mode: None, replicas: None }).await?;
    engine.stat(target, false).await
}

impl Owner {
    /// Lets the backend copy `source` over `target`, which this shard owns. What was here of the target is forgotten,
    /// dirty or not: the copy is the newer write.
    pub async fn copy_from(self: &Rc<Self>, source: &Target, target: &Target) -> Result<(), ObjectError> {
        let task = self.task(target);
        let _backend = task.backend_lock.lock().await;
        let (from, to) = (source.name.clone(), target.name.clone());
        let copied = async { self.context.backend.copy(from, to).await.map_err(ObjectError::from) };
        self.changing_bucket(&task, copied).await?;
        let copied = self.context.backend.head(target.name.clone()).await;
        let commit = task.commit_lock.lock().await;
        let now_ms = unix_ms();
        let generation = self.next_number(&task, now_ms);
        let meta = match copied {
            Ok(meta) => meta,
            Err(error) => {
                let changes =
                    vec![Change::RemoveTask { task: target.task }, Change::RemoveWriteBack { task: target.task }];
                self.context.catalog.commit(changes, Durability::Durable).await?;
                self.queue.remove(&task);
                // Whoever tells of what the copy has replaced is told that it is gone.
                self.graves.borrow_mut().note(target.task, generation);
                if let Some(before) = self.publish(&task, None) {
                    self.let_go(before);
                }
                return Err(error.into());
            }
        };
        let version = Rc::new(Version::new(target.task, generation, meta, TaskState::Clean, None));
        version.validated_at_ms.set(now_ms);
        // Its number outlives a restart: who holds an older version that only peers have may not have heard of this one.
        self.record_replacement(&task, &version, None).await?;
        self.publish_new(&task, version.clone(), None);
        drop(commit);
        // An older version that waits there for the backend must not come after the copy if this peer is lost.
        self.tell_witness(&task, &version).await;
        Ok(())
    }
}
