//! A YAML text as a tree whose every node knows its place.
//!
//! Reads with `serde-saphyr` (which bounds depth, size and alias expansion, and refuses duplicate keys), decides
//! nothing. A tree in between, in place of derived structs, is what lets the reader report every problem at once,
//! each with its place, and tell an unknown key from a misspelt one. Scalars are kept as they are written: the reader
//! of a value knows its type, and a key that looks like a number stays the text it is.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file: line and column from 1. Zeros where only the file is known.
    File {
        /// Line, from 1.
        line: u64,
        /// Column in characters, from 1.
        column: u64,
    },
    /// Given by this flag or environment variable.
    Override(&'static str),
}

/// One node of the tree.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Text, number or boolean, as written and without quotes.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

/// The text is no YAML.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) place: Place,
    pub(super) message: String,
}

/// Reads a text of one document.
pub(super) fn parse(text: &str) -> Result<Node, Malformed> {
    let options = serde_saphyr::options! { non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough };
    let spanned: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options).map_err(|error| Malformed {
        place: error.location().map_or(Place::File { line: 0, column: 0 }, place),
        message: plain_message(&error),
    })?;
    Ok(node(text, spanned))
}

/// The reason without the place and the picture of the line, which would show secrets that stand on it.
fn plain_message(error: &serde_saphyr::Error) -> String {
    let shown = error.without_snippet().to_string();
    let line = shown.lines().next().unwrap_or_default();
    let reason = match (line.strip_prefix("error: "), line.find(": ")) {
        (Some(rest), _) => rest,
        (None, Some(colon)) if line.starts_with("line ") => &line[colon + 2..],
        _ => line,
    };
    let end = [" at line ", ", set DuplicateKeyPolicy"].iter().filter_map(|tail| reason.find(tail)).min();
    reason[..end.unwrap_or(reason.len())].to_owned()
}

/// A node as the deserializer gives it. Scalars that are no text come as a mark; their text is cut from the source.
enum Raw {
    Null,
    Text(String),
    Typed,
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn node(text: &str, spanned: Spanned<Raw>) -> Node {
    let value = match spanned.value {
        Raw::Null => Value::Null,
        Raw::Text(scalar) => Value::Scalar(scalar),
        Raw::Typed => Value::Scalar(source(text, spanned.defined).to_owned()),
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(text, item)).collect()),
        Raw::Map(entries) => Value::Map(entries.into_iter().map(|(key, value)| entry(text, key, value)).collect()),
    };
    Node { place: place(spanned.referenced), value }
}

fn entry(text: &str, key: Spanned<String>, value: Spanned<Raw>) -> Entry {
    Entry { place: place(key.referenced), key: key.value, node: node(text, value) }
}

fn place(location: Location) -> Place {
    Place::File { line: location.line(), column: location.column() }
}

/// What stands at this location of the text.
fn source(text: &str, location: Location) -> &str {
    let bytes = location.span().byte_offset().zip(location.span().byte_len());
    let range = bytes.and_then(|(start, len)| Some(usize::try_from(start).ok()?..usize::try_from(start + len).ok()?));
    range.and_then(|range| text.get(range)).unwrap_or_default().trim()
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML node")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".to_owned(),
            Value::Scalar(text) => format!("{text:?}"),
            Value::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
            Value::Map(entries) => {
                let entry = |entry: &Entry| match &entry.place {
                    Place::File { line, column } => format!("{}@{line}:{column}={}", entry.key, show(&entry.node)),
                    Place::Override(flag) => format!("{}@{flag}", entry.key),
                };
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
            }
        }
    }

    #[test]
    fn keeps_scalars_as_written_and_knows_each_place() {
        let text = "a: 0123\nb:\n  c: [1e5, yes, ~, 'x', 1_000, 0x1F]\n  d: \"é: 5\" # comment\ne: .inf\nf: 12e\ng:\n";
        let tree = parse(text).expect("valid");
        let expected = "{a@1:1=\"0123\", b@2:1={c@3:3=[\"1e5\", \"yes\", null, \"x\", \"1_000\", \"0x1F\"], \
                        d@4:3=\"é: 5\"}, e@5:1=\".inf\", f@6:1=\"12e\", g@7:1=null}";
        assert_eq!(show(&tree), expected);
    }

    #[test]
    fn aliases_and_merges_are_followed() {
        let tree = parse("base: &b {x: 017, y: 2}\ncopy: *b\nmore: {<<: *b, y: 3}\n").expect("valid");
        let shown = show(&tree);
        assert!(shown.matches("\"017\"").count() == 3, "{shown}");
        assert!(shown.contains("\"3\""), "{shown}");
    }

    #[test]
    fn tells_the_place_of_what_is_no_yaml() {
        for (text, line) in
            [("a: [1, 2\nb: 3\n", 2), ("a: 1\na: 2\n", 2), ("a: 'open\n\n", 1), ("a: b: c\n", 1), ("a:\n\tb: 1", 2)]
        {
            let error = parse(text).expect_err(text);
            let Place::File { line: found, column } = error.place else { panic!("{error:?}") };
            assert!(found.abs_diff(line) <= 2 && column >= 1, "{text:?}: {error:?}");
            assert!(!error.message.is_empty() && !error.message.contains('\n'), "{error:?}");
            println!("{text:?}: {error:?}");
        }
        assert!(parse("a: 1\n---\nb: 2\n").is_err(), "one document only");
    }

    #[test]
    fn deep_or_exploding_texts_are_refused() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        let mut bomb = String::from("a: &a [x,x,x,x,x,x,x,x,x,x]\n");
        for (from, to) in "abcdefgh".chars().zip("bcdefghi".chars()) {
            bomb.push_str(&format!("{to}: &{to} [{}]\n", vec![format!("*{from}"); 10].join(",")));
        }
        assert!(parse(&bomb).is_err());
    }
}
