//! `dfstore cluster status`: the nodes of the cluster that the peer belongs to, page by page.
//!
//! A node that is dead is shown, with what is still known of it; that is no failure of the command.

use anyhow::{Context, Result, ensure};
use dfstore_proto::message::{Message, NodeInfo, NodeRole, Nodes, NodesOk};
use indicatif::BinaryBytes;
use serde_json::json;

use crate::args::StatusArgs;
use crate::client::Peer;
use crate::commands::date::rfc3339;
use crate::commands::print_line;
use crate::commands::table::Table;

/// Nodes that are shown. A cluster has far fewer; a peer that goes on for ever is stopped here.
const NODES_SHOWN_MAX: usize = 16_384;

/// Prints the nodes.
pub async fn status(peer: &Peer, args: &StatusArgs) -> Result<()> {
    let cluster = all_nodes(peer).await.context("failed to ask for the nodes of the cluster")?;
    if args.json {
        return print_line(as_json(&cluster));
    }
    print_line(summary(&cluster))?;
    if cluster.nodes.is_empty() {
        return Ok(());
    }
    print_line(as_table(&cluster).render())
}

/// All pages as one.
async fn all_nodes(peer: &Peer) -> Result<NodesOk> {
    let mut all = NodesOk::default();
    let mut after = String::new();
    loop {
        let page = match peer.call(None, Nodes { after: after.clone() }).await? {
            Message::NodesOk(page) => page,
            other => return Err(peer.unexpected(&other).into()),
        };
        let last = page.nodes.last().map(|node| node.id.clone());
        (all.cluster, all.me) = (page.cluster, page.me);
        all.nodes.extend(page.nodes);
        ensure!(all.nodes.len() <= NODES_SHOWN_MAX, "there are more than {NODES_SHOWN_MAX} nodes");
        if !page.truncated {
            return Ok(all);
        }
        after = last.filter(|last| *last > after).context("the peer repeats a page")?;
    }
}

fn summary(cluster: &NodesOk) -> String {
    if cluster.cluster.is_empty() {
        return format!("{} is alone: it belongs to no cluster", cluster.me);
    }
    let alive = cluster.nodes.iter().filter(|node| node.live).count();
    let (all, dead) = (cluster.nodes.len(), cluster.nodes.len() - alive);
    let plural = if all == 1 { "" } else { "s" };
    format!("cluster {}: {all} node{plural}, {alive} alive, {dead} dead; {} answered (*)", cluster.cluster, cluster.me)
}

fn as_table(cluster: &NodesOk) -> Table<9> {
    let mut table = Table::new([
        ("NODE", false),
        ("ROLE", false),
        ("STATE", false),
        ("ADDRESS", false),
        ("SHARDS", true),
        ("LOAD", true),
        ("USED", true),
        ("CAPACITY", true),
        ("DIRTY", true),
    ]);
    for node in &cluster.nodes {
        let known = |text: String| if node.live { text } else { "-".to_string() };
        let size = |bytes| known(BinaryBytes(bytes).to_string());
        table.push([
            if node.id == cluster.me { format!("{}*", node.id) } else { node.id.clone() },
            role_name(node.role).to_string(),
            state_name(node).to_string(),
            known(node.api.clone()),
            known(node.shards.to_string()),
            known(node.load.to_string()),
            size(node.used_bytes),
            size(node.capacity_bytes),
            size(node.dirty_bytes),
        ]);
    }
    table
}

fn as_json(cluster: &NodesOk) -> serde_json::Value {
    let nodes = cluster.nodes.iter().map(|node| {
        json!({
            "id": node.id,
            "role": role_name(node.role),
            "state": state_name(node),
            "answered": node.id == cluster.me,
            "api": node.api,
            "peer": node.peer,
            "version": node.version,
            "started": node.live.then(|| rfc3339(node.started_us / 1000)),
            "shards": node.shards,
            "load": node.load,
            "used_bytes": node.used_bytes,
            "capacity_bytes": node.capacity_bytes,
            "dirty_bytes": node.dirty_bytes,
        })
    });
    json!({ "cluster": cluster.cluster, "answered": cluster.me, "nodes": nodes.collect::<Vec<_>>() })
}

fn role_name(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Peer => "peer",
        NodeRole::Seed => "seed",
    }
}

fn state_name(node: &NodeInfo) -> &'static str {
    if node.live { "alive" } else { "dead" }
}
