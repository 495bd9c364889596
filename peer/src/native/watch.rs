//! When a connection is ended, and how: silence in a frame, stalled writes, idleness, stopping.
//!
//! One task per connection looks at it every [`NATIVE_WATCH_INTERVAL`]; reads and writes need no timers of their own.
//! What it does is decided by a pure function of what it sees. A client that works for us answers PING; one that only
//! holds a connection open is sent away.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use dfstore_proto::error::{ErrorCode, ErrorReply};
use futures_util::future::{Either, select};

use crate::limits::{BODY_IDLE_TIMEOUT, HEAD_TIMEOUT, IDLE_TIMEOUT, LINGER_TIMEOUT, NATIVE_WATCH_INTERVAL};
use crate::native::link::Link;
use crate::rt::stream::Pulse;
use crate::rt::time::sleep;

/// What the receiving task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Not for the client: it works.
    Nothing,
    /// The beginning of a frame.
    Frame,
    /// The rest of a header or control frame that has begun.
    Rest(Instant),
    /// Raw bytes of a piece.
    Raw(Instant),
}

/// What the watch sees.
#[derive(Clone, Copy, Debug)]
struct Sight {
    /// Since the connection began.
    age: Duration,
    /// Since its end was decided.
    ended: Option<Duration>,
    /// What is waited for, and since when.
    waiting: Waiting,
    waiting_since: Duration,
    /// Since the last byte came in.
    read_idle: Duration,
    /// Since a pending write last made progress.
    write_stalled: Duration,
    open: bool,
    going_away: bool,
    stopping: bool,
    pinged: bool,
    requests: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    /// Ask whether the client is still there.
    Ping,
    /// Take no new requests, because of this.
    GoAway(ErrorCode, &'static str),
    /// All is answered: flush and close.
    End,
    /// Tell the client that it was too slow, then close.
    TooSlow(&'static str),
    /// Close at once.
    Cut,
}

/// Watches a connection to its end. `stop` completes when the process stops.
pub(super) async fn watch(link: &Link, pulse: &Pulse, stop: impl Future<Output = ()>) {
    let began = Instant::now();
    let mut stop = pin!(stop);
    let (mut stopping, mut pinged) = (false, false);
    loop {
        if stopping {
            sleep(NATIVE_WATCH_INTERVAL).await;
        } else {
            stopping = matches!(select(stop.as_mut(), pin!(sleep(NATIVE_WATCH_INTERVAL))).await, Either::Left(_));
        }
        pinged &= pulse.read_idle() >= BODY_IDLE_TIMEOUT / 2;
        let sight = look(link, pulse, began, stopping, pinged);
        match judge(&sight) {
            Verdict::Wait => {}
            Verdict::Ping => {
                pinged = true;
                let _ = link.push(|session, out| session.ping(0, out));
            }
            Verdict::GoAway(code, why) => {
                let _ = link.push(|session, out| session.go_away(code, why, out));
                if link.session().requests_in_flight() == 0 {
                    link.end();
                }
            }
            Verdict::End => link.end(),
            Verdict::TooSlow(why) => link.close(ErrorReply::new(ErrorCode::Timeout, why)),
            Verdict::Cut => return pulse.cut(),
        }
    }
}

fn look(link: &Link, pulse: &Pulse, began: Instant, stopping: bool, pinged: bool) -> Sight {
    let session = link.session();
    let waiting = link.waiting.get();
    Sight {
        age: began.elapsed(),
        ended: link.ended_at().map(|at| at.elapsed()),
        waiting,
        waiting_since: match waiting {
            Waiting::Nothing | Waiting::Frame => Duration::ZERO,
            Waiting::Rest(since) | Waiting::Raw(since) => since.elapsed(),
        },
        read_idle: pulse.read_idle(),
        write_stalled: pulse.write_stalled(),
        open: session.is_open(),
        going_away: session.is_going_away(),
        stopping,
        pinged,
        requests: session.requests_in_flight(),
    }
}

fn judge(sight: &Sight) -> Verdict {
    if let Some(ended) = sight.ended {
        return if ended > LINGER_TIMEOUT { Verdict::Cut } else { Verdict::Wait };
    }
    if sight.write_stalled > BODY_IDLE_TIMEOUT {
        return Verdict::Cut;
    }
    if !sight.open {
        return if sight.stopping {
            Verdict::Cut
        } else if sight.age > HEAD_TIMEOUT {
            Verdict::TooSlow("no HELLO came in time")
        } else {
            Verdict::Wait
        };
    }
    match sight.waiting {
        Waiting::Rest(_) if sight.waiting_since > HEAD_TIMEOUT => return Verdict::TooSlow("a frame was not completed"),
        Waiting::Raw(_) if sight.waiting_since.min(sight.read_idle) > BODY_IDLE_TIMEOUT => {
            return Verdict::TooSlow("a piece was not completed");
        }
        _ => {}
    }
    if sight.requests == 0 { judge_idle(sight) } else { judge_busy(sight) }
}

fn judge_idle(sight: &Sight) -> Verdict {
    if sight.going_away {
        Verdict::End
    } else if sight.stopping {
        Verdict::GoAway(ErrorCode::ShuttingDown, "this peer is shutting down")
    } else if sight.read_idle > IDLE_TIMEOUT {
        Verdict::GoAway(ErrorCode::Timeout, "nothing was asked for a long time")
    } else {
        Verdict::Wait
    }
}

fn judge_busy(sight: &Sight) -> Verdict {
    if sight.stopping && !sight.going_away {
        return Verdict::GoAway(ErrorCode::ShuttingDown, "this peer is shutting down");
    }
    // While the receiving task is busy, silence is our own doing.
    if sight.waiting == Waiting::Nothing || sight.read_idle <= BODY_IDLE_TIMEOUT / 2 {
        Verdict::Wait
    } else if !sight.pinged {
        Verdict::Ping
    } else if sight.read_idle > BODY_IDLE_TIMEOUT {
        Verdict::TooSlow("requests are open, and neither a byte nor an answer to PING came")
    } else {
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn quiet() -> Sight {
        Sight {
            age: Duration::ZERO,
            ended: None,
            waiting: Waiting::Frame,
            waiting_since: Duration::ZERO,
            read_idle: Duration::ZERO,
            write_stalled: Duration::ZERO,
            open: true,
            going_away: false,
            stopping: false,
            pinged: false,
            requests: 0,
        }
    }

    fn too_slow(sight: Sight) -> bool {
        matches!(judge(&sight), Verdict::TooSlow(_))
    }

    #[test]
    fn waits_while_nothing_is_overdue() {
        assert_eq!(judge(&quiet()), Verdict::Wait);
        assert_eq!(judge(&Sight { requests: 3, age: 3600 * SECOND, ..quiet() }), Verdict::Wait);
        assert_eq!(judge(&Sight { read_idle: IDLE_TIMEOUT, ..quiet() }), Verdict::Wait);
    }

    #[test]
    fn hello_must_come_in_time() {
        let early = Sight { open: false, age: HEAD_TIMEOUT, ..quiet() };
        assert_eq!(judge(&early), Verdict::Wait);
        assert!(too_slow(Sight { age: HEAD_TIMEOUT + SECOND, ..early }));
        assert_eq!(judge(&Sight { stopping: true, ..early }), Verdict::Cut);
    }

    #[test]
    fn a_frame_that_has_begun_must_be_completed() {
        let now = Instant::now();
        assert!(too_slow(Sight { waiting: Waiting::Rest(now), waiting_since: HEAD_TIMEOUT + SECOND, ..quiet() }));
        let raw = Sight { waiting: Waiting::Raw(now), waiting_since: 2 * BODY_IDLE_TIMEOUT, requests: 1, ..quiet() };
        assert_eq!(judge(&raw), Verdict::Wait, "bytes still trickle in");
        assert!(too_slow(Sight { read_idle: BODY_IDLE_TIMEOUT + SECOND, ..raw }));
    }

    #[test]
    fn a_client_that_does_not_read_is_cut() {
        let stalled = Sight { write_stalled: BODY_IDLE_TIMEOUT + SECOND, requests: 1, ..quiet() };
        assert_eq!(judge(&stalled), Verdict::Cut);
    }

    #[test]
    fn open_requests_need_a_living_client() {
        let silent = Sight { requests: 1, read_idle: BODY_IDLE_TIMEOUT / 2 + SECOND, ..quiet() };
        assert_eq!(judge(&silent), Verdict::Ping);
        assert_eq!(judge(&Sight { pinged: true, ..silent }), Verdict::Wait);
        assert!(too_slow(Sight { pinged: true, read_idle: BODY_IDLE_TIMEOUT + SECOND, ..silent }));
        let busy = Sight { waiting: Waiting::Nothing, read_idle: 10 * BODY_IDLE_TIMEOUT, ..silent };
        assert_eq!(judge(&busy), Verdict::Wait, "we do not read: no wonder that nothing comes");
    }

    #[test]
    fn idle_and_stopping_connections_are_sent_away_then_ended() {
        let idle = Sight { read_idle: IDLE_TIMEOUT + SECOND, ..quiet() };
        assert!(matches!(judge(&idle), Verdict::GoAway(ErrorCode::Timeout, _)));
        let stopping = Sight { stopping: true, requests: 1, ..quiet() };
        assert!(matches!(judge(&stopping), Verdict::GoAway(ErrorCode::ShuttingDown, _)));
        let told = Sight { going_away: true, ..stopping };
        assert_eq!(judge(&told), Verdict::Wait, "what is in flight is finished");
        assert_eq!(judge(&Sight { requests: 0, ..told }), Verdict::End);
    }

    #[test]
    fn the_end_takes_no_longer_than_lingering() {
        let ended = |ended| Sight { ended: Some(ended), ..quiet() };
        assert_eq!(judge(&ended(LINGER_TIMEOUT)), Verdict::Wait);
        assert_eq!(judge(&ended(LINGER_TIMEOUT + SECOND)), Verdict::Cut);
    }
}
