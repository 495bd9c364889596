//! What people ask about the cluster: its nodes, where an object is, fetching it ahead and dropping it.
//!
//! A question about the whole cluster is asked of each node by the peer that got it; a node that does not answer is
//! named with the reason and does not spoil the rest.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::limits::{NODES_MAX, PARENTS_MAX, RUNS_SHOWN_MAX};
use dfstore_proto::message::{
    Evict, HolderInfo, Message, NodeFailure, NodeInfo, NodeRole, Nodes, NodesOk, Prefetch, Scope, Where, WhereOk,
    Worked,
};
use futures_util::StreamExt;

use crate::engine::request::Target;
use crate::limits::NODES_ASKED_AT_ONCE;
use crate::membership::{DeadNode, Node};
use crate::native::answer::error_reply;
use crate::native::link::Link;
use crate::native::objects::target_from;

/// The nodes, a page of them.
pub(super) fn nodes(link: &Link, asked: &Nodes) -> NodesOk {
    let Some(cluster) = link.context.engine.cluster() else { return alone(link) };
    let members = cluster.members();
    let mut all: Vec<NodeInfo> = members.live.iter().map(|node| node.info()).collect();
    all.extend(members.dead.iter().map(dead_info));
    all.retain(|node| node.id > asked.after);
    all.sort_by(|left, right| left.id.cmp(&right.id));
    let truncated = all.len() > NODES_MAX;
    all.truncate(NODES_MAX);
    NodesOk { cluster: members.cluster.to_string(), me: members.me.to_string(), nodes: all, truncated }
}

/// A standalone peer is its own and only node.
fn alone(link: &Link) -> NodesOk {
    let me = link.context.name().to_owned();
    let state = link.context.engine.node_state();
    let node = NodeInfo {
        id: me.clone(),
        live: true,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        shards: u16::try_from(link.context.shards).unwrap_or(u16::MAX),
        capacity_bytes: link.context.engine.capacity_bytes(),
        used_bytes: state.used_bytes,
        dirty_bytes: state.dirty_bytes,
        load: state.load,
        ..dead_info(&DeadNode { id: me.as_str().into(), role: NodeRole::Peer, gone: Duration::ZERO })
    };
    NodesOk { cluster: String::new(), me, nodes: vec![node], truncated: false }
}

fn dead_info(node: &DeadNode) -> NodeInfo {
    NodeInfo {
        id: node.id.to_string(),
        role: node.role,
        peer: String::new(),
        api: String::new(),
        version: String::new(),
        started_us: 0,
        shards: 0,
        capacity_bytes: 0,
        used_bytes: 0,
        dirty_bytes: 0,
        load: 0,
        live: false,
    }
}

/// Where an object is.
pub(super) async fn whereabouts(link: &Rc<Link>, asked: &Where) -> Result<WhereOk, ErrorReply> {
    let target = target_from(&asked.target)?;
    let engine = &link.context.engine;
    let here = engine.held(&target).await.map_err(|error| error_reply(&error))?;
    if asked.local_only {
        let held = here.ok_or_else(|| ErrorReply::new(ErrorCode::NotFound, "this node holds nothing of it"))?;
        return Ok(WhereOk {
            info: held.stat.to_info(target.task),
            homes: Vec::new(),
            holders: vec![holder(link.context.name(), held.stat.pieces_local, held.runs)],
            replicas_wanted: held.replicas,
        });
    }
    let stat = engine.stat(&target, false).await.map_err(|error| error_reply(&error))?;
    let homes = engine.homes(&target.task).iter().take(PARENTS_MAX).map(|node| node.id.to_string()).collect();
    let (mut holders, mut replicas_wanted) = (Vec::new(), 0);
    let question = || Where { target: target.to_message(), local_only: true }.into();
    let mut answers: Vec<WhereOk> = Vec::new();
    if let Ok(Some(held)) = engine.held(&target).await {
        let own = holder(link.context.name(), held.stat.pieces_local, held.runs);
        (holders, replicas_wanted) = (vec![own], held.replicas);
        if held.stat.generation != stat.generation {
            holders.clear();
        }
    }
    for (_, answer) in ask_all(link, question).await {
        if let Ok(Message::WhereOk(answer)) = answer {
            answers.push(answer);
        }
    }
    for answer in answers.into_iter().filter(|answer| answer.info.generation == stat.generation) {
        replicas_wanted = replicas_wanted.max(answer.replicas_wanted);
        holders.extend(answer.holders);
    }
    holders.retain(|holder| holder.pieces > 0 || stat.meta.length == 0);
    holders.sort_by(|left, right| left.node.cmp(&right.node));
    holders.truncate(NODES_MAX);
    Ok(WhereOk { info: stat.to_info(target.task), homes, holders, replicas_wanted })
}

fn holder(node: &str, pieces: u32, runs: Vec<dfstore_proto::object::PieceRun>) -> HolderInfo {
    HolderInfo { node: node.to_owned(), pieces, runs: runs.into_iter().take(RUNS_SHOWN_MAX).collect() }
}

/// What is to be done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Prefetch,
    Evict,
}

/// Fetches an object ahead or drops it, on this node or on all.
pub(super) async fn work(link: &Rc<Link>, scope: Scope, target: &Target, work: Work) -> Result<Worked, ErrorReply> {
    let engine = &link.context.engine;
    let own = async {
        match work {
            Work::Prefetch => engine.prefetch(target).await,
            Work::Evict => engine.drop_cached(target).await,
        }
    };
    if scope == Scope::Node {
        let bytes = own.await.map_err(|error| error_reply(&error))?;
        return Ok(Worked { nodes: 1, bytes, failures: Vec::new() });
    }
    let question = || match work {
        Work::Prefetch => Prefetch { target: target.to_message(), scope: Scope::Node }.into(),
        Work::Evict => Evict { target: target.to_message(), scope: Scope::Node }.into(),
    };
    let (own, others) = futures_util::join!(own, ask_all(link, question));
    let mut worked = Worked::default();
    match own {
        Ok(bytes) => (worked.nodes, worked.bytes) = (1, bytes),
        Err(error) => worked.failures.push(NodeFailure::new(link.context.name(), error.to_string())),
    }
    for (node, answer) in others {
        match answer {
            Ok(Message::Worked(told)) => {
                worked.nodes += told.nodes;
                worked.bytes = worked.bytes.saturating_add(told.bytes);
            }
            Ok(other) => worked.failures.push(NodeFailure::new(&*node.id, other.frame_type().name())),
            Err(error) => worked.failures.push(NodeFailure::new(&*node.id, error)),
        }
    }
    worked.failures.truncate(NODES_MAX);
    Ok(worked)
}

/// Asks every other live node the same.
pub(super) async fn ask_all(
    link: &Rc<Link>,
    question: impl Fn() -> Message,
) -> Vec<(Arc<Node>, Result<Message, String>)> {
    let Some(cluster) = link.context.engine.cluster() else { return Vec::new() };
    let asked = cluster.others().into_iter().map(|node| {
        let message = question();
        async move {
            let answer = cluster.links.ask(&node, None, message).await;
            (node, answer.map_err(|error| error.to_string()))
        }
    });
    futures_util::stream::iter(asked).buffer_unordered(NODES_ASKED_AT_ONCE).collect().await
}
