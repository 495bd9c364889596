//! Log lines on standard error, as text or JSON.
//!
//! Owns the process's subscriber. Two rules keep secrets out whatever the level: libraries log from `warn` up only
//! (their debug lines show headers and signed URLs), and every finished line passes [`Scrubber`], which takes out
//! the configured secrets and the signature parameters of URLs.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

use crate::config::secret::REDACTED;
use crate::config::{Config, LogFormat, LogOptions, Secret};

/// Crates of this project begin with this; everything else is a library.
const OWN_TARGETS: &str = "dfstore";
/// Shorter secrets are common words, which would be taken out of every line.
const SECRET_CHARS_MIN: usize = 6;
/// Spellings of secrets that came after the start: those of about twenty changes of keys.
const ADDED_SECRETS_MAX: usize = 200;
/// Query parameters of a signed URL whose values give access.
const SIGNATURE_PARAMETERS: [&str; 5] =
    ["X-Amz-Signature=", "X-Amz-Security-Token=", "X-Amz-Credential=", "Signature=", "security-token="];

/// Secrets that become known after the start, such as keys that a manager gives, are named here before they are used.
#[derive(Clone)]
pub struct Redactions(Scrubber);

impl Redactions {
    /// Takes this secret out of every line from now on. The oldest ones that were added so are forgotten in time.
    pub fn add(&self, secret: &Secret) {
        self.0.add(secret);
    }
}

/// Logs to standard error from now on. A second call changes nothing.
pub fn start(config: &Config) -> Redactions {
    let scrubber = Scrubber::new(secrets(config));
    let redactions = Redactions(scrubber.clone());
    let subscriber = subscriber(&config.log, move || ScrubbedWriter::new(io::stderr(), scrubber.clone()));
    let _ = tracing::subscriber::set_global_default(subscriber);
    redactions
}

fn secrets(config: &Config) -> Vec<Secret> {
    let keys = config.backend.iter().flat_map(|backend| &backend.credentials);
    let keys = keys.flat_map(|keys| [&keys.access_key, &keys.secret_key].into_iter().chain(&keys.session_token));
    let cluster = config.cluster.iter().flat_map(|one| [one.token.clone(), Secret::new(one.credential())]);
    keys.cloned().chain(cluster).collect()
}

/// The subscriber for these options. `writer` is called once a line.
fn subscriber<W>(options: &LogOptions, writer: W) -> impl tracing::Subscriber + Send + Sync + use<W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let wanted = Targets::from_str(&options.level).unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let own_or_grave =
        filter_fn(|line| line.target().starts_with(OWN_TARGETS) || *line.level() <= tracing::Level::WARN);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match options.format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(wanted.and(own_or_grave)))
}

/// Takes secrets out of a text.
#[derive(Clone)]
struct Scrubber {
    /// Those of the configuration.
    configured: Arc<[String]>,
    /// Those that came later.
    added: Arc<RwLock<VecDeque<String>>>,
}

impl Scrubber {
    fn new(secrets: Vec<Secret>) -> Scrubber {
        let configured = secrets.iter().flat_map(spellings).collect();
        Scrubber { configured, added: Arc::default() }
    }

    fn add(&self, secret: &Secret) {
        let mut added = self.added.write().unwrap_or_else(PoisonError::into_inner);
        for spelling in spellings(secret) {
            if added.contains(&spelling) {
                continue;
            }
            if added.len() == ADDED_SECRETS_MAX {
                added.pop_front();
            }
            added.push_back(spelling);
        }
    }

    fn scrub(&self, line: &str) -> String {
        let mut clean = line.to_owned();
        let added = self.added.read().unwrap_or_else(PoisonError::into_inner);
        for secret in self.configured.iter().chain(added.iter()) {
            if clean.contains(secret) {
                clean = clean.replace(secret, REDACTED);
            }
        }
        for parameter in SIGNATURE_PARAMETERS {
            clean = without_value(clean, parameter);
        }
        clean
    }
}

/// A secret as it is, inside a JSON string, and inside a URL. None of one that is too short.
fn spellings(secret: &Secret) -> Vec<String> {
    let secret = secret.expose();
    if secret.len() < SECRET_CHARS_MIN {
        return Vec::new();
    }
    let quoted = serde_json::Value::from(secret).to_string();
    let encoded = percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string();
    let mut all = vec![secret.to_owned(), quoted[1..quoted.len() - 1].to_owned(), encoded];
    all.dedup();
    all
}

/// `text` with the value behind each `parameter` (which ends with `=`) taken out.
fn without_value(text: String, parameter: &str) -> String {
    if !text.contains(parameter) {
        return text;
    }
    let mut parts = text.split(parameter);
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c == '&' || c == '"' || c == '\\' || c.is_whitespace()).unwrap_or(part.len());
        clean.push_str(parameter);
        clean.push_str(REDACTED);
        clean.push_str(&part[end..]);
    }
    clean
}

/// Writes one finished line, scrubbed.
struct ScrubbedWriter<W> {
    inner: W,
    scrubber: Scrubber,
}

impl<W: Write> ScrubbedWriter<W> {
    fn new(inner: W, scrubber: Scrubber) -> ScrubbedWriter<W> {
        ScrubbedWriter { inner, scrubber }
    }
}

impl<W: Write> Write for ScrubbedWriter<W> {
    /// The subscriber writes each line in one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let clean = self.scrubber.scrub(&String::from_utf8_lossy(line));
        self.inner.write_all(clean.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let scrubber = Scrubber::new(vec![Secret::new("canary/+\"1"), Secret::new("KEY")]);
        scrubber.add(&Secret::new("latecanary"));
        let into = captured.clone();
        let options = LogOptions { format, level: level.to_owned() };
        let subscriber = subscriber(&options, move || ScrubbedWriter::new(into.clone(), scrubber.clone()));
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(captured.0.lock().expect("not poisoned").clone()).expect("lines are UTF-8")
    }

    #[test]
    fn secrets_are_taken_out_however_they_are_spelt() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = logged(format, "trace", || {
                tracing::info!(target: "dfstore_peer", key = "canary/+\"1", "plain canary/+\"1 and KEY");
                tracing::debug!(target: "dfstore_peer", "GET http://h/b?X-Amz-Signature=canarysig&x=1 canary%2F%2B%221");
                tracing::debug!(target: "dfstore_peer", "GET http://h/b?Expires=5&Signature=canarysig latecanary");
            });
            assert!(!lines.contains("canary"), "{lines}");
            assert!(lines.contains("and KEY") && lines.contains("x=1") && lines.contains("Expires=5"), "{lines}");
            assert_eq!(lines.lines().count(), 3, "{lines}");
        }
    }

    #[test]
    fn json_lines_are_json() {
        let line = logged(LogFormat::Json, "info", || tracing::info!(target: "dfstore_peer", bytes = 5, "hello"));
        let value: serde_json::Value = serde_json::from_str(&line).expect("one object");
        assert_eq!((&value["message"], &value["bytes"]), (&"hello".into(), &5.into()));
        assert_eq!((&value["level"], &value["target"]), (&"INFO".into(), &"dfstore_peer".into()));
    }

    #[test]
    fn levels_choose_lines_and_libraries_speak_of_trouble_only() {
        let all = || {
            tracing::debug!(target: "dfstore_peer::engine", "own-debug");
            tracing::debug!(target: "dfstore_peer::http", "http-debug");
            tracing::info!(target: "aws_sdk_s3", "library-info");
            tracing::warn!(target: "aws_sdk_s3", "library-warn");
        };
        let lines = logged(LogFormat::Text, "info,dfstore_peer::engine=debug,aws_sdk_s3=trace", all);
        assert!(lines.contains("own-debug") && lines.contains("library-warn"), "{lines}");
        assert!(!lines.contains("http-debug") && !lines.contains("library-info"), "{lines}");
        assert_eq!(logged(LogFormat::Text, "off", all), "");
    }
}
