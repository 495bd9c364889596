//! `docs/SEMANTICS.md` is alive: each test that it names exists, and each promise names one.

use std::fs;

use anyhow::{Context, Result, ensure};
use dfstore_tests::source::{self, Source};

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

/// Whether a file has this test. A suite is a file in `tests/tests/`; what begins with `peer::` or `proto::` is a file
/// in the sources of that crate.
fn has_test(source: &Source, suite: &str, function: &str) -> bool {
    let file = suite.replace("::", "/");
    let path = match file.split_once('/') {
        Some((member @ ("peer" | "proto"), file)) => format!("{member}/src/{file}.rs"),
        _ => format!("tests/tests/{file}.rs"),
    };
    source.path == path && is_test(&source.code, function)
}

/// Whether there is a function of this name under `#[test]`.
fn is_test(code: &str, function: &str) -> bool {
    code.match_indices(&format!("fn {function}(")).any(|(start, _)| {
        let attributes = code[..start].rsplit(['}', ';', '{']).next().unwrap_or_default();
        attributes.contains("#[test]") && attributes.ends_with(char::is_whitespace)
    })
}

#[test]
fn a_test_is_a_function_that_is_run() {
    let text = "fn help() {} // fn said()\n#[test]\n#[ignore = \"why\"]\nfn real() { help(); used(); }\nfn used() {}";
    for (path, suite) in [("tests/tests/a.rs", "a"), ("tests/tests/a/b.rs", "a::b"), ("peer/src/a/b.rs", "peer::a::b")]
    {
        let source = Source::new(path, text);
        assert!(has_test(&source, suite, "real") && !has_test(&source, "c", "real"));
        assert!(["help", "said", "used", "eal", "rea"].iter().all(|name| !has_test(&source, suite, name)));
    }
}
