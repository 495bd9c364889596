//! What a node tells the others about itself: two values, one that never changes and one that always does.
//!
//! Both are JSON objects. Unknown fields are ignored and new ones must have defaults, so that nodes of two versions
//! understand each other. A record that makes no sense is as good as none: its node is not used.

use std::net::SocketAddr;
use std::sync::Arc;

use chitchat::ChitchatId;
use dfstore_proto::limits::NAME_BYTES_MAX;
use dfstore_proto::message::NodeRole;
use serde::{Deserialize, Serialize};

use crate::membership::{Node, NodeState};

/// Key of what stays the same while a process lives.
const NODE: &str = "node";
/// Key of what changes.
const STATE: &str = "state";

#[derive(Serialize, Deserialize)]
struct Fixed {
    seed: bool,
    peer: SocketAddr,
    api: SocketAddr,
    shards: u16,
    capacity: u64,
    version: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Changing {
    used: u64,
    dirty: u64,
    load: u32,
}

/// All that this node says.
pub(super) fn write(node: &Node) -> Vec<(String, String)> {
    let fixed = Fixed {
        seed: node.role == NodeRole::Seed,
        peer: node.peer,
        api: node.api,
        shards: node.shards,
        capacity: node.capacity_bytes,
        version: node.version.clone(),
    };
    let (key, value) = write_state(&node.state);
    vec![(NODE.to_owned(), json(&fixed)), (key.to_owned(), value)]
}

/// Key and value of its state.
pub(super) fn write_state(state: &NodeState) -> (&'static str, String) {
    let NodeState { used_bytes, dirty_bytes, load } = *state;
    (STATE, json(&Changing { used: used_bytes, dirty: dirty_bytes, load }))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and texts only")
}

/// What another node says; `None` while not all of it is here, and when it makes no sense.
pub(super) fn read(id: &ChitchatId, said: &chitchat::NodeState) -> Option<Node> {
    parse(&id.node_id, id.generation_id, said.get(NODE)?, said.get(STATE).unwrap_or("{}"))
}

fn parse(id: &Arc<str>, started_us: u64, fixed: &str, changing: &str) -> Option<Node> {
    let fixed: Fixed = serde_json::from_str(fixed).ok()?;
    let changing: Changing = serde_json::from_str(changing).unwrap_or_default();
    let usable = |address: &SocketAddr| address.port() != 0 && !address.ip().is_unspecified();
    let named = (1..=NAME_BYTES_MAX).contains(&id.len()) && fixed.version.len() <= NAME_BYTES_MAX;
    (named && fixed.shards > 0 && usable(&fixed.peer) && usable(&fixed.api)).then(|| Node {
        id: id.clone(),
        started_us,
        role: if fixed.seed { NodeRole::Seed } else { NodeRole::Peer },
        peer: fixed.peer,
        api: fixed.api,
        shards: fixed.shards,
        capacity_bytes: fixed.capacity,
        version: fixed.version,
        state: NodeState { used_bytes: changing.used, dirty_bytes: changing.dirty, load: changing.load },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"seed":true,"peer":"[fd00::1]:65002","api":"10.0.0.1:65004","shards":2,"capacity":9,"version":"1"}"#;

    #[test]
    fn what_is_written_is_read_and_more_is_ignored() {
        let id: Arc<str> = "a".into();
        let node = parse(&id, 5, GOOD, r#"{"used":1,"dirty":2,"load":3}"#).expect("good");
        let written = write(&node);
        assert_eq!(parse(&id, 5, &written[0].1, &written[1].1), Some(node.clone()));
        let newer = GOOD.replace("{", r#"{"rack":{"row":1},"#);
        assert_eq!(parse(&id, 5, &newer, r#"{"used":1,"dirty":2,"load":3,"heat":[1]}"#), Some(node));
        assert_eq!(parse(&id, 5, GOOD, "nonsense").expect("still good").state, NodeState::default());
    }

    #[test]
    fn records_that_make_no_sense_are_no_nodes() {
        let id: Arc<str> = "a".into();
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for (good, bad) in [
            (r#""shards":2"#, r#""shards":0"#),
            (r#""shards":2"#, r#""shards":-1"#),
            ("[fd00::1]:65002", "[fd00::1]:0"),
            ("[fd00::1]:65002", "[::]:65002"),
            ("10.0.0.1:65004", "0.0.0.0:65004"),
            ("10.0.0.1:65004", "host:65004"),
            (r#""seed":true,"#, ""),
            (r#":"1"}"#, &format!(r#":"{long}"}}"#)),
        ] {
            assert_eq!(parse(&id, 5, &GOOD.replace(good, bad), "{}"), None, "{bad}");
        }
        assert_eq!(parse(&long.into(), 5, GOOD, "{}"), None);
        assert_eq!(parse(&"".into(), 5, GOOD, "{}"), None);
    }
}
