//! `dfstore scrub`: how the check of the pieces on the peer's disk stands, or a new one now.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use dfstore_proto::message::{Message, Scrub, ScrubOk};
use indicatif::BinaryBytes;
use serde_json::json;

use crate::args::ScrubArgs;
use crate::client::Peer;
use crate::commands::date::rfc3339;
use crate::commands::print_line;
use crate::progress::Progress;
use crate::rt::time;

/// How often a check that runs is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// Shows the last check, or begins one and waits for its end.
pub async fn run(peer: &Peer, args: &ScrubArgs) -> Result<()> {
    let mut state = ask(peer, args.now).await?;
    if args.now {
        let _busy = Progress::new(!args.json, "Checking", None);
        while state.runs {
            time::sleep(LOOK_PERIOD).await;
            state = ask(peer, false).await?;
        }
    }
    if args.json {
        print_line(as_json(&state))?
    } else {
        print_line(as_text(&state))?
    }
    match state.lost {
        0 => Ok(()),
        lost => {
            bail!("{lost} damaged pieces belong to objects that nobody else has: see the peer's log for their names")
        }
    }
}

async fn ask(peer: &Peer, begin: bool) -> Result<ScrubOk> {
    match peer.call(None, Scrub { begin }).await.context("failed to ask for the check of the disk")? {
        Message::ScrubOk(state) => Ok(state),
        other => Err(peer.unexpected(&other).into()),
    }
}

fn as_text(state: &ScrubOk) -> String {
    if state.began_at_ms == 0 {
        return "no check of the disk since the peer was started".to_string();
    }
    let when = match state.runs {
        true => format!("running since {}", rfc3339(state.began_at_ms)),
        false => format!("ended {}", rfc3339(state.ended_at_ms)),
    };
    let ScrubOk { pieces, damaged, replaceable, lost, .. } = state;
    let (bytes, all) = (BinaryBytes(state.bytes), BinaryBytes(state.bytes_of_all));
    format!(
        "{when}: {pieces} pieces, {bytes} of {all} read; {damaged} damaged, of which {replaceable} are elsewhere and {lost} are lost"
    )
}

fn as_json(state: &ScrubOk) -> serde_json::Value {
    let time = |ms| (ms > 0).then(|| rfc3339(ms));
    json!({
        "runs": state.runs,
        "began_at": time(state.began_at_ms),
        "ended_at": time(state.ended_at_ms),
        "pieces": state.pieces,
        "bytes": state.bytes,
        "bytes_of_all": state.bytes_of_all,
        "damaged": state.damaged,
        "replaceable": state.replaceable,
        "lost": state.lost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_told_in_a_line() {
        assert!(as_text(&ScrubOk::default()).starts_with("no check"));
        let state = ScrubOk {
            began_at_ms: 1,
            ended_at_ms: 1000,
            pieces: 3,
            damaged: 2,
            lost: 1,
            replaceable: 1,
            ..ScrubOk::default()
        };
        let text = as_text(&state);
        assert!(text.starts_with("ended 1970-01-01T00:00:01Z: 3 pieces"), "{text}");
        assert!(text.ends_with("2 damaged, of which 1 are elsewhere and 1 are lost"), "{text}");
    }
}
