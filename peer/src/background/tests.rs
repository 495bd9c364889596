//! Tests of bulk reads against pieces that the store wrote.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use futures_util::future::join_all;

use crate::background::{Background, BackgroundError};
use crate::limits::PIECE_BYTES;
use crate::rt::arena::{Arena, Holder};
use crate::rt::shard::block_on;
use crate::store::{Lease, PieceStore, SpaceOptions, StoreError, StoreSeed, piece_file_path, seal};

async fn write(store: &PieceStore, arena: &Arena, length: usize) -> (Lease, u32) {
    let reservation = store.allocate(length).await.expect("there is space");
    let mut slot = arena.try_take(length, Holder::Ingest).expect("the share is free");
    slot.set_len(length);
    slot.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 7).to_le_bytes()[0]);
    let (slot, crc32) = seal(slot);
    store.write(&reservation, slot).await.expect("writes");
    (reservation.keep(), crc32)
}

#[test]
fn reads_what_the_store_wrote_and_finds_damage() {
    let target = env!("CARGO_MANIFEST_DIR").to_owned() + "/../target";
    let dir = tempfile::tempdir_in(target).expect("target can be written");
    let arena = Arena::new(128 << 20).expect("128 MiB can be mapped");
    let options =
        SpaceOptions { dir: dir.path().to_path_buf(), capacity_bytes: 64 << 20, shards: 1, store_id: [1; 16] };
    let seed = StoreSeed::open(options, &BTreeSet::new()).expect("opens");
    let background = Background::start(dir.path().to_path_buf()).expect("the executor starts");
    let handle = background.handle();
    let late = handle.clone();
    block_on(async {
        let store = seed.shard(0);
        let lengths = [1, 4096, 100_000, PIECE_BYTES as usize, PIECE_BYTES as usize - 5];
        let pieces = join_all(lengths.map(|length| write(&store, &arena, length))).await;
        let reads = pieces.iter().zip(lengths).map(async |((lease, crc32), length)| {
            let slot = arena.take(length, Holder::WriteBack).await;
            let piece = handle.read_piece(lease.clone(), length, *crc32, slot).await.expect("it is there");
            assert_eq!(piece.len(), length);
        });
        join_all(reads).await;

        let (lease, crc32) = pieces[2].clone();
        let extent = lease.as_slice()[0];
        let file = std::fs::File::options().write(true).open(piece_file_path(dir.path(), extent.file)).expect("opens");
        file.write_all_at(&[0xee; 2], extent.offset_bytes() + 50_000).expect("writes");
        let slot = arena.take(lengths[2], Holder::WriteBack).await;
        let damaged = handle.read_piece(lease, lengths[2], crc32, slot).await;
        assert!(matches!(damaged, Err(BackgroundError::Store(StoreError::Corrupt { .. }))));
    })
    .expect("io_uring is there");
    background.close();
    assert!(Holder::ALL.iter().all(|holder| arena.held_bytes(*holder) == 0), "every slot came back");
    let ended = block_on(async {
        let lease = seed.shard(0).allocate(1).await.expect("there is space").keep();
        late.read_piece(lease, 1, 0, arena.take(1, Holder::WriteBack).await).await
    });
    assert!(matches!(ended, Ok(Err(BackgroundError::Closed))));
}
