//! Requests of other peers, and of people who look after a cluster, on the shard that owns the task.

use std::rc::Rc;

use dfstore_proto::message::{self, Message};

use crate::engine::call::{Asker, Held, Opened, Wanted};
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::request::Target;

impl Owner {
    /// Answers a request of another peer about a task of this shard.
    pub async fn answer_peer(self: &Rc<Self>, message: Message) -> Result<Message, ObjectError> {
        match message {
            Message::Locate(asked) => self.answer_locate(asked).await,
            Message::Recall(asked) => Ok(self.answer_recall(&asked).into()),
            Message::Reserve(asked) => self.answer_reserve(Target::of(asked.target.object)).await.map(Message::from),
            Message::Track(asked) => self.answer_track(&asked),
            Message::Publish(asked) => self.answer_publish(asked).await,
            other => Err(ObjectError::InvalidArgument(format!(
                "{} is not a request that peers make about a task",
                other.frame_type().name()
            ))),
        }
    }

    /// What this peer holds of an object, without asking anyone.
    pub fn held(&self, target: &Target) -> Option<Held> {
        let version = self.known(&target.task)?.current()?;
        if version.state.get() == crate::catalog::TaskState::Deleted {
            return None;
        }
        let Opened { stat, .. } = version.open(false);
        Some(Held { stat, runs: version.stored_runs(), replicas: version.replicas.get() })
    }

    /// Brings all of an object here; gives the bytes that came.
    pub async fn prefetch(self: &Rc<Self>, target: &Target) -> Result<u64, ObjectError> {
        let opened = self.open(target, false).await?;
        let version = self.opened_version(&target.task, opened.stat.generation)?;
        self.fill(&version).await
    }

    /// Forgets what is cached of an object, unless the backend does not have it or someone reads it. Gives the bytes
    /// that became free.
    pub async fn drop_cached(self: &Rc<Self>, target: &Target) -> u64 {
        match self.known(&target.task) {
            Some(task) => self.evict_task(&task).await,
            None => 0,
        }
    }
}

/// A piece that another peer asks for. `local_only`: nobody else is to be asked for it.
pub fn wanted_by_peer(asked: &message::Fetch) -> Wanted {
    Wanted {
        number: asked.number,
        end: asked.number.saturating_add(1),
        urgent: true,
        local_only: asked.local_only,
        asker: Asker::Peer,
        reader: 0,
    }
}
