//! A string that must never be shown: keys, tokens, passwords.
//!
//! Owns the text. `Debug` and `Display` give a fixed mark, so that a configuration may be logged as it is; the text
//! itself comes out through [`Secret::expose`] alone, which makes every use easy to find.

use std::fmt;

/// What is shown in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// A secret text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes over a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is the empty text, which means that none was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "[none]" } else { REDACTED })
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_neither_the_text_nor_its_length() {
        let shown = format!("{0:?} {0} {0:>40?}", Secret::new("canary"));
        assert_eq!(shown.matches(REDACTED).count(), 3);
        assert!(!shown.contains("canary"));
        assert_eq!(format!("{:?}", Secret::default()), "[none]");
    }
}
