//! Names of things: objects as users write them, and tasks as the cluster sees them.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An object of the backend: bucket and key, written `dfs://bucket/key`. The key is kept byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    /// Bucket name.
    pub bucket: String,
    /// Object key, without the slash that separates it from the bucket.
    pub key: String,
}

impl ObjectName {
    /// Makes a name of its two parts.
    pub fn new(bucket: impl Into<String>, key: impl Into<String>) -> ObjectName {
        ObjectName { bucket: bucket.into(), key: key.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dfs://{}/{}", self.bucket, self.key)
    }
}

/// The identity of a task: SHA-256 of its URL after the filtered query parameters are removed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskId([u8; 32]);

impl TaskId {
    /// The task of an object. `query` is the URL's query without the question mark (empty for most objects);
    /// parameters named in `filter` (separated by `&`) take no part, the rest is sorted first.
    pub fn of(name: &ObjectName, query: &str, filter: &str) -> TaskId {
        let mut kept: Vec<&str> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .filter(|pair| {
                let parameter = pair.split('=').next().unwrap_or(pair);
                !filter.split('&').any(|filtered| filtered == parameter)
            })
            .collect();
        kept.sort_unstable();
        let mut hash = Sha256::new();
        hash.update(name.to_string());
        if !kept.is_empty() {
            hash.update("?");
            hash.update(kept.join("&"));
        }
        TaskId(hash.finalize().into())
    }

    /// The identity with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> TaskId {
        TaskId(bytes)
    }

    /// The bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The shard, out of `shards`, that owns this task.
    pub fn owner(&self, shards: usize) -> usize {
        let head = u64::from_be_bytes(self.0[..8].try_into().expect("eight of 32 bytes"));
        usize::try_from(head % shards as u64).expect("below the number of shards")
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filtered_parameters_and_order_take_no_part() {
        let name = ObjectName::new("bucket", "a/b");
        let plain = TaskId::of(&name, "", "Expires&Signature");
        assert_eq!(plain, TaskId::of(&name, "Signature=x&Expires=1", "Expires&Signature"));
        assert_eq!(TaskId::of(&name, "b=2&a=1", ""), TaskId::of(&name, "a=1&b=2", ""));
        assert_ne!(plain, TaskId::of(&name, "a=1", "Expires"));
    }

    #[test]
    fn is_the_sha256_of_the_url() {
        let id = TaskId::of(&ObjectName::new("bucket", "a/b"), "", "");
        assert_eq!(id.0, <[u8; 32]>::from(Sha256::digest("dfs://bucket/a/b")));
    }
}
