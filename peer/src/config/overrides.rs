//! Values from flags and environment variables, put into the tree before it is read: they then pass the same rules
//! as the file, and a problem with one names the flag.

use std::fmt;

use super::yaml::{Entry, Node, Place, Value};

/// Values that replace those of the file.
#[derive(Clone, Default)]
pub struct Overrides(Vec<Override>);

#[derive(Clone)]
struct Override {
    path: &'static str,
    origin: &'static str,
    value: String,
}

/// Names what is replaced; a value may be a secret.
impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|one| (one.path, one.origin))).finish()
    }
}

impl Overrides {
    /// Sets the key at `path`, such as `storage.dataPath`. `origin` is what the user typed: `--data-path`.
    pub fn set(&mut self, path: &'static str, origin: &'static str, value: impl Into<String>) {
        self.0.push(Override { path, origin, value: value.into() });
    }

    /// Puts the values into the tree. Later ones win.
    pub(super) fn apply(&self, root: &mut Node) {
        for one in &self.0 {
            let value = Node { place: Place::Override(one.origin), value: Value::Scalar(one.value.clone()) };
            *descend(root, one.path, one.origin) = value;
        }
    }
}

/// The node at this path; what is missing on the way is made. A single value on the way gives way to a mapping.
fn descend<'a>(root: &'a mut Node, path: &str, origin: &'static str) -> &'a mut Node {
    let mut node = root;
    for key in path.split('.') {
        if !matches!(node.value, Value::Map(_)) {
            *node = Node { place: Place::Override(origin), value: Value::Map(Vec::new()) };
        }
        let Value::Map(entries) = &mut node.value else { unreachable!("made a mapping just above") };
        let found = entries.iter().position(|entry| entry.key.eq_ignore_ascii_case(key));
        let index = found.unwrap_or_else(|| {
            let place = Place::Override(origin);
            let node = Node { place: place.clone(), value: Value::Null };
            entries.push(Entry { key: key.to_owned(), place, node });
            entries.len() - 1
        });
        node = &mut entries[index].node;
    }
    node
}
