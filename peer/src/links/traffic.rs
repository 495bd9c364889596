//! The tasks of one link: frames in, frames out, and the watch that ends it.
//!
//! As on the serving side, no operation on the socket is dropped half done: the watch, or the end of the writing task,
//! cuts the socket, and pending operations end by themselves. Silence is counted in looks of the watch, not by the
//! clock, so that a shard that was held up does not take its own absence for that of the other side.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dfstore_proto::error::ErrorReply;
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::session::{Event, SessionError};
use futures_util::future::{Either, join, select};

use crate::limits::{LINK_CLOSE_TIMEOUT, LINK_IDLE_TIMEOUT, LINK_PING_AFTER, LINK_SILENCE_MAX, LINK_WATCH_INTERVAL};
use crate::links::LinkError;
use crate::links::link::Link;
use crate::metrics::Metrics;
use crate::rt::stream::{Incoming, Outgoing, Pulse};
use crate::rt::time::sleep;

/// Looks of the watch in which nothing came while an answer was owed.
const PING_LOOKS: u32 = looks(LINK_PING_AFTER);
const SILENCE_LOOKS: u32 = looks(LINK_SILENCE_MAX);

#[expect(clippy::cast_possible_truncation, reason = "a few seconds in quarters of one")]
const fn looks(duration: Duration) -> u32 {
    duration.as_millis().div_ceil(LINK_WATCH_INTERVAL.as_millis()) as u32
}

/// Why no more frames are taken.
enum Stop {
    Broken(io::Error),
    Closed,
    Told(ErrorReply),
    Rule(SessionError),
    Ended,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Broken(error)
    }
}

/// Keeps a link going to its end. `silent` is called before those who wait are told that the other side is silent.
pub(super) async fn run(
    link: &Rc<Link>,
    (mut incoming, outgoing, pulse): (Incoming, Outgoing, Pulse),
    metrics: &Metrics,
    silent: impl Fn(&LinkError),
) {
    let traffic = pin!(join(receive(link, &mut incoming, metrics), send(link, outgoing, &pulse)));
    if let Either::Right((_, traffic)) = select(traffic, pin!(watch(link, &pulse, silent))).await {
        pulse.cut();
        traffic.await;
    }
}

async fn receive(link: &Rc<Link>, incoming: &mut Incoming, metrics: &Metrics) {
    let Err(stop) = receive_frames(link, incoming, metrics).await;
    match stop {
        Stop::Broken(error) => link.end(link.unreachable(error)),
        Stop::Closed => link.end(link.unreachable("it closed the connection")),
        Stop::Told(reply) => link.end(link.unreachable(reply)),
        Stop::Rule(error) => link.close(error.reply(), link.protocol(&error)),
        Stop::Ended => {}
    }
}

async fn receive_frames(link: &Rc<Link>, incoming: &mut Incoming, metrics: &Metrics) -> Result<Infallible, Stop> {
    loop {
        while let Some(event) = link.next_event(incoming).map_err(Stop::Rule)? {
            handle(link, incoming, event, metrics).await?;
        }
        if link.has_ended() {
            return Err(Stop::Ended);
        }
        if !incoming.fill().await? {
            return Err(Stop::Closed);
        }
    }
}

async fn handle(link: &Rc<Link>, incoming: &mut Incoming, event: Event, metrics: &Metrics) -> Result<(), Stop> {
    match event {
        Event::Message { request, message, ended: true } => link.answered(request, message),
        Event::Piece { request, head, discard } => piece(link, incoming, request, head, discard, metrics).await?,
        Event::Ping(nonce) => {
            link.drained().await;
            // Fails only when the session is over.
            let _ = link.push(|session, out| session.pong(nonce, out));
        }
        Event::GoAway { reason, abandoned } => {
            tracing::debug!(node = %link.node, reason = %reason.message, "another peer takes no more requests");
            link.abandoned(&abandoned);
            if link.requests_in_flight() == 0 {
                link.end(link.unreachable(reason.message));
            }
        }
        Event::Closed(reply) => return Err(Stop::Told(reply)),
        // No request of ours gets a message before its last one, and credits are for those who send pieces.
        Event::Message { .. } | Event::Pong(_) | Event::Credit(_) => {}
        Event::Hello(_) | Event::Accepted(_) | Event::Request { .. } | Event::Cancelled(_) => {}
    }
    Ok(())
}

async fn piece(
    link: &Rc<Link>,
    incoming: &mut Incoming,
    request: RequestId,
    head: PieceHead,
    discard: bool,
    metrics: &Metrics,
) -> io::Result<()> {
    match link.fetching(request).filter(|_| !discard) {
        Some(fetching) => fetching.receive(&link.node, incoming, head, metrics).await?,
        None => incoming.skip(head.length as usize).await?,
    }
    link.raw_taken(head.length as usize);
    // Fails only when the session is over: then no more pieces come.
    let _ = link.push(|session, out| session.grant(1, out));
    Ok(())
}

async fn send(link: &Link, mut outgoing: Outgoing, pulse: &Pulse) {
    while let Some(frames) = link.take_frames().await {
        if let Err(error) = outgoing.write_all(vec![frames]).await {
            link.end(link.unreachable(error));
            break;
        }
    }
    pulse.cut();
}

/// What the watch sees.
#[derive(Clone, Copy, Debug)]
struct Sight {
    /// Looks in a row in which an answer was owed and nothing came, or nothing could be sent.
    quiet_looks: u32,
    requests: usize,
    going_away: bool,
    idle: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    Ping,
    Silent,
    Close,
}

fn judge(sight: &Sight) -> Verdict {
    if sight.requests == 0 {
        let close = sight.going_away || sight.idle >= LINK_IDLE_TIMEOUT;
        return if close { Verdict::Close } else { Verdict::Wait };
    }
    match sight.quiet_looks {
        PING_LOOKS => Verdict::Ping,
        looks if looks >= SILENCE_LOOKS => Verdict::Silent,
        _ => Verdict::Wait,
    }
}

/// Watches a link to its end, and gives its last frames a while.
async fn watch(link: &Link, pulse: &Pulse, silent: impl Fn(&LinkError)) {
    let mut quiet_looks = 0;
    while !link.has_ended() {
        let (began, owed) = (Instant::now(), link.requests_in_flight() > 0);
        select(pin!(sleep(LINK_WATCH_INTERVAL)), pin!(link.until_ended())).await;
        let stalled = pulse.write_stalled() > LINK_SILENCE_MAX;
        let heard = pulse.read_idle() < began.elapsed() && !stalled;
        quiet_looks = if owed && !heard { quiet_looks + 1 } else { 0 };
        let requests = link.requests_in_flight();
        let going_away = link.is_going_away();
        match judge(&Sight { quiet_looks, requests, going_away, idle: link.idle() }) {
            Verdict::Wait => {}
            Verdict::Ping => drop(link.push(|session, out| session.ping(0, out))),
            Verdict::Silent => {
                let error = LinkError::Silent { node: link.node.clone() };
                silent(&error);
                link.end(error);
            }
            Verdict::Close => link.end(link.unreachable("the connection was closed")),
        }
    }
    sleep(LINK_CLOSE_TIMEOUT).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight() -> Sight {
        Sight { quiet_looks: 0, requests: 1, going_away: false, idle: Duration::ZERO }
    }

    #[test]
    fn asks_once_for_a_sign_of_life_then_gives_up() {
        let verdicts: Vec<Verdict> =
            (0..=SILENCE_LOOKS).map(|quiet_looks| judge(&Sight { quiet_looks, ..sight() })).collect();
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Ping).count(), 1);
        assert_eq!(verdicts[PING_LOOKS as usize], Verdict::Ping);
        assert_eq!(verdicts.iter().position(|verdict| *verdict == Verdict::Silent), Some(SILENCE_LOOKS as usize));
        assert_eq!(LINK_WATCH_INTERVAL * SILENCE_LOOKS, LINK_SILENCE_MAX);
    }

    #[test]
    fn who_owes_nothing_may_be_silent_until_the_link_is_idle_for_long() {
        let quiet = Sight { quiet_looks: 1000, requests: 0, ..sight() };
        assert_eq!(judge(&quiet), Verdict::Wait);
        assert_eq!(judge(&Sight { idle: LINK_IDLE_TIMEOUT, ..quiet }), Verdict::Close);
        assert_eq!(judge(&Sight { going_away: true, ..quiet }), Verdict::Close);
        assert_eq!(judge(&Sight { going_away: true, ..sight() }), Verdict::Wait, "what is in flight is finished");
    }
}
