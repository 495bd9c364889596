//! Every maximum of the protocol by name, and the relations between them, checked when this compiles.
//!
//! Owns no state. A length that comes from the wire is compared with one of these before memory is taken for it. The
//! limits that need a clock (how long a header or a body may take) are listed in `PROTOCOL.md`: the driver keeps them.

/// Lowest version of the messages that this crate speaks.
pub const VERSION_MIN: u8 = 1;
/// The version that added the messages between peers. Clients may speak an earlier one, peers may not.
pub const VERSION_OF_PEERS: u8 = 2;
/// The version that added the messages about the write-back queue and the check of the disk.
pub const VERSION_OF_QUEUE: u8 = 3;
/// Highest version of the messages that this crate speaks.
pub const VERSION_MAX: u8 = 3;

/// Bytes of the preface that opens a connection.
pub const PREFACE_BYTES: usize = 8;
/// Bytes of the header that starts every frame.
pub const FRAME_HEADER_BYTES: usize = 24;
/// Bytes of the header that starts the payload of a PIECE frame.
pub const PIECE_HEADER_BYTES: usize = 64;
/// Bytes in front of the raw bytes of a piece: frame header and piece header.
pub const PIECE_FRAME_HEAD_BYTES: usize = FRAME_HEADER_BYTES + PIECE_HEADER_BYTES;

/// Payload bytes of a control frame.
pub const CONTROL_BYTES_MAX: u32 = 64 << 10;
/// Payload bytes of a control frame before both sides have said hello. Whoever sends more is nobody we know.
pub const HELLO_BYTES_MAX: u32 = 8 << 10;
/// Raw bytes of a PIECE frame. A peer may announce less in its hello.
pub const PIECE_BYTES_MAX: u32 = 16 << 20;

/// Requests in flight on one connection. A peer may announce less in its hello.
pub const REQUESTS_MAX: u16 = 256;
/// Credits, in pieces, that one direction of a connection may have outstanding.
pub const CREDITS_MAX: u32 = 1024;
/// Unconsumed control bytes a connection keeps between frames; a larger buffer is given back after its frame.
pub const STAGING_KEPT_BYTES: usize = 4 << 10;

/// Bytes of an object: S3's limit (5 TiB).
pub const OBJECT_BYTES_MAX: u64 = 5 << 40;
/// Bytes of an object key: S3's limit. Keys are UTF-8 and not empty.
pub const KEY_BYTES_MAX: usize = 1024;
/// Bytes of a bucket name. Not empty.
pub const BUCKET_BYTES_MAX: usize = 255;
/// Bytes of a URL query, and of the list of filtered parameter names.
pub const QUERY_BYTES_MAX: usize = 4096;
/// Bytes of each text attribute of an object (`Content-Type` and its like).
pub const ATTRIBUTE_BYTES_MAX: usize = 2048;
/// Bytes of an entity tag.
pub const ETAG_BYTES_MAX: usize = 256;
/// Bytes of a credential.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// Bytes of the session token of temporary credentials: those of cloud providers are longer than other credentials.
pub const SESSION_TOKEN_BYTES_MAX: usize = 4096;
/// Bytes of the name a program or a node gives itself.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of the text of an error.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 1024;
/// Bytes of the detail of an error.
pub const ERROR_DETAIL_BYTES_MAX: usize = 4096;
/// Entries and common prefixes of one listing page together. A page also ends where a control frame would overflow.
pub const LIST_ENTRIES_MAX: usize = 1000;
/// Bytes of a delimiter in a listing.
pub const DELIMITER_BYTES_MAX: usize = 64;
/// Lines of the account of sources at the end of a read: one for each source there is, and room for new ones.
pub const SOURCES_MAX: usize = 16;
/// Shards of a peer.
pub const SHARDS_MAX: u16 = 1024;
/// Runs in one list of pieces. What a node has beyond them is not told.
pub const RUNS_MAX: usize = 512;
/// Runs of pieces that are told of each node when people ask where an object is.
pub const RUNS_SHOWN_MAX: usize = 16;
/// Peers in one answer about a task: those to fetch from, those that hold it.
pub const PARENTS_MAX: usize = 8;
/// Pieces that a home suggests to fetch from itself, in one answer.
pub const SUGGESTED_MAX: usize = 32;
/// Pieces of a download that are planned at once.
pub const COUNTS_MAX: usize = 256;
/// Addresses of nodes in one answer of a manager.
pub const BOOTSTRAP_MAX: usize = 64;
/// Nodes in one answer about the cluster.
pub const NODES_MAX: usize = 64;
/// Bytes of an address (`ip:port`).
pub const ADDRESS_BYTES_MAX: usize = 64;

/// Upper bound of the postcard overhead of one message besides its text: lengths, numbers and flags.
const OVERHEAD_BYTES: usize = 512;
/// Upper bound of the text of an [`crate::object::ObjectMeta`].
const META_BYTES: usize = ETAG_BYTES_MAX + 6 * ATTRIBUTE_BYTES_MAX;
/// Upper bound of one list of pieces: two numbers a run.
const RUNS_BYTES: usize = 10 * RUNS_MAX;
/// Upper bound of the text that names an object.
const TARGET_BYTES: usize = BUCKET_BYTES_MAX + KEY_BYTES_MAX + 2 * QUERY_BYTES_MAX;

const _: () = assert!(VERSION_MIN >= 1 && VERSION_MIN <= VERSION_OF_PEERS && VERSION_OF_PEERS < VERSION_OF_QUEUE);
const _: () = assert!(VERSION_OF_QUEUE <= VERSION_MAX);
const _: () = assert!(HELLO_BYTES_MAX <= CONTROL_BYTES_MAX);
// The largest messages there can be fit, so encoding a checked message never fails for its size.
const _: () = assert!(TOKEN_BYTES_MAX + NAME_BYTES_MAX + OVERHEAD_BYTES <= HELLO_BYTES_MAX as usize);
const _: () = assert!(ERROR_MESSAGE_BYTES_MAX + ERROR_DETAIL_BYTES_MAX + OVERHEAD_BYTES <= HELLO_BYTES_MAX as usize);
const _: () = assert!(2 * TARGET_BYTES + META_BYTES + OVERHEAD_BYTES <= CONTROL_BYTES_MAX as usize);
// PUBLISH and RECALLED.
const _: () =
    assert!(TARGET_BYTES + META_BYTES + PARENTS_MAX * NAME_BYTES_MAX + OVERHEAD_BYTES <= CONTROL_BYTES_MAX as usize);
// TRACKED, which has more lists of pieces than TRACK.
const _: () = assert!(
    PARENTS_MAX * (RUNS_BYTES + NAME_BYTES_MAX + 8) + COUNTS_MAX + 5 * SUGGESTED_MAX + OVERHEAD_BYTES
        <= CONTROL_BYTES_MAX as usize
);
// CONFIG_OK.
const _: () = assert!(
    2 * TOKEN_BYTES_MAX
        + SESSION_TOKEN_BYTES_MAX
        + ATTRIBUTE_BYTES_MAX
        + 2 * NAME_BYTES_MAX
        + BOOTSTRAP_MAX * (ADDRESS_BYTES_MAX + 2)
        + OVERHEAD_BYTES
        <= CONTROL_BYTES_MAX as usize
);
// WHERE_OK, NODES_OK and WORKED.
const _: () = assert!(
    NODES_MAX * (NAME_BYTES_MAX + 10 * RUNS_SHOWN_MAX + 8)
        + META_BYTES
        + PARENTS_MAX * (NAME_BYTES_MAX + 2)
        + OVERHEAD_BYTES
        <= CONTROL_BYTES_MAX as usize
);
const _: () = assert!(
    NODES_MAX * (2 * (NAME_BYTES_MAX + ADDRESS_BYTES_MAX) + 80) + 2 * NAME_BYTES_MAX + OVERHEAD_BYTES
        <= CONTROL_BYTES_MAX as usize
);
const _: () = assert!(NODES_MAX * (2 * NAME_BYTES_MAX + 8) + OVERHEAD_BYTES <= CONTROL_BYTES_MAX as usize);
// A listing makes progress: one entry always fits, beside the marker that repeats its key.
const _: () =
    assert!(2 * KEY_BYTES_MAX + ETAG_BYTES_MAX + ATTRIBUTE_BYTES_MAX + OVERHEAD_BYTES <= CONTROL_BYTES_MAX as usize);
// Piece numbers are 32 bits wide: enough for the largest object in pieces of 4 KiB.
const _: () = assert!(OBJECT_BYTES_MAX / 4096 <= u32::MAX as u64);
// The length field of a frame holds the longest frame.
const _: () = assert!(PIECE_BYTES_MAX as u64 + PIECE_HEADER_BYTES as u64 <= u32::MAX as u64);
