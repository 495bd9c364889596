//! Which route a request takes, and which object its path names. Pure.
//!
//! As the original: the path is decoded as a whole and then split, so `%2F` in a key is a slash; a bucket has none. The
//! key is what follows `/objects` without exactly one leading slash, byte for byte: `dir/`, `//`, `..` and NUL are
//! data. A path without route is 404 whatever the method. Paths that differ from a route by a trailing slash are
//! redirected.

use http::Method;
use percent_encoding::percent_decode_str;

use crate::engine::request::Target;
use crate::engine::{ObjectError, target_of};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `GET /healthy`.
    Healthy,
    /// `GET /readyz`.
    Ready,
    /// `GET /metadata`.
    Metadata,
    /// `GET /metrics`.
    Metrics,
    /// `POST /buckets/:id`.
    CreateBucket(String),
    /// `GET /buckets/:id/metadatas`.
    List(String),
    /// Something about one object.
    Object(ObjectAction, Target),
    /// The same with or without a trailing slash; `add` says which.
    Redirect {
        /// Whether a slash is missing, or one is too many.
        add: bool,
    },
    /// No such path, or not with this method.
    NotFound,
    /// The route exists, its parameters make no sense.
    Invalid(ObjectError),
}

/// What is done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectAction {
    /// `HEAD`.
    Head,
    /// `GET`.
    Get,
    /// `PUT`, upload or copy.
    Put,
    /// `DELETE`.
    Delete,
}

impl ObjectAction {
    fn of(method: &Method) -> Option<ObjectAction> {
        match *method {
            Method::HEAD => Some(ObjectAction::Head),
            Method::GET => Some(ObjectAction::Get),
            Method::PUT => Some(ObjectAction::Put),
            Method::DELETE => Some(ObjectAction::Delete),
            _ => None,
        }
    }
}

/// The route of a request with this method and path (without query, still percent-encoded).
pub fn route(method: &Method, path: &str) -> Route {
    let Ok(path) = decoded(path) else {
        return Route::Invalid(ObjectError::InvalidArgument(
            "the path has an invalid percent-encoding, or is not UTF-8 once decoded".into(),
        ));
    };
    if let Some(rest) = path.strip_prefix("/buckets/") {
        return bucket_route(method, rest);
    }
    let (trimmed, slash) = path.strip_suffix('/').map_or((&path[..], false), |trimmed| (trimmed, true));
    match trimmed {
        _ if *method != Method::GET => Route::NotFound,
        "/healthy" | "/readyz" | "/metadata" | "/metrics" if slash => Route::Redirect { add: false },
        "/healthy" => Route::Healthy,
        "/readyz" => Route::Ready,
        "/metadata" => Route::Metadata,
        "/metrics" => Route::Metrics,
        _ => Route::NotFound,
    }
}

fn bucket_route(method: &Method, rest: &str) -> Route {
    let (bucket, rest) = rest.split_once('/').map_or((rest, None), |(bucket, rest)| (bucket, Some(rest)));
    match (method, ObjectAction::of(method), rest) {
        (&Method::POST, _, None) => Route::CreateBucket(bucket.to_owned()),
        (&Method::POST, _, Some("")) => Route::Redirect { add: false },
        (&Method::GET, _, Some("metadatas")) => Route::List(bucket.to_owned()),
        (&Method::GET, _, Some("metadatas/")) => Route::Redirect { add: false },
        (_, Some(_), Some("objects")) => Route::Redirect { add: true },
        (_, Some(action), Some(rest)) => match rest.strip_prefix("objects/") {
            Some(key) => target_of(bucket, key).map_or_else(Route::Invalid, |target| Route::Object(action, target)),
            None => Route::NotFound,
        },
        _ => Route::NotFound,
    }
}

/// Where a redirect leads, from the request's own path and query, byte for byte.
pub fn redirect_target(path: &str, query: Option<&str>, add: bool) -> String {
    let path = if add { format!("{path}/") } else { without_last_slash(path).to_owned() };
    // A path that begins with two slashes would be taken for another host.
    let path = format!("/{}", path.trim_start_matches('/'));
    query.map_or(path.clone(), |query| format!("{path}?{query}"))
}

fn without_last_slash(path: &str) -> &str {
    let encoded = path.len().checked_sub(3).filter(|at| path.get(*at..).is_some_and(|e| e.eq_ignore_ascii_case("%2f")));
    encoded.map_or_else(|| path.strip_suffix('/').unwrap_or(path), |at| &path[..at])
}

/// Percent-decodes strictly: every `%` begins two hexadecimal digits, and the result is UTF-8.
fn decoded(text: &str) -> Result<String, ()> {
    let bytes = text.as_bytes();
    let hexadecimal = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    if (0..bytes.len()).any(|at| bytes[at] == b'%' && !(hexadecimal(at + 1) && hexadecimal(at + 2))) {
        return Err(());
    }
    percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| ())
}

/// The pairs of a query or of an urlencoded form, decoded; `+` is a space.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, ObjectError> {
    let invalid = |()| ObjectError::InvalidArgument("a query parameter has an invalid percent-encoding".into());
    let decoded = |part: &str| decoded(&part.replace('+', "%20")).map_err(invalid);
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decoded(name)?, decoded(value)?))
        })
        .collect()
}

/// The first value of this name.
pub fn first<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Which shard should serve a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// The owner of this object.
    Object(Target),
    /// Whichever has it.
    Any,
}

/// What the beginning of an HTTP connection says about who should serve it; `None` while the request line is not
/// complete. What makes no sense is [`Opening::Any`]: the answer will say why.
pub fn opening(bytes: &[u8]) -> Option<Opening> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let line = &bytes[start..];
    let line = &line[..line.iter().position(|byte| *byte == b'\n')?];
    let found = std::str::from_utf8(line).ok().and_then(|line| {
        let mut words = line.split_ascii_whitespace();
        let method = Method::from_bytes(words.next()?.as_bytes()).ok()?;
        let uri: http::Uri = words.next()?.parse().ok()?;
        match route(&method, uri.path()) {
            Route::Object(_, target) => Some(target),
            _ => None,
        }
    });
    Some(found.map_or(Opening::Any, Opening::Object))
}

#[cfg(test)]
mod tests {
    use dfstore_proto::ids::ObjectName;

    use super::*;
    use crate::limits::KEY_BYTES_MAX;

    fn key_of(path: &str) -> String {
        match route(&Method::GET, path) {
            Route::Object(ObjectAction::Get, target) => {
                assert_eq!(target.name.bucket, "b");
                target.name.key
            }
            other => panic!("{path} gives {other:?}"),
        }
    }

    #[test]
    fn keys_are_kept_byte_for_byte() {
        for (path, key) in [
            ("a/b", "a/b"),
            ("/a", "/a"),
            ("//a//b//", "//a//b//"),
            ("dir/", "dir/"),
            ("a%2Fb", "a/b"),
            ("%2Fa", "/a"),
            ("../../etc/passwd", "../../etc/passwd"),
            (".", "."),
            ("..", ".."),
            ("a%00b", "a\0b"),
            ("a%5Cb", "a\\b"),
            ("a+b", "a+b"),
            ("a%20b%3F%23%25", "a b?#%"),
            ("%E4%BD%A0%e5%a5%bd", "你好"),
            ("metadatas", "metadatas"),
            ("objects/objects", "objects/objects"),
            ("%252F", "%2F"),
            ("a&b=c;d", "a&b=c;d"),
        ] {
            assert_eq!(key_of(&format!("/buckets/b/objects/{path}")), key, "{path}");
        }
        let longest = "k".repeat(KEY_BYTES_MAX);
        assert_eq!(key_of(&format!("/buckets/b/objects/{longest}")), longest);
    }

    #[test]
    fn what_names_no_object_is_refused() {
        let too_long = format!("/buckets/b/objects/{}", "k".repeat(KEY_BYTES_MAX + 1));
        let paths =
            ["/buckets/b/objects/", "/buckets//objects/k", "/buckets/b/objects/%", "/buckets/b/objects/%zz", &too_long];
        for path in paths.into_iter().chain(["/buckets/b/objects/%4", "/buckets/b/objects/%ff", "/%f"]) {
            assert!(matches!(route(&Method::GET, path), Route::Invalid(ObjectError::InvalidArgument(_))), "{path}");
        }
    }

    #[test]
    fn routes_by_method_and_path() {
        let list = Route::List("b".into());
        let redirect = |add| Route::Redirect { add };
        for (method, path, expected) in [
            (Method::GET, "/healthy", Route::Healthy),
            (Method::GET, "/readyz", Route::Ready),
            (Method::GET, "/metadata", Route::Metadata),
            (Method::GET, "/metrics", Route::Metrics),
            (Method::GET, "/metadata/", redirect(false)),
            (Method::HEAD, "/healthy", Route::NotFound),
            (Method::POST, "/metadata", Route::NotFound),
            (Method::GET, "/", Route::NotFound),
            (Method::GET, "/buckets", Route::NotFound),
            (Method::OPTIONS, "*", Route::NotFound),
            (Method::POST, "/buckets/b", Route::CreateBucket("b".into())),
            (Method::POST, "/buckets/b/", redirect(false)),
            (Method::GET, "/buckets/b", Route::NotFound),
            (Method::GET, "/buckets/b/", Route::NotFound),
            (Method::GET, "/buckets/b/metadatas", list.clone()),
            (Method::GET, "/buckets%2fb/metadatas", list),
            (Method::GET, "/buckets/b/metadatas/", redirect(false)),
            (Method::PUT, "/buckets/b/metadatas", Route::NotFound),
            (Method::GET, "/buckets/b/objects", redirect(true)),
            (Method::PUT, "/buckets/b/objects", redirect(true)),
            (Method::POST, "/buckets/b/objects/k", Route::NotFound),
            (Method::PATCH, "/buckets/b/objects/k", Route::NotFound),
            (Method::GET, "/buckets/b/objectsx/k", Route::NotFound),
            (Method::GET, "/buckets/a%2Fb/objects/k", Route::NotFound),
        ] {
            assert_eq!(route(&method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn redirects_stay_on_this_host_and_keep_the_query() {
        assert_eq!(redirect_target("/buckets/b/objects", Some("a=b"), true), "/buckets/b/objects/?a=b");
        assert_eq!(redirect_target("/buckets/b/", None, false), "/buckets/b");
        assert_eq!(redirect_target("/buckets/b%2f", None, false), "/buckets/b");
        assert_eq!(redirect_target("//evil/buckets", None, true), "/evil/buckets/");
    }

    #[test]
    fn pairs_are_decoded() {
        let found = pairs("a=1&b=%20x+y&c&&a=2").expect("valid");
        assert_eq!(first(&found, "a"), Some("1"));
        assert_eq!(first(&found, "b"), Some(" x y"));
        assert_eq!(first(&found, "c"), Some(""));
        assert_eq!(first(&found, "d"), None);
        assert!(pairs("a=%").is_err());
    }

    #[test]
    fn the_opening_waits_for_the_request_line() {
        let target = Target::of(ObjectName::new("b", "a/c"));
        assert_eq!(opening(b""), None);
        assert_eq!(opening(b"\r\nGET /buckets/b/objects/a/c HTTP/1.1\r"), None);
        let object = Some(Opening::Object(target));
        assert_eq!(opening(b"\r\nGET /buckets/b/objects/a/c?filter=x HTTP/1.1\r\n"), object);
        assert_eq!(opening(b"GET http://h/buckets/b/objects/a%2Fc HTTP/1.1\r\nHost"), object);
        for anything in [&b"GET /healthy HTTP/1.1\r\n"[..], b"x\n", b"\xff \xff\n", b"GET\n", b"GET /%ff HTTP/1.1\n"] {
            assert_eq!(opening(anything), Some(Opening::Any));
        }
    }
}
