//! Any bytes into the decoder: no panic, no memory beyond one control frame, the same frames however they are cut.

use bytes::BytesMut;
use dfstore_proto::decoder::{Decoder, Frame, Need};
use dfstore_proto::error::DecodeError;
use dfstore_proto::frame::{FrameLimits, RequestId};
use dfstore_proto::limits::{CONTROL_BYTES_MAX, PIECE_BYTES_MAX};
use dfstore_proto::message::Message;

/// What the decoder makes of a row of bytes: frames, raw bytes of pieces, and the failure at the end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Frames in order.
    pub frames: Vec<Frame>,
    /// Raw bytes of all pieces.
    pub raw: Vec<u8>,
    /// The failure, if any.
    pub error: Option<DecodeError>,
}

/// Checks any bytes, as they are and as frames with valid checksums.
pub fn check(data: &[u8]) {
    check_stream(data, data);
    check_stream(&super::with_valid_checksums(data), data);
}

fn check_stream(stream: &[u8], cuts: &[u8]) {
    let whole = decode(stream, &mut |_| stream.len().max(1));
    let mut choices = super::Choices(cuts);
    let cut = decode(stream, &mut |_| usize::from(choices.next() % 32) + 1);
    assert_eq!(whole, cut, "frames depend on where the network cut them");
    let exact = decode(stream, &mut |need| need.max(1));
    assert_eq!(whole, exact, "frames depend on reading exactly what is needed");
    for frame in &whole.frames {
        if let Frame::Message { request, message } = frame {
            check_round_trip(*request, message);
        }
    }
}

/// Pushes `stream` in chunks of the lengths that `chunk_bytes` picks.
pub fn decode(stream: &[u8], chunk_bytes: &mut dyn FnMut(usize) -> usize) -> Outcome {
    let limits = FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: PIECE_BYTES_MAX };
    let mut decoder = Decoder::new(limits);
    let mut outcome = Outcome::default();
    let mut left = stream;
    while !left.is_empty() {
        let (Need::Bytes(need) | Need::Raw(need)) = decoder.need();
        assert!(need > 0, "a decoder that has not failed waits for something");
        let (mut chunk, rest) = left.split_at(left.len().min(chunk_bytes(need)));
        left = rest;
        while !chunk.is_empty() {
            if matches!(decoder.need(), Need::Raw(_)) {
                outcome.raw.extend_from_slice(decoder.take_raw(&mut chunk));
                continue;
            }
            match decoder.push(&mut chunk) {
                Ok(frame) => outcome.frames.extend(frame),
                Err(error) => {
                    assert_eq!(decoder.push(&mut chunk), Err(error), "a failure stays");
                    assert_eq!(decoder.memory_bytes(), 0, "a failed decoder holds memory");
                    outcome.error = Some(error);
                    return outcome;
                }
            }
            assert!(decoder.memory_bytes() <= CONTROL_BYTES_MAX as usize, "more memory than one control frame");
        }
    }
    outcome
}

fn check_round_trip(request: RequestId, message: &Message) {
    let mut bytes = BytesMut::new();
    message.encode(request, &mut bytes).expect("what was decoded is within bounds");
    let outcome = decode(&bytes, &mut |need| need);
    assert_eq!(outcome.frames, [Frame::Message { request, message: message.clone() }]);
}
