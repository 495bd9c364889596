//! Tests of the store on real files: round trips, damage, space, restarts, sync groups.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::pipe;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tempfile::TempDir;

use crate::limits::PIECE_BYTES;
use crate::rt::arena::{Arena, Holder, Slot, SlotMut};
use crate::rt::shard::block_on;
use crate::store::bitmap::Bitmap;
use crate::store::files::{HEADER_BYTES, Header, PieceFile};
use crate::store::recover::{Belongs, Decision, Found, decide, recover};
use crate::store::space::Space;
use crate::store::{
    ClaimError, Extent, ExtentList, Lease, PieceStore, SpaceOptions, StoreError, StoreSeed, piece_file_path, seal,
};

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
    slot.iter_mut().enumerate().for_each(|(at, byte)| *byte = at.to_le_bytes()[0].wrapping_mul(31).wrapping_add(salt));
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

#[test]
fn a_fragmented_store_cuts_a_piece_into_extents() {
    let (dir, arena) = (folder(), arena());
    let seed = seed(&dir, 64 * MIB, 1);
    run(async {
        let store = seed.shard(0);
        let length = PIECE_BYTES as usize / 2;
        let mut pieces = Vec::new();
        while let Ok(reservation) = store.allocate(length).await {
            pieces.push(reservation);
        }
        // Every second half is freed: no run holds a whole piece.
        let mut every_second = [true, false].into_iter().cycle();
        pieces.retain(|_| every_second.next() == Some(true));
        let piece = write(&store, &arena, PIECE_BYTES as usize, 5).await.expect("there is space in runs");
        assert!(piece.lease.as_slice().len() > 1);
        let found = read(&store, &arena, &piece).await.expect("it is there");
        assert_eq!(&found[..], &piece.bytes[..]);
    });
}

#[test]
fn syncs_that_come_together_share_a_call() {
    let (dir, arena) = (folder(), arena());
    let seed = seed(&dir, 256 * MIB, 1);
    run(async {
        let store = seed.shard(0);
        let results = join_all((0..64).map(|salt| write(&store, &arena, 4096, salt))).await;
        assert!(results.iter().all(Result::is_ok));
        let syncs = seed.stats().sync_count;
        assert!((1..32).contains(&syncs), "{syncs} syncs for 64 pieces");
    });
}

#[test]
fn a_cancelled_write_keeps_its_blocks_until_it_ends() {
    let (dir, arena) = (folder(), arena());
    let seed = seed(&dir, 64 * MIB, 1);
    run(async {
        let store = seed.shard(0);
        let reservation = store.allocate(PIECE_BYTES as usize).await.expect("there is space");
        let (slot, _) = seal(filled(&arena, PIECE_BYTES as usize, 1));
        {
            let mut writing = std::pin::pin!(store.write(&reservation, slot));
            assert!(futures_util::poll!(writing.as_mut()).is_pending());
        }
        drop(reservation);
        assert_eq!(seed.stats().used_bytes, u64::from(PIECE_BYTES), "the kernel may still write to them");
        while seed.stats().used_bytes > 0 {
            crate::rt::time::sleep(std::time::Duration::ZERO).await;
        }
    });
    assert_eq!(arena.held_bytes(Holder::Ingest), 0);
}

#[test]
fn a_shard_that_ends_waits_for_writes_that_were_taken_on_and_not_begun() {
    let (dir, arena) = (folder(), arena());
    let seed = seed(&dir, 64 * MIB, 1);
    run(async {
        let store = seed.shard(0);
        store.settled().await;
        let reservation = store.allocate(5000).await.expect("there is room");
        let lease = reservation.keep();
        let later = store.write_later(&lease, seal(filled(&arena, 5000, 1)).0).expect("it takes writes");
        let piece = later.piece();
        assert!(store.settled().now_or_never().is_none(), "the catalog may be waiting for it");
        later.begin();
        store.settled().await;
        piece.written().expect("it has ended");
        let given_up = store.write_later(&lease, seal(filled(&arena, 5000, 2)).0).expect("it takes writes");
        let piece = given_up.piece();
        drop(given_up);
        store.settled().await;
        piece.written().expect_err("nobody writes it");
    });
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_reads_go_on() {
    let (dir, arena) = (folder(), arena());
    let seed = seed(&dir, 64 * MIB, 1);
    let written = run(async { write(&seed.shard(0), &arena, 5000, 1).await.expect("there is space") });
    let extent = written.lease.as_slice()[0];
    drop(seed);
    // The same file, and one that cannot be synced: the kernel refuses to sync a pipe.
    let good = File::open(piece_file_path(dir.path(), extent.file)).expect("opens");
    let (bad, _other_end) = pipe().expect("a pipe");
    let file = |number, file| PieceFile { number, home: 0, file: Arc::new(file), bitmap: Bitmap::new(2048) };
    let files = vec![file(0, good), file(1, File::from(OwnedFd::from(bad)))];
    let seed = StoreSeed(Arc::new(Space::new(options(&dir, 16 * MIB, 1), files)));
    let lease = seed.claim(&written.lease).expect("it is free");
    run(async {
        let store = seed.shard(0);
        let unsyncable = ExtentList::new(&[Extent { file: 1, block: 1, count: 1 }]).expect("one extent");
        assert!(matches!(store.sync([&unsyncable]).await, Err(StoreError::Io { operation: "sync", .. })));
        assert!(seed.is_poisoned());
        assert!(matches!(store.sync([&unsyncable]).await, Err(StoreError::Poisoned)));
        assert!(matches!(store.allocate(1).await, Err(StoreError::Poisoned)));
        let piece = Written { lease, ..written };
        assert!(read(&store, &arena, &piece).await.is_ok());
    });
}

#[test]
fn every_combination_at_recovery_has_one_decision() {
    use Belongs::{Clean, Nothing, OnlyHere};
    use ClaimError::{Outside, Overlap};
    let table = [
        (Nothing, Ok(()), Decision::Drop),
        (Nothing, Err(Outside), Decision::Drop),
        (Nothing, Err(Overlap), Decision::Drop),
        (Clean, Ok(()), Decision::Keep),
        (Clean, Err(Outside), Decision::Drop),
        (Clean, Err(Overlap), Decision::Drop),
        (OnlyHere, Ok(()), Decision::Keep),
        (OnlyHere, Err(Outside), Decision::Quarantine),
        (OnlyHere, Err(Overlap), Decision::Quarantine),
    ];
    for (belongs, claim, decision) in table {
        assert_eq!(decide(belongs, claim), decision, "{belongs:?} {claim:?}");
    }
}

#[test]
fn an_overlap_costs_the_clean_piece_whatever_the_order() {
    let dir = folder();
    let first = seed(&dir, 64 * MIB, 1);
    drop(run(async { first.shard(0).allocate(1).await.expect("there is space") }));
    drop(first);
    let seed = seed(&dir, 64 * MIB, 1);
    let at = |file, block, count| ExtentList::new(&[Extent { file, block, count }]).expect("one extent");
    let found = [
        ("clean", Belongs::Clean, at(0, 5, 10)),
        ("orphan", Belongs::Nothing, at(0, 1, 1)),
        ("dirty", Belongs::OnlyHere, at(0, 14, 2)),
        ("header", Belongs::Clean, at(0, 0, 1)),
        ("no file", Belongs::OnlyHere, at(7, 1, 1)),
        ("past the end", Belongs::OnlyHere, at(0, u32::MAX, 2)),
        ("good", Belongs::Clean, at(0, 5, 9)),
    ];
    let recovered = recover(&seed, found.map(|(piece, belongs, extents)| Found { piece, belongs, extents }));
    assert_eq!(recovered.kept.iter().map(|(piece, _)| *piece).collect::<Vec<_>>(), ["dirty", "good"]);
    assert_eq!(recovered.dropped, ["orphan", "clean", "header"]);
    assert_eq!(recovered.quarantined, ["no file", "past the end"]);
    assert_eq!(seed.stats().used_bytes, 11 * 4096);
}

/// Opens a folder whose file 0 was changed by `change`; `named` says whether records name the file.
fn reopen_changed(named: bool, change: impl FnOnce(&File)) -> (TempDir, Result<StoreSeed, StoreError>) {
    let dir = folder();
    let first = seed(&dir, 64 * MIB, 1);
    drop(run(async { first.shard(0).allocate(1).await.expect("there is space") }));
    drop(first);
    change(&File::options().write(true).open(piece_file_path(dir.path(), 0)).expect("opens"));
    let named = named.then_some(0).into_iter().collect();
    let opened = StoreSeed::open(options(&dir, 64 * MIB, 1), &named);
    (dir, opened)
}

#[test]
fn a_file_that_was_never_finished_is_removed_and_one_with_pieces_is_not() {
    let damage = |file: &File| file.write_all_at(&[0; 8], 0).expect("writes");
    let (dir, opened) = reopen_changed(false, damage);
    assert_eq!(opened.expect("opens").stats().file_count, 0);
    assert!(!piece_file_path(dir.path(), 0).exists());

    let (dir, opened) = reopen_changed(true, damage);
    assert_eq!(opened.expect("opens").stats().file_count, 1);
    let mut bytes = [0; HEADER_BYTES];
    File::open(piece_file_path(dir.path(), 0)).expect("opens").read_exact_at(&mut bytes, 0).expect("reads");
    assert_eq!(Header::decode(&bytes).expect("was written again").number, 0);
}

#[test]
fn refuses_files_that_are_not_its_own() {
    let header = Header { store_id: [8; 16], number: 0, block_count: 1025 };
    let foreign = header.encode();
    let (_dir, opened) = reopen_changed(true, |file| file.write_all_at(&foreign, 0).expect("writes"));
    assert!(opened.err().expect("refused").to_string().contains("another store"));

    let mut newer = Header { store_id: [7; 16], ..header }.encode();
    newer[8] = 2;
    let crc32 = crc32fast::hash(&newer[..40]);
    newer[40..].copy_from_slice(&crc32.to_le_bytes());
    let (_dir, opened) = reopen_changed(true, |file| file.write_all_at(&newer, 0).expect("writes"));
    assert!(opened.err().expect("refused").to_string().contains("format version 2"));

    let (_dir, opened) = reopen_changed(true, |file| file.set_len(8192).expect("shortens"));
    assert!(opened.err().expect("refused").to_string().contains("cut short"));
}

#[test]
fn a_smaller_capacity_takes_no_new_pieces_until_enough_is_freed() {
    let (dir, arena) = (folder(), arena());
    let large = seed(&dir, 64 * MIB, 1);
    let pieces: Vec<Lease> = run(async {
        let store = large.shard(0);
        let writes = (0..10).map(|salt| write(&store, &arena, PIECE_BYTES as usize, salt));
        let mut leases = Vec::new();
        for piece in writes {
            leases.push(piece.await.expect("there is space").lease);
        }
        leases
    });
    drop(large);
    let small = seed(&dir, 16 * MIB, 1);
    let leases: Vec<Lease> = pieces.iter().map(|lease| small.claim(lease).expect("it is there")).collect();
    run(async {
        let store = small.shard(0);
        assert!(matches!(store.allocate(1).await, Err(StoreError::NoSpace { .. })));
        leases.into_iter().skip(2).for_each(Lease::retire);
        assert!(store.allocate(PIECE_BYTES as usize).await.is_ok());
    });
}
