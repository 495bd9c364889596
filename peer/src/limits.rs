//! Every maximum of the process by name, and the relations between them, checked when this compiles.
//!
//! A queue, buffer, table or retry without a line here is a defect.

use std::time::Duration;

/// Unit of disk allocation and of direct-I/O alignment, in bytes.
pub const BLOCK_BYTES: u32 = 4096;
/// Size of a piece (the last one of a version may be shorter), in bytes.
pub const PIECE_BYTES: u32 = 4 << 20;
/// Most bytes of an object: S3's limit (5 TiB).
pub const OBJECT_BYTES_MAX: u64 = 5 << 40;
/// Most bytes of an object key: S3's limit.
pub const KEY_BYTES_MAX: usize = 1024;
/// Bounds of a bucket name, in bytes: S3's are 3 to 63, older buckets have up to 255.
pub const BUCKET_BYTES_MAX: usize = 255;
/// Largest piece file, in bytes. Smaller quotas get smaller files (see `store::files`).
pub const PIECE_FILE_BYTES_MAX: u64 = 1 << 30;
/// Most extents one piece may be cut into; above it the allocator reports that space is too fragmented.
pub const PIECE_EXTENTS_MAX: usize = 32;
/// Most shards of a process.
pub const SHARDS_MAX: usize = 64;
/// Smallest quota of the store, in bytes: below it a handful of large objects would already evict each other.
pub const CAPACITY_BYTES_MIN: u64 = 64 << 20;
/// Most replicas of an object that a request or the configuration may ask for, and what is asked for by default.
pub const REPLICAS_MAX: u16 = 100;
/// See [`REPLICAS_MAX`].
pub const REPLICAS_DEFAULT: u16 = 3;
/// How long a cached version counts as fresh when the configuration does not say.
pub const FRESHNESS_TTL_DEFAULT: Duration = Duration::from_secs(30);
/// Bytes of a configuration file.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Open files a peer needs at least: connections, piece files, the catalog.
pub const OPEN_FILES_MIN: u64 = 4096;
/// Bytes of memory that must be lockable: what the background executor asks for.
pub const LOCKED_MEMORY_BYTES_MIN: u64 = 512 << 10;

/// Messages that may wait in one shard's mailbox.
pub const SHARD_MAILBOX: usize = 4096;
/// Changes that may wait for the catalog thread.
pub const CATALOG_MAILBOX: usize = 4096;
/// Changes in one catalog transaction, and the time the first of them waits for company.
pub const CATALOG_BATCH_CHANGES: usize = 256;
/// See [`CATALOG_BATCH_CHANGES`].
pub const CATALOG_BATCH_DELAY: Duration = Duration::from_millis(2);
/// The time a commit that nobody waits for may be kept to be grouped with others.
pub const CATALOG_LAZY_DELAY: Duration = Duration::from_millis(100);
/// Requests that may wait for the sidecar.
pub const SIDECAR_MAILBOX: usize = 1024;
/// Backend requests in flight at once, over all objects.
pub const BACKEND_REQUESTS_MAX: usize = 64;
/// Connections the admin listener serves at once.
pub const ADMIN_CONNECTIONS_MAX: usize = 32;
/// Bulk reads that may wait for the background executor.
pub const BACKGROUND_MAILBOX: usize = 256;
/// Bulk reads that the background executor runs at once.
pub const BACKGROUND_READS_MAX: u64 = 2;
/// Memory of the background executor's own read buffers, in bytes: a piece for each read that runs.
pub const BACKGROUND_IO_MEMORY_BYTES: usize = 2 * PIECE_BYTES as usize;

/// Pieces of one version fetched from the backend at once.
pub const FETCH_WINDOW_PIECES: usize = 8;
/// Pieces one response reads ahead of what the client has taken.
pub const SERVE_WINDOW_PIECES: usize = 4;
/// Pieces of one upload that are being written at once.
pub const INGEST_WINDOW_PIECES: usize = 4;
/// Objects written back at once, per shard.
pub const WRITEBACK_OBJECTS_MAX: usize = 4;
/// Objects at least this long are written back as multipart uploads.
pub const MULTIPART_THRESHOLD_BYTES: u64 = 16 << 20;
/// Smallest part of a multipart upload of ours, in bytes (a whole number of pieces).
pub const PART_BYTES_MIN: u64 = 16 << 20;
/// Most parts of a multipart upload: S3's limit.
pub const PARTS_MAX: u64 = 10_000;

/// Entries of the task table of one shard that are kept although nothing of them is on disk.
pub const TASKS_PER_SHARD_MAX: usize = 200_000;
/// Uploads in progress per shard.
pub const UPLOADS_PER_SHARD_MAX: usize = 4096;
/// Objects written or deleted here that one page of a listing takes in from each shard.
pub const PENDING_ENTRIES_MAX: usize = 10_000;
/// Questions to the backend for one open, when local changes cross the answers.
pub const CHECK_ROUNDS_MAX: usize = 8;
/// After the backend could not be asked about a task it is left alone for this time.
pub const CHECK_PAUSE: Duration = Duration::from_secs(5);
/// Tries to read one piece from the backend, and the pause before the second one.
pub const FETCH_ATTEMPTS_MAX: u32 = 3;
/// See [`FETCH_ATTEMPTS_MAX`].
pub const FETCH_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Tries to read one piece from disk, each after a damaged copy was put aside.
pub const PIECE_READS_MAX: usize = 3;
/// Rounds of eviction for one allocation.
pub const EVICT_ROUNDS_MAX: usize = 8;
/// How often a replaced version looks whether someone still reads it.
pub const RETIRED_POLL: Duration = Duration::from_millis(500);
/// How often a writer looks whether the dirty limit allows its next piece.
pub const ADMISSION_POLL: Duration = Duration::from_millis(20);
/// A DELETE waits this long for the backend before it is answered as pending.
pub const DELETE_WAIT: Duration = Duration::from_secs(10);
/// Parts of one multipart upload in flight.
pub const PARTS_IN_FLIGHT_MAX: usize = 4;
/// First pause after a failed write-back, and the longest.
pub const WRITEBACK_RETRY_DELAY: Duration = Duration::from_millis(500);
/// See [`WRITEBACK_RETRY_DELAY`].
pub const WRITEBACK_RETRY_DELAY_MAX: Duration = Duration::from_secs(60);
/// How often the write-back queue looks for entries whose pause is over.
pub const WRITEBACK_POLL: Duration = Duration::from_millis(500);
/// How often a shard evicts, trims its tables and reports.
pub const HOUSEKEEPING_PERIOD: Duration = Duration::from_secs(1);

/// Connections one shard holds open.
pub const CONNECTIONS_PER_SHARD_MAX: usize = 8192;
/// Connections that the kernel holds for one listener until they are accepted.
pub const ACCEPT_BACKLOG: i32 = 1024;
/// Bytes read at once from a connection of which nothing is known yet.
pub const OPENING_READ_BYTES: usize = 4096;
/// Bytes of an HTTP request head.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes of a request body that one connection reads at once, and of small answers that it gathers.
pub const HTTP_BUFFER_BYTES_MAX: usize = 256 << 10;
/// Bytes of all form fields of an upload besides the file.
pub const FORM_FIELDS_BYTES_MAX: usize = 64 << 10;
/// A request head must arrive within this time.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A body must move at least one byte within this time, in either direction.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// After the last answer on a connection, what the client still sends is read and dropped up to this many bytes and
/// for this long, so that it gets to read the answer before the connection is reset.
pub const LINGER_BYTES_MAX: usize = 16 << 20;
/// See [`LINGER_BYTES_MAX`].
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// A kept-alive connection may be silent this long.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Work that waits for memory or dirty space is refused with 503 after this time.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(15);
/// SIGTERM: requests in flight may finish within this time.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Managers that a configuration may name.
pub const MANAGERS_MAX: usize = 16;
/// Gossip seeds that a configuration may name.
pub const GOSSIP_SEEDS_MAX: usize = 64;
/// Shortest token of a cluster, in characters: below it guessing is quick.
pub const CLUSTER_TOKEN_CHARS_MIN: usize = 8;
/// How often managers are asked when the configuration does not say.
pub const REFRESH_INTERVAL_DEFAULT: Duration = Duration::from_secs(600);
/// How long a seed may be gone before its replicas are made anew, when the configuration does not say.
pub const REPAIR_AFTER_DEFAULT: Duration = Duration::from_secs(300);

/// Bytes of one gossip datagram, its signature included: the most that UDP carries.
pub const GOSSIP_DATAGRAM_BYTES_MAX: usize = 65_507;
/// Addresses that gossip is started from at once: those of the configuration, of their names, and from managers.
pub const GOSSIP_CONTACTS_MAX: usize = 256;
/// Strangers and doubtful nodes that are remembered so that each is logged once.
pub const GOSSIP_LOGGED_MAX: usize = 1024;
/// Nodes that are remembered though they are gone: the longest gone are forgotten first.
pub const GOSSIP_GONE_MAX: usize = 1024;
/// A node that is gone for this long is forgotten.
pub const GOSSIP_GONE_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Time that gossip itself keeps what a dead life of a node said. A node that crashes and is started again and again
/// leaves one life each time, and all of them have to fit into a datagram.
pub const GOSSIP_LIVES_KEPT: Duration = Duration::from_secs(600);
/// Time that the names of gossip seeds count as looked up; a node that is alone looks again with each contact.
pub const GOSSIP_LOOKUP_PERIOD: Duration = Duration::from_secs(60);
/// Pause after which gossip that ended by itself is started again.
pub const GOSSIP_RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Entries of one listing page, and its default.
pub const LIST_LIMIT_MAX: usize = 1000;

const _: () = assert!(PIECE_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(HTTP_BUFFER_BYTES_MAX >= HTTP_HEAD_BYTES_MAX && HTTP_HEAD_BYTES_MAX >= OPENING_READ_BYTES);
const _: () = assert!(PART_BYTES_MIN.is_multiple_of(PIECE_BYTES as u64));
const _: () = assert!(MULTIPART_THRESHOLD_BYTES >= PART_BYTES_MIN);
const _: () = assert!(PIECE_FILE_BYTES_MAX.is_multiple_of(PIECE_BYTES as u64));
const _: () = assert!(PIECE_FILE_BYTES_MAX / (BLOCK_BYTES as u64) <= u32::MAX as u64);

/// Frames that wait to be written on a native connection.
pub const NATIVE_QUEUE_FRAMES_MAX: usize = 64;
/// Bytes of pieces that one native connection takes from the engine before earlier ones are with the kernel: one
/// piece is written while the next is made ready.
pub const NATIVE_OUT_BYTES_MAX: usize = 2 * PIECE_BYTES as usize;
/// READs of one native connection that are served at once; others wait in line.
pub const NATIVE_READS_ACTIVE_MAX: usize = 8;
/// A READ that waits this long for its turn gives back what it has read ahead, and goes on piece by piece.
pub const NATIVE_TURN_PATIENCE: Duration = Duration::from_secs(1);
/// Pieces that a native client may send before earlier ones are written. Few connections saturate a disk, and many
/// share the memory for uploads.
pub const NATIVE_CREDITS: u32 = 4;
/// Versions that one native connection keeps readable after OPEN.
pub const NATIVE_PINS_MAX: usize = 16;
/// How often a native connection is looked at for silence and stalls.
pub const NATIVE_WATCH_INTERVAL: Duration = Duration::from_secs(1);

const _: () = assert!(NATIVE_CREDITS as usize >= INGEST_WINDOW_PIECES);
