//! What must hold for any input: the checks behind the fuzz targets.
//!
//! Each check takes arbitrary bytes and panics when a promise of the protocol is broken. The tests of dfstore-proto
//! include these files and run them shortly; the fuzzer runs them for as long as somebody lets it.

pub mod decoder;
pub mod pair;
pub mod session;

/// Arbitrary bytes as a row of small choices. Zero when they are used up.
pub struct Choices<'data>(pub &'data [u8]);

impl Choices<'_> {
    /// The next choice.
    pub fn next(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// Whether no choice is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Arbitrary bytes as frames with valid checksums, so that a fuzzer gets behind them: four bytes choose type, flags,
/// request and payload length of each.
pub fn with_valid_checksums(data: &[u8]) -> Vec<u8> {
    let mut choices = Choices(data);
    let mut frames = Vec::new();
    while !choices.is_empty() {
        let (frame_type, flags, request, length) = (choices.next(), choices.next(), choices.next(), choices.next());
        let (payload, rest) = choices.0.split_at(choices.0.len().min(usize::from(length)));
        choices.0 = rest;
        let is_piece = frame_type == 0x2F && payload.len() > 64;
        let body = if is_piece { &payload[..64] } else { payload };
        let mut header = [0; 24];
        header[0] = u8::try_from(payload.len()).expect("chosen by a byte");
        header[4] = frame_type;
        header[5] = flags;
        header[8] = request;
        header[16..20].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        let checksum = crc32fast::hash(&header[..20]);
        header[20..24].copy_from_slice(&checksum.to_le_bytes());
        frames.extend_from_slice(&header);
        frames.extend_from_slice(payload);
    }
    frames
}
