//! Every maximum of the process by name, and the relations between them, checked when this compiles.
//!
//! A queue, buffer, table or retry without a line here is a defect.

use std::time::Duration;

/// Unit of disk allocation and of direct-I/O alignment, in bytes.
pub const BLOCK_BYTES: u32 = 4096;
/// Size of a piece (the last one of a version may be shorter), in bytes.
pub const PIECE_BYTES: u32 = 2 << 20;
/// Most bytes of an object: S3's limit (5 TiB).
pub const OBJECT_BYTES_MAX: u64 = 5 << 40;
/// Most bytes of an object key: S3's limit.
pub const KEY_BYTES_MAX: usize = 1024;
/// Bounds of a bucket name, in bytes: S3's are 3 to 63, older buckets have up to 255.
pub const BUCKET_BYTES_MAX: usize = 255;
/// Largest piece file, in bytes. Smaller quotas get smaller files (see `store::files`).
pub const PIECE_FILE_BYTES_MAX: u64 = 1 << 30;
/// Smallest piece file that is made instead, on a disk that has no room for a larger one. As much is left free, for the
/// catalog and for others.
pub const PIECE_FILE_BYTES_MIN: u64 = 64 << 20;
/// So many of those there may be beside the files of full size.
pub const SMALLER_PIECE_FILES_MAX: usize = 64;
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
/// Changes that are given to the catalog's journal at once, and the time the first of them waits for company.
pub const CATALOG_BATCH_CHANGES: usize = 256;
/// See [`CATALOG_BATCH_CHANGES`].
pub const CATALOG_BATCH_DELAY: Duration = Duration::from_millis(2);
/// Size of the catalog's journal. Small in unit tests, so that they come round it.
pub const JOURNAL_BYTES: usize = if cfg!(test) { 256 << 10 } else { 8 << 20 };
/// The time that commits wait in the journal for others to go into the database with them.
pub const JOURNAL_APPLY_DELAY: Duration = Duration::from_millis(50);
/// A piece of up to so many bytes that is all of its object is kept in the journal with its record, which costs one
/// write to the disk before the answer, where another piece is synced in its file first.
pub const JOURNAL_PIECE_BYTES_MAX: usize = 32 << 10;
/// Bytes on disk taken ahead for the catalog: an eighth of the file system within these bounds. When half of them are
/// left, more are taken.
pub const CATALOG_ROOM_BYTES: std::ops::RangeInclusive<u64> = 8 << 20..=32 << 20;
/// With fewer bytes ahead than this, what only adds is refused.
pub const CATALOG_ROOM_BYTES_LOW: u64 = 4 << 20;
/// With fewer than this, everything is.
pub const CATALOG_ROOM_BYTES_LEAST: u64 = 1 << 20;
/// Bytes that a change needs at most in a transaction of many: about two pages.
pub const CATALOG_CHANGE_BYTES: u64 = 2 * 4096;
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
/// When the background executor was asked for something and has answered nothing for this time, it is roused.
pub const BACKGROUND_STILL_MAX: Duration = Duration::from_millis(250);
/// Bulk reads that the background executor runs at once.
pub const BACKGROUND_READS_MAX: u64 = 2;
/// Memory of the background executor's own read buffers, in bytes: a piece for each read that runs.
pub const BACKGROUND_IO_MEMORY_BYTES: usize = 2 * PIECE_BYTES as usize;

/// Changes of one commit in which a start removes records that are of no use.
pub const CLEANUP_CHANGES_MAX: usize = 1000;

/// Pieces of one version fetched from the backend at once.
pub const FETCH_WINDOW_PIECES: usize = 16;
/// Pieces one response reads ahead of what the client has taken.
pub const SERVE_WINDOW_PIECES: usize = 8;
/// Pieces of one upload that are being written at once.
pub const INGEST_WINDOW_PIECES: usize = 8;
/// Objects written back at once, per shard.
pub const WRITEBACK_OBJECTS_MAX: usize = 4;
/// A write-back that waits for memory looks so often whether the request that it was for still is.
pub const WRITEBACK_MEMORY_LOOK: Duration = Duration::from_millis(500);
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
/// An allocation that finds nothing to evict waits this long for the evictions of others, and looks again this often.
pub const EVICTION_WAIT_MAX: Duration = Duration::from_secs(15);
/// See [`EVICTION_WAIT_MAX`].
pub const EVICTION_POLL: Duration = Duration::from_millis(5);
/// How often a replaced version looks whether someone still reads it.
pub const RETIRED_POLL: Duration = Duration::from_millis(500);
/// How often a writer looks whether the dirty limit allows its next piece.
pub const ADMISSION_POLL: Duration = Duration::from_millis(20);
/// Small requests that each shard sends to the backend beside write-backs, for clients that wait.
pub const WRITEBACK_TURNS_MAX: usize = 4;
/// A DELETE waits this long for the backend before it is answered as pending.
pub const DELETE_WAIT: Duration = Duration::from_secs(10);
/// Parts of one multipart upload in flight.
pub const PARTS_IN_FLIGHT_MAX: usize = 4;
/// First pause after a failed write-back, and the longest.
pub const WRITEBACK_RETRY_DELAY: Duration = Duration::from_millis(500);
/// See [`WRITEBACK_RETRY_DELAY`].
pub const WRITEBACK_RETRY_DELAY_MAX: Duration = Duration::from_secs(60);
/// Failed write-backs that may be tried again in a row while none succeeds, per shard.
pub const WRITEBACK_RETRIES_KEPT_MAX: usize = 16;
/// While none succeeds, one more may be tried again after each such time.
pub const WRITEBACK_RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// After this many failures in a row a success says that the backend is back.
pub const WRITEBACK_OUTAGE_FAILURES: u32 = 3;
/// Looks at the backend in one attempt to write something back: more than two, and others change the object all the time.
pub const WRITEBACK_LOOKS_MAX: u32 = 4;
/// An order of a person waits this long for an attempt that runs.
pub const STEER_WAIT: Duration = Duration::from_secs(10);
/// Multipart uploads that serve nobody are aborted this many at once, and tried again after this time.
pub const STRAY_UPLOADS_AT_ONCE_MAX: usize = 4;
/// See [`STRAY_UPLOADS_AT_ONCE_MAX`].
pub const STRAY_UPLOAD_RETRY: Duration = Duration::from_secs(30);
/// An upload that the backend began this close to the time when it was asked for one is that one, if its name was lost.
pub const STRAY_UPLOAD_WINDOW: Duration = Duration::from_secs(60);
/// How often the write-back queue looks for entries whose pause is over.
pub const WRITEBACK_POLL: Duration = Duration::from_millis(500);
/// The first scrub begins at the latest this long after the start of the peer.
pub const SCRUB_FIRST_DELAY_MAX: Duration = Duration::from_secs(3600);
/// How often every piece on disk is read again unless the configuration says otherwise.
pub const SCRUB_PERIOD_DEFAULT: Duration = Duration::from_secs(7 * 86_400);
/// How fast, in bytes a second, for the whole process.
pub const SCRUB_RATE_DEFAULT: u64 = 32 << 20;
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
/// SIGTERM: the process ends within this time, though something of its own stands still.
pub const END_TIMEOUT: Duration = Duration::from_secs(35);
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
const _: () =
    assert!(*CATALOG_ROOM_BYTES.start() > CATALOG_ROOM_BYTES_LOW && CATALOG_ROOM_BYTES_LOW > CATALOG_ROOM_BYTES_LEAST);
const _: () = assert!(CATALOG_ROOM_BYTES_LOW >= 2 * (CATALOG_BATCH_CHANGES as u64) * (BLOCK_BYTES as u64));
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
pub const NATIVE_CREDITS: u32 = 8;
/// Versions that one native connection keeps readable after OPEN.
pub const NATIVE_PINS_MAX: usize = 16;
/// How often a native connection is looked at for silence and stalls.
pub const NATIVE_WATCH_INTERVAL: Duration = Duration::from_secs(1);

const _: () = assert!(NATIVE_CREDITS as usize >= INGEST_WINDOW_PIECES);

/// Connections to other peers that one shard keeps. More nodes and shards than that are not expected.
pub const LINKS_PER_SHARD_MAX: usize = 4096;
/// Pieces that one link fetches at once: as many credits are granted.
pub const LINK_FETCHES_MAX: u32 = 16;
/// Bytes of frames that wait to be sent on a link; beyond them new requests wait.
pub const LINK_OUT_BYTES_MAX: usize = 256 << 10;
/// Bytes of a piece received at once: they are summed right after, so they should fit the second-level cache.
pub const LINK_RECEIVE_BYTES_MAX: usize = 512 << 10;
/// Another peer must take a connection within this time.
pub const LINK_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Another peer must answer HELLO within this time.
pub const LINK_HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// A link of which nothing is asked is closed after this time, before the other side does it.
pub const LINK_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A node that could not be reached is not tried again for this time.
pub const LINK_PAUSE: Duration = Duration::from_millis(500);
/// Addresses of which such a failure is remembered.
pub const LINK_PAUSES_MAX: usize = 4096;
/// How often a link is looked at.
pub const LINK_WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// A link that owes an answer and is silent for this time is asked for a sign of life.
pub const LINK_PING_AFTER: Duration = Duration::from_secs(1);
/// A link that owes an answer and is silent for this time is given up.
pub const LINK_SILENCE_MAX: Duration = Duration::from_secs(3);
/// The last frames of a link must be sent within this time.
pub const LINK_CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Links that one request is tried on, when one after the other ends before it takes the request.
pub const LINK_ATTEMPTS_MAX: usize = 3;
/// Addresses of refused peers that are remembered, so that each is logged once.
pub const STRANGERS_MAX: usize = 1024;

const _: () = assert!(LINK_IDLE_TIMEOUT.as_secs() < IDLE_TIMEOUT.as_secs());
const _: () = assert!(LINK_PING_AFTER.as_millis() >= LINK_WATCH_INTERVAL.as_millis());
const _: () = assert!(LINK_SILENCE_MAX.as_millis() >= 2 * LINK_PING_AFTER.as_millis());
const _: () = assert!(LINK_FETCHES_MAX as usize >= FETCH_WINDOW_PIECES);

/// Pause before the managers are asked again when none answered: first, and at most.
pub const MANAGER_RETRY_DELAY: Duration = Duration::from_millis(500);
/// See [`MANAGER_RETRY_DELAY`].
pub const MANAGER_RETRY_DELAY_MAX: Duration = Duration::from_secs(30);
/// How often a node says how it stands.
pub const NODE_STATE_PERIOD: Duration = Duration::from_secs(2);
/// Pieces that a peer sends to others at once before it says that it is busy.
pub const PEER_UPLOADS_MAX: u32 = 4;
/// Slots for fetching that pieces read ahead leave free: one to fetch the next piece, one to pass it on.
pub const SPARE_FETCH_SLOTS: usize = 2;
/// Pieces of one version that a home brings from the backend ahead of the peers that will ask for them.
pub const HOME_AHEAD_PIECES: usize = 8;
/// A home asks the backend for more pieces at once when fewer than this many of them stand in line there.
pub const PACE_LINE_MIN: f64 = 0.6;
/// And for fewer when more than this many do.
pub const PACE_LINE_MAX: f64 = 1.3;
/// A home looks this often how far a piece from another peer is, and takes it from elsewhere below this rate.
pub const HOLDER_WATCH_PERIOD: Duration = Duration::from_millis(250);
/// See [`HOLDER_WATCH_PERIOD`].
pub const HOLDER_BYTES_PER_SECOND_MIN: u64 = 256 << 10;
/// A peer that sent wrong bytes to a home, or nothing, or too slowly, is left alone for this time.
pub const ROGUE_AVOIDED: Duration = Duration::from_secs(60);
/// Peers that one shard leaves alone.
pub const ROGUES_MAX: usize = 1024;
/// A port that is in use at the start is tried again for this time.
pub const PORT_PATIENCE: Duration = Duration::from_secs(2);
/// How often.
pub const PORT_POLL: Duration = Duration::from_millis(50);
/// Nodes that are asked at once when people ask about the whole cluster.
pub const NODES_ASKED_AT_ONCE: usize = 16;
/// Seeds that are asked about a task, in order, before this peer acts alone.
pub const HOMES_ASKED_MAX: usize = 3;
/// Peers that a home asks for a piece before it asks the backend.
pub const HOLDERS_ASKED_MAX: usize = 3;
/// Nodes that hold all of one version, as a home remembers them.
pub const KEEPERS_MAX: usize = 64;
/// How often the table of those who download a version is tidied.
pub const HOLDERS_TIDY_PERIOD: Duration = Duration::from_secs(1);
/// A version that another peer opened or reads stays readable for this time though it be replaced.
pub const REMOTE_READ_KEEP: Duration = Duration::from_secs(20);
/// A number that was promised to a writer holds up what the backend has for this time at most.
pub const RESERVATION_HOLD: Duration = Duration::from_secs(2);
/// How often that is looked at.
pub const RESERVATION_POLL: Duration = Duration::from_millis(5);
/// A seed that did not say what it knows of a task is asked again after this time.
pub const SETTLE_AGAIN: Duration = Duration::from_secs(2);
/// A write that asks for copies on other peers waits for them this long.
pub const REPLICAS_WAIT: Duration = Duration::from_secs(60);
/// Deletions that a shard remembers after they are done.
pub const GRAVES_MAX: usize = 100_000;
/// Copies that a shard makes at once, and pieces of each that are on their way.
pub const COPIES_AT_ONCE_MAX: usize = 4;
/// See [`COPIES_AT_ONCE_MAX`].
pub const COPY_WINDOW_PIECES: usize = 8;
/// A piece of a copy that has come gets to disk within this time, or is fetched again.
pub const STORED_WAIT: Duration = Duration::from_secs(30);
/// How often a seed looks for missing copies, how many tasks it looks at then, and how fast its shards together have copies
/// made anew.
pub const REPAIR_PERIOD: Duration = Duration::from_secs(1);
/// See [`REPAIR_PERIOD`].
pub const REPAIR_TASKS_MAX: usize = 256;
/// See [`REPAIR_PERIOD`].
pub const REPAIR_BYTES_PER_SECOND: u64 = 256 << 20;
/// How often a peer looks whether the home has told the backend of its write: first, and at most.
pub const WRITEBACK_LOOK_DELAY: Duration = Duration::from_millis(200);
/// See [`WRITEBACK_LOOK_DELAY`].
pub const WRITEBACK_LOOK_DELAY_MAX: Duration = Duration::from_secs(5);
/// A home that is alive and cannot be reached for this time is done without by the witness, for twice the time by the
/// next in order, and so on.
pub const HOME_PATIENCE: Duration = Duration::from_secs(20);
/// A version that is told, or sent to the backend, this long after it got its number may have been replaced by one that
/// nobody remembers: the backend is asked first.
pub const WRITE_LATE: Duration = Duration::from_secs(30);
/// Readers who need the backend for the rest of an older version are waited for this long before it is overwritten.
pub const OLD_READERS_WAIT: Duration = Duration::from_secs(60);
/// Pieces of one download that are on their way at once.
pub const DOWNLOAD_SLOTS_MAX: usize = 32;
/// A reader that asks for nothing this long no longer has pieces fetched ahead.
pub const DOWNLOAD_READER_IDLE: Duration = Duration::from_secs(15);
/// A download that nobody has used this long ends; until then it goes on telling the home what it holds.
pub const DOWNLOAD_IDLE_MAX: Duration = Duration::from_secs(60);
/// A download looks at its flights at least this often.
pub const DOWNLOAD_WAKE_MAX: Duration = Duration::from_millis(500);
/// After so many failures of the home in a row those who wait for a piece are told.
pub const HOME_FAILURES_MAX: u32 = 3;
/// A home that does not know a version is asked about it at most this often.
pub const RELOCATE_PAUSE: Duration = Duration::from_millis(200);

/// Versions of at most this many pieces are fetched from the home without planning.
pub const SWARM_DIRECT_PIECES_MAX: u32 = 4;
/// Pieces that a download plans ahead of each reader.
pub const SWARM_WINDOW_PIECES: u32 = 128;
/// Pieces that each reader needs next, which come before rarer ones.
pub const SWARM_SOON_PIECES: u32 = 4;
/// Readers of one download.
pub const SWARM_READERS_MAX: usize = 1024;
/// Pieces that one download has in flight.
pub const SWARM_ORDERS_MAX: usize = 128;
/// Pieces that a download has in flight before it knows how fast it is.
pub const SWARM_ORDERS_MIN: usize = 6;
/// A download has as many pieces in flight as it gets in this time: fewer leave its link idle, more come late, and a
/// piece can be passed on only when it is complete.
pub const SWARM_IN_FLIGHT_TIME: Duration = Duration::from_millis(250);
/// Parents that a download remembers, and those it can use at once: the home names up to 8 in each answer.
pub const SWARM_PARENTS_KEPT: usize = 16;
/// Pieces in flight from one parent: at first, and at most.
pub const SWARM_PARENT_ORDERS_START: u32 = 2;
/// See [`SWARM_PARENT_ORDERS_START`].
pub const SWARM_PARENT_ORDERS_MAX: u32 = 16;
/// Pieces in flight from several parents together, but at least one from each.
pub const SWARM_PARENTS_ORDERS: u32 = 4;
/// A parent that is busy is left alone for this time.
pub const SWARM_BUSY_PAUSE: Duration = Duration::from_millis(50);
/// A parent that sends no byte for this long is given up.
pub const SWARM_SILENCE_MAX: Duration = Duration::from_secs(2);
/// An order is judged by its rate only when it is this old.
pub const SWARM_JUDGE_AFTER: Duration = Duration::from_secs(1);
/// A parent is slow when its rate is below the median by this factor.
pub const SWARM_SLOW_FACTOR: u32 = 10;
/// Rates of orders differ by this factor though nobody is slow, because links are shared. A parent below that is asked
/// only when there is no other.
pub const SWARM_RATE_SPREAD: u32 = 3;
/// How often a download looks at its orders though nothing happens.
pub const SWARM_TICK: Duration = Duration::from_millis(250);
/// A piece that so few have or fetch is worth telling the home at once.
pub const SWARM_RARE_COUNT_MAX: u8 = 4;
/// Rates of finished orders that the median is taken of.
pub const SWARM_RATES_KEPT: usize = 32;
/// A silent or slow parent is avoided for this time; each further time twice as long, up to
/// [`SWARM_AVOID_WRONG`].
pub const SWARM_AVOID_SILENT: Duration = Duration::from_secs(10);
/// A parent that lacks what it should have is avoided for this time.
pub const SWARM_AVOID_MISSING: Duration = Duration::from_secs(1);
/// A parent that sent wrong bytes is avoided for this time.
pub const SWARM_AVOID_WRONG: Duration = Duration::from_secs(120);
/// The home is asked for a piece that a reader waits for after this time, when nobody has it.
pub const SWARM_URGENT_PATIENCE: Duration = Duration::from_millis(75);
/// After this time, when it did not answer a report yet, or when those that have the piece all failed.
pub const SWARM_URGENT_UNSURE_PATIENCE: Duration = Duration::from_millis(500);
/// And after this time when somebody has it, or fetches it, but it does not come from there: a thousand readers that
/// start at the same piece get it from each other sooner.
pub const SWARM_URGENT_HELD_PATIENCE: Duration = Duration::from_secs(10);
/// After the home refused or failed it is left alone for this time.
pub const SWARM_HOME_PAUSE: Duration = Duration::from_millis(200);
/// Suggestions of the home that are not carried out within this time are forgotten.
pub const SWARM_SUGGESTION_KEPT: Duration = Duration::from_secs(2);
/// Shortest time between two reports of one download.
pub const SWARM_REPORT_MIN: Duration = Duration::from_millis(20);
/// A download that has enough to do reports this often, unless the home asks for less.
pub const SWARM_REPORT_PERIOD: Duration = Duration::from_secs(1);
/// A peer that wants nothing more reports this often, so that the home goes on naming it to others.
pub const SWARM_REPORT_IDLE: Duration = Duration::from_secs(10);
/// A report that is not answered within this time is lost.
pub const SWARM_REPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Nodes that a home keeps in its table of one version. Others are answered, but not remembered.
pub const SWARM_NODES_MAX: usize = 16_384;
/// Bytes of that table: huge objects have room for fewer nodes.
pub const SWARM_TABLE_BYTES_MAX: usize = 64 << 20;
/// Recent holders that a home remembers for each piece.
pub const SWARM_RECENT_HOLDERS: usize = 4;
/// Nodes that a home looks at to answer one report.
pub const SWARM_CANDIDATES_MAX: usize = 32;
/// A home wants a report from each of `n` nodes once in this time and the root of `n`: of 10,000 nodes, 10,000 a second.
pub const SWARM_REPORT_SPREAD: Duration = Duration::from_millis(10);
/// Longest time that a home asks a peer to wait before it reports again.
pub const SWARM_REPORT_MAX: Duration = Duration::from_secs(3);
/// A parent that has this many uploads is named only when there is no other.
pub const SWARM_UPLOADS_GOOD: u32 = 4;
/// Suggestions that a home has open at least.
pub const SWARM_SUGGESTED_MIN: usize = 6;
/// The same while each takes longer than [`SWARM_SUGGESTED_SLOW`].
pub const SWARM_SUGGESTED_MIN_SLOW: usize = 2;
/// See [`SWARM_SUGGESTED_MIN_SLOW`].
pub const SWARM_SUGGESTED_SLOW: Duration = Duration::from_secs(2);
/// To [`SWARM_SUGGESTED_MIN`] come as many as are carried out in this time.
pub const SWARM_SUGGESTED_TIME: Duration = Duration::from_millis(100);
/// As long as none was carried out, a suggestion that is older than this does not count.
pub const SWARM_SUGGESTED_LATE: Duration = Duration::from_secs(10);
/// A piece that few have and nobody else gets for this time is suggested again: those that have it do not give it.
pub const SWARM_STAGNANT: Duration = Duration::from_millis(1500);
/// See [`SWARM_STAGNANT`].
pub const SWARM_STAGNANT_COPIES_MAX: u32 = 2;
/// Suggestions that a home has open at most.
pub const SWARM_SUGGESTED_OPEN_MAX: usize = 256;
/// A node that said nothing for this time is forgotten by the home.
pub const SWARM_NODE_SILENCE_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(SWARM_WINDOW_PIECES as usize <= dfstore_proto::limits::COUNTS_MAX);
const _: () = assert!(SWARM_PARENTS_KEPT >= 2 * dfstore_proto::limits::PARENTS_MAX);
const _: () = assert!(SWARM_ORDERS_MAX <= dfstore_proto::limits::RUNS_MAX);
const _: () = assert!(SWARM_SUGGESTED_MIN_SLOW > 1 && SWARM_SUGGESTED_MIN >= SWARM_SUGGESTED_MIN_SLOW);
