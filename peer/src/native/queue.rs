//! The write-back queue as people ask for it, and their orders about it.
//!
//! A client sees the queues of all live nodes as one: an object that waits at its writer and at its home is shown once, as
//! the node sees it that tells the backend. Another peer that asks, for its own client, is given this node's queue alone;
//! so it is with orders.

use std::collections::BTreeMap;
use std::rc::Rc;

use dfstore_proto::error::ErrorReply;
use dfstore_proto::ids::ObjectName;
use dfstore_proto::limits::LIST_ENTRIES_MAX;
use dfstore_proto::message::{Done, Message, Queue, QueueEntry, QueueOk, QueuePage, QueueState, Role, Steer};

use crate::engine::error::ObjectError;
use crate::engine::request::{Order, QueueRequest};
use crate::native::answer::error_reply;
use crate::native::link::Link;
use crate::native::objects::target_from;
use crate::native::overview::ask_all;

/// A page of the queue.
pub(super) async fn show(link: &Rc<Link>, asked: Queue) -> Result<QueueOk, ErrorReply> {
    let limit = if asked.limit == 0 { LIST_ENTRIES_MAX } else { usize::from(asked.limit) };
    let own = own_page(link, &asked, limit).await?;
    let QueueOk { entries, truncated } = match link.role() {
        Role::Peer => own,
        Role::Client => {
            let mut pages = vec![own];
            for (_, answer) in ask_all(link, || asked.clone().into()).await {
                let page = match answer {
                    Ok(Message::QueueOk(page)) => Ok(page),
                    Ok(other) => Err(ObjectError::unexpected(&other)),
                    // What waits there is not known: to say that nothing does would be wrong. A node that is gone is no
                    // member any more in a moment.
                    Err(error) => Err(ObjectError::PeerUnavailable(format!("asked what waits there: {error}"))),
                };
                pages.push(page.map_err(|error| error_reply(&error))?);
            }
            together(pages, limit)
        }
    };
    let mut page = QueuePage::default();
    let all_fit = entries.into_iter().all(|entry| page.push(entry));
    Ok(page.finish(truncated || !all_fit))
}

/// A page of this node's own queue.
async fn own_page(link: &Link, asked: &Queue, limit: usize) -> Result<QueueOk, ErrorReply> {
    let Queue { bucket, prefix, after_bucket, after_key, dead_only, .. } = asked.clone();
    let after = (!after_bucket.is_empty()).then(|| ObjectName::new(after_bucket, after_key));
    let request = QueueRequest { bucket, prefix, after, limit, dead_only };
    let (entries, truncated) = link.context.engine.queued(request).await.map_err(|error| error_reply(&error))?;
    Ok(QueueOk { entries, truncated })
}

/// One page of those of several nodes: as far as all of them reach, each object once.
fn together(pages: Vec<QueueOk>, limit: usize) -> QueueOk {
    let ends = pages.iter().filter(|page| page.truncated).filter_map(|page| page.entries.last());
    let horizon = ends.map(name_of).min();
    let mut found = BTreeMap::<_, QueueEntry>::new();
    for entry in pages.into_iter().flat_map(|page| page.entries) {
        let name = name_of(&entry);
        if horizon.as_ref().is_some_and(|horizon| name > *horizon) {
            continue;
        }
        if found.get(&name).is_none_or(|known| weight(&entry) > weight(known)) {
            found.insert(name, entry);
        }
    }
    let truncated = horizon.is_some() || found.len() > limit;
    QueueOk { entries: found.into_values().take(limit).collect(), truncated }
}

fn name_of(entry: &QueueEntry) -> (String, String) {
    (entry.bucket.clone(), entry.key.clone())
}

/// Of two entries of one object the one that says more: of the newer version, of who tells the backend, of who has tried.
fn weight(entry: &QueueEntry) -> (u64, bool, u32) {
    (entry.generation, entry.state != QueueState::Elsewhere, entry.attempts)
}

/// What a person wants of an entry of it: done here and at the home, and at every other node where one is left, for
/// instance a dead letter of a time when that node decided about the object.
pub(super) async fn steer(link: &Rc<Link>, asked: Steer) -> Result<Done, ErrorReply> {
    let by_peer = link.role() == Role::Peer;
    let order = Order { order: asked.order, force: asked.force, by_peer };
    let target = target_from(&asked.target)?;
    let steered = link.context.engine.steer(&target, order).await;
    let mut is_done = match steered {
        Ok(()) => true,
        Err(ObjectError::NotFound(_)) if !by_peer => false,
        Err(error) => return Err(error_reply(&error)),
    };
    if !by_peer {
        // Who cannot be reached, or has one that is on its way, hears of it from the home.
        let answers = ask_all(link, || asked.clone().into()).await;
        is_done |= answers.iter().any(|(_, answer)| matches!(answer, Ok(Message::Done(_))));
    }
    if is_done {
        Ok(Done {})
    } else {
        Err(error_reply(&ObjectError::NotFound(format!("a pending write of {}", target.name))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, generation: u64, state: QueueState, attempts: u32) -> QueueEntry {
        QueueEntry {
            bucket: "b".into(),
            key: key.into(),
            deletes: false,
            generation,
            length: 1,
            state,
            queued_at_ms: 0,
            due_at_ms: 0,
            attempts,
            last_error: String::new(),
            bytes_sent: 0,
        }
    }

    fn page(keys: &[&str], truncated: bool) -> QueueOk {
        let entries = keys.iter().map(|key| entry(key, 1, QueueState::Waiting, 0)).collect();
        QueueOk { entries, truncated }
    }

    fn keys(page: &QueueOk) -> Vec<&str> {
        page.entries.iter().map(|entry| entry.key.as_str()).collect()
    }

    #[test]
    fn an_object_of_several_nodes_is_shown_once_as_its_home_sees_it() {
        let page = |entries| QueueOk { entries, truncated: false };
        let writer = page(vec![
            entry("dead", 7, QueueState::Elsewhere, 0),
            entry("newer", 9, QueueState::Elsewhere, 0),
            entry("tried", 7, QueueState::Dead, 0),
        ]);
        let home = page(vec![
            entry("dead", 7, QueueState::Dead, 3),
            entry("newer", 8, QueueState::Delayed, 2),
            entry("tried", 7, QueueState::Dead, 4),
        ]);
        for pages in [vec![writer.clone(), home.clone()], vec![home, writer]] {
            let shown = together(pages, 10);
            assert_eq!(keys(&shown), ["dead", "newer", "tried"]);
            let [dead, newer, tried] = &shown.entries[..] else { panic!("three") };
            assert_eq!((dead.state, dead.attempts), (QueueState::Dead, 3));
            assert_eq!((newer.generation, newer.state), (9, QueueState::Elsewhere));
            assert_eq!(tried.attempts, 4);
            assert!(!shown.truncated);
        }
    }

    #[test]
    fn a_page_reaches_as_far_as_the_shortest_and_skips_nothing() {
        let shown = together(vec![page(&["a", "c"], true), page(&["b", "d", "e"], true), page(&["f"], false)], 10);
        assert_eq!((keys(&shown), shown.truncated), (vec!["a", "b", "c"], true));
        let shown = together(vec![page(&["a", "c"], false), page(&["b", "c", "d"], false)], 3);
        assert_eq!((keys(&shown), shown.truncated), (vec!["a", "b", "c"], true));
        let shown = together(vec![page(&["a"], false), page(&[], false)], 1);
        assert_eq!((keys(&shown), shown.truncated), (vec!["a"], false));
    }
}
