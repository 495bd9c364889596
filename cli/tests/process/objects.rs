//! `stat`, `ls` and `rm`: what they ask, what they print, what they do about failures.

use std::collections::VecDeque;

use dfstore_proto::error::{ErrorCode, ErrorReply};

use crate::fake::{Fake, Faults, PIECE_BYTES};
use crate::run::run;

#[test]
fn stat_shows_what_the_peer_knows() {
    let fake = Fake::start();
    fake.put("b", "a k", b"hello");
    let text = run(&fake, &["stat", "dfs://b/a%20k"]).done().text();
    for part in ["dfs://b/a k", "length               5", "2023-01-02T03:24:05Z", "3610a686", "clean"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&run(&fake, &["stat", "--json", "dfs://b/a k"]).done().text()).expect("JSON");
    assert_eq!((&json["key"], &json["length"], &json["piece_bytes"]), (&"a k".into(), &5.into(), &PIECE_BYTES.into()));
}

#[test]
fn the_words_of_the_server_are_shown() {
    let fake = Fake::start();
    run(&fake, &["stat", "dfs://b/none"]).failed(1, &["Error: failed to stat dfs://b/none: ", "does not exist"]);
    let refusal = ErrorReply::new(ErrorCode::AccessDenied, "the key is wrong").with_detail("InvalidAccessKeyId");
    let fake = Fake::start().with(Faults { refusals: VecDeque::from([refusal]), ..Faults::default() });
    run(&fake, &["stat", "dfs://b/k"]).failed(1, &["the key is wrong", "InvalidAccessKeyId"]);
}

#[test]
fn what_may_heal_is_tried_again() {
    let busy = || ErrorReply::new(ErrorCode::Busy, "too much to do").with_retry_after_ms(1);
    let fake = Fake::start().with(Faults { refusals: VecDeque::from([busy(), busy()]), ..Faults::default() });
    fake.put("b", "k", b"x");
    run(&fake, &["stat", "dfs://b/k"]).done();
    assert_eq!(fake.count("STAT"), 3);
}

#[test]
fn rm_says_what_it_removed_and_goes_on_after_a_failure() {
    let refusal = ErrorReply::new(ErrorCode::AccessDenied, "not yours");
    let fake = Fake::start().with(Faults { refusals: VecDeque::from([refusal]), ..Faults::default() });
    for key in ["first", "a//b/", "keep"] {
        fake.put("b", key, b"x");
    }
    let done = run(&fake, &["rm", "dfs://b/first", "dfs://b/a//b/", "dfs://b/none"]);
    let done = done.failed(1, &["failed to remove first in bucket b", "not yours"]);
    assert_eq!(done.text(), "remove a//b/ in bucket b\nremove none in bucket b\n");
    assert_eq!(fake.keys("b"), ["first", "keep"]);
}

#[test]
fn rm_checks_all_its_urls_first() {
    let fake = Fake::start();
    fake.put("b", "k", b"x");
    run(&fake, &["rm", "dfs://b/k", "dfs://b"]).failed(2, &["names no object"]);
    assert_eq!(fake.keys("b"), ["k"]);
}

#[test]
fn a_query_is_cut_off_with_a_word_about_it() {
    let fake = Fake::start();
    fake.put("b", "k", b"x");
    fake.put("b", "k?v", b"x");
    run(&fake, &["rm", "dfs://b/k%3Fv"]).done();
    assert_eq!(fake.keys("b"), ["k"]);
    assert!(run(&fake, &["rm", "dfs://b/k?v"]).done().stderr.contains("%3F"));
    assert!(fake.keys("b").is_empty());
}

#[test]
fn ls_groups_by_slash_or_lists_all() {
    let fake = Fake::start();
    for key in ["a/1", "a/2", "b c", "d/e/f"] {
        fake.put("bucket", key, b"123");
    }
    let urls = |args: &[&str]| -> Vec<String> {
        let text = run(&fake, args).done().text();
        text.lines().map(|line| line.split_whitespace().last().expect("a URL").to_string()).collect()
    };
    assert_eq!(urls(&["ls", "dfs://bucket"]), ["dfs://bucket/a/", "dfs://bucket/b%20c", "dfs://bucket/d/"]);
    assert_eq!(urls(&["ls", "dfs://bucket/a/"]), ["dfs://bucket/a/1", "dfs://bucket/a/2"]);
    assert_eq!(urls(&["ls", "-r", "dfs://bucket/"]).len(), 4);
    assert_eq!(urls(&["ls", "-r", "dfs://bucket/", "--limit", "2"]).len(), 2);
    let json = run(&fake, &["ls", "--json", "dfs://bucket"]).done().text();
    let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["prefix"], &lines[1]["key"]), (&"a/".into(), &"b c".into()));
}

#[test]
fn ls_follows_all_pages() {
    let fake = Fake::start();
    for number in 0..2500 {
        fake.put("b", &format!("{number:05}"), b"");
    }
    let text = run(&fake, &["ls", "dfs://b"]).done().text();
    assert_eq!(text.lines().count(), 2500);
    assert!(fake.count("LIST") >= 3);
    assert_eq!(run(&fake, &["ls", "dfs://b", "--limit", "1001"]).done().text().lines().count(), 1001);
}
