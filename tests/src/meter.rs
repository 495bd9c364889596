//! A TCP relay in front of any server that counts what passes: for buckets whose server counts nothing itself.
//!
//! It looks at nothing, so signatures of S3 requests stay right as long as clients name it as their endpoint. Counts
//! are of all bytes, heads of requests and answers included. A server that cannot be reached closes the connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::relay::{LOOPBACK, Link, Relay};

const CHUNK_BYTES: usize = 256 << 10;

/// A running meter.
pub struct Meter {
    relay: Relay,
    counts: Arc<Counts>,
}

struct Counts {
    target: SocketAddr,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter {
    /// Starts one in front of `target`.
    pub fn start(target: SocketAddr) -> Result<Meter> {
        let counts = Arc::new(Counts { target, sent: AtomicU64::new(0), received: AtomicU64::new(0) });
        let relay = Relay::start("meter", LOOPBACK, |_| Ok(counts.clone()))?;
        Ok(Meter { relay, counts })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.relay.address()
    }

    /// Bytes that the server has sent.
    pub fn sent_bytes(&self) -> u64 {
        self.counts.sent.load(Ordering::SeqCst)
    }

    /// Bytes that the server has received.
    pub fn received_bytes(&self) -> u64 {
        self.counts.received.load(Ordering::SeqCst)
    }

    /// Starts counting anew.
    pub fn forget(&self) {
        self.counts.sent.store(0, Ordering::SeqCst);
        self.counts.received.store(0, Ordering::SeqCst);
    }
}

impl Link for Counts {
    fn carry(self: Arc<Self>, client: TcpStream) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Ok(server) = TcpStream::connect(self.target).await else { return };
            let _ = server.set_nodelay(true);
            let (client_in, client_out) = client.into_split();
            let (server_in, server_out) = server.into_split();
            tokio::join!(
                copy(client_in, server_out, &self.received), //
                copy(server_in, client_out, &self.sent),
            );
        })
    }
}

/// Until either side has had enough.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: &AtomicU64) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(length as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::S3Endpoint;
    use crate::s3s_server::S3sServer;

    #[test]
    fn bytes_pass_and_are_counted() {
        let server = S3sServer::start().expect("a server");
        let endpoint = server.endpoint();
        let address = endpoint.url.trim_start_matches("http://").parse().expect("an address");
        let meter = Meter::start(address).expect("a meter");
        let bucket = S3Endpoint { url: format!("http://{}", meter.address()), ..endpoint }.bucket("metered");
        bucket.create().expect("created");
        let bytes = vec![7; 300_000];
        bucket.put("a", &bytes).expect("put");
        let received = meter.received_bytes();
        assert!((300_000..310_000).contains(&received), "{received} received");
        meter.forget();
        assert_eq!(bucket.get("a").expect("get").map(|bytes| bytes.len()), Some(300_000));
        let sent = meter.sent_bytes();
        assert!((300_000..310_000).contains(&sent), "{sent} sent");
    }
}
