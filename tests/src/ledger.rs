//! The log of acknowledgements: what each key must hold after a crash, and what it may hold.
//!
//! A writer notes each write or deletion before it sends it ([`Ledger::begin`]) and again when it was acknowledged
//! ([`Ledger::acknowledge`]). What was acknowledged last is certain. What was begun since and never answered may have
//! happened, wholly, or not. After a crash [`Ledger::settle`] compares what is found and takes it for certain, with one
//! exception: a write that goes through the bucket before it is known here (write-back, copy) may have reached the
//! bucket although the peer still shows the version before, so it stays possible until the next acknowledgement.
//! Only one thread writes a key.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::data::Payload;
use crate::http::Response;
use crate::scene::same;

/// What a write leaves under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// The bytes; `None` is absence.
    pub payload: Option<Payload>,
    /// Whether the bucket never gets it.
    pub ephemeral: bool,
    /// Whether the bucket has it before the peer knows of it.
    pub through_bucket: bool,
}

impl Content {
    /// Nothing is there.
    pub const ABSENT: Content = Content { payload: None, ephemeral: false, through_bucket: false };
}

/// What a key may hold.
#[derive(Clone, Debug)]
struct Expected {
    certain: Content,
    possible: Vec<Content>,
}

/// What all keys of one writer may hold.
#[derive(Clone, Debug, Default)]
pub struct Ledger(BTreeMap<String, Expected>);

impl Ledger {
    /// A write or deletion is about to be sent.
    pub fn begin(&mut self, key: &str, content: Content) {
        self.expected(key).possible.push(content);
    }

    /// The one that was begun last was acknowledged.
    pub fn acknowledge(&mut self, key: &str) {
        let expected = self.expected(key);
        expected.certain = expected.possible.pop().expect("what is acknowledged was begun");
        expected.possible.clear();
    }

    /// The one that was begun last was refused before anything was done.
    pub fn refuse(&mut self, key: &str) {
        self.expected(key).possible.pop();
    }

    /// What a key holds, if that is certain.
    pub fn certain(&self, key: &str) -> Option<Content> {
        match self.0.get(key) {
            None => Some(Content::ABSENT),
            Some(expected) => expected.possible.is_empty().then_some(expected.certain),
        }
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Keys that certainly hold an object.
    pub fn held(&self) -> usize {
        self.0.values().filter(|expected| expected.certain.payload.is_some()).count()
    }

    /// Writes and deletions without an answer.
    pub fn open(&self) -> usize {
        self.0.values().map(|expected| expected.possible.len()).sum()
    }

    /// What an answer to GET shows, which must be one of the things that the key may hold.
    pub fn found(&self, key: &str, answer: &Response) -> Result<Content> {
        let expected = self.0.get(key);
        let possible = expected.iter().flat_map(|expected| expected.possible.iter().rev().chain([&expected.certain]));
        let candidates = possible.chain(expected.is_none().then_some(&Content::ABSENT));
        ensure!(matches!(answer.status(), 200 | 404), "{key}: {} {}", answer.status(), answer.text());
        let is_it = |content: &&Content| match content.payload {
            None => answer.status() == 404,
            Some(payload) => answer.status() == 200 && same(&answer.body, payload),
        };
        let mut fitting = candidates.filter(is_it);
        let newest = fitting.next().copied().with_context(|| {
            let bytes = (answer.status() == 200).then_some(answer.body.len());
            format!("{key}: found {} with {bytes:?} bytes instead of {expected:?}", answer.status())
        })?;
        // Empty objects are all alike: which of them it is cannot be told, so the bucket need not have it.
        let ephemeral = newest.ephemeral || fitting.any(|content| content.ephemeral);
        Ok(Content { ephemeral, ..newest })
    }

    /// Takes what is found after a crash for certain; an error if it is neither what was acknowledged nor a write that was
    /// cut off. Gives it.
    pub fn settle(&mut self, key: &str, answer: &Response) -> Result<Content> {
        let found = self.found(key, answer)?;
        let expected = self.expected(key);
        expected.certain = found;
        expected.possible.retain(|content| content.through_bucket && content.payload != found.payload);
        Ok(found)
    }

    /// Settles every key: reads it by `get` and compares with the keys that `list` shows.
    pub fn settle_all(&mut self, listed: &[String], get: impl Fn(&str) -> Result<Response>) -> Result<()> {
        let keys: Vec<String> = self.keys().map(str::to_owned).collect();
        for key in keys {
            let found = self.settle(&key, &get(&key)?)?;
            let shown = listed.contains(&key);
            ensure!(shown == found.payload.is_some(), "{key}: {found:?}, and the listing says otherwise");
        }
        Ok(())
    }

    fn expected(&mut self, key: &str) -> &mut Expected {
        let absent = || Expected { certain: Content::ABSENT, possible: Vec::new() };
        self.0.entry(key.to_owned()).or_insert_with(absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Head;

    fn holds(payload: Payload) -> Content {
        Content { payload: Some(payload), ..Content::ABSENT }
    }

    fn answer(payload: Option<Payload>) -> Response {
        let status = if payload.is_some() { 200 } else { 404 };
        let body = payload.map(|payload| payload.bytes()).unwrap_or_default();
        Response { head: Head { status, headers: Vec::new() }, body }
    }

    #[test]
    fn what_was_acknowledged_must_be_there_whole() {
        let (old, new, cut_off) = (Payload::new(1, 9000), Payload::new(2, 9000), Payload::new(3, 9000));
        let mut ledger = Ledger::default();
        for payload in [old, new] {
            ledger.begin("k", holds(payload));
            ledger.acknowledge("k");
        }
        ledger.begin("k", holds(cut_off));
        for good in [new, cut_off] {
            assert!(ledger.clone().settle("k", &answer(Some(good))).is_ok());
        }
        let mut torn = answer(Some(cut_off));
        torn.body[8999] ^= 1;
        for bad in [answer(None), answer(Some(old)), answer(Some(Payload::new(3, 8999))), torn] {
            assert!(ledger.clone().settle("k", &bad).is_err(), "{bad:?}");
        }
        assert!(ledger.found("never written", &answer(None)).is_ok());
        assert!(ledger.found("never written", &answer(Some(old))).is_err());
    }

    #[test]
    fn of_two_that_are_alike_the_bucket_may_lack_either() {
        let empty = Payload::new(1, 0);
        let mut ledger = Ledger::default();
        ledger.begin("k", Content { ephemeral: true, ..holds(empty) });
        ledger.acknowledge("k");
        ledger.begin("k", holds(Payload::new(2, 0)));
        assert!(ledger.settle("k", &answer(Some(empty))).expect("one of them").ephemeral);
    }

    #[test]
    fn what_goes_through_the_bucket_may_show_later() {
        let (before, through) = (Payload::new(1, 10), Payload::new(2, 10));
        let mut ledger = Ledger::default();
        ledger.begin("k", holds(before));
        ledger.acknowledge("k");
        ledger.begin("k", Content { through_bucket: true, ..holds(through) });
        ledger.settle("k", &answer(Some(before))).expect("the version before");
        assert_eq!(ledger.certain("k"), None);
        ledger.settle("k", &answer(Some(through))).expect("the bucket had it");
        ledger.settle("k", &answer(Some(before))).expect_err("it does not go back");
    }
}
