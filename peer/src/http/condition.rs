//! Conditional requests (RFC 9110, section 13): whether a GET or HEAD goes on, given the object's current version. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};

/// What the conditions say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answer as if there were none.
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// The version that the conditions are about.
#[derive(Debug, Clone, Copy)]
pub struct Validators<'a> {
    /// Entity tag as the backend gives it; empty when unknown.
    pub etag: &'a str,
    /// Last modification in milliseconds since the Unix epoch; 0 when unknown.
    pub last_modified_ms: u64,
}

impl Validators<'_> {
    /// Evaluates all conditions but `If-Range`, in the order that the RFC prescribes.
    pub fn evaluate(&self, headers: &HeaderMap) -> Outcome {
        let matched = list(headers, IF_MATCH.as_str()).map(|tags| self.is_among(&tags, Comparison::Strong));
        let unmodified = || date(headers, IF_UNMODIFIED_SINCE.as_str()).and_then(|date| self.modified_after(date));
        if matched.map_or_else(|| unmodified() == Some(true), |matched| !matched) {
            return Outcome::Failed;
        }
        let known = list(headers, IF_NONE_MATCH.as_str()).map(|tags| self.is_among(&tags, Comparison::Weak));
        let since = || date(headers, IF_MODIFIED_SINCE.as_str()).and_then(|date| self.modified_after(date));
        if known.unwrap_or_else(|| since() == Some(false)) {
            return Outcome::NotModified;
        }
        Outcome::Proceed
    }

    /// Whether a `Range` header counts, given `If-Range`.
    pub fn range_counts(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(IF_RANGE).map(|value| value.to_str().unwrap_or_default().trim()) else {
            return true;
        };
        match httpdate::parse_http_date(value) {
            Ok(date) => self.modified_second() == Some(date),
            Err(_) => self.is_among(value, Comparison::Strong) && value != "*",
        }
    }

    /// The last modification in whole seconds, as `Last-Modified` gives it.
    fn modified_second(&self) -> Option<SystemTime> {
        (self.last_modified_ms > 0).then(|| UNIX_EPOCH + Duration::from_secs(self.last_modified_ms / 1000))
    }

    fn modified_after(&self, date: SystemTime) -> Option<bool> {
        self.modified_second().map(|modified| modified > date)
    }

    /// Whether the current version is among the tags of a header's value.
    fn is_among(&self, tags: &str, comparison: Comparison) -> bool {
        let own = Tag::parse(self.etag);
        let tags = split(tags).map(Tag::parse);
        tags.into_iter().any(|tag| {
            tag.opaque == "*" || (!own.opaque.is_empty() && own.opaque == tag.opaque && comparison.allows(&own, &tag))
        })
    }
}

#[derive(Clone, Copy)]
enum Comparison {
    Strong,
    Weak,
}

impl Comparison {
    fn allows(self, one: &Tag<'_>, other: &Tag<'_>) -> bool {
        matches!(self, Comparison::Weak) || !(one.weak || other.weak)
    }
}

struct Tag<'a> {
    weak: bool,
    opaque: &'a str,
}

impl<'a> Tag<'a> {
    /// Reads one tag. Some backends and clients leave the quotes out, so they take no part in the comparison.
    fn parse(text: &'a str) -> Tag<'a> {
        let text = text.trim();
        let (weak, text) = text.strip_prefix("W/").map_or((false, text), |text| (true, text));
        let unquoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        Tag { weak, opaque: unquoted.unwrap_or(text) }
    }
}

/// The tags of a list. A comma within quotes belongs to its tag.
fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |character| {
        quoted ^= character == '"';
        character == ',' && !quoted
    })
    .map(str::trim)
    .filter(|tag| !tag.is_empty())
}

/// All lines of a header as one list, or `None` when there is none.
fn list(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

/// A date, or `None` when the header is absent or unreadable: then it does not count.
fn date(headers: &HeaderMap, name: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const MODIFIED_MS: u64 = 784_111_777_900;
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
                (name, HeaderValue::from_str(value).expect("a value"))
            })
            .collect()
    }

    fn evaluate(pairs: &[(&str, &str)]) -> Outcome {
        Validators { etag: "\"x\"", last_modified_ms: MODIFIED_MS }.evaluate(&headers(pairs))
    }

    #[test]
    fn conditions_by_table() {
        use Outcome::{Failed, NotModified, Proceed};
        let (matches, none, since, unmodified) =
            ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since");
        for (pairs, expected) in [
            (&[][..], Proceed),
            (&[(matches, "\"x\"")], Proceed),
            (&[(matches, "x")], Proceed),
            (&[(matches, "*")], Proceed),
            (&[(matches, "\"y\", \"x\"")], Proceed),
            (&[(matches, "\"y\"")], Failed),
            (&[(matches, "W/\"x\"")], Failed),
            (&[(matches, "")], Failed),
            (&[(matches, "\"y,x\"")], Failed),
            (&[(none, "\"x\"")], NotModified),
            (&[(none, "W/\"x\"")], NotModified),
            (&[(none, "\"y\",W/\"x\"")], NotModified),
            (&[(none, "*")], NotModified),
            (&[(none, "\"y\"")], Proceed),
            (&[(since, BEFORE)], Proceed),
            (&[(since, AT)], NotModified),
            (&[(since, AFTER)], NotModified),
            (&[(since, "yesterday")], Proceed),
            (&[(unmodified, BEFORE)], Failed),
            (&[(unmodified, AT)], Proceed),
            (&[(unmodified, AFTER)], Proceed),
            (&[(unmodified, "never")], Proceed),
            // Entity tags win over dates.
            (&[(matches, "\"x\""), (unmodified, BEFORE)], Proceed),
            (&[(none, "\"y\""), (since, AT)], Proceed),
            (&[(none, "\"x\""), (since, BEFORE)], NotModified),
            // The first kind fails before the second is looked at.
            (&[(matches, "\"y\""), (none, "\"x\"")], Failed),
            (&[(matches, "\"x\""), (none, "\"x\"")], NotModified),
            (&[(none, "\"y\""), (none, "\"x\"")], NotModified),
        ] {
            assert_eq!(evaluate(pairs), expected, "{pairs:?}");
        }
    }

    #[test]
    fn unknown_validators_match_nothing_but_a_star() {
        let unknown = Validators { etag: "", last_modified_ms: 0 };
        for (pairs, expected) in [
            (&[("if-match", "\"\"")][..], Outcome::Failed),
            (&[("if-match", "*")], Outcome::Proceed),
            (&[("if-none-match", "\"\"")], Outcome::Proceed),
            (&[("if-modified-since", AFTER)], Outcome::Proceed),
            (&[("if-unmodified-since", BEFORE)], Outcome::Proceed),
        ] {
            assert_eq!(unknown.evaluate(&headers(pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_range_counts_for_the_same_version_only() {
        let version = Validators { etag: "\"x\"", last_modified_ms: MODIFIED_MS };
        assert!(version.range_counts(&HeaderMap::new()));
        let cases = [
            ("\"x\"", true),
            ("\"y\"", false),
            ("W/\"x\"", false),
            ("*", false),
            (AT, true),
            (BEFORE, false),
            (AFTER, false),
        ];
        for (value, expected) in cases {
            assert_eq!(version.range_counts(&headers(&[("if-range", value)])), expected, "{value}");
        }
    }
}
