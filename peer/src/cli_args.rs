//! The command line of `dfstore-peer`: flags, their environment variables, and what they replace in the file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use dfstore_peer::config::Overrides;

/// A cache and write buffer in front of an S3 or OSS bucket.
#[derive(Parser, Debug)]
#[command(name = "dfstore-peer", version, about, after_help = AFTER_HELP)]
pub struct Args {
    /// The configuration, a YAML file
    #[arg(long, short, value_name = "FILE", env = "DFSTORE_CONFIG")]
    pub config: PathBuf,
    /// Check the configuration, print what it means (without secrets), and exit
    #[arg(long)]
    pub check: bool,
    /// Folder of the pieces and the catalog (storage.dataPath)
    #[arg(long, value_name = "FOLDER", env = "DFSTORE_DATA_PATH")]
    data_path: Option<String>,
    /// Most bytes of pieces on disk, such as 20GiB (storage.capacity)
    #[arg(long, value_name = "SIZE", env = "DFSTORE_CAPACITY")]
    capacity: Option<String>,
    /// Most bytes acknowledged but not in the bucket yet (storage.dirtyLimit)
    #[arg(long, value_name = "SIZE", env = "DFSTORE_DIRTY_LIMIT")]
    dirty_limit: Option<String>,
    /// IP address to serve on (objectStorage.tcpListen.listen)
    #[arg(long, value_name = "IP", env = "DFSTORE_LISTEN")]
    listen: Option<String>,
    /// Port to serve on; 0 lets the system choose (objectStorage.tcpListen.port)
    #[arg(long, value_name = "PORT", env = "DFSTORE_PORT")]
    port: Option<String>,
    // Not DFSTORE_ENDPOINT: that is where the command line finds a peer, and a peer started from the same shell would
    // become its own backend.
    /// URL of the backend (objectStorage.endpoint)
    #[arg(long, value_name = "URL", env = "DFSTORE_BACKEND_ENDPOINT")]
    endpoint: Option<String>,
    /// Region of the backend (objectStorage.region)
    #[arg(long, value_name = "REGION", env = "DFSTORE_REGION")]
    region: Option<String>,
    /// Memory for pieces in flight, index and buffers, such as 1GiB (memory.budget)
    #[arg(long, value_name = "SIZE", env = "DFSTORE_MEMORY_BUDGET")]
    memory_budget: Option<String>,
    /// Threads that serve, or "auto" for one per core (shards)
    #[arg(long, value_name = "COUNT", env = "DFSTORE_SHARDS")]
    shards: Option<String>,
    /// Address of a listener for metrics alone (metrics.listen)
    #[arg(long, value_name = "IP:PORT", env = "DFSTORE_METRICS_LISTEN")]
    metrics_listen: Option<String>,
    /// error, warn, info, debug, trace, or a list such as info,dfstore_peer::engine=debug (log.level)
    #[arg(long, value_name = "LEVEL", env = "DFSTORE_LOG_LEVEL")]
    log_level: Option<String>,
    /// text or json (log.format)
    #[arg(long, value_name = "FORMAT", env = "DFSTORE_LOG_FORMAT")]
    log_format: Option<String>,
}

const AFTER_HELP: &str = "\
Keys of the backend are never flags, which everyone on the machine can see: they come from the file, or from
DFSTORE_ACCESS_KEY, DFSTORE_SECRET_KEY and DFSTORE_SESSION_TOKEN, or from the SDK's default chain. The token of the
cluster comes from the file or from DFSTORE_CLUSTER_TOKEN.
Exit status: 0 after a stop by SIGTERM or SIGINT, 1 when the peer cannot start or fails, 2 for a wrong command line.";

/// A flag, its variable, and the key it replaces.
struct Flag {
    id: &'static str,
    flag: &'static str,
    variable: &'static str,
    key: &'static str,
}

const fn flag(id: &'static str, flag: &'static str, variable: &'static str, key: &'static str) -> Flag {
    Flag { id, flag, variable, key }
}

const FLAGS: [Flag; 12] = [
    flag("data_path", "--data-path", "DFSTORE_DATA_PATH", "storage.dataPath"),
    flag("capacity", "--capacity", "DFSTORE_CAPACITY", "storage.capacity"),
    flag("dirty_limit", "--dirty-limit", "DFSTORE_DIRTY_LIMIT", "storage.dirtyLimit"),
    flag("listen", "--listen", "DFSTORE_LISTEN", "objectStorage.tcpListen.listen"),
    flag("port", "--port", "DFSTORE_PORT", "objectStorage.tcpListen.port"),
    flag("endpoint", "--endpoint", "DFSTORE_BACKEND_ENDPOINT", "objectStorage.endpoint"),
    flag("region", "--region", "DFSTORE_REGION", "objectStorage.region"),
    flag("memory_budget", "--memory-budget", "DFSTORE_MEMORY_BUDGET", "memory.budget"),
    flag("shards", "--shards", "DFSTORE_SHARDS", "shards"),
    flag("metrics_listen", "--metrics-listen", "DFSTORE_METRICS_LISTEN", "metrics.listen"),
    flag("log_level", "--log-level", "DFSTORE_LOG_LEVEL", "log.level"),
    flag("log_format", "--log-format", "DFSTORE_LOG_FORMAT", "log.format"),
];

/// Variables without a flag.
const SECRETS: [(&str, &str); 4] = [
    ("DFSTORE_CLUSTER_TOKEN", "cluster.token"),
    ("DFSTORE_ACCESS_KEY", "objectStorage.accessKey"),
    ("DFSTORE_SECRET_KEY", "objectStorage.secretKey"),
    ("DFSTORE_SESSION_TOKEN", "objectStorage.sessionToken"),
];

/// Reads a command line; a wrong one, `--help` and `--version` come back as clap's own error, which knows its text
/// and exit status.
pub fn parse(
    words: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(Args, Overrides), clap::Error> {
    let matches = Args::command().try_get_matches_from(words)?;
    let args = Args::from_arg_matches(&matches)?;
    Ok((args, overrides(&matches, variable)))
}

fn overrides(matches: &ArgMatches, variable: impl Fn(&str) -> Option<String>) -> Overrides {
    let mut overrides = Overrides::default();
    for Flag { id, flag, variable, key } in &FLAGS {
        let Some(value) = matches.get_one::<String>(id) else { continue };
        match matches.value_source(id) {
            // A variable that is set to nothing is as good as unset.
            Some(ValueSource::EnvVariable) if value.is_empty() => {}
            Some(ValueSource::EnvVariable) => overrides.set(key, variable, value),
            _ => overrides.set(key, flag, value),
        }
    }
    for (name, key) in SECRETS {
        if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
            overrides.set(key, name, value);
        }
    }
    overrides
}

#[cfg(test)]
mod tests {
    use dfstore_peer::config::Config;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
        let known: Vec<String> = Args::command().get_arguments().map(|arg| arg.get_id().to_string()).collect();
        assert!(FLAGS.iter().all(|flag| known.contains(&flag.id.to_owned())), "{known:?}");
    }

    #[test]
    fn every_flag_names_a_key_that_exists() {
        for Flag { flag, key, .. } in FLAGS {
            let mut overrides = Overrides::default();
            overrides.set(key, flag, "\u{7f} no value is like this");
            let text = "objectStorage: { enable: true, name: s3 }";
            let shown = match Config::parse("f", text, &overrides) {
                Ok(_) => String::new(),
                Err(error) => error.to_string(),
            };
            assert!(!shown.contains("unknown key"), "{flag}: {shown}");
            assert!(shown.starts_with(flag), "{flag}: {shown}");
        }
    }

    #[test]
    fn a_misspelt_flag_names_the_nearest_one() {
        let error = parse(words("dfstore-peer --config f --data-pth x"), |_| None).expect_err("unknown");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--data-path"), "{error}");
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["dfstore-peer --help", "dfstore-peer --version"] {
            assert_eq!(parse(words(line), |_| None).expect_err("handled by clap").exit_code(), 0);
        }
        assert_eq!(parse(words("dfstore-peer"), |_| None).expect_err("no file").exit_code(), 2);
    }

    #[test]
    fn secrets_come_from_variables() {
        let variable = |name: &str| name.ends_with("_KEY").then(|| "from-env".to_owned());
        let (_, overrides) = parse(words("dfstore-peer --config f --shards 1"), variable).expect("valid");
        let config = Config::parse("f", "objectStorage: { enable: true, name: s3 }", &overrides).expect("valid");
        assert_eq!(
            config.backend.and_then(|backend| backend.credentials).expect("given").secret_key.expose(),
            "from-env"
        );
        assert_eq!(config.shards, 1);
    }
}
