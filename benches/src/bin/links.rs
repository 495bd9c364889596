//! `dfstore-links`: a link between peers and a plain TCP connection in turn, both over loopback and from memory.
//!
//! The subject fetches whole pieces through [`Links`] (frames, credits, checksum, arena slots) from a thread that sends
//! them from memory; the reference copies as many bytes from a thread that writes to a thread that reads. What they
//! differ by is the cost of the transport, without any disk. One warm-up, then pairs; the median of the ratios counts.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use clap::Parser;
use dfstore_benches::pairs::{Pairs, Run};
use dfstore_peer::limits::PIECE_BYTES;
use dfstore_peer::links::{Links, LinksSetup};
use dfstore_peer::membership::{Node, NodeState};
use dfstore_peer::metrics::Metrics;
use dfstore_peer::rt::arena::{Arena, Holder};
use dfstore_peer::rt::shard::block_on;
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::limits::VERSION_MAX;
use dfstore_proto::message::{Fetch, HelloAck, Message, NodeRole, ReadEnd, Target, Token};
use dfstore_proto::session::{Event, Session};
use dfstore_tests::process::cpu_time;
use futures_util::stream::{FuturesUnordered, StreamExt};

/// Enough for two windows of pieces, whatever share of it fetches get.
const ARENA_BYTES: usize = 512 << 20;

/// Compares a link between peers with plain TCP.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pairs of runs, after one warm-up.
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Bytes of each run, in MiB.
    #[arg(long, default_value_t = 4096)]
    run_mib: u32,
    /// Fetches in flight.
    #[arg(long, default_value_t = 8)]
    window: u32,
}

fn main() -> ExitCode {
    dfstore_benches::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let pieces = (arguments.run_mib / (PIECE_BYTES >> 20)).max(1);
    let content: Arc<[u8]> = (0..PIECE_BYTES).map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    ensure!((1..=64).contains(&arguments.window), "the window is 1 to 64 pieces");
    let arena = Arena::new(ARENA_BYTES).context("the arena")?;
    let mut pairs = Pairs::default();
    for round in 0..=arguments.pairs {
        let subject = measured(pieces, || fetch_all(&arena, &content, pieces, arguments.window))?;
        let reference = measured(pieces, || copy_all(&content, pieces))?;
        if round > 0 {
            pairs.add(subject, reference);
        }
    }
    println!("{pieces} pieces a run, {} at once; the reference is plain TCP", arguments.window);
    print!("{pairs}");
    Ok(())
}

/// Time and CPU time of the whole program, both ends included.
fn measured(pieces: u32, work: impl FnOnce() -> Result<()>) -> Result<Run> {
    let (began, cpu) = (Instant::now(), cpu_time(std::process::id())?);
    work()?;
    let cpu = cpu_time(std::process::id())?.saturating_sub(cpu);
    Ok(Run::of(u64::from(pieces) * u64::from(PIECE_BYTES), began.elapsed(), cpu))
}

fn joined<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| bail!("the other side panicked"))
}

/// The subject: pieces over a link, each into a slot and summed.
fn fetch_all(arena: &Arena, content: &Arc<[u8]>, pieces: u32, window: u32) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let node = node_at(listener.local_addr()?);
    let sent = content.clone();
    let sender = thread::spawn(move || Sender::accept(&listener)?.serve(&sent));
    block_on(async {
        let setup = LinksSetup { shard: 0, credential: Token::default(), metrics: Metrics::new(1, "") };
        let links = Links::new(setup);
        let task = Target::new(ObjectName::new("bucket", "key")).task();
        let fetch = async |number| {
            let mut slot = arena.take(PIECE_BYTES as usize, Holder::Fetch).await;
            slot.set_len(PIECE_BYTES as usize);
            links.fetch(&node, Fetch { task, generation: 1, number, local_only: true }, slot, None).await
        };
        let mut numbers = 0..pieces;
        let mut flying: FuturesUnordered<_> = numbers.by_ref().take(window as usize).map(fetch).collect();
        let mut last = None;
        while let Some(piece) = flying.next().await {
            last = Some(piece?);
            flying.extend(numbers.next().map(fetch));
        }
        let last = last.context("there is a piece")?;
        ensure!(last.slot[..] == content[..], "the bytes are those that were sent");
        drop(flying);
        links.close();
        anyhow::Ok(())
    })
    .context("a runtime")??;
    joined(sender)
}

fn node_at(address: SocketAddr) -> Node {
    Node {
        id: "b".into(),
        started_us: 1,
        role: NodeRole::Seed,
        peer: address,
        api: address,
        shards: 1,
        capacity_bytes: 0,
        version: String::new(),
        state: NodeState::default(),
    }
}

/// The other end of the link: blocking calls, one thread.
struct Sender {
    stream: TcpStream,
    session: Session,
    buffer: Vec<u8>,
}

impl Sender {
    fn accept(listener: &TcpListener) -> Result<Sender> {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        Ok(Sender { stream, session: Session::accepting(), buffer: Vec::new() })
    }

    /// Sends the same bytes for every piece that is asked for, until the other side closes.
    fn serve(mut self, content: &[u8]) -> Result<()> {
        let crc32 = crc32fast::hash(content);
        let mut out = BytesMut::new();
        loop {
            while let Some(event) = self.event()? {
                match event {
                    Event::Hello(_) => self.session.accept(acknowledgement(), &mut out)?,
                    Event::Request { request, message: Message::Fetch(fetch) } => {
                        self.stream.write_all(&out.split())?;
                        self.send_piece(request, &fetch, content, crc32)?;
                        self.session.send(request, ReadEnd::default(), &mut out)?;
                    }
                    Event::Credit(_) => {}
                    other => bail!("unexpected: {other:?}"),
                }
            }
            self.stream.write_all(&out.split())?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn event(&mut self) -> Result<Option<Event>> {
        let mut input = &self.buffer[..];
        let event = self.session.receive(&mut input)?;
        self.buffer.drain(..self.buffer.len() - input.len());
        Ok(event)
    }

    fn send_piece(&mut self, request: RequestId, fetch: &Fetch, content: &[u8], crc32: u32) -> Result<()> {
        let head = PieceHead {
            task: fetch.task,
            generation: fetch.generation,
            offset: u64::from(fetch.number) * u64::from(PIECE_BYTES),
            number: fetch.number,
            length: PIECE_BYTES,
            crc32,
        };
        let front = self.session.send_piece(request, &head)?;
        let count = self.stream.write_vectored(&[IoSlice::new(&front), IoSlice::new(content)])?;
        self.stream.write_all(&front[count.min(front.len())..])?;
        self.stream.write_all(&content[count.saturating_sub(front.len())..])?;
        Ok(())
    }
}

fn acknowledgement() -> HelloAck {
    HelloAck {
        version: VERSION_MAX,
        node: "b".into(),
        agent: "bench".into(),
        shards: 1,
        shard: 0,
        piece_bytes: PIECE_BYTES,
        piece_bytes_max: PIECE_BYTES,
        requests_max: 256,
        credits: 1,
    }
}

/// The reference: the same bytes from one thread to another over one connection, and nothing else.
fn copy_all(content: &Arc<[u8]>, pieces: u32) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sent = content.clone();
    let sender = thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        for _ in 0..pieces {
            stream.write_all(&sent)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    let mut buffer = vec![0; PIECE_BYTES as usize];
    for _ in 0..pieces {
        stream.read_exact(&mut buffer)?;
    }
    ensure!(buffer[..] == content[..], "the bytes are those that were sent");
    joined(sender)
}
