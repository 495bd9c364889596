//! Throughput of the wire format: checksums, frames of pieces, control messages. No I/O.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dfstore_peer::limits::PIECE_BYTES;
use dfstore_proto::crc::whole_crc32;
use dfstore_proto::decoder::{Decoder, Frame, Need};
use dfstore_proto::frame::{FrameLimits, PieceHead, RequestId};
use dfstore_proto::ids::TaskId;
use dfstore_proto::limits::{CONTROL_BYTES_MAX, PIECE_BYTES_MAX};
use dfstore_proto::message::{Message, Stat};
use dfstore_tests::data::Payload;
use dfstore_tests::native::target;

/// What one read of a socket gives.
const READ_BYTES: usize = 256 << 10;
const PIECES: u32 = 4;
const MESSAGES: usize = 1000;

fn crc(criterion: &mut Criterion) {
    let piece = Payload::new(1, u64::from(PIECE_BYTES)).bytes();
    println!("crc32 of the piece: {:08x}", crc32fast::hash(&piece));
    let mut group = criterion.benchmark_group("crc");
    group.throughput(Throughput::Bytes(u64::from(PIECE_BYTES)));
    group.bench_function("piece", |bencher| bencher.iter(|| crc32fast::hash(black_box(&piece))));
    // A 1 GiB object from the checksums of its pieces: no byte is read again.
    let crcs = vec![0x1234_5678; 512];
    group.throughput(Throughput::Bytes(512 * u64::from(PIECE_BYTES)));
    group.bench_function("whole object from 512 pieces", |bencher| {
        bencher.iter(|| whole_crc32(512 * u64::from(PIECE_BYTES), PIECE_BYTES, black_box(&crcs).iter().copied()));
    });
    group.finish();
}

fn decoder() -> Decoder {
    Decoder::new(FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: PIECE_BYTES_MAX })
}

/// Frames of pieces as they come from a socket: heads parsed, raw bytes copied to where they belong.
fn pieces(criterion: &mut Criterion) {
    let raw = Payload::new(2, u64::from(PIECE_BYTES)).bytes();
    let task = TaskId::from_bytes([7; 32]);
    let mut stream = Vec::new();
    for number in 0..PIECES {
        let offset = u64::from(number) * u64::from(PIECE_BYTES);
        let head = PieceHead { task, generation: 1, offset, number, length: PIECE_BYTES, crc32: crc32fast::hash(&raw) };
        stream.extend_from_slice(&head.frame(RequestId(1)));
        stream.extend_from_slice(&raw);
    }
    let mut place = vec![0; PIECE_BYTES as usize];
    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::Bytes(stream.len() as u64));
    group.bench_function("decode 2 MiB pieces", |bencher| {
        bencher.iter(|| {
            let (mut decoder, mut heads, mut at) = (decoder(), 0, 0);
            for mut input in stream.chunks(READ_BYTES) {
                while !input.is_empty() {
                    if matches!(decoder.need(), Need::Raw(_)) {
                        let bytes = decoder.take_raw(&mut input);
                        place[at..at + bytes.len()].copy_from_slice(bytes);
                        at += bytes.len();
                    } else if let Ok(Some(Frame::Piece { .. })) = decoder.push(&mut input) {
                        (heads, at) = (heads + 1, 0);
                    }
                }
            }
            assert_eq!(heads, PIECES);
        });
    });
    group.finish();
}

fn messages(criterion: &mut Criterion) {
    let message = Message::from(Stat { target: target("bucket", "models/weights-00001-of-00030.bin"), fresh: false });
    let mut encoded = BytesMut::new();
    for _ in 0..MESSAGES {
        message.encode(RequestId(1), &mut encoded).expect("a valid message");
    }
    let mut group = criterion.benchmark_group("messages");
    group.throughput(Throughput::ElementsAndBytes { elements: MESSAGES as u64, bytes: encoded.len() as u64 });
    group.bench_function("encode STAT", |bencher| {
        let buffer = || BytesMut::with_capacity(encoded.len());
        bencher.iter_batched_ref(
            buffer,
            |out| {
                for _ in 0..MESSAGES {
                    message.encode(RequestId(1), out).expect("a valid message");
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("decode STAT", |bencher| {
        bencher.iter(|| {
            let (mut decoder, mut input, mut count) = (decoder(), &encoded[..], 0);
            while let Ok(Some(frame)) = decoder.push(&mut input) {
                black_box(frame);
                count += 1;
            }
            assert_eq!(count, MESSAGES);
        });
    });
    group.finish();
}

criterion_group!(benches, crc, pieces, messages);
criterion_main!(benches);
