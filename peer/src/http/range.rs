//! The `Range` header: which bytes of an object a GET is about. Pure.
//!
//! One range, in bytes. An empty header counts as absent (JuiceFS sends one). Other than RFC 9110 allows, but as
//! clients of the original expect, a range that cannot be understood is refused with 416 and not ignored.

use std::ops::Range;

/// What part of the object is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: 200.
    Whole,
    /// These bytes, at least one and all within the object: 206.
    Part(Range<u64>),
}

/// Why a range cannot be served: 416.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not of the form `bytes=a-b`, `bytes=a-` or `bytes=-n`.
    #[error("invalid range")]
    Invalid,
    /// More than one range, or none.
    #[error("parse range length must be 1")]
    NotOne,
    /// The object has none of these bytes.
    #[error("the range begins after the object's last byte")]
    Unsatisfiable,
}

/// The part of an object of `length` bytes that the header's value asks for.
pub fn wanted(value: Option<&str>, length: u64) -> Result<Wanted, RangeError> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else {
        return Ok(Wanted::Whole);
    };
    let (unit, ranges) = value.split_once('=').ok_or(RangeError::Invalid)?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Err(RangeError::Invalid);
    }
    let mut ranges = ranges.split(',').map(str::trim).filter(|range| !range.is_empty());
    let (Some(range), None) = (ranges.next(), ranges.next()) else {
        return Err(RangeError::NotOne);
    };
    let (first, last) = range.split_once('-').ok_or(RangeError::Invalid)?;
    let (first, last) = (number(first)?, number(last)?);
    let part = match (first, last) {
        (None, None) => return Err(RangeError::Invalid),
        (None, Some(suffix)) => length.saturating_sub(suffix)..length,
        (Some(first), None) => first..length,
        (Some(first), Some(last)) if last < first => return Err(RangeError::Invalid),
        (Some(first), Some(last)) => first..length.min(last.saturating_add(1)),
    };
    if part.is_empty() { Err(RangeError::Unsatisfiable) } else { Ok(Wanted::Part(part)) }
}

/// A run of digits, or nothing. Numbers beyond 64 bits count as the largest one.
fn number(text: &str) -> Result<Option<u64>, RangeError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RangeError::Invalid);
    }
    Ok(Some(text.parse().unwrap_or(u64::MAX)))
}

/// The value of `Content-Range` for these bytes.
pub fn content_range(part: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", part.start, part.end - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_by_table() {
        use RangeError::{Invalid, NotOne, Unsatisfiable};
        for (value, length, expected) in [
            ("", 10, Ok(Wanted::Whole)),
            ("  ", 10, Ok(Wanted::Whole)),
            ("bytes=0-0", 10, Ok(Wanted::Part(0..1))),
            ("bytes=0-9", 10, Ok(Wanted::Part(0..10))),
            ("bytes=0-", 10, Ok(Wanted::Part(0..10))),
            ("bytes=3-5", 10, Ok(Wanted::Part(3..6))),
            ("bytes=9-100", 10, Ok(Wanted::Part(9..10))),
            ("bytes=3-99999999999999999999999", 10, Ok(Wanted::Part(3..10))),
            ("bytes=3-18446744073709551615", 10, Ok(Wanted::Part(3..10))),
            ("bytes=-3", 10, Ok(Wanted::Part(7..10))),
            ("bytes=-100", 10, Ok(Wanted::Part(0..10))),
            (" Bytes = 1 - 2 ,", 10, Ok(Wanted::Part(1..3))),
            ("bytes=10-", 10, Err(Unsatisfiable)),
            ("bytes=10-20", 10, Err(Unsatisfiable)),
            ("bytes=99999999999999999999999-", 10, Err(Unsatisfiable)),
            ("bytes=-0", 10, Err(Unsatisfiable)),
            ("bytes=0-", 0, Err(Unsatisfiable)),
            ("bytes=-5", 0, Err(Unsatisfiable)),
            ("bytes=5-3", 10, Err(Invalid)),
            ("bytes=a-b", 10, Err(Invalid)),
            ("bytes=1", 10, Err(Invalid)),
            ("bytes=-", 10, Err(Invalid)),
            ("bytes=--1", 10, Err(Invalid)),
            ("bytes=+1-2", 10, Err(Invalid)),
            ("bytes=1-2-3", 10, Err(Invalid)),
            ("bytes 1-2", 10, Err(Invalid)),
            ("items=1-2", 10, Err(Invalid)),
            ("bytes=", 10, Err(NotOne)),
            ("bytes=0-1,3-4", 10, Err(NotOne)),
        ] {
            assert_eq!(wanted(Some(value), length), expected, "{value} of {length}");
        }
        assert_eq!(wanted(None, 10), Ok(Wanted::Whole));
        assert_eq!(content_range(&(3..6), 10), "bytes 3-5/10");
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_nor_outside(value in "(bytes=)?[0-9a, =-]{0,24}", length in 0u64..50) {
            if let Ok(Wanted::Part(part)) = wanted(Some(&value), length) {
                prop_assert!(part.start < part.end && part.end <= length);
            }
        }
    }
}
