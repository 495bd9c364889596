//! Tests of the store on real files: round trips, damage, space, restarts, sync groups.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use futures_util::future::join_all;
use tempfile::TempDir;

use crate::limits::PIECE_BYTES;
use crate::rt::arena::{Arena, Holder, Slot, SlotMut};
use crate::rt::shard::block_on;
use crate::store::recover::{Belongs, Found, recover};
use crate::store::{ExtentList, Lease, PieceStore, SpaceOptions, StoreError, StoreSeed, piece_file_path, seal};

const MIB: u64 = 1 << 20;

/// A data folder on the disk of the checkout: direct I/O wants a real file system.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/../target").expect("target can be written")
}

fn options(dir: &TempDir, capacity_bytes: u64, shards: usize) -> SpaceOptions {
    SpaceOptions { dir: dir.path().to_path_buf(), capacity_bytes, shards, store_id: [7; 16] }
}

fn seed(dir: &TempDir, capacity_bytes: u64, shards: usize) -> StoreSeed {
    StoreSeed::open(options(dir, capacity_bytes, shards), &BTreeSet::new()).expect("the folder opens")
}

fn arena() -> Arena {
    Arena::new(128 << 20).expect("128 MiB can be mapped")
}

/// A slot of `length` bytes that differ from piece to piece.
fn filled(arena: &Arena, length: usize, salt: u8) -> SlotMut {
    let mut slot = arena.try_take(length, Holder::Ingest).expect("the share is free");
    slot.set_len(length);
    slot.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at as u8).wrapping_mul(31).wrapping_add(salt));
    slot
}

struct Written {
    lease: Lease,
    length: usize,
    crc32: u32,
    bytes: Slot,
}

async fn write(store: &PieceStore, arena: &Arena, length: usize, salt: u8) -> Result<Written, StoreError> {
    let reservation = store.allocate(length).await?;
    let (slot, crc32) = seal(filled(arena, length, salt));
    store.write(&reservation, slot.clone()).await?;
    store.sync([reservation.extents()]).await?;
    Ok(Written { lease: reservation.keep(), length, crc32, bytes: slot })
}

async fn read(store: &PieceStore, arena: &Arena, piece: &Written) -> Result<Slot, StoreError> {
    let slot = arena.try_take(piece.length, Holder::Serve).expect("the share is free");
    store.read(&piece.lease, piece.length, piece.crc32, slot).await
}

fn run<F: Future>(future: F) -> F::Output {
    block_on(future).expect("io_uring is there")
}

#[test]
fn reads_back_what_was_written_at_every_border() {
    let (dir, arena) = (folder(), arena());
    let seed = seed(&dir, 64 * MIB, 2);
    run(async {
        let store = seed.shard(0);
        for length in [1, 4095, 4096, 4097, 65_536, 1_000_000, PIECE_BYTES as usize - 1, PIECE_BYTES as usize] {
            let piece = write(&store, &arena, length, 3).await.expect("there is space");
            let found = read(&store, &arena, &piece).await.expect("it is there");
            assert_eq!(&found[..], &piece.bytes[..], "length {length}");
        }
    });
    assert!(Holder::ALL.iter().all(|holder| arena.held_bytes(*holder) == 0), "every slot came back");
}

#[test]
fn a_flipped_byte_is_found() {
    let (dir, arena) = (folder(), arena());
    let seed = seed(&dir, 64 * MIB, 1);
    run(async {
        let store = seed.shard(0);
        let piece = write(&store, &arena, 10_000, 3).await.expect("there is space");
        let extent = piece.lease.as_slice()[0];
        let file = File::options().write(true).open(piece_file_path(dir.path(), extent.file)).expect("opens");
        file.write_all_at(&[0xee], extent.offset_bytes() + 5000).expect("writes");
        let result = read(&store, &arena, &piece).await;
        assert!(matches!(result, Err(StoreError::Corrupt { expected, .. }) if expected == piece.crc32));
    });
    assert_eq!(arena.held_bytes(Holder::Serve), 0);
}

#[test]
fn never_takes_more_than_the_capacity() {
    let (dir, arena) = (folder(), arena());
    let capacity = 64 * MIB;
    let seed = seed(&dir, capacity, 2);
    run(async {
        let stores = [seed.shard(0), seed.shard(1)];
        let mut pieces = Vec::new();
        let refused = loop {
            // One shard alone may use all of it: nothing is stranded in the share of the other.
            match write(&stores[0], &arena, PIECE_BYTES as usize, 9).await {
                Ok(piece) => pieces.push(piece.lease),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, StoreError::NoSpace { .. }), "{refused}");
        assert!(pieces.len() >= 15, "{} pieces fit", pieces.len());
        let stats = seed.stats();
        assert!(stats.file_bytes <= capacity && stats.used_bytes <= stats.capacity_bytes);
        assert!(stores[1].allocate(1).await.is_err());
        pieces.pop().expect("many").retire();
        assert!(stores[1].allocate(PIECE_BYTES as usize).await.is_ok(), "what was freed serves every shard");
    });
    let on_disk: u64 =
        std::fs::read_dir(dir.path()).expect("lists").map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk <= capacity);
}

#[test]
fn blocks_are_reused_only_when_the_last_lease_is_gone() {
    let dir = folder();
    let seed = seed(&dir, 64 * MIB, 1);
    run(async {
        let store = seed.shard(0);
        let lease = store.allocate(8192).await.expect("there is space").keep();
        let reader = lease.clone();
        lease.retire();
        assert_eq!(seed.stats().used_bytes, 8192, "a reader still holds it");
        std::thread::spawn(move || drop(reader)).join().expect("drops on any thread");
        assert_eq!(seed.stats().used_bytes, 0);
        drop(store.allocate(8192).await.expect("there is space"));
        assert_eq!(seed.stats().used_bytes, 0, "a reservation that is not kept gives its blocks back");
        drop(store.allocate(8192).await.expect("there is space").keep());
        assert_eq!(seed.stats().used_bytes, 8192, "a lost lease costs space, never data");
    });
}

#[test]
fn a_restart_with_another_shard_count_finds_every_piece() {
    let (dir, arena) = (folder(), arena());
    let first = seed(&dir, 256 * MIB, 2);
    let pieces: Vec<Written> = run(async {
        let stores = [first.shard(0), first.shard(1)];
        let writes = (0..12u8).map(|n| write(&stores[n as usize % 2], &arena, 300_000 + n as usize, n));
        join_all(writes).await.into_iter().map(|piece| piece.expect("there is space")).collect()
    });
    drop(first);
    let second = seed(&dir, 256 * MIB, 5);
    let found = pieces.iter().enumerate().map(|(piece, written)| Found {
        piece,
        belongs: Belongs::Clean,
        extents: ExtentList::clone(&written.lease),
    });
    let recovered = recover(&second, found);
    assert_eq!(recovered.kept.len(), pieces.len());
    assert_eq!(second.stats().used_bytes, pieces.iter().map(|piece| piece.lease.length_bytes()).sum::<u64>());
    run(async {
        let store = second.shard(4);
        for (index, lease) in recovered.kept {
            let piece = Written { lease, bytes: pieces[index].bytes.clone(), ..pieces[index] };
            let found = read(&store, &arena, &piece).await.expect("it is there");
            assert_eq!(&found[..], &piece.bytes[..]);
        }
        assert!(store.allocate(PIECE_BYTES as usize).await.is_ok());
    });
}
