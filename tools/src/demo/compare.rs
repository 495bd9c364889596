//! Making the file up, and comparing a copy with it.
//!
//! The content is computed, not kept: a copy is compared with what the generator says, so the original on disk may be
//! wrong too and it would show. Both show progress on standard error and end early at ^C.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use dfstore_tests::data::Payload;
use dfstore_tests::until::check_interruption;
use indicatif::{ProgressBar, ProgressStyle};

const CHUNK_BYTES: usize = 4 << 20;

/// Writes the payload to a new file.
pub fn make(payload: &Payload, path: &Path) -> Result<()> {
    let shown = bar("making up a file", payload.length);
    let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let (mut reader, mut buffer) = (payload.reader(), vec![0; CHUNK_BYTES]);
    loop {
        check_interruption()?;
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        file.write_all(&buffer[..count]).with_context(|| format!("writing {}", path.display()))?;
        shown.inc(count as u64);
    }
    shown.finish_and_clear();
    Ok(())
}

/// An error unless the file holds exactly the payload.
pub fn compare(payload: &Payload, path: &Path) -> Result<()> {
    let shown = bar("comparing", payload.length);
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let (mut offset, mut buffer) = (0, vec![0; CHUNK_BYTES]);
    loop {
        check_interruption()?;
        let count = file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))?;
        if count == 0 {
            break;
        }
        if offset + count as u64 > payload.length {
            bail!("the copy is longer than the {} bytes of the original", payload.length);
        }
        if let Some(wrong) = payload.first_difference(offset, &buffer[..count]) {
            bail!("the copy differs from the original at byte {wrong}");
        }
        offset += count as u64;
        shown.inc(count as u64);
    }
    if offset != payload.length {
        bail!("the copy has {offset} bytes, the original {}", payload.length);
    }
    shown.finish_and_clear();
    Ok(())
}

fn bar(what: &str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:32}] {percent:>3}% {binary_bytes_per_sec}");
    let bar = ProgressBar::new(length).with_prefix(what.to_owned());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfstore_tests::dirs;

    #[test]
    fn notices_every_kind_of_damage() {
        let folder = dirs::temporary("compare").expect("folder");
        let path = folder.path().join("file");
        let payload = Payload::new(3, 10_000);
        make(&payload, &path).expect("made");
        compare(&payload, &path).expect("the same");
        let mut bytes = payload.bytes();
        bytes[7000] ^= 1;
        for (damaged, said) in [(&bytes[..], "byte 7000"), (&bytes[..6000], "6000 bytes")] {
            std::fs::write(&path, damaged).expect("written");
            let error = compare(&payload, &path).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
        std::fs::write(&path, [payload.bytes(), vec![0]].concat()).expect("written");
        assert!(compare(&payload, &path).is_err());
    }
}
