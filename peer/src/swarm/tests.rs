//! The planner and the tracker, event by event. Whole swarms are simulated in the suite `swarm_sim`.

use std::time::Duration;

use dfstore_proto::limits::{PARENTS_MAX, RUNS_MAX};
use dfstore_proto::message::{Holder, PieceRuns, Tracked};
use dfstore_proto::object::PieceRun;

use super::*;
use crate::limits::{
    PIECE_BYTES, SWARM_AVOID_SILENT, SWARM_AVOID_WRONG, SWARM_BUSY_PAUSE, SWARM_DIRECT_PIECES_MAX, SWARM_JUDGE_AFTER,
    SWARM_NODE_SILENCE_MAX, SWARM_ORDERS_MAX, SWARM_READERS_MAX, SWARM_REPORT_MIN, SWARM_SILENCE_MAX, SWARM_STAGNANT,
    SWARM_SUGGESTED_MIN, SWARM_URGENT_HELD_PATIENCE, SWARM_URGENT_PATIENCE, SWARM_WINDOW_PIECES,
};

const PIECE: u64 = PIECE_BYTES as u64;

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn runs(pairs: &[(u32, u32)]) -> PieceRuns {
    PieceRuns::new(pairs.iter().map(|(first, count)| PieceRun { first: *first, count: *count }))
}

fn holder(node: &str, pairs: &[(u32, u32)]) -> Holder {
    Holder { node: node.to_owned(), have: runs(pairs), uploads: 0 }
}

fn parent(node: &str) -> Source {
    Source::Parent(node.into())
}

/// A planner with one reader of everything, which has reported once and got this answer at time 0.
fn planner(piece_count: u32, answer: Tracked) -> Planner {
    let mut planner = Planner::new(piece_count, 7);
    assert!(planner.want(1, 0..piece_count, at(0)));
    planner.report(at(0), 0).expect("it has no idea whom to ask");
    planner.tracked(&answer, at(0));
    planner
}

fn answer(parents: Vec<Holder>, counts: Vec<u8>, suggested: Vec<u32>) -> Tracked {
    Tracked { parents, counts, suggested, again_ms: 20 }
}

#[test]
fn sets_of_pieces_are_what_a_set_of_numbers_is() {
    let mut random = random::Random::new(3);
    for piece_count in [1, 63, 64, 65, 200] {
        let (mut pieces, mut model) = (Pieces::new(piece_count), std::collections::BTreeSet::new());
        for _ in 0..500 {
            let piece = u32::try_from(random.below(piece_count as usize + 2)).expect("small");
            if random.below(3) == 0 {
                assert_eq!(pieces.remove(piece), model.remove(&piece));
            } else {
                assert_eq!(pieces.insert(piece), piece < piece_count && model.insert(piece));
            }
            assert_eq!(pieces.len() as usize, model.len());
        }
        assert!(pieces.iter().eq(model.iter().copied()));
        assert_eq!(Pieces::of_runs(piece_count, &pieces.runs()), pieces);
        let missing = (0..piece_count).find(|piece| !model.contains(piece));
        assert_eq!(pieces.next_missing(0), missing);
        let half = Pieces::of_runs(piece_count, &runs(&[(0, piece_count / 2)]));
        let beyond = model.iter().copied().filter(|piece| (piece_count / 2..piece_count - 1).contains(piece));
        assert!(pieces.beyond(&half, 0..piece_count - 1).eq(beyond));
    }
}

#[test]
fn runs_from_outside_stay_inside_the_version() {
    let pieces = Pieces::of_runs(70, &runs(&[(60, 1000), (u32::MAX - 1, 1)]));
    assert_eq!((pieces.len(), pieces.runs()), (10, runs(&[(60, 10)])));
    assert!(Pieces::whole(70).is_whole());
    let mut alternating = Pieces::new(4000);
    (0..4000).step_by(2).for_each(|piece| assert!(alternating.insert(piece)));
    assert_eq!(alternating.runs().runs().len(), RUNS_MAX);
    assert!(Pieces::new(0).is_whole() && Pieces::new(0).next_missing(0).is_none());
}

#[test]
fn few_pieces_are_ordered_from_the_home_without_a_report() {
    let mut planner = Planner::new(SWARM_DIRECT_PIECES_MAX, 1);
    planner.want(1, 0..10, at(0));
    assert_eq!(planner.report(at(0), 0), None);
    let orders = planner.plan(at(0), 10);
    assert_eq!(orders.len(), SWARM_DIRECT_PIECES_MAX as usize);
    assert!(orders.iter().all(|order| order.from == Source::Home));
}

#[test]
fn what_a_reader_waits_for_comes_first_then_suggestions_then_the_rarest() {
    let mut counts = vec![9; 64];
    counts[40] = 2;
    let answer = answer(vec![holder("a", &[(0, 1), (10, 50)]), holder("b", &[(0, 1), (10, 50)])], counts, vec![5]);
    let mut planner = planner(64, answer);
    let orders = planner.plan(at(1), 3);
    let planned: Vec<u32> = orders.iter().map(|order| order.piece).collect();
    assert_eq!(planned, [0, 5, 40]);
    assert_eq!(orders[1].from, Source::Home);
    assert!(matches!(orders[0].from, Source::Parent(_)));
    assert!(planner.plan(at(1), 0).is_empty(), "there are no slots");
}

#[test]
fn nothing_beyond_what_readers_ask_for_is_ordered() {
    let mut planner = Planner::new(1000, 1);
    planner.want(1, 10..14, at(0));
    let report = planner.report(at(0), 3).expect("a report");
    assert_eq!((report.window, report.uploads), (PieceRun { first: 10, count: 4 }, 3));
    planner.tracked(&answer(vec![holder("a", &[(0, 1000)])], vec![1; 4], vec![500]), at(0));
    let mut planned = Vec::new();
    for now in 0..20 {
        for order in planner.plan(at(now), 10) {
            planned.push(order.piece);
            planner.done(order.piece, &order.from, PIECE, at(now));
        }
    }
    planned.sort_unstable();
    assert_eq!(planned, [10, 11, 12, 13]);
    planner.leave(1);
    assert!(planner.plan(at(100), 10).is_empty());
}

#[test]
fn the_window_is_bounded_and_follows_the_reader() {
    let mut planner = Planner::new(10_000, 1);
    planner.want(1, 0..10_000, at(0));
    assert_eq!(planner.report(at(0), 0).expect("a report").window.count, SWARM_WINDOW_PIECES);
    planner.tracked(&answer(vec![holder("a", &[(0, 10_000)])], vec![1; 64], Vec::new()), at(0));
    let orders = planner.plan(at(0), 1000);
    assert!(orders.iter().all(|order| order.piece < SWARM_WINDOW_PIECES) && orders.len() <= SWARM_ORDERS_MAX);
    planner.want(1, 5000..10_000, at(10));
    assert_eq!(planner.report(at(30), 0).expect("a report").window.first, 5000);
}

#[test]
fn the_home_is_asked_directly_only_for_what_nobody_has() {
    let mut counts = vec![0; 64];
    let mut lonely = planner(64, answer(Vec::new(), counts.clone(), Vec::new()));
    assert!(lonely.plan(at(10), 10).is_empty(), "it waits for a moment");
    assert!(lonely.next_wake(at(10)).is_some_and(|wake| wake <= SWARM_URGENT_PATIENCE));
    let from_home = [Order { piece: 0, from: Source::Home }];
    assert_eq!(lonely.plan(SWARM_URGENT_PATIENCE, 10), from_home);
    counts[0] = 1;
    let mut held = planner(64, answer(Vec::new(), counts, Vec::new()));
    assert!(held.plan(SWARM_URGENT_HELD_PATIENCE, 10).is_empty(), "somebody fetches it");
    assert_eq!(held.plan(SWARM_URGENT_HELD_PATIENCE * 2, 10), from_home);
}

#[test]
fn without_an_answer_of_the_home_it_is_asked_directly() {
    let mut planner = Planner::new(64, 1);
    planner.want(1, 0..64, at(0));
    planner.report(at(0), 0).expect("a report");
    planner.untracked(at(50));
    assert!(planner.plan(at(100), 10).is_empty());
    assert_eq!(planner.plan(at(1000), 10), [Order { piece: 0, from: Source::Home }]);
}

#[test]
fn a_busy_parent_is_left_alone_for_a_moment() {
    let mut planner = planner(64, answer(vec![holder("a", &[(0, 64)])], vec![1; 64], Vec::new()));
    let orders = planner.plan(at(0), 1);
    planner.failed(orders[0].piece, &orders[0].from, Failure::Busy, at(1));
    assert!(planner.plan(at(2), 1).is_empty());
    assert!(planner.next_wake(at(2)).is_some_and(|wake| wake <= at(1) + SWARM_BUSY_PAUSE));
    assert_eq!(planner.plan(at(1) + SWARM_BUSY_PAUSE, 1).len(), 1);
    assert_eq!(planner.avoided(), 0);
}

#[test]
fn a_parent_that_sends_wrong_bytes_is_avoided_for_long() {
    let mut planner =
        planner(64, answer(vec![holder("a", &[(0, 64)]), holder("b", &[(0, 64)])], vec![2; 64], Vec::new()));
    let first = planner.plan(at(0), 1).remove(0);
    planner.failed(first.piece, &first.from, Failure::Wrong, at(1));
    assert_eq!(planner.avoided(), 1);
    for now in [2, 1000, 60_000] {
        let order = planner.plan(at(now), 1).remove(0);
        assert_ne!(order.from, first.from, "at {now} ms");
        planner.done(order.piece, &order.from, PIECE, at(now + 1));
    }
    assert!(SWARM_AVOID_WRONG > at(60_000));
}

#[test]
fn a_silent_parent_is_given_up_and_its_piece_ordered_elsewhere() {
    let mut planner =
        planner(64, answer(vec![holder("a", &[(0, 1)]), holder("b", &[(0, 1)])], vec![2; 64], Vec::new()));
    let first = planner.plan(at(0), 1).remove(0);
    assert!(planner.overdue(SWARM_SILENCE_MAX - at(1)).is_empty());
    planner.progress(first.piece, &first.from, 1000, at(1500));
    assert!(planner.overdue(SWARM_SILENCE_MAX).is_empty(), "a byte came");
    let later = at(1500) + SWARM_SILENCE_MAX;
    assert_eq!(planner.overdue(later), [(first.piece, first.from.clone())]);
    let second = planner.plan(later, 1).remove(0);
    assert_eq!(second.piece, first.piece);
    assert_ne!(second.from, first.from);
    // What still comes of the order that was given up changes nothing.
    planner.failed(first.piece, &first.from, Failure::Unreachable, later);
    assert_eq!((planner.avoided(), planner.in_flight()), (1, 1));
    assert!(SWARM_AVOID_SILENT < SWARM_AVOID_WRONG);
}

#[test]
fn a_silent_parent_is_noticed_also_when_others_are_quicker_than_the_patience_with_it() {
    let (silent, other) = (holder("silent", &[(0, 1)]), holder("other", &[(1, 62)]));
    let mut planner = planner(64, answer(vec![silent, other], vec![2; 64], Vec::new()));
    let orders = planner.plan(at(0), 8);
    assert!(orders.contains(&Order { piece: 0, from: parent("silent") }), "{orders:?}");
    for order in orders.iter().filter(|order| order.piece != 0) {
        planner.done(order.piece, &order.from, PIECE, at(100));
    }
    planner.done(0, &Source::Home, PIECE, at(900));
    assert_eq!(planner.clone().overdue(at(900)), [(0, parent("silent"))]);
    let noticed = |now| {
        let mut planner = planner.clone();
        planner.overdue(now);
        planner.avoided()
    };
    assert!(SWARM_JUDGE_AFTER < SWARM_SILENCE_MAX);
    assert_eq!((noticed(SWARM_JUDGE_AFTER - at(1)), noticed(SWARM_JUDGE_AFTER)), (0, 1));
    let mut gives = planner.clone();
    gives.progress(63, &parent("silent"), 1, at(500));
    gives.overdue(SWARM_JUDGE_AFTER);
    assert_eq!(gives.avoided(), 0, "it gives something else");
}

#[test]
fn a_parent_at_a_tenth_of_the_median_rate_is_given_up() {
    let slow = holder("slow", &[(63, 1)]);
    let mut planner = planner(64, answer(vec![holder("a", &[(0, 60)]), slow], vec![9; 64], Vec::new()));
    for piece in 0..8 {
        planner.want(1, piece..64, at(u64::from(piece) * 100));
        for order in planner.plan(at(u64::from(piece) * 100), 2) {
            if order.from == parent("a") {
                planner.done(order.piece, &order.from, PIECE, at(u64::from(piece) * 100 + 100));
            }
        }
    }
    planner.want(1, 63..64, at(1000));
    planner.plan(at(1000), 5);
    planner.progress(63, &parent("slow"), 10_000, at(2900));
    assert_eq!(planner.overdue(at(3000)), [(63, parent("slow"))]);
}

#[test]
fn a_piece_that_came_from_elsewhere_is_given_up() {
    let mut planner = planner(64, answer(vec![holder("a", &[(0, 64)])], vec![1; 64], Vec::new()));
    let first = planner.plan(at(0), 1).remove(0);
    planner.have(first.piece);
    assert_eq!(planner.overdue(at(1)), [(first.piece, first.from)]);
    assert_eq!(planner.avoided(), 0);
}

#[test]
fn a_stuck_order_of_the_home_is_repeated_at_a_parent() {
    let mut planner = planner(8, answer(Vec::new(), vec![0; 8], vec![0]));
    assert_eq!(planner.plan(at(0), 5), [Order { piece: 0, from: Source::Home }]);
    planner.report(at(30), 0).expect("it is hungry");
    planner.tracked(&answer(vec![holder("a", &[(0, 1)])], vec![2; 8], Vec::new()), at(30));
    assert!(planner.plan(at(40), 5).is_empty());
    assert_eq!(planner.plan(at(2500), 5), [Order { piece: 0, from: parent("a") }]);
    assert!(planner.plan(at(5000), 5).is_empty(), "twice is enough");
}

#[test]
fn reports_come_when_there_is_news_and_no_sooner_than_the_home_wants() {
    let mut planner =
        planner(64, Tracked { again_ms: 500, ..answer(vec![holder("a", &[(0, 64)])], vec![9; 64], vec![5]) });
    assert_eq!(planner.report(at(100), 0), None);
    let orders = planner.plan(at(100), 3);
    assert_eq!(orders.len(), 3, "{orders:?}");
    let from_home = orders.iter().find(|order| order.from == Source::Home).expect("the suggestion");
    planner.done(from_home.piece, &Source::Home, PIECE, at(200));
    let report = planner.report(at(200), 0).expect("nobody else has that piece");
    assert_eq!(report.have, runs(&[(5, 1)]));
    assert_eq!(report.fetching.count(), 2);
    assert_eq!(planner.report(at(1000), 0), None, "one at a time");
    planner.tracked(&Tracked { again_ms: 500, ..Tracked::default() }, at(1000));
    assert!(SWARM_REPORT_MIN < at(500));
}

#[test]
fn a_lost_piece_is_wanted_again_and_told_at_once() {
    let mut planner = planner(64, answer(vec![holder("a", &[(0, 64)])], vec![9; 64], Vec::new()));
    planner.have(0);
    planner.lost(0);
    assert!(planner.report(SWARM_REPORT_MIN, 0).is_some());
    assert_eq!(planner.plan(at(30), 1)[0].piece, 0);
}

#[test]
fn readers_are_bounded() {
    let mut planner = Planner::new(64, 1);
    for reader in 0..SWARM_READERS_MAX as u64 {
        assert!(planner.want(reader, 0..64, at(0)));
    }
    assert!(!planner.want(u64::MAX, 0..64, at(0)));
    assert!(planner.want(0, 1..64, at(0)), "a known one may go on");
    planner.leave(3);
    assert!(planner.want(u64::MAX, 0..64, at(0)));
}

fn report(have: &[(u32, u32)], window: (u32, u32)) -> Report {
    let window = PieceRun { first: window.0, count: window.1 };
    Report { have: runs(have), fetching: PieceRuns::default(), uploads: 0, window }
}

#[test]
fn each_piece_is_suggested_to_one_node_only_and_at_first_one_to_each() {
    let mut tracker = Tracker::new(64, 1);
    let nodes: Vec<String> = (0..=SWARM_SUGGESTED_MIN).map(|number| format!("node-{number}")).collect();
    let suggested: Vec<Vec<u32>> =
        nodes.iter().map(|node| tracker.track(node, &report(&[], (0, 64)), at(1)).suggested).collect();
    let most = u32::try_from(SWARM_SUGGESTED_MIN).expect("small");
    let expected: Vec<Vec<u32>> = (0..most).map(|piece| vec![piece]).chain([Vec::new()]).collect();
    assert_eq!(suggested, expected);
    let counts = tracker.track(&nodes[0], &report(&[], (0, 64)), at(2)).counts;
    assert_eq!((counts[0], counts[63], counts.len()), (1, 0, 64));
}

#[test]
fn one_node_alone_gets_all_that_may_be_open_as_soon_as_it_asks_again() {
    let mut tracker = Tracker::new(64, 1);
    let suggested: Vec<Vec<u32>> =
        (1..=8).map(|turn| tracker.track("a", &report(&[], (0, 64)), at(20 * turn)).suggested).collect();
    let most = u32::try_from(SWARM_SUGGESTED_MIN).expect("small");
    assert_eq!(suggested, (0..8).map(|piece| (piece..(piece + 1).min(most)).collect()).collect::<Vec<Vec<u32>>>());
}

#[test]
fn a_suggestion_that_was_carried_out_makes_room_for_the_next() {
    let mut tracker = Tracker::new(64, 1);
    let first = tracker.track("a", &report(&[], (0, 64)), at(1)).suggested;
    assert!(!first.is_empty());
    let have: Vec<(u32, u32)> = first.iter().map(|piece| (*piece, 1)).collect();
    let next = tracker.track("a", &report(&have, (0, 64)), at(200)).suggested;
    assert!(!next.is_empty() && next.iter().all(|piece| !first.contains(piece)));
}

#[test]
fn a_suggestion_that_was_not_carried_out_is_given_to_another() {
    let mut tracker = Tracker::new(8, 1);
    assert_eq!(tracker.track("a", &report(&[], (0, 1)), at(0)).suggested, [0]);
    assert!(tracker.track("b", &report(&[(1, 1)], (0, 1)), at(10)).suggested.len() <= 1);
    let mut other = Tracker::new(8, 1);
    assert_eq!(other.track("a", &report(&[], (0, 1)), at(0)).suggested, [0]);
    other.forget_silent(at(10_000));
    assert_eq!(other.track("b", &report(&[], (0, 1)), at(10_000)).suggested, [0]);
}

#[test]
fn a_piece_that_does_not_spread_is_suggested_again() {
    let mut tracker = Tracker::new(8, 1);
    tracker.track("silent", &report(&[(0, 1)], (1, 1)), at(0));
    assert!(!tracker.track("b", &report(&[], (0, 1)), at(10)).suggested.contains(&0));
    assert_eq!(tracker.track("b", &report(&[], (0, 1)), SWARM_STAGNANT + at(100)).suggested, [0]);
}

#[test]
fn parents_have_what_the_asker_lacks_and_the_least_to_do() {
    let mut tracker = Tracker::new(64, 1);
    tracker.track("useless", &report(&[(0, 4)], (60, 4)), at(0));
    tracker.track("idle", &report(&[(4, 8)], (60, 4)), at(0));
    tracker.track("loaded", &Report { uploads: 3, ..report(&[(4, 8)], (60, 4)) }, at(0));
    let parents = tracker.track("asker", &report(&[(0, 4)], (0, 16)), at(1)).parents;
    let names: Vec<&str> = parents.iter().map(|parent| parent.node.as_str()).collect();
    assert_eq!(names, ["idle", "loaded"]);
    tracker.left("idle");
    let parents = tracker.track("asker", &report(&[(0, 4)], (0, 16)), at(2)).parents;
    assert_eq!(parents.len(), 1);
}

#[test]
fn different_askers_get_different_parents() {
    let mut tracker = Tracker::new(64, 1);
    for node in 0..500 {
        tracker.track(&format!("holder-{node}"), &report(&[(0, 64)], (0, 0)), at(0));
    }
    let mut named = std::collections::BTreeMap::new();
    for asker in 0..250 {
        let parents = tracker.track(&format!("asker-{asker}"), &report(&[], (0, 64)), at(1)).parents;
        assert_eq!(parents.len(), PARENTS_MAX);
        parents.into_iter().for_each(|parent| *named.entry(parent.node).or_insert(0) += 1);
    }
    // 2000 places for 500 holders.
    let most = named.values().max().expect("some");
    assert!(named.len() > 400 && *most <= 20, "{} were named, one of them {most} times", named.len());
}

#[test]
fn nodes_that_say_nothing_are_forgotten_and_the_counters_with_them() {
    let mut tracker = Tracker::new(64, 1);
    tracker.track("a", &report(&[(0, 10)], (0, 64)), at(0));
    tracker.note_whole("seed", at(0));
    assert_eq!(tracker.whole().count(), 1);
    let has = |node: &str, piece: u32| tracker.recent_holders(piece).iter().any(|had| **had == *node);
    assert_eq!(["a", "seed"].map(|node| (0..64).filter(|piece| has(node, *piece)).count()), [10, 64]);
    let late = SWARM_NODE_SILENCE_MAX + at(1);
    tracker.note_whole("seed", late);
    tracker.forget_silent(late);
    assert_eq!((tracker.node_count(), tracker.names().next().map(AsRef::as_ref)), (1, Some("seed")));
    let counts = tracker.track("b", &report(&[], (0, 64)), late).counts;
    assert!(counts.iter().all(|count| *count <= 2));
    tracker.left("seed");
    tracker.left("b");
    tracker.left("never seen");
    assert_eq!(tracker.node_count(), 0);
    let answer = tracker.track("c", &report(&[], (60, 4)), late);
    assert_eq!(answer.counts.iter().map(|count| usize::from(*count)).sum::<usize>(), answer.suggested.len());
}

#[test]
fn the_table_of_a_huge_object_has_room_for_fewer_nodes() {
    let mut tracker = Tracker::new(50_000_000, 1);
    for node in 0..20 {
        tracker.track(&format!("node-{node}"), &report(&[(0, 1)], (0, 64)), at(0));
    }
    assert!(tracker.node_count() < 20, "{} nodes", tracker.node_count());
    assert!(!tracker.track("one more", &report(&[], (0, 64)), at(1)).parents.is_empty(), "it is answered all the same");
}

#[test]
fn reports_that_name_nonsense_are_answered() {
    let mut tracker = Tracker::new(16, 1);
    let nonsense = Report {
        have: runs(&[(0, u32::MAX)]),
        fetching: runs(&[(5, u32::MAX - 5)]),
        uploads: u32::MAX,
        window: PieceRun { first: u32::MAX, count: u32::MAX },
    };
    assert!(tracker.track("a", &nonsense, at(0)).counts.is_empty());
    assert_eq!(tracker.track("b", &report(&[], (10, 64)), at(0)).counts.len(), 6);
    let loaded = Holder { uploads: u32::MAX, ..holder("a", &[(0, u32::MAX)]) };
    let mut planner = planner(64, answer(vec![loaded], vec![1; 256], vec![u32::MAX, 64, 3]));
    planner.done(u32::MAX, &Source::Home, 0, at(0));
    planner.failed(9, &parent("never seen"), Failure::Wrong, at(0));
    planner.progress(9, &Source::Home, u64::MAX, at(0));
    assert!(planner.plan(at(0), 100).iter().all(|order| order.piece < 64));
}
