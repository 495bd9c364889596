//! Extents: runs of blocks in piece files, and the short list of them that one piece lies in.
//!
//! Plain data, without I/O. A list names at least one extent and at most [`PIECE_EXTENTS_MAX`]; the piece's bytes lie
//! in its extents in order, and whatever the last block has beyond the piece's length is zero.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{BLOCK_BYTES, PIECE_EXTENTS_MAX};

/// A run of blocks in one piece file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// Number of the piece file.
    pub file: u32,
    /// First block, counted from the start of the file.
    pub block: u32,
    /// Number of blocks, at least one.
    pub count: u32,
}

impl Extent {
    /// Offset of the first byte in the file.
    pub fn offset_bytes(&self) -> u64 {
        u64::from(self.block) * u64::from(BLOCK_BYTES)
    }

    /// Length in bytes.
    pub fn length_bytes(&self) -> usize {
        self.count as usize * BLOCK_BYTES as usize
    }
}

/// The extents of one piece, in the order of its bytes. One extent, the usual case, takes no memory of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExtentList(Repr);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Repr {
    One(Extent),
    Many(Box<[Extent]>),
}

impl ExtentList {
    /// The list of these extents; `None` when there are none or too many, or one of them is empty.
    pub fn new(extents: &[Extent]) -> Option<ExtentList> {
        if extents.iter().any(|extent| extent.count == 0) {
            return None;
        }
        match extents {
            [] => None,
            [one] => Some(ExtentList(Repr::One(*one))),
            many if many.len() <= PIECE_EXTENTS_MAX => Some(ExtentList(Repr::Many(many.into()))),
            _ => None,
        }
    }

    /// The extents in order.
    pub fn as_slice(&self) -> &[Extent] {
        match &self.0 {
            Repr::One(one) => std::slice::from_ref(one),
            Repr::Many(many) => many,
        }
    }

    /// The extents in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Extent> {
        self.as_slice().iter()
    }

    /// Blocks of all extents together.
    pub fn block_count(&self) -> u64 {
        self.iter().map(|extent| u64::from(extent.count)).sum()
    }

    /// Bytes of all extents together: the space the piece takes on disk.
    pub fn length_bytes(&self) -> u64 {
        self.block_count() * u64::from(BLOCK_BYTES)
    }
}

impl<'a> IntoIterator for &'a ExtentList {
    type Item = &'a Extent;
    type IntoIter = std::slice::Iter<'a, Extent>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Serialize for ExtentList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for ExtentList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ExtentList, D::Error> {
        let extents = Vec::<Extent>::deserialize(deserializer)?;
        ExtentList::new(&extents).ok_or_else(|| serde::de::Error::custom("no list of extents"))
    }
}

/// Blocks that `length_bytes` bytes take (a piece of no bytes takes none).
pub fn blocks_of(length_bytes: usize) -> u32 {
    u32::try_from(length_bytes.div_ceil(BLOCK_BYTES as usize)).expect("a piece is far below 2^32 blocks")
}
