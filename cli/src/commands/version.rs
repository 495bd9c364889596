//! `dfstore version`: which program this is and which protocol it speaks. Asks no peer.

use anyhow::Result;

use crate::args::VersionArgs;
use crate::commands::print_line;

/// Prints the version.
pub fn run(args: &VersionArgs) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let protocol = dfstore_proto::limits::VERSION_MAX;
    if args.json {
        return print_line(serde_json::json!({ "version": version, "protocol": protocol }));
    }
    print_line(format_args!("dfstore {version}\nprotocol {protocol}"))
}
