//! What is wrong with a configuration, and what is merely worth saying: collected, so that all of it is told at once.

use std::fmt;

use super::yaml::Place;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `FILE:LINE:COLUMN`, `FILE`, or the flag or variable that gave the value.
    pub place: String,
    /// The key, the value, and what is allowed.
    pub message: String,
}

/// The configuration cannot be used; names every reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// In the order of the file where they have a place in it. Never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> ConfigError {
        ConfigError { problems: vec![problem] }
    }
}

/// Collects while the tree is walked.
pub(super) struct Report {
    file: String,
    problems: Vec<((u64, u64), Problem)>,
    warnings: Vec<String>,
    known: Vec<String>,
    unknown: Vec<UnknownKey>,
}

/// A key nobody asked for, judged when all known keys have been seen.
struct UnknownKey {
    place: Place,
    section: String,
    key: String,
}

impl Report {
    pub(super) fn new(file: &str) -> Report {
        Report {
            file: file.to_owned(),
            problems: Vec::new(),
            warnings: Vec::new(),
            known: Vec::new(),
            unknown: Vec::new(),
        }
    }

    pub(super) fn problem(&mut self, place: &Place, message: impl Into<String>) {
        let order = match place {
            Place::File { line, column } => (*line, *column),
            Place::Override(_) => (0, 0),
        };
        let problem = Problem { place: self.show(place), message: message.into() };
        self.problems.push((order, problem));
    }

    pub(super) fn warning(&mut self, place: &Place, message: impl fmt::Display) {
        let shown = self.show(place);
        self.warnings.push(format!("{shown}: {message}"));
    }

    /// A warning about the file as a whole.
    pub(super) fn general_warning(&mut self, message: impl fmt::Display) {
        self.warnings.push(format!("{}: {message}", self.file));
    }

    /// This key has a meaning.
    pub(super) fn known(&mut self, path: String) {
        self.known.push(path);
    }

    /// This key has none.
    pub(super) fn unknown(&mut self, place: Place, section: &str, key: &str) {
        self.unknown.push(UnknownKey { place, section: section.to_owned(), key: key.to_owned() });
    }

    /// The warnings, or all problems.
    pub(super) fn finish(mut self) -> Result<Vec<String>, ConfigError> {
        for unknown in std::mem::take(&mut self.unknown) {
            let message = unknown.message(&self.known);
            self.problem(&unknown.place, message);
        }
        self.problems.sort_by_key(|(order, _)| *order);
        if self.problems.is_empty() {
            return Ok(self.warnings);
        }
        Err(ConfigError { problems: self.problems.into_iter().map(|(_, problem)| problem).collect() })
    }

    fn show(&self, place: &Place) -> String {
        match place {
            Place::File { line: 0, .. } => self.file.clone(),
            Place::File { line, column } => format!("{}:{line}:{column}", self.file),
            Place::Override(flag) => (*flag).to_owned(),
        }
    }
}

impl UnknownKey {
    fn message(&self, known: &[String]) -> String {
        // `secretKey:VALUE` without the space is one long key: what follows the colon is not for showing.
        if let Some((name, _)) = self.key.split_once(':') {
            return format!("unknown key \"{}:...\"; a space is missing after the colon", join(&self.section, name));
        }
        format!("unknown key \"{}\"{}", join(&self.section, &self.key), self.hint(known))
    }

    /// The nearest key of the same section; or a key of nearly this name elsewhere; or what the section knows.
    fn hint(&self, known: &[String]) -> String {
        let siblings: Vec<&str> = known.iter().filter_map(|path| member(path, &self.section)).collect();
        if let Some(near) = nearest(&self.key, siblings.iter().copied()) {
            return format!("; did you mean \"{near}\"?");
        }
        let last = |path: &String| path.rsplit('.').next().unwrap_or_default().to_owned();
        let elsewhere = known.iter().find(|path| last(path).eq_ignore_ascii_case(&self.key));
        if let Some(path) = elsewhere {
            return format!("; did you mean \"{path}\"?");
        }
        format!("; known here: {}", siblings.join(", "))
    }
}

/// `path` without the section in front, if it is a direct member of it.
fn member<'a>(path: &'a str, section: &str) -> Option<&'a str> {
    let rest = if section.is_empty() { path } else { path.strip_prefix(section)?.strip_prefix('.')? };
    (!rest.contains('.')).then_some(rest)
}

/// The name most like `wanted`, if it is alike enough to be what was meant.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_ascii_lowercase();
    let allowed = (wanted.chars().count() / 3).clamp(1, 3);
    names
        .map(|name| (strsim::damerau_levenshtein(&wanted, &name.to_ascii_lowercase()), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}
