//! What other peers ask, besides pieces, and what people ask about the cluster.
//!
//! That messages of the first kind come from peers only is the session's care. Each runs as a task of its own, to its end.

use std::rc::Rc;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::RequestId;
use dfstore_proto::message::{CLUSTER_TYPES, ConfigOk, Message, Pending, PendingOk, PendingPage, Role};

use crate::engine::call::PendingEntry;
use crate::metrics::{Face, Operation};
use crate::native::answer::{error_reply, status_of};
use crate::native::link::Link;
use crate::native::objects::{list_entry, target_from};
use crate::native::overview::{self, Work};
use crate::native::queue;
use crate::rt::shard::spawn_local;

/// Whether a request is about the cluster.
pub(super) fn is_of_cluster(message: &Message) -> bool {
    CLUSTER_TYPES.contains(&message.frame_type().number())
}

/// Starts a request about the cluster.
pub(super) fn begin(link: &Rc<Link>, request: RequestId, message: Message) {
    let link = link.clone();
    spawn_local(async move {
        let is_client = link.role() == Role::Client;
        let timer = is_client.then(|| link.context.metrics.request(Face::Native, Operation::Other));
        let answer = answer(&link, message).await;
        let status = answer.as_ref().map_or_else(|reply| status_of(reply.code), |_| 200);
        if link.send(request, answer.unwrap_or_else(Message::from)).await.is_ok()
            && let Some(timer) = timer
        {
            timer.finish(status);
        }
    });
}

/// The answer to a request of somebody who may make it.
async fn answer(link: &Rc<Link>, message: Message) -> Result<Message, ErrorReply> {
    let engine = &link.context.engine;
    let task = match &message {
        Message::Locate(asked) => target_from(&asked.target)?.task,
        Message::Recall(asked) => target_from(&asked.target)?.task,
        Message::Reserve(asked) => target_from(&asked.target)?.task,
        Message::Publish(asked) => target_from(&asked.target)?.task,
        Message::Track(asked) => asked.task,
        _ => return answer_others(link, message).await,
    };
    engine.answer_peer(task, message).await.map_err(|error| error_reply(&error))
}

/// Requests that are not about one task.
async fn answer_others(link: &Rc<Link>, message: Message) -> Result<Message, ErrorReply> {
    match message {
        Message::Pending(asked) => pending(link, &asked).await.map(Message::from),
        Message::GetConfig(_) => config(link).map(Message::from),
        Message::Nodes(asked) => Ok(overview::nodes(link, &asked).into()),
        Message::Where(asked) => overview::whereabouts(link, &asked).await.map(Message::from),
        Message::Prefetch(asked) => {
            let target = target_from(&asked.target)?;
            overview::work(link, asked.scope, &target, Work::Prefetch).await.map(Message::from)
        }
        Message::Scrub(asked) => {
            link.context.engine.scrub(asked.begin).await.map(Message::from).map_err(|error| error_reply(&error))
        }
        Message::Queue(asked) => queue::show(link, asked).await.map(Message::from),
        Message::Steer(asked) => queue::steer(link, asked).await.map(Message::from),
        Message::Evict(asked) => {
            let target = target_from(&asked.target)?;
            overview::work(link, asked.scope, &target, Work::Evict).await.map(Message::from)
        }
        other => Err(unsupported(&other)),
    }
}

/// What this peer decides about and the backend does not know yet; as much as a frame holds.
async fn pending(link: &Link, asked: &Pending) -> Result<PendingOk, ErrorReply> {
    let engine = &link.context.engine;
    let found = engine.pending_as_home(&asked.bucket, &asked.prefix, &asked.marker).await;
    let mut found = found.map_err(|error| error_reply(&error))?;
    found.entries.sort_unstable_by(|left, right| left.key().cmp(right.key()));
    let is_known = |entry: &PendingEntry| found.horizon.as_deref().is_none_or(|horizon| entry.key() <= horizon);
    let mut page = PendingPage::new();
    for entry in found.entries.into_iter().take_while(is_known) {
        let fits = match entry {
            PendingEntry::Present(entry) => page.push_written(list_entry(entry)),
            PendingEntry::Deleted(key) => page.push_deleted(key),
        };
        if !fits {
            return Ok(page.finish(true));
        }
    }
    Ok(page.finish(found.horizon.is_some()))
}

/// How to reach the backend, for a peer that has this one for its manager.
fn config(link: &Link) -> Result<ConfigOk, ErrorReply> {
    let told = link.context.cluster.as_ref().and_then(|cluster| cluster.config());
    told.unwrap_or_else(|| {
        Err(ErrorReply::new(ErrorCode::Unsupported, "this node is no manager: it has no manager.listen"))
    })
}

fn unsupported(message: &Message) -> ErrorReply {
    let name = message.frame_type().name();
    ErrorReply::new(ErrorCode::Unsupported, format!("{name} is not a request that this peer answers"))
}
