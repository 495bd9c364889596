//! `dfstore stat --where`: which nodes decide about an object, and which hold which pieces of it.

use anyhow::{Context, Result};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::{HolderInfo, Message, Target, Where, WhereOk};
use serde_json::json;

use crate::client::Peer;
use crate::commands::print_line;
use crate::commands::stat;
use crate::commands::table::Table;

/// Prints the attributes of the object and where it is.
pub async fn run(peer: &Peer, object: &ObjectName, json: bool) -> Result<()> {
    let target = Target::new(object.clone());
    let answer = peer.call(target.task(), Where { target, local_only: false }).await;
    let answer = match answer.with_context(|| format!("failed to find {object}"))? {
        Message::WhereOk(answer) => answer,
        other => return Err(peer.unexpected(&other).into()),
    };
    if json { print_line(as_json(object, &answer)) } else { print_line(as_text(object, &answer)) }
}

/// Homes that hold all of the version.
fn replicas(answer: &WhereOk) -> usize {
    let is_whole = |home: &&String| {
        let holder = answer.holders.iter().find(|holder| holder.node == **home);
        holder.is_some_and(|holder| holder.pieces == answer.info.pieces())
    };
    answer.homes.iter().filter(is_whole).count()
}

fn as_json(object: &ObjectName, answer: &WhereOk) -> serde_json::Value {
    let mut json = stat::as_json(&object.bucket, &object.key, &answer.info);
    let holders = answer.holders.iter().map(|holder| {
        let runs = holder.runs.iter().map(|run| json!({ "first": run.first, "count": run.count }));
        json!({ "node": holder.node, "pieces": holder.pieces, "runs": runs.collect::<Vec<_>>() })
    });
    json["homes"] = json!(answer.homes);
    json["replicas"] = json!({ "have": replicas(answer), "wanted": answer.replicas_wanted });
    json["holders"] = holders.collect();
    json
}

fn as_text(object: &ObjectName, answer: &WhereOk) -> String {
    let mut text = stat::as_text(&object.to_string(), &answer.info);
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<20} {value}\n"));
    if answer.homes.is_empty() {
        row("homes", "none: this peer knows of no live seed".to_string());
    } else {
        row("homes", answer.homes.join(", "));
        row("replicas", format!("{} of {}", replicas(answer), answer.replicas_wanted));
    }
    if answer.holders.is_empty() {
        text.push_str("no node holds any piece");
        return text;
    }
    let mut table = Table::new([("NODE", false), ("HOLDS", true), ("PIECES", false)]);
    for holder in &answer.holders {
        let holds = format!("{} of {}", holder.pieces, answer.info.pieces());
        table.push([holder.node.clone(), holds, runs_text(holder)]);
    }
    text + "\n" + &table.render()
}

/// `0-15, 20, 32-40`, with dots where more follow.
fn runs_text(holder: &HolderInfo) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut counted = 0_u64;
    for run in &holder.runs {
        counted += u64::from(run.count);
        // The protocol keeps the end of a run within the numbers of pieces.
        let last = u64::from(run.first) + u64::from(run.count).saturating_sub(1);
        shown.push(if run.count == 1 { run.first.to_string() } else { format!("{}-{last}", run.first) });
    }
    if counted < u64::from(holder.pieces) {
        shown.push("...".to_string());
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfstore_proto::object::PieceRun;

    #[test]
    fn runs_are_shown_as_ranges_of_numbers() {
        let holder = |pieces, runs: &[(u32, u32)]| {
            let runs = runs.iter().map(|&(first, count)| PieceRun { first, count }).collect();
            runs_text(&HolderInfo { node: "n".into(), pieces, runs })
        };
        assert_eq!(holder(0, &[]), "");
        assert_eq!(holder(4, &[(0, 3), (7, 1)]), "0-2, 7");
        assert_eq!(holder(9, &[(0, 3), (7, 1)]), "0-2, 7, ...");
    }
}
