//! Where the programs under test are, and whether they are up to date.
//!
//! Tests run the binaries of the same build: those beside the test program in `target/PROFILE/`. Cargo does not build
//! the binaries of other packages for a test, so a stale one is possible; cargo's dependency file beside each binary
//! names its sources, and a binary older than one of them is refused with the command that builds it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

/// Builds every binary with the features that tests are built with.
const BUILD: &str = "cargo build --workspace --all-targets";

/// The binary `name` of this build; an error when it is missing or older than its sources.
pub fn binary(name: &str) -> Result<PathBuf> {
    let exe = env::current_exe().context("the path of this program")?;
    let mut folder = exe.parent().context("a program lies in a folder")?;
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent().context("deps lies in a profile folder")?;
    }
    let path = folder.join(name);
    let Ok(built) = modified(&path) else {
        bail!("{} is missing: run `{}`", path.display(), build_command(folder));
    };
    let dependencies = fs::read_to_string(path.with_extension("d")).unwrap_or_default();
    for source in sources(&dependencies) {
        if modified(Path::new(&source)).is_ok_and(|changed| changed > built) {
            bail!("{} is older than {source}: run `{}`", path.display(), build_command(folder));
        }
    }
    Ok(path)
}

fn build_command(folder: &Path) -> String {
    if folder.ends_with("release") { format!("{BUILD} --release") } else { BUILD.to_owned() }
}

fn modified(path: &Path) -> std::io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

/// The paths after the colon of a make-style dependency line; spaces in paths are escaped by a backslash.
fn sources(dependencies: &str) -> Vec<String> {
    let Some((_, list)) = dependencies.split_once(": ") else { return Vec::new() };
    let list = list.lines().next().unwrap_or_default().replace("\\ ", "\0");
    list.split_whitespace().map(|path| path.replace('\0', " ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sources_with_spaces() {
        assert_eq!(sources("/t/debug/x: /a/b.rs /c\\ d/e.rs\n"), ["/a/b.rs", "/c d/e.rs"]);
    }

    #[test]
    fn says_how_to_build_what_is_missing() {
        let error = binary("no-such-program").expect_err("missing").to_string();
        assert!(error.contains("cargo build"), "{error}");
    }
}
