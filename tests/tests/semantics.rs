//! `docs/SEMANTICS.md` is alive: each test that it names exists, and each promise names one.

use std::fs;

use anyhow::{Context, Result, ensure};
use dfstore_tests::source::{self, Source, has_word};

#[test]
fn every_promise_names_tests_that_exist() -> Result<()> {
    let text = fs::read_to_string(source::root().join("docs/SEMANTICS.md")).context("docs/SEMANTICS.md")?;
    let sources = source::all()?;
    let mut promises = 0;
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise")) {
        let (promise, tests) = line.trim_end_matches(" |").rsplit_once(" | ").context("two columns")?;
        promises += 1;
        for test in tests.split(", ") {
            let name = test.strip_prefix('`').and_then(|test| test.strip_suffix('`'));
            let (suite, function) = name.and_then(|name| name.rsplit_once("::")).context(promise.to_owned())?;
            ensure!(sources.iter().any(|source| has_test(source, suite, function)), "{test} is not there: {promise}");
        }
    }
    ensure!(promises > 30, "only {promises} promises found");
    Ok(())
}

fn has_test(source: &Source, suite: &str, function: &str) -> bool {
    let path = format!("tests/tests/{}.rs", suite.replace("::", "/"));
    source.path == path && has_word(&source.code, function)
}
