//! Walks one mapping of the tree: keys are asked for by name, and what nobody asked for is unknown.
//!
//! The set of known keys is thereby the code that reads them: there is no second list to keep. Keys match without
//! regard to case, as the original's did.

use super::report::{Report, join};
use super::yaml::{Entry, Node, Place, Value};

/// A mapping and the keys of it that have been asked for.
pub(super) struct Section<'a> {
    path: String,
    place: Place,
    entries: &'a [Entry],
    asked: Vec<&'static str>,
}

/// A value that was found, with its path.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) path: String,
    pub(super) node: &'a Node,
}

impl<'a> Section<'a> {
    /// The whole tree.
    pub(super) fn root(report: &mut Report, node: &'a Node) -> Section<'a> {
        Field { path: String::new(), node }.section(report).unwrap_or(Section {
            path: String::new(),
            place: node.place.clone(),
            entries: &[],
            asked: Vec::new(),
        })
    }

    /// Where it starts, for problems with what is missing.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The value of this key; `None` when it is absent or null.
    pub(super) fn get(&mut self, report: &mut Report, key: &'static str) -> Option<Field<'a>> {
        self.find(report, key).filter(|field| !matches!(field.node.value, Value::Null))
    }

    /// As [`get`](Self::get), but also finds a null.
    pub(super) fn find(&mut self, report: &mut Report, key: &'static str) -> Option<Field<'a>> {
        let path = join(&self.path, key);
        self.asked.push(key);
        report.known(path.clone());
        let mut found = self.entries.iter().filter(|entry| entry.key.eq_ignore_ascii_case(key));
        let first = found.next()?;
        for again in found {
            report.problem(&again.place, format!("\"{path}\" is given twice"));
        }
        Some(Field { path, node: &first.node })
    }

    /// The value of this key as `parse` understands it; what it does not understand is a problem.
    /// `parse` fails with a description of what is allowed.
    pub(super) fn value<T>(
        &mut self,
        report: &mut Report,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.get(report, key)?.value(report, parse)
    }

    /// The mapping under this key, if there is one.
    pub(super) fn section(&mut self, report: &mut Report, key: &'static str) -> Option<Section<'a>> {
        self.get(report, key)?.section(report)
    }

    /// As [`section`](Self::section), but one without keys where there is none: all its keys may be left out.
    pub(super) fn section_or_empty(&mut self, report: &mut Report, key: &'static str) -> Section<'a> {
        let place = self.place.clone();
        let path = join(&self.path, key);
        self.section(report, key).unwrap_or(Section { path, place, entries: &[], asked: Vec::new() })
    }

    /// A key of the original that has no meaning here: accepted whatever its value, with a warning.
    pub(super) fn without_effect(&mut self, report: &mut Report, key: &'static str, why: &str) {
        if let Some(field) = self.get(report, key) {
            report.warning(&field.node.place, format_args!("\"{}\" has no effect: {why}", field.path));
        }
    }

    /// Every key that was not asked for is unknown.
    pub(super) fn done(self, report: &mut Report) {
        for entry in self.entries {
            if !self.asked.iter().any(|key| entry.key.eq_ignore_ascii_case(key)) {
                report.unknown(entry.place.clone(), &self.path, &entry.key);
            }
        }
    }
}

impl<'a> Field<'a> {
    /// As a mapping.
    pub(super) fn section(&self, report: &mut Report) -> Option<Section<'a>> {
        let entries: &'a [Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            Value::Scalar(_) | Value::List(_) => {
                let name = if self.path.is_empty() { "the file".to_owned() } else { format!("\"{}\"", self.path) };
                let found = kind(&self.node.value);
                report.problem(&self.node.place, format!("{name}: found {found}, expected keys and values"));
                return None;
            }
        };
        Some(Section { path: self.path.clone(), place: self.node.place.clone(), entries, asked: Vec::new() })
    }

    /// As a single value that `parse` understands.
    pub(super) fn value<T>(&self, report: &mut Report, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let message = match &self.node.value {
            Value::Scalar(text) => match parse(text) {
                Ok(value) => return Some(value),
                Err(allowed) => format!("\"{}\": {text:?} is not valid: {allowed}", self.path),
            },
            other => format!("\"{}\": found {}, expected a single value", self.path, kind(other)),
        };
        report.problem(&self.node.place, message);
        None
    }

    /// As [`value`](Self::value) for a value that must never be shown.
    pub(super) fn secret<T>(&self, report: &mut Report, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let message = match &self.node.value {
            Value::Scalar(text) => match parse(text) {
                Ok(value) => return Some(value),
                Err(allowed) => format!("\"{}\" (its value is not shown) is not valid: {allowed}", self.path),
            },
            other => format!("\"{}\": found {}, expected a single value", self.path, kind(other)),
        };
        report.problem(&self.node.place, message);
        None
    }

    /// As a list.
    pub(super) fn list(&self, report: &mut Report) -> Option<Vec<Field<'a>>> {
        let Value::List(items) = &self.node.value else {
            let found = kind(&self.node.value);
            report.problem(&self.node.place, format!("\"{}\": found {found}, expected a list", self.path));
            return None;
        };
        let item = |(index, node)| Field { path: format!("{}[{index}]", self.path), node };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// As a mapping whose keys are names chosen by the user.
    pub(super) fn named(&self, report: &mut Report) -> Vec<(&'a Entry, Field<'a>)> {
        let Value::Map(entries) = &self.node.value else {
            let found = kind(&self.node.value);
            report.problem(&self.node.place, format!("\"{}\": found {found}, expected names and values", self.path));
            return Vec::new();
        };
        let field = |entry: &'a Entry| (entry, Field { path: join(&self.path, &entry.key), node: &entry.node });
        entries.iter().map(field).collect()
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Scalar(_) => "a single value",
        Value::List(_) => "a list",
        Value::Map(_) => "keys and values",
    }
}
