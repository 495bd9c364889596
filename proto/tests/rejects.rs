//! What the decoder must refuse, and that nothing is allocated for a length that is not true.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use bytes::BytesMut;
use dfstore_proto::decoder::{Decoder, Frame, Need};
use dfstore_proto::error::{DecodeError, EncodeError, FieldError};
use dfstore_proto::frame::{FrameHeader, FrameLimits, PieceHead, RequestId};
use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::limits::{
    CONTROL_BYTES_MAX, HELLO_BYTES_MAX, KEY_BYTES_MAX, LIST_ENTRIES_MAX, OBJECT_BYTES_MAX, PIECE_BYTES_MAX,
    PREFACE_BYTES,
};
use dfstore_proto::message::{Delete, FrameType, ListEntry, ListPage, Message, Ping, Target, VersionState};
use dfstore_proto::preface::{self, Versions};
use dfstore_proto::session::{Session, SessionError, Violation};
use dfstore_proto::wire;

const LIMITS: FrameLimits = FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: 4096 };

/// A header as it would be sent, with a valid checksum whatever it says.
fn header(payload_bytes: u32, frame_type: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[0..4].copy_from_slice(&payload_bytes.to_le_bytes());
    bytes[4] = frame_type;
    bytes[5] = flags;
    bytes[8] = 1;
    bytes[16..20].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..20]);
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn frame(frame_type: FrameType, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [header(length, frame_type.number(), 0, payload), payload.to_vec()].concat()
}

fn decode(bytes: &[u8]) -> Result<Option<Frame>, DecodeError> {
    let mut decoder = Decoder::new(LIMITS);
    let result = decoder.push(&mut &bytes[..]);
    if result.is_err() {
        assert_eq!(decoder.memory_bytes(), 0, "memory was taken for a frame that was refused");
    }
    result
}

fn ping() -> Vec<u8> {
    let mut out = BytesMut::new();
    Message::Ping(Ping { nonce: u64::MAX }).encode(RequestId::CONNECTION, &mut out).unwrap();
    out.to_vec()
}

fn piece() -> PieceHead {
    PieceHead { task: TaskId::from_bytes([7; 32]), generation: 1, offset: 0, number: 0, length: 16, crc32: 0 }
}

#[test]
fn rejects_length_of_four_gib_of_every_type_without_taking_memory() {
    for &kind in FrameType::ALL {
        let bytes = header(u32::MAX, kind.number(), 0, b"");
        assert!(matches!(decode(&bytes), Err(DecodeError::TooLong { length: u32::MAX, .. })), "{}", kind.name());
    }
}

#[test]
fn rejects_frame_one_byte_longer_than_its_limit() {
    let control = |length| decode(&header(length, FrameType::Stat.number(), 0, b""));
    assert_eq!(control(CONTROL_BYTES_MAX), Ok(None));
    let max = CONTROL_BYTES_MAX;
    assert_eq!(control(max + 1), Err(DecodeError::TooLong { length: max + 1, max }));
    let piece = |length| decode(&header(length, FrameType::Piece.number(), 0, b""));
    assert_eq!(piece(64 + 4096), Ok(None));
    assert_eq!(piece(64 + 4097), Err(DecodeError::TooLong { length: 64 + 4097, max: 64 + 4096 }));
    assert_eq!(piece(64), Err(DecodeError::PieceLength { frame: 0, piece: 0 }), "a piece is not empty");
}

#[test]
fn takes_memory_only_as_a_checked_frame_arrives() {
    let mut decoder = Decoder::new(LIMITS);
    decoder.push(&mut &header(CONTROL_BYTES_MAX, FrameType::Stat.number(), 0, b"")[..]).unwrap();
    assert!(decoder.memory_bytes() <= CONTROL_BYTES_MAX as usize);
    assert_eq!(decoder.need(), Need::Bytes(CONTROL_BYTES_MAX as usize));
}

#[test]
fn rejects_every_type_that_is_not_known() {
    for number in 0..=u8::MAX {
        let result = decode(&header(0, number, 0, b""));
        match FrameType::from_number(number) {
            Some(kind) => assert_eq!(kind.number(), number),
            None => assert_eq!(result, Err(DecodeError::UnknownType(number))),
        }
    }
}

#[test]
fn rejects_flags_that_must_be_understood_and_ignores_the_others() {
    for flags in 0..=u8::MAX {
        let result = decode(&header(0, FrameType::Done.number(), flags, b""));
        if flags & 0xF0 == 0 {
            assert!(matches!(result, Ok(Some(_))), "{flags:#x}");
        } else {
            assert_eq!(result, Err(DecodeError::UnknownFlags(flags)));
        }
    }
}

#[test]
fn rejects_every_flipped_bit_of_a_control_frame() {
    let good = ping();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = decode(&bad).unwrap_err();
        let is_checksum = matches!(error, DecodeError::HeaderChecksum { .. } | DecodeError::BodyChecksum { .. });
        assert!(is_checksum, "bit {bit}: {error}");
    }
}

#[test]
fn rejects_every_flipped_bit_of_a_piece_head() {
    let good = piece().frame(RequestId(1));
    for bit in 0..good.len() * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn rejects_piece_whose_two_lengths_differ() {
    let body = PieceHead { length: 17, ..piece() }.encode();
    let bytes = [header(64 + 16, FrameType::Piece.number(), 0, &body), body.to_vec()].concat();
    assert_eq!(decode(&bytes), Err(DecodeError::PieceLength { frame: 16, piece: 17 }));
}

#[test]
fn ignores_reserved_bytes() {
    let mut bytes = header(0, FrameType::Done.number(), 0, b"");
    bytes[6..8].copy_from_slice(&[0xAA, 0xBB]);
    let checksum = crc32fast::hash(&bytes[..20]);
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    assert!(matches!(decode(&bytes), Ok(Some(_))));
}

#[test]
fn waits_at_every_border_of_a_truncated_frame() {
    let good = ping();
    for cut in 0..good.len() {
        let mut decoder = Decoder::new(LIMITS);
        assert_eq!(decoder.push(&mut &good[..cut]), Ok(None), "cut at {cut}");
        let Need::Bytes(need) = decoder.need() else { panic!("no raw bytes here") };
        assert_eq!(need, if cut < 24 { 24 - cut } else { good.len() - cut }, "cut at {cut}");
        assert!(matches!(decoder.push(&mut &good[cut..]), Ok(Some(_))));
    }
}

#[test]
fn rejects_payload_cut_inside_its_message() {
    let delete = Message::from(Delete { target: Target::new(ObjectName::new("bucket", "key")) });
    let mut out = BytesMut::new();
    delete.encode(RequestId(1), &mut out).unwrap();
    let payload = &out[24..];
    for cut in 0..payload.len() {
        let error = decode(&frame(FrameType::Delete, &payload[..cut])).unwrap_err();
        assert_eq!(error, DecodeError::BadPayload(FrameType::Delete.number()), "cut at {cut}");
    }
    // What a later version appends is ignored, however long.
    for more in [1, 2, 300] {
        let longer = [payload, &vec![0xFF; more]].concat();
        let expected = Frame::Message { request: RequestId(1), message: delete.clone() };
        assert_eq!(decode(&frame(FrameType::Delete, &longer)), Ok(Some(expected)));
    }
}

#[test]
fn a_section_that_an_older_sender_did_not_know_has_its_default() {
    let mut out = BytesMut::new();
    assert!(wire::append_section(&7_u32, &mut out, 64));
    let first_end = out.len();
    assert!(wire::append_section(&("new".to_string(), 300_u32), &mut out, 64));
    let read = |mut payload: &[u8]| {
        let first: u32 = wire::first_section(&mut payload)?;
        let later: (String, u32) = wire::later_section(&mut payload)?;
        Some((first, later))
    };
    assert_eq!(read(&out), Some((7, ("new".into(), 300))));
    assert_eq!(read(&out[..first_end]), Some((7, (String::new(), 0))));
    for cut in (0..first_end).chain(first_end + 1..out.len()) {
        assert_eq!(read(&out[..cut]), None, "cut inside a section, at {cut}");
    }
    let before = out.clone();
    assert!(!wire::append_section(&"x".repeat(64), &mut out, 64), "no room");
    assert_eq!(out, before);
}

#[test]
fn rejects_counts_and_lengths_inside_a_payload_that_are_not_true() {
    // LIST_OK with 2^32 - 1 entries, and a key of 2^32 - 1 bytes in DELETE.
    let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
    let bad = DecodeError::BadPayload(FrameType::ListOk.number());
    assert_eq!(decode(&frame(FrameType::ListOk, &huge)), Err(bad));
    let bad = DecodeError::BadPayload(FrameType::Delete.number());
    assert_eq!(decode(&frame(FrameType::Delete, &huge)), Err(bad));
    // One prefix too many, each of them one byte.
    let prefixes = LIST_ENTRIES_MAX + 1;
    let mut out = BytesMut::new();
    let page: (Vec<u8>, Vec<&str>, bool, &str) = (Vec::new(), vec!["a"; prefixes], false, "");
    assert!(wire::append_section(&page, &mut out, CONTROL_BYTES_MAX as usize));
    assert_eq!(decode(&frame(FrameType::ListOk, &out)), Err(DecodeError::BadPayload(FrameType::ListOk.number())));
}

#[test]
fn rejects_fields_beyond_their_limits_when_read_and_when_written() {
    let delete = |key: String| Message::from(Delete { target: Target::new(ObjectName::new("b", key)) });
    let mut out = BytesMut::from(&b"before"[..]);
    let long = FieldError::TooLong { field: "key", actual: KEY_BYTES_MAX as u64 + 1, max: KEY_BYTES_MAX as u64 };
    let written = delete("k".repeat(KEY_BYTES_MAX + 1)).encode(RequestId(1), &mut out);
    assert_eq!(written, Err(EncodeError::Field(long)));
    assert_eq!(&out[..], b"before", "nothing is written of a message that is refused");
    assert_eq!(delete("k".repeat(KEY_BYTES_MAX)).encode(RequestId(1), &mut out), Ok(()));
    let payload = |key: &str| {
        let mut payload = BytesMut::new();
        assert!(wire::append_section(&("b", key, "", ""), &mut payload, CONTROL_BYTES_MAX as usize));
        frame(FrameType::Delete, &payload)
    };
    let frame_type = FrameType::Delete.number();
    assert_eq!(decode(&payload(&"k".repeat(1025))), Err(DecodeError::Field { frame_type, error: long }));
    assert_eq!(decode(&payload("")), Err(DecodeError::Field { frame_type, error: FieldError::Empty("key") }));
    assert!(matches!(decode(&payload("k\0/../\\")), Ok(Some(_))), "keys are kept byte for byte");
}

#[test]
fn a_full_listing_page_always_fits_a_frame() {
    let entry = |index: usize| ListEntry {
        key: format!("{index:01024}"),
        length: OBJECT_BYTES_MAX,
        etag: "e".repeat(256),
        last_modified_ms: u64::MAX,
        storage_class: "STANDARD".into(),
        state: VersionState::Clean,
    };
    let mut page = ListPage::new(0);
    let taken = (0..).take_while(|&index| page.push_entry(entry(index))).count();
    assert!((40..LIST_ENTRIES_MAX).contains(&taken), "{taken} entries");
    let page = page.finish(true);
    assert_eq!(page.next_marker, page.entries[taken - 1].key);
    Message::from(page).encode(RequestId(1), &mut BytesMut::new()).unwrap();
    let mut small = ListPage::new(2);
    assert!(small.push_common_prefix("a/".into()) && small.push_entry(entry(1)) && !small.push_entry(entry(2)));
    let nothing = ListPage::new(5).finish(true);
    assert!(!nothing.truncated, "an empty page has no marker to go on from");
}

#[test]
fn nothing_large_is_taken_before_hello() {
    let before_hello = |frame_type: FrameType, payload_bytes| {
        let mut stream = preface::encode(Versions::OURS).to_vec();
        stream.extend(header(payload_bytes, frame_type.number(), 0, b""));
        let mut session = Session::accepting();
        let result = session.receive(&mut &stream[..]);
        assert!(session.memory_bytes() <= HELLO_BYTES_MAX as usize + PREFACE_BYTES);
        result
    };
    assert_eq!(before_hello(FrameType::Hello, HELLO_BYTES_MAX), Ok(None));
    let long = DecodeError::TooLong { length: HELLO_BYTES_MAX + 1, max: HELLO_BYTES_MAX };
    assert_eq!(before_hello(FrameType::Hello, HELLO_BYTES_MAX + 1), Err(long.into()));
    let piece = DecodeError::TooLong { length: 80, max: 0 };
    assert_eq!(before_hello(FrameType::Piece, 80), Err(piece.into()));
    let done = before_hello(FrameType::Done, 0);
    assert_eq!(done, Err(SessionError::Violation(Violation::NotNow(FrameType::Done))));
}

#[test]
fn the_largest_piece_is_announced_with_its_whole_length() {
    let head = PieceHead { length: PIECE_BYTES_MAX, ..piece() };
    let bytes = head.frame(RequestId(3));
    let limits = FrameLimits { piece_bytes_max: PIECE_BYTES_MAX, ..LIMITS };
    let header = FrameHeader::parse(bytes[..24].try_into().unwrap(), limits).unwrap();
    assert_eq!((header.payload_bytes, header.request), (64 + PIECE_BYTES_MAX, RequestId(3)));
    let mut decoder = Decoder::new(limits);
    assert_eq!(decoder.push(&mut &bytes[..]), Ok(Some(Frame::Piece { request: RequestId(3), head })));
    assert_eq!(decoder.need(), Need::Raw(PIECE_BYTES_MAX as usize));
    assert!(decoder.memory_bytes() <= 4096, "raw bytes go to the driver's buffer");
    decoder.raw_taken(PIECE_BYTES_MAX as usize);
    assert_eq!(decoder.need(), Need::Bytes(24));
}
