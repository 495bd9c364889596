//! The command line: commands, flags, defaults and their checks. The forms of the Go `dfstore` command stay valid.
//!
//! Clap does the rest: a usage error names the nearest flag or command and exits with 2.

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use dfstore_proto::limits::VERSION_MAX;
use dfstore_proto::object::WriteMode;

/// Most connections of one transfer.
pub const PARALLEL_MAX: u8 = 32;
/// Connections of one transfer unless the user says otherwise: enough to fill a link, few for the peer.
pub const PARALLEL_DEFAULT: u8 = 4;

/// Copies objects to and from dfstore peers.
#[derive(Debug, Parser)]
#[command(name = "dfstore", version = version_text(), arg_required_else_help = false)]
pub struct Cli {
    /// Peer to talk to: http://HOST:PORT, dfs://HOST:PORT, tcp://HOST:PORT or HOST:PORT.
    #[arg(
        short,
        long,
        global = true,
        value_name = "URL",
        env = "DFSTORE_ENDPOINT",
        default_value = "http://127.0.0.1:65004",
        value_hint = ValueHint::Url
    )]
    pub endpoint: String,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy a file to an object, an object to a file, or an object to an object.
    Cp(CpArgs),
    /// Remove objects.
    Rm(RmArgs),
    /// Show what is known about an object.
    Stat(StatArgs),
    /// List objects.
    Ls(LsArgs),
    /// Fetch objects into the caches of all nodes, ahead of need.
    Prefetch(WorkArgs),
    /// Drop objects from the caches of all nodes. What the backend does not have stays.
    Evict(WorkArgs),
    /// See and steer what waits for the backend, on the peer or in its cluster.
    #[command(subcommand)]
    Writeback(WritebackCommand),
    /// Show how the last check of the pieces on the peer's disk ended.
    Scrub(ScrubArgs),
    /// Look after a cluster of peers.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Show the version of this program and of its protocol.
    Version(VersionArgs),
    /// Print a completion script for a shell.
    Completion {
        /// The shell to complete for.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub struct CpArgs {
    /// File, dfs://BUCKET/KEY, or - for standard input.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: OsString,
    /// File or folder, dfs://BUCKET/KEY (a folder if it ends in /), or - for standard output.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub target: OsString,
    /// Names of URL parameters, separated by &, that do not tell objects apart.
    #[arg(long, default_value = "", value_name = "NAMES")]
    pub filter: String,
    /// When an upload is acknowledged: 0 or async (durable on the peer; the backend follows), 1 or writeback (the
    /// backend has it), 2 or ephemeral (durable on the peer; the backend never gets it).
    #[arg(short, long, default_value = "0", value_name = "MODE", value_parser = parse_mode)]
    pub mode: WriteMode,
    /// Replicas that seed peers keep.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = parse_max_replicas)]
    pub max_replicas: u8,
    /// Durable copies to wait for: local (the peer's own), or peers:K (on K nodes of its cluster, this peer counted).
    #[arg(long, default_value = "local", value_name = "WHO", value_parser = parse_ack)]
    pub ack: Ack,
    /// What to wait for when an upload is acknowledged: nothing more, or that the backend has the object too.
    #[arg(long, default_value = "none", value_name = "FOR")]
    pub wait: Wait,
    /// Connections to use at once.
    #[arg(long, default_value_t = PARALLEL_DEFAULT, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=i64::from(PARALLEL_MAX)))]
    pub parallel: u8,
    /// Content type of the uploaded object.
    #[arg(long, default_value = "", value_name = "TYPE")]
    pub content_type: String,
    /// Do not show a progress bar.
    #[arg(long)]
    pub no_progress: bool,
    /// Show neither a progress bar nor the closing line.
    #[arg(short, long)]
    pub quiet: bool,
    /// Say on standard error where the bytes came from, or how far they have come.
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Objects to remove: dfs://BUCKET/KEY.
    #[arg(required = true)]
    pub targets: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StatArgs {
    /// The object: dfs://BUCKET/KEY.
    pub target: String,
    /// Ask the whole cluster: which nodes decide about the object, and which hold which pieces of it.
    #[arg(long = "where")]
    pub whereabouts: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct WorkArgs {
    /// dfs://BUCKET/KEY, or a prefix that ends in /: dfs://BUCKET/PREFIX/ (dfs://BUCKET/ is all of the bucket).
    pub target: String,
    /// Of a prefix: everything below, not only up to the next slash.
    #[arg(short, long)]
    pub recursive: bool,
    /// Print one JSON object per line.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum WritebackCommand {
    /// List what waits for the backend: state, age, attempts, bytes sent, and the last error.
    Ls(QueueArgs),
    /// Wait until nothing waits any more. A dead letter among it is a failure.
    Wait(WaitArgs),
    /// Try objects now, also dead letters. Of a prefix: its dead letters.
    Retry(SteerArgs),
    /// Give writes up for good: the backend never gets them, and what it has counts again. Dead letters only, unless
    /// forced.
    Drop(SteerArgs),
}

#[derive(Debug, Args)]
pub struct QueueArgs {
    /// Only what begins like this: dfs://BUCKET or dfs://BUCKET/PREFIX.
    pub target: Option<String>,
    /// Only dead letters: what is not tried again by itself.
    #[arg(long)]
    pub dead: bool,
    /// Print one JSON object per line.
    #[arg(long)]
    pub json: bool,
    /// Stop after this many entries.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Only for what begins like this: dfs://BUCKET or dfs://BUCKET/PREFIX.
    pub target: Option<String>,
    /// Give up after this many seconds, with exit code 1.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Show neither that it waits nor what for.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct SteerArgs {
    /// dfs://BUCKET/KEY, or a prefix that ends in /: dfs://BUCKET/PREFIX/ (dfs://BUCKET/ is all of the bucket).
    pub target: String,
    /// Retry: replace what others wrote into the bucket meanwhile. Drop: also what is no dead letter. Of a prefix: all
    /// that waits below it.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Begin a check, unless one runs, and wait for its end.
    #[arg(long)]
    pub now: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the nodes of the cluster that the peer belongs to.
    Status(StatusArgs),
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// What to list: dfs://BUCKET or dfs://BUCKET/PREFIX.
    pub target: String,
    /// List everything below, not only up to the next slash.
    #[arg(short, long)]
    pub recursive: bool,
    /// Print one JSON object per line.
    #[arg(long)]
    pub json: bool,
    /// Stop after this many entries.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
}

#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Who must hold a durable copy before an upload is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// This peer.
    Local,
    /// That many peers.
    Peers(u8),
}

/// What an upload waits for after it was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// Nothing.
    None,
    /// That the backend has the object.
    Backend,
}

/// What `--version` prints behind the name: the same as the command `version`.
fn version_text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{}\nprotocol {VERSION_MAX}", env!("CARGO_PKG_VERSION")));
    &TEXT
}

fn parse_mode(text: &str) -> Result<WriteMode, String> {
    match text {
        "async" => Ok(WriteMode::AsyncWriteBack),
        "writeback" => Ok(WriteMode::WriteBack),
        "ephemeral" => Ok(WriteMode::Ephemeral),
        _ => text
            .parse()
            .ok()
            .and_then(WriteMode::from_number)
            .ok_or_else(|| "invalid Mode: 0 (async), 1 (writeback) or 2 (ephemeral)".to_string()),
    }
}

fn parse_max_replicas(text: &str) -> Result<u8, String> {
    text.parse().ok().filter(|count| *count <= 100).ok_or_else(|| "invalid MaxReplicas: 0 to 100".to_string())
}

fn parse_ack(text: &str) -> Result<Ack, String> {
    if text == "local" {
        return Ok(Ack::Local);
    }
    let peers = text.strip_prefix("peers:").and_then(|count| count.parse().ok()).filter(|count| *count > 0);
    peers.map(Ack::Peers).ok_or_else(|| "local, or peers:K with K of 1 or more".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn cp(line: &str) -> CpArgs {
        match parse(line).expect(line).command {
            Command::Cp(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn endpoint_stands_before_or_after_the_command() {
        for line in ["dfstore -e http://h:1 rm dfs://b/k", "dfstore rm --endpoint http://h:1 dfs://b/k"] {
            assert_eq!(parse(line).expect(line).endpoint, "http://h:1");
        }
    }

    #[test]
    fn modes_by_number_and_name() {
        for (text, mode) in [
            ("0", WriteMode::AsyncWriteBack),
            ("async", WriteMode::AsyncWriteBack),
            ("1", WriteMode::WriteBack),
            ("writeback", WriteMode::WriteBack),
            ("2", WriteMode::Ephemeral),
            ("ephemeral", WriteMode::Ephemeral),
        ] {
            assert_eq!(cp(&format!("dfstore cp a b -m {text}")).mode, mode);
        }
        assert!(parse("dfstore cp a b --mode 3").expect_err("3").to_string().contains("invalid Mode"));
        assert!(parse("dfstore cp a b --mode -1").is_err());
    }

    #[test]
    fn defaults_are_the_old_ones() {
        let args = cp("dfstore cp a b");
        assert_eq!((args.mode, args.max_replicas, args.filter.as_str()), (WriteMode::AsyncWriteBack, 3, ""));
        assert_eq!((args.ack, args.wait, args.no_progress), (Ack::Local, Wait::None, false));
        assert!(cp("dfstore cp a b -q").quiet);
    }

    #[test]
    fn replicas_acks_and_streams_have_bounds() {
        assert_eq!(cp("dfstore cp a b --max-replicas 100").max_replicas, 100);
        assert!(parse("dfstore cp a b --max-replicas 101").is_err());
        assert_eq!(cp("dfstore cp a b --ack peers:2").ack, Ack::Peers(2));
        for bad in ["peers:0", "peers:", "all"] {
            assert!(parse(&format!("dfstore cp a b --ack {bad}")).is_err(), "{bad}");
        }
        assert!(parse("dfstore cp a b --parallel 0").is_err() && parse("dfstore cp a b --parallel 33").is_err());
    }

    #[test]
    fn dash_is_an_argument() {
        assert_eq!(cp("dfstore cp - dfs://b/k").source, "-");
        assert_eq!(cp("dfstore cp dfs://b/k -").target, "-");
    }

    #[test]
    fn unknown_names_get_the_nearest() {
        for (line, nearest) in [("dfstore cp a b --fliter x", "--filter"), ("dfstore stats dfs://b/k", "stat")] {
            let text = parse(line).expect_err(line).to_string();
            assert!(text.contains(nearest), "{text}");
        }
    }
}
