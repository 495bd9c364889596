//! Throughput of a whole peer, as its clients see it: GET and PUT, over HTTP and over the native protocol.
//!
//! GET reads from the peer's disk (direct I/O, nothing is kept in memory), PUT is acknowledged when durable there. The
//! objects are ephemeral, so that no write-back competes for the disk. One iteration is one request on every
//! connection.

use anyhow::{Result, ensure};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dfstore_benches::lab::Lab;
use dfstore_benches::{is_smoke, load};
use dfstore_proto::message::Target;
use dfstore_proto::object::WriteMode;
use dfstore_tests::data::Payload;
use dfstore_tests::http::Connection;
use dfstore_tests::native::{NativeClient, target};
use dfstore_tests::peer::Peer;

const CONNECTIONS: [usize; 2] = [1, 16];
const BUCKET: &str = "bench";

/// One connection, by protocol, and the object it works on.
enum Client {
    Http { connection: Connection, path: String },
    Native { connection: Box<NativeClient>, target: Target },
}

#[derive(Clone, Copy)]
enum Protocol {
    Http,
    Native,
}

impl Client {
    fn open(peer: &Peer, protocol: Protocol, key: &str) -> Result<Client> {
        Ok(match protocol {
            Protocol::Http => Client::Http {
                connection: Connection::open(peer.address())?,
                path: format!("{}?mode=2", Peer::object_path(BUCKET, key)),
            },
            Protocol::Native => {
                let target = target(BUCKET, key);
                Client::Native { connection: Box::new(NativeClient::connect(peer.address(), &target)?), target }
            }
        })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Client::Http { connection, path } => {
                let answer = connection.request("PUT", path, &[("Content-Type", "application/octet-stream")], bytes)?;
                ensure!(answer.status() == 200, "PUT: {} {}", answer.status(), answer.text());
                Ok(())
            }
            Client::Native { connection, target } => connection.put(target, bytes, WriteMode::Ephemeral).map(drop),
        }
    }

    fn get(&mut self, length: u64) -> Result<()> {
        let received = match self {
            Client::Http { connection, path } => {
                let path = path.split('?').next().unwrap_or_default();
                connection.send_head("GET", path, &[], 0)?;
                let head = connection.read_head()?;
                ensure!(head.status == 200, "GET: {}", head.status);
                connection.read_body(&head, |_| ())?
            }
            Client::Native { connection, target } => connection.get(target, |_, _| ())?,
        };
        ensure!(received == length, "{received} of {length} bytes came");
        Ok(())
    }
}

type Work<'a> = &'a (dyn Fn(&mut Client) -> Result<()> + Sync);

/// One iteration is one request on every connection.
fn bench(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, clients: &mut [Client], work: Work<'_>) {
    group.bench_function(BenchmarkId::new(name, clients.len()), |bencher| {
        bencher.iter_custom(|iterations| {
            load::rounds(clients, iterations, |_, client| work(client)).expect("no request fails")
        });
    });
}

fn process(criterion: &mut Criterion) {
    let lab = Lab::start().expect("the peer starts");
    let large = if is_smoke() { 5 << 20 } else { 64 << 20 };
    for (protocol, protocol_name) in [(Protocol::Http, "http"), (Protocol::Native, "native")] {
        let mut group = criterion.benchmark_group(protocol_name);
        group.sample_size(10);
        for (length, size_name) in [(4096, "4KiB"), (large, "64MiB")] {
            let bytes = Payload::new(length, length).bytes();
            println!("crc32 of {size_name}: {:08x}", crc32fast::hash(&bytes));
            for connections in CONNECTIONS {
                let open = |index| Client::open(&lab.peer, protocol, &format!("{protocol_name}-{length}-{index}"));
                let clients: Result<Vec<Client>> = (0..connections).map(open).collect();
                let mut clients = clients.expect("the peer takes connections");
                group.throughput(Throughput::Bytes(length * connections as u64));
                bench(&mut group, &format!("put {size_name}"), &mut clients, &|client| client.put(&bytes));
                // What is read must be there, also when a filter left the put out.
                load::rounds(&mut clients, 1, |_, client| client.put(&bytes)).expect("the objects are written");
                bench(&mut group, &format!("get {size_name}"), &mut clients, &|client| client.get(length));
            }
        }
        group.finish();
    }
}

criterion_group!(benches, process);
criterion_main!(benches);
