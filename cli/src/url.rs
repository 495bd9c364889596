//! What the user names: objects (`dfs://bucket/key`), local files, standard input and output, and the endpoint.
//!
//! Pure functions of their text. The rules for object URLs are those of the Go `dfstore` command, which parses with
//! `url.ParseRequestURI`, with two differences: keys must be UTF-8, and a target may name a bucket or a folder.
//! Keys stay as they are byte for byte: `..`, `//` and a trailing slash mean nothing here.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use dfstore_proto::ids::ObjectName;
use percent_encoding::percent_decode_str;

/// Port of a peer's public listener.
pub const PORT_DEFAULT: u16 = 65004;

/// One argument of `cp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `-`: standard input or output.
    Standard,
    /// A path of this machine.
    Local(PathBuf),
    /// A place in a bucket.
    Dfs(DfsUrl),
}

/// The last part of what a copy is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basename<'a> {
    /// This.
    Is(&'a str),
    /// There is one, but it cannot name an object.
    Unusable,
    /// There is none: the source is a stream.
    None,
}

impl<'a> From<Option<&'a str>> for Basename<'a> {
    fn from(name: Option<&'a str>) -> Basename<'a> {
        name.map_or(Basename::Unusable, Basename::Is)
    }
}

/// A parsed `dfs://` URL. The key is empty for `dfs://bucket` and `dfs://bucket/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DfsUrl {
    /// The host of the URL.
    pub bucket: String,
    /// The decoded path without its first slash.
    pub key: String,
    /// Whether there was a path at all: tells `dfs://bucket` from `dfs://bucket/`.
    pub has_path: bool,
    /// The `?query` that was cut off, as old clients do.
    pub query: Option<String>,
}

impl Location {
    /// Tells the three kinds of argument apart.
    pub fn parse(text: &OsStr) -> Result<Location> {
        // Paths need not be text; everything else is.
        let Some(text) = text.to_str() else { return Ok(Location::Local(PathBuf::from(text))) };
        if text == "-" {
            return Ok(Location::Standard);
        }
        match after_scheme(text) {
            Some(rest) => DfsUrl::parse_rest(text, rest).map(Location::Dfs),
            None if is_meant_as_url(text) => bail!(
                "'{text}' is no url of an object: those begin with dfs://, e.g. dfs://bucket_name/object_key. A file of this \
                 name is written ./{text}"
            ),
            None => Ok(Location::Local(PathBuf::from(text))),
        }
    }
}

/// Whether a text that names no object was hardly meant as a path.
fn is_meant_as_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let is_scheme = |known: &&str| scheme.eq_ignore_ascii_case(known);
    let is_ours = scheme.eq_ignore_ascii_case("dfs") && rest.starts_with('/');
    is_ours || rest.starts_with("//") && ["s3", "oss", "gs", "http", "https", "file"].iter().any(is_scheme)
}

impl DfsUrl {
    /// Parses an argument that must be a `dfs://` URL.
    pub fn parse(text: &str) -> Result<DfsUrl> {
        let rest = after_scheme(text)
            .with_context(|| format!("'{text}' is an invalid url, e.g. dfs://bucket_name/object_key"))?;
        DfsUrl::parse_rest(text, rest)
    }

    fn parse_rest(text: &str, rest: &str) -> Result<DfsUrl> {
        if let Some(control) = text.chars().find(char::is_ascii_control) {
            bail!("'{}' contains the control character {control:?}; write it percent-encoded", text.escape_debug());
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query.to_string())),
            None => (rest, None),
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(path)),
            None => (rest, None),
        };
        let bucket = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        ensure!(!bucket.is_empty(), "'{text}' names no bucket, e.g. dfs://bucket_name/object_key");
        let key = decode(path.unwrap_or("")).with_context(|| format!("'{text}' is an invalid url"))?;
        Ok(DfsUrl { bucket: bucket.to_string(), key, has_path: path.is_some(), query })
    }

    /// The object this URL names.
    pub fn object(&self) -> Result<ObjectName> {
        ensure!(!self.key.is_empty(), "'{self}' names no object, e.g. dfs://bucket_name/object_key");
        Ok(ObjectName::new(self.bucket.clone(), self.key.clone()))
    }

    /// The object to write: a URL that ends in a slash is a folder, which `basename` goes into. A stream has no name
    /// and is written to the URL as it is.
    pub fn target(&self, basename: Basename) -> Result<ObjectName> {
        let is_folder = self.key.ends_with('/') || (self.key.is_empty() && self.has_path);
        match basename {
            Basename::Is(name) if is_folder => Ok(ObjectName::new(self.bucket.clone(), format!("{}{name}", self.key))),
            Basename::Unusable if is_folder => {
                bail!("'{self}' is a folder and the source gives no name; name the object")
            }
            _ => self.object(),
        }
    }

    /// The part of the key after its last slash, if it can name a local file.
    pub fn basename(&self) -> Option<&str> {
        let name = self.key.rsplit('/').next().unwrap_or(&self.key);
        let is_file_name = !matches!(name, "" | "." | "..") && !name.contains('\0');
        is_file_name.then_some(name)
    }
}

impl fmt::Display for DfsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dfs://{}", self.bucket)?;
        if self.has_path { write!(f, "/{}", self.key) } else { Ok(()) }
    }
}

/// The host and port of a peer. Only the first connection says whether it speaks the native protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// As the user wrote it, for messages.
    pub text: String,
    /// Host name or address, without the brackets of IPv6.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// Parses `http://host:port` (old scripts have it), `dfs://`, `tcp://` or a bare `host:port`. The path is dropped.
    pub fn parse(text: &str) -> Result<Endpoint> {
        ensure!(
            !text.is_empty(),
            "dfstore requires parameter endpoint, and it is empty: give -e http://HOST:PORT, or unset DFSTORE_ENDPOINT"
        );
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if ["http", "dfs", "tcp"].iter().any(|known| known.eq_ignore_ascii_case(scheme)) => {
                rest
            }
            Some(("https", _)) => bail!("invalid endpoint: {text}: TLS is not supported yet"),
            Some((scheme, _)) => bail!("invalid endpoint: {text}: unknown scheme '{scheme}', use http://HOST:PORT"),
            None => text,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = split_port(authority).with_context(|| format!("invalid endpoint: {text}"))?;
        ensure!(!host.is_empty() && !host.contains(char::is_whitespace), "invalid endpoint: {text}: no host name");
        Ok(Endpoint { text: text.to_string(), host: host.to_string(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The URL of an object with every byte escaped that would not survive a shell word and our own parser.
pub fn encode(bucket: &str, key: &str) -> String {
    let key = key.chars().fold(String::with_capacity(key.len()), |mut text, character| {
        match character {
            '%' | '?' | ' ' | '\'' | '"' | '\\' => text.push_str(&format!("%{:02X}", u32::from(character))),
            _ if character.is_ascii_control() => text.push_str(&format!("%{:02X}", u32::from(character))),
            _ => text.push(character),
        }
        text
    });
    format!("dfs://{bucket}/{key}")
}

fn split_port(authority: &str) -> Result<(&str, u16)> {
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').context("'[' without ']'")?;
        (host, rest.strip_prefix(':'))
    } else {
        match authority.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            Some(_) => (authority, None),
            None => (authority, None),
        }
    };
    match port {
        None => Ok((host, PORT_DEFAULT)),
        Some(port) => Ok((host, port.parse().with_context(|| format!("'{port}' is not a port"))?)),
    }
}

/// What follows `dfs://`, whatever the case of the scheme; `None` for everything else.
fn after_scheme(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once("://")?;
    scheme.eq_ignore_ascii_case("dfs").then_some(rest)
}

/// Percent-decodes strictly: every `%` must be followed by two hexadecimal digits, and the result must be UTF-8.
fn decode(path: &str) -> Result<String> {
    for (at, _) in path.match_indices('%') {
        let escape = path.as_bytes().get(at + 1..at + 3);
        let valid = escape.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        ensure!(valid, "'%' is not followed by two hexadecimal digits; write %25 for a percent sign");
    }
    let key = percent_decode_str(path).decode_utf8().context("the key is not UTF-8")?;
    Ok(key.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> (String, String) {
        let name = DfsUrl::parse(text).and_then(|url| url.object()).expect(text);
        (name.bucket, name.key)
    }

    #[test]
    fn keys_stay_byte_for_byte() {
        for (text, key) in [
            ("dfs://b/a/b", "a/b"),
            ("DFS://b/a//b/", "a//b/"),
            ("dfs://b//a", "/a"),
            ("dfs://b/../../x", "../../x"),
            ("dfs://b/a%2Fb", "a/b"),
            ("dfs://b/a b+c", "a b+c"),
            ("dfs://b/a%00b%0A", "a\0b\n"),
            ("dfs://b/a#frag", "a#frag"),
            ("dfs://b/a\\b", "a\\b"),
            ("dfs://b/%C3%BC\u{fc}", "\u{fc}\u{fc}"),
            ("dfs://b/a@b:c", "a@b:c"),
        ] {
            assert_eq!(object(text), ("b".to_string(), key.to_string()), "{text}");
        }
    }

    #[test]
    fn the_bucket_is_the_host() {
        assert_eq!(object("dfs://b:80/k").0, "b:80");
        assert_eq!(object("dfs://user:pw@b/k").0, "b");
    }

    #[test]
    fn the_query_is_cut_off_and_remembered() {
        let url = DfsUrl::parse("dfs://b/k?x=/y").expect("valid");
        assert_eq!((url.key.as_str(), url.query.as_deref()), ("k", Some("x=/y")));
        assert_eq!(object("dfs://b/k%3Fx"), ("b".to_string(), "k?x".to_string()));
    }

    #[test]
    fn encoded_urls_parse_back() {
        let awkward: String = (0..=0x17f).filter_map(char::from_u32).collect();
        for key in [awkward.as_str(), "a//b/../", "/", "%41", "a?b=c#d"] {
            assert_eq!(object(&encode("b", key)), ("b".to_string(), key.to_string()));
        }
    }

    #[test]
    fn refuses_urls_without_bucket_or_object_and_bad_escapes() {
        for text in ["dfs://", "dfs:///k", "dfs://b/%", "dfs://b/%zz", "dfs://b/%2", "dfs://b/%ff", "dfs://b/a\tb"] {
            assert!(DfsUrl::parse(text).is_err(), "{text}");
        }
        assert!(DfsUrl::parse("/tmp/x").is_err() && DfsUrl::parse("s3://b/k").is_err());
        assert!(DfsUrl::parse("dfs://b").expect("a bucket").object().is_err());
        assert!(DfsUrl::parse("dfs://b/").expect("a bucket").object().is_err());
    }

    #[test]
    fn folders_take_the_basename() {
        use Basename::{Is, None as Stream, Unusable};
        let target = |text: &str, name| DfsUrl::parse(text).expect(text).target(name).map(|object| object.key).ok();
        assert_eq!(target("dfs://b/dir/", Is("f")).as_deref(), Some("dir/f"));
        assert_eq!(target("dfs://b/", Is("f")).as_deref(), Some("f"));
        assert_eq!(target("dfs://b/dir", Is("f")).as_deref(), Some("dir"));
        assert_eq!(target("dfs://b/dir", Unusable).as_deref(), Some("dir"));
        assert_eq!(target("dfs://b/dir/", Stream).as_deref(), Some("dir/"));
        assert_eq!(target("dfs://b", Is("f")), None);
        assert_eq!(target("dfs://b/", Stream), None);
        assert_eq!(target("dfs://b/dir/", Unusable), None);
    }

    #[test]
    fn only_safe_basenames_name_local_files() {
        let basename = |text: &str| DfsUrl::parse(text).expect(text).basename().map(str::to_string);
        assert_eq!(basename("dfs://b/a/c.bin").as_deref(), Some("c.bin"));
        for text in ["dfs://b/a/", "dfs://b/a/..", "dfs://b/.", "dfs://b/a%00"] {
            assert_eq!(basename(text), None, "{text}");
        }
    }

    #[test]
    fn locations() {
        let parse = |text: &str| Location::parse(OsStr::new(text)).expect(text);
        assert_eq!(parse("-"), Location::Standard);
        for text in ["s3://b/k", "HTTPS://host/k", "dfs:/b/k"] {
            let error = Location::parse(OsStr::new(text)).expect_err(text).to_string();
            assert!(error.contains("dfs://bucket_name/object_key") && error.contains(&format!("./{text}")), "{error}");
        }
        for text in ["./s3://b/k", "a:b", "x://y", "dfs", "dfs:k", "s3:k"] {
            assert_eq!(parse(text), Location::Local(text.into()));
        }
        assert!(matches!(parse("dFs://b/k"), Location::Dfs(_)));
        let not_text: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"/\xff");
        assert_eq!(Location::parse(not_text).expect("a path"), Location::Local(not_text.into()));
    }

    #[test]
    fn endpoints() {
        for (text, host, port) in [
            ("http://127.0.0.1:65004", "127.0.0.1", 65004),
            ("http://peer:1/path", "peer", 1),
            ("HTTP://peer", "peer", 65004),
            ("tcp://[::1]:7", "::1", 7),
            ("dfs://peer", "peer", 65004),
            ("::1", "::1", 65004),
            ("peer:9", "peer", 9),
        ] {
            let endpoint = Endpoint::parse(text).expect(text);
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port), "{text}");
        }
        for text in ["", "http://", "ftp://x", "https://x", "x:y", "x:70000", "[::1", "a b"] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
