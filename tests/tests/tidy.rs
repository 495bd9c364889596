//! Style as a test: module docs, layers, banned names and calls, file lengths, documents that are alive.
//!
//! Each rule is a function from one source to complaints; a canary shows that each rule complains. A complaint says
//! where, what, and what to do instead. Function lengths, unwraps and casts are clippy's part.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dfstore_tests::source::{self, Source, files_below, has_word};

/// Longest file, in lines.
const FILE_LINES_MAX: usize = 500;
/// Files that may be longer, up to the length given here, which may only shrink. Nothing over 700.
const LONGER_FILES: [(&str, usize); 0] = [];
const LONGER_FILE_LINES_MAX: usize = 700;

const BANNED_FILE_NAMES: [&str; 6] = ["util", "helper", "common", "manager", "handler", "type"];

/// Which modules of the peer each of its modules may name. A new module gets a line here. Resources know nothing of each
/// other, with two exceptions towards the store: a catalog record holds its extents (plain data), and the background
/// reads its pieces, under its leases.
const LAYERS: [(&str, &[&str]); 17] = [
    ("http", &["engine", "rt", "limits", "config", "metrics"]),
    ("native", &["engine", "membership", "rt", "limits", "config", "metrics"]),
    (
        "engine",
        &[
            "links",
            "swarm",
            "placement",
            "membership",
            "store",
            "catalog",
            "background",
            "sidecar",
            "rt",
            "limits",
            "config",
            "metrics",
        ],
    ),
    ("links", &["membership", "rt", "limits", "config", "metrics"]),
    ("swarm", &["limits"]),
    ("placement", &["membership"]),
    ("membership", &[]),
    ("store", &["rt", "limits", "config", "metrics"]),
    ("catalog", &["store", "rt", "limits", "config", "metrics"]),
    ("background", &["store", "rt", "limits", "config", "metrics"]),
    ("sidecar", &["membership", "rt", "limits", "config", "metrics"]),
    ("probe", &["rt", "limits", "config"]),
    ("logging", &["config"]),
    ("rt", &["limits", "config", "metrics"]),
    ("config", &["rt", "limits", "metrics"]),
    ("metrics", &["rt", "limits", "config"]),
    ("limits", &[]),
];
/// The binary and what puts the parts together see everything.
const COMPOSITION: [&str; 4] = ["main", "lib", "cli_args", "server"];

/// Crates that only some folders may name, so that each can be replaced.
const SEAMS: [(&str, &[&str]); 5] = [
    ("monoio", &["peer/src/rt/", "cli/src/rt/"]),
    ("glommio", &["peer/src/background/"]),
    ("tokio", &["peer/src/sidecar/", "tests/", "tools/", "benches/"]),
    ("aws_sdk_s3", &["peer/src/sidecar/", "tests/"]),
    ("redb", &["peer/src/catalog/", "tests/", "benches/"]),
];

/// Code that must not be, and what to do instead.
const BANNED_CODE: [(&str, &str); 6] = [
    ("todo!(", "do it, or leave it out"),
    ("unimplemented!(", "do it, or leave it out"),
    ("dbg!(", "use tracing, or remove it"),
    ("unbounded(", "every channel has a named maximum in limits"),
    ("unbounded_channel(", "every channel has a named maximum in limits"),
    ("#[ignore", "make the test fast, or leave it out"),
];
/// Words of open notes, cut in two so that this file holds none.
const OPEN_NOTES: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

type Rule = fn(&Source) -> Vec<String>;
const RULES: [(&str, Rule); 8] = [
    ("module doc", module_doc),
    ("file name", file_name),
    ("file length", file_length),
    ("layers", layers),
    ("seams", seams),
    ("unsafe", unsafe_code),
    ("banned code", banned_code),
    ("sleeps", sleeps),
];

fn complaint(source: &Source, line: usize, text: &str) -> String {
    format!("{}:{line}: {text}", source.path)
}

fn module_doc(source: &Source) -> Vec<String> {
    let doc = source.text.lines().take_while(|line| line.starts_with("//!")).map(str::len).sum::<usize>();
    if doc >= 30 {
        return Vec::new();
    }
    vec![complaint(source, 1, "starts with no module doc: say what it is, what it owns, what can fail")]
}

fn file_name(source: &Source) -> Vec<String> {
    let stem = Path::new(&source.path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let banned = BANNED_FILE_NAMES.iter().any(|name| stem == *name || stem == format!("{name}s"));
    if banned { vec![complaint(source, 1, "a name that says nothing: name it after what it does")] } else { Vec::new() }
}

fn file_length(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let exception = LONGER_FILES.iter().find(|(path, _)| *path == source.path);
    let said = match exception {
        None if lines > FILE_LINES_MAX => format!("{lines} lines, over {FILE_LINES_MAX}: split it"),
        Some((_, most)) if lines > *most => format!("{lines} lines, over its {most}: exceptions only shrink"),
        Some(_) if lines <= FILE_LINES_MAX => "is short enough now: take it off the list of exceptions".to_owned(),
        _ => return Vec::new(),
    };
    vec![complaint(source, lines, &said)]
}

fn layers(source: &Source) -> Vec<String> {
    let Some(inside) = source.path.strip_prefix("peer/src/") else { return Vec::new() };
    let module = inside.split(['/', '.']).next().unwrap_or_default();
    if COMPOSITION.contains(&module) {
        return Vec::new();
    }
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        let text = format!("module {module} has no layer: give it one in tests/tests/tidy.rs");
        return vec![complaint(source, 1, &text)];
    };
    let mut complaints = Vec::new();
    for (line, named) in crate_modules(source) {
        let known = LAYERS.iter().any(|(name, _)| *name == named);
        if known && named != module && !allowed.contains(&named.as_str()) {
            complaints.push(complaint(source, line, &format!("{module} may not name {named} (layers)")));
        }
    }
    if matches!(module, "http" | "native") {
        let files = source.lines().filter(|(_, code)| code.contains("std::fs") || code.contains("rustix::fs"));
        complaints.extend(files.map(|(line, _)| complaint(source, line, "a face never touches a file")));
    }
    complaints
}

/// The top modules that a source names: `crate::name` and the names in `use crate::{...}`.
fn crate_modules(source: &Source) -> Vec<(usize, String)> {
    let identifier = |text: &str| -> String {
        text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
    };
    let mut found = Vec::new();
    for (start, _) in source.code.match_indices("crate::") {
        let line = source.code[..start].lines().count().max(1);
        let rest = &source.code[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push((line, identifier(rest))),
            Some(group) => found.extend(group_heads(group).into_iter().map(|head| (line, identifier(head)))),
        }
    }
    found
}

/// The starts of the items directly in a `{...}` group whose opening brace has been read.
fn group_heads(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut heads) = (0, 0, Vec::new());
    for (index, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.push(group[start..index].trim());
                start = index + 1;
                if character == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

fn seams(source: &Source) -> Vec<String> {
    // `rt.rs` stands for a folder of one file.
    let place = source.path.replace(".rs", "/");
    let mut complaints = Vec::new();
    for (name, folders) in SEAMS {
        if folders.iter().any(|folder| place.starts_with(folder)) {
            continue;
        }
        let named = source.lines().filter(|(_, code)| has_word(code, name) && code.contains(&format!("{name}::")));
        complaints.extend(named.map(|(line, _)| complaint(source, line, &format!("only {folders:?} may name {name}"))));
    }
    complaints
}

fn unsafe_code(source: &Source) -> Vec<String> {
    let place = source.path.replace(".rs", "/");
    if place.starts_with("peer/src/rt/") || place.starts_with("cli/src/rt/") {
        return Vec::new();
    }
    let found = source.lines().filter(|(_, code)| has_word(code, "unsafe"));
    found.map(|(line, _)| complaint(source, line, "unsafe code lives in rt/ only")).collect()
}

fn banned_code(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (line, code) in source.lines() {
        let found = BANNED_CODE.iter().filter(|(banned, _)| code.contains(banned));
        complaints.extend(found.map(|(banned, instead)| complaint(source, line, &format!("{banned}: {instead}"))));
    }
    let noted = |text: &str| OPEN_NOTES.iter().any(|note| has_word(text, note));
    let notes = source.text.lines().enumerate().filter(|(_, text)| noted(text));
    complaints.extend(notes.map(|(index, _)| complaint(source, index + 1, "an open note: do it, or write an issue")));
    complaints
}

/// A test that sleeps is slow or wrong; it polls with `eventually` instead.
fn sleeps(source: &Source) -> Vec<String> {
    let is_test = source.path.contains("/tests/") || source.path.ends_with("/tests.rs");
    if !is_test {
        return Vec::new();
    }
    let found = source.lines().filter(|(_, code)| code.contains("thread::sleep"));
    found.map(|(line, _)| complaint(source, line, "no sleeps in tests: poll with dfstore_tests::eventually")).collect()
}

#[test]
fn sources_follow_the_rules() {
    let sources = source::all().expect("the sources can be read");
    assert!(sources.len() > 20, "only {} sources found", sources.len());
    let complaints: Vec<String> =
        sources.iter().flat_map(|source| RULES.iter().flat_map(move |(_, rule)| rule(source))).collect();
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn exceptions_are_bounded_and_exist() {
    for (path, lines) in LONGER_FILES {
        assert!(lines <= LONGER_FILE_LINES_MAX, "{path}: {lines} is over {LONGER_FILE_LINES_MAX}");
        assert!(source::root().join(path).is_file(), "{path} is gone: take it off the list");
    }
}

#[test]
fn every_rule_complains_about_its_canary() {
    let long = "//! A module doc that is long enough to pass.\n".to_owned() + &"\n".repeat(FILE_LINES_MAX);
    let note = format!("// {}: later", OPEN_NOTES[0]);
    let canaries: [(&str, &str, &str); 13] = [
        ("module doc", "peer/src/store/a.rs", "//! x\nfn a() {}"),
        ("file name", "peer/src/store/utils.rs", ""),
        ("file length", "peer/src/store/a.rs", &long),
        ("layers", "peer/src/http/a.rs", "use crate::store::Store;"),
        ("layers", "peer/src/store/a.rs", "use crate::{limits::A, rt::{B, C}, catalog::D};"),
        ("layers", "peer/src/native/a.rs", "use std::fs::File;"),
        ("layers", "peer/src/novelty.rs", ""),
        ("seams", "peer/src/http/a.rs", "use monoio::net::TcpStream;"),
        ("seams", "cli/src/main.rs", "tokio::spawn(x)"),
        ("unsafe", "peer/src/http/a.rs", "let a = unsafe { b() };"),
        ("banned code", "peer/src/http/a.rs", "let (a, b) = flume::unbounded();"),
        ("banned code", "peer/src/http/a.rs", &note),
        ("sleeps", "tests/tests/a.rs", "std::thread::sleep(second);"),
    ];
    for (name, path, text) in canaries {
        let (_, rule) = RULES.iter().find(|(rule, _)| *rule == name).expect("a rule of this name");
        assert!(!rule(&Source::new(path, text)).is_empty(), "{name} is silent about {text:?}");
    }
    let named: BTreeSet<&str> = canaries.iter().map(|(name, _, _)| *name).collect();
    assert_eq!(named.len(), RULES.len(), "every rule has a canary");
}

#[test]
fn rules_are_silent_about_good_code() {
    let good = "//! A module that names what it may: the store and the limits.\n\
                use crate::{limits::A, store::{B, rt_like::C}};\n\
                // The word unsafe in a comment, and \"monoio::x\" in a string, are no code.\n\
                const A: &str = \"unsafe monoio::net\";\n";
    let source = Source::new("peer/src/engine/get.rs", good);
    let complaints: Vec<String> = RULES.iter().flat_map(|(_, rule)| rule(&source)).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// Markdown that readers meet: at the root, in docs, and beside the code. Path from the root, and text.
fn documents() -> Vec<(String, String)> {
    let root = source::root();
    let folders = ["docs", "proto", "peer", "cli", "tests", "tools", "benches"];
    let mut paths: Vec<_> =
        folders.iter().filter_map(|folder| files_below(&root.join(folder), "md").ok()).flatten().collect();
    for entry in fs::read_dir(&root).expect("the root").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "md") {
            paths.push(entry.path());
        }
    }
    let relative = |path: &Path| path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
    let read = |path: &Path| fs::read_to_string(path).expect("a document can be read");
    paths.iter().map(|path| (relative(path), read(path))).collect()
}

/// Lines inside or outside fenced code blocks.
fn block_lines(text: &str, wanted_inside: bool) -> Vec<&str> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside == wanted_inside {
            lines.push(line.trim());
        }
    }
    lines
}

#[test]
fn commands_in_documents_are_alive() {
    let root = source::root();
    for (path, text) in documents() {
        for line in block_lines(&text, true) {
            let command = line.trim_start_matches("$ ").split_whitespace().next().unwrap_or_default();
            if command.starts_with("./tools/") || command.starts_with(".ci/") {
                let mode = fs::metadata(root.join(command)).map(|file| file.permissions().mode());
                assert!(mode.is_ok_and(|mode| mode & 0o111 != 0), "{path}: {command} is not there, or no program");
            }
        }
    }
}

#[test]
fn links_in_documents_lead_somewhere() {
    let root = source::root();
    for (path, text) in documents() {
        let folder = root.join(&path).parent().expect("a file lies in a folder").to_path_buf();
        for line in block_lines(&text, false) {
            for (start, _) in line.match_indices("](") {
                let target = line[start + 2..].split([')', '#', ' ']).next().unwrap_or_default();
                let outside = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
                assert!(outside || folder.join(target).exists(), "{path} links to {target}, which is not there");
            }
        }
    }
}
