//! `dfstore-test-s3`: an S3 server over a folder, for demos and experiments. Says on standard error where it listens.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

/// Serves a folder as an S3 endpoint: every folder in it is a bucket.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder with the buckets.
    #[arg(long)]
    dir: PathBuf,
    /// Address to listen on; port 0 lets the system choose.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Access key ID of its only user.
    #[arg(long)]
    access_key: String,
    /// Secret access key of its only user.
    #[arg(long)]
    secret_key: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let listener =
        TcpListener::bind(arguments.listen).with_context(|| format!("cannot listen on {}", arguments.listen))?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    dfstore_tools::s3_server::serve(listener, &arguments.dir, &arguments.access_key, &arguments.secret_key)
}
