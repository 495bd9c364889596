//! A small S3 server over a folder (`s3s-fs`), for the demo: signatures are checked, buckets are folders.
//!
//! Each thread has a runtime and accepts from the same listener. Runs until the process ends; a connection that fails
//! takes nothing else with it.

use std::net::TcpListener;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;

const THREADS: usize = 2;

/// Serves `folder` to this user on a bound listener; returns only with an error.
pub fn serve(listener: TcpListener, folder: &Path, access_key: &str, secret_key: &str) -> Result<()> {
    let files = FileSystem::new(folder).map_err(|error| anyhow!("cannot use {}: {error:?}", folder.display()))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
    let service = builder.build();
    listener.set_nonblocking(true).context("a listener for tokio")?;
    let mut threads = Vec::new();
    for _ in 0..THREADS {
        let (listener, service) = (listener.try_clone().context("a second handle of the listener")?, service.clone());
        threads.push(thread::spawn(move || accept(listener, service)));
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a serving thread panicked"))??;
    }
    Ok(())
}

fn accept(listener: TcpListener, service: S3Service) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a tokio runtime")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("a listener of tokio")?;
        loop {
            let (stream, client) = listener.accept().await.context("accepting a connection")?;
            let service = service.clone();
            tokio::spawn(async move {
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.timer(TokioTimer::new());
                if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                    eprintln!("connection from {client}: {error}");
                }
            });
        }
    })
}
