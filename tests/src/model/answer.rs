//! What a node said, in the words of the model: which content an answer shows, if any. Pure.

use crate::data::Payload;
use crate::http::Response;
use crate::model::history::Part;
use crate::scene::same;

/// An object that is there, or none.
pub type Content = Option<Payload>;

/// What `X-Dfs-Cache` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// The bucket does not have it yet.
    Pending,
    /// The bucket could not be asked.
    Stale,
    /// Anything else.
    Other,
}

/// What came back for a read.
#[derive(Clone, PartialEq, Eq)]
pub enum Shown {
    /// All bytes.
    Whole(Vec<u8>),
    /// Some bytes, and the length of all.
    Part(Part, u64, Vec<u8>),
    /// The part lies outside of an object of this length.
    Outside(Part, u64),
    /// Only the length was asked for.
    Length(u64),
    /// There is no such object.
    Missing,
    /// An error, or a body that broke off.
    Failed(String),
}

/// An answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it shows.
    pub shown: Shown,
    /// What it says about where that came from.
    pub label: Label,
}

impl Answer {
    /// An error.
    pub fn failed(error: impl std::fmt::Display) -> Answer {
        Answer { shown: Shown::Failed(error.to_string()), label: Label::Other }
    }

    /// The answer to a GET of all or of a part.
    pub fn of_get(response: Response, part: Option<Part>) -> Answer {
        let label = label(&response);
        let shown = match (response.status(), part) {
            (200, None) => Shown::Whole(response.body),
            (206 | 416, Some(part)) => part_of(response, part),
            (404, _) => Shown::Missing,
            (status, _) => Shown::Failed(format!("{status} {}", response.text())),
        };
        Answer { shown, label }
    }

    /// The answer to a HEAD.
    pub fn of_head(response: &Response) -> Answer {
        let length = response.header("content-length").and_then(|length| length.parse().ok());
        let shown = match (response.status(), length) {
            (200, Some(length)) => Shown::Length(length),
            (404, _) => Shown::Missing,
            (status, _) => Shown::Failed(format!("{status}")),
        };
        Answer { shown, label: label(response) }
    }

    /// Whether this is the right answer when the object is this content, or there is none.
    pub fn shows(&self, content: Content) -> bool {
        match (&self.shown, content) {
            (Shown::Missing, None) => true,
            (Shown::Whole(bytes), Some(payload)) => same(bytes, payload),
            (Shown::Length(length), Some(payload)) => *length == payload.length,
            (Shown::Outside(part, length), Some(payload)) => {
                *length == payload.length && part.of(payload.length).is_none()
            }
            (Shown::Part(part, length, bytes), Some(payload)) => {
                let wanted = part.of(payload.length);
                *length == payload.length && wanted.is_some_and(|range| *bytes == payload.range(range))
            }
            _ => false,
        }
    }

    /// Whether nothing was shown, not even that nothing is there.
    pub fn is_failure(&self) -> bool {
        matches!(self.shown, Shown::Failed(_))
    }
}

fn label(response: &Response) -> Label {
    match response.header("x-dfs-cache") {
        Some("pending") => Label::Pending,
        Some("stale") => Label::Stale,
        _ => Label::Other,
    }
}

/// 206 and 416 say how long the object is: `bytes 0-0/5`, `bytes */5`.
fn part_of(response: Response, part: Part) -> Shown {
    let range = response.header("content-range").unwrap_or_default().to_owned();
    let Some((given, length)) = range.trim_start_matches("bytes ").split_once('/') else {
        return Shown::Failed(format!("{} with Content-Range {range:?}", response.status()));
    };
    let Ok(length) = length.parse() else { return Shown::Failed(format!("Content-Range {range:?}")) };
    if response.status() == 416 {
        return Shown::Outside(part, length);
    }
    let wanted = part.of(length).map(|range| format!("{}-{}", range.start, range.end - 1));
    if wanted.as_deref() != Some(given) {
        return Shown::Failed(format!("Content-Range {range:?} for {}", part.header()));
    }
    Shown::Part(part, length, response.body)
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = |bytes: &[u8]| format!("{:02x?}", &bytes[..bytes.len().min(8)]);
        match self {
            Shown::Whole(bytes) => write!(f, "{} bytes {}", bytes.len(), start(bytes)),
            Shown::Part(part, length, bytes) => {
                write!(f, "{} of {length}: {} bytes {}", part.header(), bytes.len(), start(bytes))
            }
            Shown::Outside(part, length) => write!(f, "{} outside of {length}", part.header()),
            Shown::Length(length) => write!(f, "length {length}"),
            Shown::Missing => write!(f, "missing"),
            Shown::Failed(error) => write!(f, "failed: {error}"),
        }
    }
}
