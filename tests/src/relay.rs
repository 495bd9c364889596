//! A listener on a thread of its own, for servers and proxies inside a test program.
//!
//! A [`Link`] says what becomes of each connection; the thread runs all of them on one tokio runtime. When the relay
//! is dropped the listener and every connection are closed. Only the start can fail; a connection that fails takes
//! nothing else with it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where nearly all of them listen.
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What becomes of a connection.
pub trait Link: Send + Sync + 'static {
    /// Has the connection until it is over.
    fn carry(self: Arc<Self>, client: TcpStream) -> BoxFuture<'static, ()>;
}

/// A listener that is being served.
pub struct Relay {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Serves on a free port of this address. `link` is made when the port is known.
    pub fn start<L: Link>(
        name: &str,
        listen: IpAddr,
        link: impl FnOnce(SocketAddr) -> Result<Arc<L>>,
    ) -> Result<Relay> {
        let listener = std::net::TcpListener::bind((listen, 0)).with_context(|| format!("no free port on {listen}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let link = link(address)?;
        let (stop, mut stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener that does not block");
                tokio::select! {
                    () = accept(listener, link) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Relay { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept<L: Link>(listener: TcpListener, link: Arc<L>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        tokio::spawn(link.clone().carry(stream));
    }
}
