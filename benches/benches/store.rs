//! Throughput of the piece store and of the catalog, on a real disk, without the rest of the peer.
//!
//! Pieces are read and written with direct I/O, so every read is a cold one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dfstore_benches::is_smoke;
use dfstore_peer::catalog::{Catalog, CatalogHandle, Change, Durability, PieceKey, PieceRecord};
use dfstore_peer::limits::PIECE_BYTES;
use dfstore_peer::rt::arena::{Arena, Holder, SlotMut};
use dfstore_peer::rt::shard::block_on;
use dfstore_peer::store::{Extent, ExtentList, Lease, PieceStore, SpaceOptions, StoreError, StoreSeed, seal};
use dfstore_proto::ids::TaskId;
use dfstore_tests::data::Payload;
use dfstore_tests::dirs;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};

const ARENA_BYTES: usize = 384 << 20;
const CAPACITY_BYTES: u64 = 4 << 30;
/// Pieces in flight.
const DEPTH: usize = 8;

struct Bed {
    store: PieceStore,
    arena: Arena,
    content: Vec<u8>,
}

#[derive(Clone)]
struct Written {
    lease: Lease,
    crc32: u32,
}

impl Bed {
    async fn slot(&self, number: u64) -> SlotMut {
        let mut slot = self.arena.take(PIECE_BYTES as usize, Holder::Ingest).await;
        slot.set_len(PIECE_BYTES as usize);
        slot.copy_from_slice(&self.content);
        // No two pieces are the same.
        slot[..8].copy_from_slice(&number.to_le_bytes());
        slot
    }

    /// What an upload does with a piece whose bytes have come: checksum, space, write.
    async fn write(&self, number: u64) -> Result<Written, StoreError> {
        let (slot, crc32) = seal(self.slot(number).await);
        let reservation = self.store.allocate(PIECE_BYTES as usize).await?;
        self.store.write(&reservation, slot).await?;
        Ok(Written { lease: reservation.keep(), crc32 })
    }

    async fn read(&self, piece: &Written) -> Result<(), StoreError> {
        let slot = self.arena.take(PIECE_BYTES as usize, Holder::Serve).await;
        self.store.read(&piece.lease, PIECE_BYTES as usize, piece.crc32, slot).await.map(drop)
    }
}

/// Writes pieces, syncs them together, and forgets them.
async fn write_many(bed: &Bed, count: u64) -> Duration {
    let started = Instant::now();
    let written: Vec<Written> = stream::iter(0..count)
        .map(|number| bed.write(number))
        .buffer_unordered(DEPTH)
        .map(|piece| piece.expect("there is space"))
        .collect()
        .await;
    bed.store.sync(written.iter().map(|piece| piece.lease.extents())).await.expect("the disk takes it");
    let took = started.elapsed();
    written.into_iter().for_each(|piece| piece.lease.retire());
    took
}

async fn read_many(bed: &Bed, pieces: &[Written], count: u64) -> Duration {
    let started = Instant::now();
    let mut reads = stream::iter(pieces.iter().cycle().take(usize::try_from(count).expect("a small count")))
        .map(|piece| bed.read(piece))
        .buffer_unordered(DEPTH);
    while let Some(read) = reads.next().await {
        read.expect("the piece is as it was written");
    }
    started.elapsed()
}

fn pieces(criterion: &mut Criterion) {
    let folder = dirs::temporary("bench-store").expect("a folder");
    let options =
        SpaceOptions { dir: folder.path().to_path_buf(), capacity_bytes: CAPACITY_BYTES, shards: 1, store_id: [1; 16] };
    let seed = StoreSeed::open(options, &BTreeSet::new()).expect("the folder opens");
    let arena = Arena::new(ARENA_BYTES).expect("memory");
    let content = Payload::new(1, u64::from(PIECE_BYTES)).bytes();
    println!("crc32 of the content: {:08x}", crc32fast::hash(&content));
    let piece_count: u64 = if is_smoke() { 8 } else { 192 };
    let mut group = criterion.benchmark_group("store");
    group.sample_size(10).throughput(Throughput::Bytes(u64::from(PIECE_BYTES)));
    let bed = || Bed { store: seed.shard(0), arena: arena.clone(), content: content.clone() };
    group.bench_function("write pieces, depth 8, synced", |bencher| {
        // At most as much at once as the disk has room for; the rest goes over the same blocks.
        bencher.iter_custom(|iterations| {
            let bed = bed();
            let work = async {
                let (mut left, mut took) = (iterations, Duration::ZERO);
                while left > 0 {
                    let now = left.min(piece_count);
                    took += write_many(&bed, now).await;
                    left -= now;
                }
                took
            };
            block_on(work).expect("io_uring is there")
        });
    });
    let written: Vec<Written> = block_on(async {
        let bed = bed();
        join_all((0..piece_count).map(|number| bed.write(number)))
            .await
            .into_iter()
            .map(|piece| piece.expect("space"))
            .collect()
    })
    .expect("io_uring is there");
    group.bench_function("read cold pieces, depth 8, verified", |bencher| {
        bencher.iter_custom(|iterations| block_on(read_many(&bed(), &written, iterations)).expect("io_uring is there"));
    });
    group.finish();
}

fn piece_change(number: u64) -> Change {
    let block = u32::try_from(number % 1_000_000).expect("below a million");
    let extents = ExtentList::new(&[Extent { file: 1, block, count: 1024 }]).expect("one extent");
    let key = PieceKey { task: TaskId::from_bytes([3; 32]), generation: number / 1000, number: block };
    Change::PutPiece { key, record: PieceRecord { length: PIECE_BYTES, crc32: block, extents } }
}

/// Commits of one change each, `width` of them at once.
async fn commit_many(catalog: &CatalogHandle, count: u64, width: usize) -> Duration {
    let started = Instant::now();
    let mut commits = stream::iter(0..count)
        .map(|number| catalog.commit(vec![piece_change(number)], Durability::Durable))
        .buffer_unordered(width);
    while let Some(committed) = commits.next().await {
        committed.expect("the disk takes it");
    }
    started.elapsed()
}

fn catalog(criterion: &mut Criterion) {
    let folder = dirs::temporary("bench-catalog").expect("a folder");
    let (catalog, _) = Catalog::open(folder.path(), 16 << 20, Box::new(|_, _| ())).expect("the catalog opens");
    let handle = catalog.handle();
    let mut group = criterion.benchmark_group("catalog");
    // What a committed piece stands for: this many bytes of objects become durable.
    group.sample_size(10).throughput(Throughput::ElementsAndBytes { elements: 1, bytes: u64::from(PIECE_BYTES) });
    for (name, width) in [("commit a piece alone", 1), ("commit a piece, 256 at once", 256)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                block_on(commit_many(&handle, iterations, width)).expect("io_uring is there")
            });
        });
    }
    group.finish();
    catalog.close();
}

criterion_group!(benches, pieces, catalog);
criterion_main!(benches);
