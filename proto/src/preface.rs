//! The first eight bytes of a connection, which tell the native protocol from HTTP on a port that speaks both.
//!
//! Pure functions. Only the side that connects sends a preface. The first byte is not ASCII, so no HTTP request can
//! begin like this, and one byte is enough to decide.

use crate::error::DecodeError;
use crate::limits::{PREFACE_BYTES, VERSION_MAX, VERSION_MIN};

/// What every preface begins with.
pub const MAGIC: [u8; 4] = [0xDF, b'd', b'f', b's'];
/// What every preface ends with: a line end, so that a transport that rewrites line ends is found out.
const TAIL: [u8; 2] = [b'\r', b'\n'];

/// A range of versions of the messages, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Versions {
    /// Lowest version spoken.
    pub min: u8,
    /// Highest version spoken.
    pub max: u8,
}

impl Versions {
    /// The versions that this crate speaks.
    pub const OURS: Versions = Versions { min: VERSION_MIN, max: VERSION_MAX };

    /// The highest version that both ranges hold.
    pub fn common(self, other: Versions) -> Option<u8> {
        let version = self.max.min(other.max);
        (version >= self.min.max(other.min)).then_some(version)
    }

    /// Whether this is a range at all: not empty, and version 0 does not exist.
    pub fn is_valid(self) -> bool {
        self.min >= 1 && self.min <= self.max
    }
}

/// Whether a connection that begins with `head` speaks the native protocol; `None` when more bytes are needed.
pub fn looks_native(head: &[u8]) -> Option<bool> {
    let known = head.len().min(MAGIC.len());
    if head[..known] != MAGIC[..known] {
        return Some(false);
    }
    (known == MAGIC.len()).then_some(true)
}

/// The preface for a range of versions.
pub fn encode(versions: Versions) -> [u8; PREFACE_BYTES] {
    [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], versions.min, versions.max, TAIL[0], TAIL[1]]
}

/// Reads a preface.
pub fn decode(bytes: &[u8; PREFACE_BYTES]) -> Result<Versions, DecodeError> {
    let versions = Versions { min: bytes[4], max: bytes[5] };
    if bytes[..4] != MAGIC || bytes[6..] != TAIL || !versions.is_valid() {
        return Err(DecodeError::BadPreface);
    }
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_native_from_http_as_early_as_it_can() {
        assert_eq!(looks_native(b""), None);
        assert_eq!(looks_native(b"G"), Some(false));
        assert_eq!(looks_native(&MAGIC[..3]), None);
        assert_eq!(looks_native(&[0xDF, b'd', b'g']), Some(false));
        assert_eq!(looks_native(&encode(Versions::OURS)), Some(true));
    }

    #[test]
    fn refuses_every_changed_byte_of_the_magic() {
        let good = encode(Versions::OURS);
        assert_eq!(decode(&good), Ok(Versions::OURS));
        for index in [0, 1, 2, 3, 6, 7] {
            let mut bad = good;
            bad[index] ^= 1;
            assert_eq!(decode(&bad), Err(DecodeError::BadPreface), "byte {index}");
        }
        for (min, max) in [(0, 1), (2, 1), (0, 0)] {
            assert_eq!(decode(&encode(Versions { min, max })), Err(DecodeError::BadPreface));
        }
    }

    #[test]
    fn picks_the_highest_common_version() {
        let range = |min, max| Versions { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(2, 5).common(range(1, 3)), Some(3));
        assert_eq!(range(1, 1).common(range(2, 5)), None);
        assert_eq!(range(4, 4).common(range(1, 9)), Some(4));
    }
}
