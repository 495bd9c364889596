//! How a message becomes a control payload and back: postcard, in sections, with bounds.
//!
//! A payload is a row of sections. The first is the message as version 1 knows it; a later version appends a section
//! instead of changing one. A reader takes the sections it knows: one that is absent because the payload ends at its
//! border has its default, one that is cut inside is an error, and bytes after the last known one are ignored.
//! Memory is taken only for bytes that are there, never for a length that merely says so.

use std::fmt;
use std::marker::PhantomData;

use bytes::BytesMut;
use postcard::ser_flavors::Flavor;
use serde::de::{DeserializeOwned, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::FieldError;

/// Reads the first section: it must be there. `None` when the bytes are not one.
pub fn first_section<T: DeserializeOwned>(payload: &mut &[u8]) -> Option<T> {
    let (section, rest) = postcard::take_from_bytes(payload).ok()?;
    *payload = rest;
    Some(section)
}

/// Reads a section that a later version appended: its default where the sender did not know it yet.
pub fn later_section<T: DeserializeOwned + Default>(payload: &mut &[u8]) -> Option<T> {
    if payload.is_empty() { Some(T::default()) } else { first_section(payload) }
}

/// Appends a section to `out`; `false`, with `out` as it was, when it would end beyond `bytes_max`.
pub fn append_section<T: Serialize>(section: &T, out: &mut BytesMut, bytes_max: usize) -> bool {
    let start = out.len();
    let appended = postcard::serialize_with_flavor(section, Appender { out, bytes_max }).is_ok();
    if !appended {
        out.truncate(start);
    }
    appended
}

/// Bytes that a section takes.
pub fn section_bytes<T: Serialize>(section: &T) -> usize {
    postcard::experimental::serialized_size(section).expect("plain data has a size")
}

struct Appender<'out> {
    out: &'out mut BytesMut,
    bytes_max: usize,
}

impl Flavor for Appender<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if self.out.len() + bytes.len() > self.bytes_max {
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Reads a list of at most `MAX` items, growing as they arrive. serde's own reader takes up to 1 MiB ahead for a
/// length that may be a lie.
pub(crate) fn bounded<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(BoundedList::<T, MAX>(PhantomData))
}

struct BoundedList<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedList<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(item);
        }
        Ok(list)
    }
}

/// A text field is at most this long.
pub(crate) fn at_most(field: &'static str, text: &str, max: usize) -> Result<(), FieldError> {
    number_at_most(field, text.len() as u64, max as u64)
}

/// A text field is there and at most this long.
pub(crate) fn filled(field: &'static str, text: &str, max: usize) -> Result<(), FieldError> {
    if text.is_empty() {
        return Err(FieldError::Empty(field));
    }
    at_most(field, text, max)
}

/// A number, or a count, is at most this much.
pub(crate) fn number_at_most(field: &'static str, actual: u64, max: u64) -> Result<(), FieldError> {
    if actual > max {
        return Err(FieldError::TooLong { field, actual, max });
    }
    Ok(())
}
