//! What other peers ask, besides pieces, and what people ask about the cluster.
//!
//! Messages of the first kind are answered to peers only. Each runs as a task of its own, to its end.

use std::ops::RangeInclusive;
use std::rc::Rc;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::RequestId;
use dfstore_proto::message::{CLUSTER_TYPES, Message, Role};

use crate::metrics::{Face, Operation};
use crate::native::answer::status_of;
use crate::native::link::Link;
use crate::rt::shard::spawn_local;

/// Frame types of what only peers ask.
const PEER_TYPES: RangeInclusive<u8> = 0x40..=0x5F;

const _: () = assert!(*PEER_TYPES.start() == *CLUSTER_TYPES.start() && *PEER_TYPES.end() < *CLUSTER_TYPES.end());

/// Whether a request is about the cluster.
pub(super) fn is_of_cluster(message: &Message) -> bool {
    CLUSTER_TYPES.contains(&message.frame_type().number())
}

/// Whether a request may be made by who has this role.
pub(super) fn is_allowed(message: &Message, role: Role) -> bool {
    role == Role::Peer || !PEER_TYPES.contains(&message.frame_type().number())
}

/// Starts a request about the cluster.
pub(super) fn begin(link: &Rc<Link>, request: RequestId, message: Message) {
    let link = link.clone();
    spawn_local(async move {
        let is_client = link.role() == Role::Client;
        let timer = is_client.then(|| link.context.metrics.request(Face::Native, Operation::Other));
        let answer =
            if is_allowed(&message, link.role()) { answer(&link, message).await } else { Err(unsupported(&message)) };
        let status = answer.as_ref().map_or_else(|reply| status_of(reply.code), |_| 200);
        if link.send(request, answer.unwrap_or_else(Message::from)).await.is_ok()
            && let Some(timer) = timer
        {
            timer.finish(status);
        }
    });
}

/// The answer to a request of somebody who may make it.
async fn answer(_link: &Rc<Link>, message: Message) -> Result<Message, ErrorReply> {
    Err(unsupported(&message))
}

fn unsupported(message: &Message) -> ErrorReply {
    let name = message.frame_type().name();
    ErrorReply::new(ErrorCode::Unsupported, format!("{name} is not a request that this peer answers"))
}

#[cfg(test)]
mod tests {
    use dfstore_proto::message::{Fetch, GetConfig, Nodes, Stat, Target};

    use super::*;

    #[test]
    fn clients_may_ask_about_the_cluster_but_not_as_a_part_of_it() {
        let target = Target::new(dfstore_proto::ids::ObjectName::new("bucket", "key"));
        let fetch = Fetch { task: target.task(), generation: 1, number: 0, local_only: true };
        for message in [Message::from(fetch), GetConfig {}.into()] {
            assert!(is_of_cluster(&message) && is_allowed(&message, Role::Peer));
            assert!(!is_allowed(&message, Role::Client), "{message:?}");
        }
        let nodes = Message::from(Nodes { after: String::new() });
        assert!(is_of_cluster(&nodes) && is_allowed(&nodes, Role::Client));
        assert!(!is_of_cluster(&Stat { target, fresh: false }.into()));
    }
}
