//! Every message that can be sent comes back as it was, alone and in a row, cut anywhere.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod messages;

use std::collections::BTreeSet;

use bytes::BytesMut;
use dfstore_proto::crc;
use dfstore_proto::decoder::{Decoder, Frame};
use dfstore_proto::frame::{FrameLimits, PieceHead, RequestId};
use dfstore_proto::ids::TaskId;
use dfstore_proto::limits::{CONTROL_BYTES_MAX, PIECE_BYTES_MAX};
use dfstore_proto::message::{FrameType, Message};
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use messages::{message, task};

fn piece() -> impl Strategy<Value = (PieceHead, Vec<u8>)> {
    let raw = proptest::collection::vec(any::<u8>(), 1..300);
    (task(), any::<u64>(), any::<u64>(), any::<u32>(), raw).prop_map(|(task, generation, offset, number, raw)| {
        let length = u32::try_from(raw.len()).unwrap();
        (PieceHead { task, generation, offset, number, length, crc32: crc32fast::hash(&raw) }, raw)
    })
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a few of them in a test")]
enum Sent {
    Message(Message),
    Piece(PieceHead, Vec<u8>),
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![message().prop_map(Sent::Message), piece().prop_map(|(head, raw)| Sent::Piece(head, raw))]
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn the_messages_tried_here_are_of_every_type() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..4000 {
        seen.insert(message().new_tree(&mut runner).unwrap().current().frame_type());
    }
    let missing: Vec<_> = FrameType::ALL.iter().filter(|&kind| !seen.contains(kind)).collect();
    assert_eq!(missing, [&FrameType::Piece], "PIECE is no message");
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_row_of_frames_comes_back_whole_however_it_is_cut(
        row in proptest::collection::vec(sent(), 1..5),
        cuts in proptest::collection::vec(1_usize..500, 1..20),
    ) {
        let mut wire = BytesMut::new();
        for (index, sent) in row.iter().enumerate() {
            let request = RequestId(index as u64);
            match sent {
                Sent::Message(message) => message.encode(request, &mut wire).unwrap(),
                Sent::Piece(head, raw) => {
                    wire.extend_from_slice(&head.frame(request));
                    wire.extend_from_slice(raw);
                }
            }
        }
        let limits = FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: PIECE_BYTES_MAX };
        let mut decoder = Decoder::new(limits);
        let (mut left, mut cuts) = (&wire[..], cuts.iter().cycle());
        let (mut frames, mut raw_bytes) = (Vec::new(), Vec::new());
        while !left.is_empty() {
            let (mut chunk, rest) = left.split_at(left.len().min(*cuts.next().unwrap()));
            left = rest;
            while !chunk.is_empty() {
                let raw = decoder.take_raw(&mut chunk);
                raw_bytes.extend_from_slice(raw);
                if raw.is_empty() {
                    frames.extend(decoder.push(&mut chunk).unwrap());
                }
            }
        }
        let mut expected_raw = Vec::new();
        let expected: Vec<Frame> = row.into_iter().enumerate().map(|(index, sent)| {
            let request = RequestId(index as u64);
            match sent {
                Sent::Message(message) => Frame::Message { request, message },
                Sent::Piece(head, raw) => {
                    expected_raw.extend(raw);
                    Frame::Piece { request, head }
                }
            }
        }).collect();
        prop_assert_eq!(frames, expected);
        prop_assert_eq!(raw_bytes, expected_raw);
    }

    #[test]
    fn the_sum_of_any_pieces_is_the_sum_of_the_whole(
        object in proptest::collection::vec(any::<u8>(), 0..2000),
        piece_bytes in 1_u32..600,
    ) {
        let crcs = object.chunks(piece_bytes as usize).map(crc32fast::hash);
        prop_assert_eq!(crc::whole_crc32(object.len() as u64, piece_bytes, crcs), crc32fast::hash(&object));
    }

    #[test]
    fn a_piece_fits_its_object_exactly_at_its_own_place(length in 1_u64..5000, piece_bytes in 1_u32..600) {
        let pieces = length.div_ceil(piece_bytes.into());
        for number in 0..pieces {
            let offset = number * u64::from(piece_bytes);
            let own = u32::try_from((length - offset).min(piece_bytes.into())).unwrap();
            let head = PieceHead {
                task: TaskId::from_bytes([0; 32]),
                generation: 0,
                offset,
                number: u32::try_from(number).unwrap(),
                length: own,
                crc32: 0,
            };
            let fits = |head: PieceHead| head.fits(piece_bytes, Some(length));
            assert!(fits(head) && head.fits(piece_bytes, None));
            assert!(!fits(PieceHead { length: own + 1, ..head }));
            assert!(!fits(PieceHead { length: own - 1, ..head }));
            assert!(!fits(PieceHead { offset: offset + 1, ..head }));
            assert!(!fits(PieceHead { number: head.number + 1, ..head }));
        }
    }
}
