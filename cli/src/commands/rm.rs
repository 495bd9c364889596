//! `dfstore rm`: removes objects, one line for each. All are tried; any failure fails the command.

use anyhow::{Context, Result};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::{Delete, Message, Target};

use crate::args::RmArgs;
use crate::client::Peer;
use crate::commands::{parse_object, print_line};
use crate::error::show;

/// Removes the objects. A wrong URL among them is found before the first one goes.
pub async fn run(peer: &Peer, args: &RmArgs) -> Result<()> {
    let objects: Vec<ObjectName> = args.targets.iter().map(|target| parse_object(target)).collect::<Result<_>>()?;
    let mut failed: Option<anyhow::Error> = None;
    for object in &objects {
        if let Err(error) = remove(peer, object).await
            && let Some(earlier) = failed.replace(error)
        {
            show(&earlier);
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn remove(peer: &Peer, object: &ObjectName) -> Result<()> {
    let target = Target::new(object.clone());
    let answer = peer.call(target.task(), Delete { target }).await;
    let answer = answer.with_context(|| format!("failed to remove {} in bucket {}", object.key, object.bucket))?;
    match answer {
        Message::Done(_) => print_line(format_args!("remove {} in bucket {}", object.key, object.bucket)),
        other => Err(peer.unexpected(&other).into()),
    }
}
