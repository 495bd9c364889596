//! How a failure reaches the user: one line of what failed and why, a hint where there is something to do, and the
//! exit code. Nothing here can fail.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use crate::client::error::ClientError;

/// Everything was done.
pub const EXIT_DONE: u8 = 0;
/// Something could not be done.
pub const EXIT_FAILED: u8 = 1;
/// The command line makes no sense. Clap uses the same number.
pub const EXIT_USAGE: u8 = 2;

/// A command line that parses but cannot be meant, such as two local paths for `cp`.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A usage error with this text.
pub fn usage(text: impl fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Usage(format!("{text:#}")))
}

/// What the user may do about an error; attached to it as a context that is shown on a line of its own.
#[derive(Debug)]
pub struct Hint(pub String);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An error with a hint.
pub fn with_hint(error: anyhow::Error, hint: impl fmt::Display) -> anyhow::Error {
    error.context(Hint(hint.to_string()))
}

/// Shows `error` on standard error.
pub fn show(error: &anyhow::Error) {
    // A closed standard error is no reason to panic.
    let _ = write!(std::io::stderr().lock(), "{}", render(error));
}

/// Shows `error` on standard error and gives its exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    show(error);
    let is_usage = error.downcast_ref::<Usage>().is_some();
    ExitCode::from(if is_usage { EXIT_USAGE } else { EXIT_FAILED })
}

fn render(error: &anyhow::Error) -> String {
    let given = error.downcast_ref::<Hint>().map(|hint| hint.0.clone());
    let known = || error.downcast_ref::<ClientError>().and_then(ClientError::hint).map(str::to_string);
    let hint = given.or_else(known);
    let mut parts: Vec<String> = Vec::new();
    for part in error.chain().map(ToString::to_string) {
        let is_hint = hint.as_ref() == Some(&part);
        if !is_hint && parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    let mut text = format!("Error: {}\n", parts.join(": "));
    if let Some(hint) = hint {
        text.push_str(&format!("Hint: {hint}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn shows_what_failed_and_the_hint_apart() {
        let error = with_hint(anyhow!("no route"), "start a peer").context("cannot connect");
        assert_eq!(render(&error), "Error: cannot connect: no route\nHint: start a peer\n");
    }

    #[test]
    fn usage_is_found_below_contexts() {
        let error = usage("two local paths").context("cp");
        assert!(error.downcast_ref::<Usage>().is_some());
    }
}
