//! The sources of this repository as the style test sees them: every Rust file, with comments and strings blanked out.
//!
//! The lexer knows just enough of Rust to tell code from comments, strings and characters; positions of lines stay as
//! they are. It owns nothing and fails only when a file cannot be read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folders that hold Rust code.
pub const MEMBERS: [&str; 6] = ["proto", "peer", "cli", "benches", "tests", "tools"];

/// One file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path from the root of the repository.
    pub path: String,
    /// As it is.
    pub text: String,
    /// As it is, with the inside of comments, strings and characters replaced by spaces.
    pub code: String,
}

impl Source {
    /// A file with this content.
    pub fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned(), code: code_of(text) }
    }

    /// Lines of code with their numbers, counted from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("a member lies below the root").to_path_buf()
}

/// Every Rust file of every member, sorted by path.
pub fn all() -> Result<Vec<Source>> {
    let root = root();
    let mut sources = Vec::new();
    for member in MEMBERS {
        for path in files_below(&root.join(member), "rs")? {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let relative = path.strip_prefix(&root).context("below the root")?;
            sources.push(Source::new(&relative.to_string_lossy(), &text));
        }
    }
    sources.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(sources)
}

/// Files with this extension below a folder, build output and hidden folders left out.
pub fn files_below(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(files_below(&path, extension)?);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether `word` stands in `text` with no identifier character on either side.
pub fn has_word(text: &str, word: &str) -> bool {
    let identifier = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        let after = text[start + word.len()..].chars().next();
        !before.is_some_and(identifier) && !after.is_some_and(identifier)
    })
}

/// What the lexer is inside of.
enum Inside {
    Code,
    LineComment,
    BlockComment(usize),
    Text,
    RawText(usize),
}

fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut inside = Inside::Code;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, next) = step(&inside, rest, first);
        let keep = matches!((&inside, &next), (Inside::Code, Inside::Code)) && length == first.len_utf8();
        for character in rest[..length].chars() {
            code.push(if keep || character == '\n' { character } else { ' ' });
        }
        rest = &rest[length..];
        inside = next;
    }
    code
}

/// How many bytes belong together at the start of `rest`, and what follows them.
fn step(inside: &Inside, rest: &str, first: char) -> (usize, Inside) {
    let one = first.len_utf8();
    match *inside {
        Inside::Code => {
            if rest.starts_with("//") {
                return (2, Inside::LineComment);
            }
            if rest.starts_with("/*") {
                return (2, Inside::BlockComment(1));
            }
            if let Some(hashes) = raw_text(rest) {
                return (hashes + 2, Inside::RawText(hashes));
            }
            match first {
                '"' => (1, Inside::Text),
                '\'' => (character_literal(rest), Inside::Code),
                _ => (one, Inside::Code),
            }
        }
        Inside::LineComment if first == '\n' => (1, Inside::Code),
        Inside::LineComment => (one, Inside::LineComment),
        Inside::BlockComment(depth) if rest.starts_with("/*") => (2, Inside::BlockComment(depth + 1)),
        Inside::BlockComment(1) if rest.starts_with("*/") => (2, Inside::Code),
        Inside::BlockComment(depth) if rest.starts_with("*/") => (2, Inside::BlockComment(depth - 1)),
        Inside::BlockComment(depth) => (one, Inside::BlockComment(depth)),
        Inside::Text if first == '\\' => (1 + rest[1..].chars().next().map_or(0, char::len_utf8), Inside::Text),
        Inside::Text if first == '"' => (1, Inside::Code),
        Inside::Text => (one, Inside::Text),
        Inside::RawText(hashes) => {
            let end = first == '"' && rest[1..].bytes().take_while(|byte| *byte == b'#').count() >= hashes;
            if end { (1 + hashes, Inside::Code) } else { (one, Inside::RawText(hashes)) }
        }
    }
}

/// The number of hashes when a raw string starts here.
fn raw_text(rest: &str) -> Option<usize> {
    let rest = rest.strip_prefix('r')?;
    let hashes = rest.bytes().take_while(|byte| *byte == b'#').count();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Bytes of the character literal that starts here; 1 when the quote starts a lifetime.
fn character_literal(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(1, |end| end + 4),
        Some(_) => match characters.next() {
            Some((end, '\'')) => end + 1,
            _ => 1,
        },
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_code_and_blanks_the_rest() {
        let code = code_of("let a = \"x\\\"y\"; // z\nlet b = 'c'; /* d /* e */ f */ g::<'h>(r#\"i\"j\"#)");
        let words: Vec<&str> = code.split_whitespace().collect();
        assert_eq!(words, ["let", "a", "=", ";", "let", "b", "=", ";", "g::<'h>(", ")"]);
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn escaped_quotes_are_characters() {
        assert_eq!(code_of("a('\\'') + b('\"') + c").split_whitespace().last(), Some("c"));
    }

    #[test]
    fn words_have_borders() {
        assert!(has_word("use tokio::net", "tokio") && !has_word("use tokio_util::x", "tokio"));
    }
}
