//! Every message of the protocol, its frame type and its bounds.
//!
//! One table gives frame types, names and bodies; the files beside this one hold the bodies: `connection` (hello,
//! credits, going away), `object` (stat, list, delete, copy), `read` and `put`, `cluster` (between peers), `admin` and
//! `queue` (of people who look after peers). Nothing here knows who may send what when: that is the session's.

use bytes::BytesMut;

use crate::error::{DecodeError, EncodeError, ErrorReply, FieldError};
use crate::frame::{FrameHeader, RequestId};
use crate::limits::{CONTROL_BYTES_MAX, FRAME_HEADER_BYTES, VERSION_MIN, VERSION_OF_PEERS, VERSION_OF_QUEUE};
use crate::wire;

mod admin;
mod cluster;
mod connection;
mod object;
mod put;
mod queue;
mod read;

pub use admin::{
    Evict, HolderInfo, NodeFailure, NodeInfo, NodeRole, Nodes, NodesOk, Prefetch, Scope, Where, WhereOk, Worked,
};
pub use cluster::{
    BackendConfig, ConfigOk, Duty, Fetch, GetConfig, Holder, KnownVersion, Locate, Pending, PendingOk, PendingPage,
    PieceRuns, Publish, PublishOk, Published, Recall, Recalled, Reserve, Reserved, Standing, Track, Tracked,
    VersionRecord,
};
pub use connection::{Cancel, Credit, Done, GoAway, Hello, HelloAck, Ping, Role, Route, Token};
pub use object::{
    Copy, CreateBucket, Delete, List, ListEntry, ListOk, ListPage, Stat, Target, VersionInfo, VersionState,
};
pub use put::{PieceAck, PutAbort, PutBegin, PutCommit, PutDone, PutJoin, PutLeave, PutReady, WrittenTo};
pub use queue::{Queue, QueueEntry, QueueOk, QueuePage, QueueState, Scrub, ScrubOk, Steer, SteerOrder};
pub use read::{Open, Read, ReadEnd, SourceCount};

/// A body that knows its bounds.
trait Bounded {
    fn check(&self) -> Result<(), FieldError>;
}

/// First and last of the frame types that came after version 1: all that a cluster and the people who look after it need.
pub const CLUSTER_TYPES: std::ops::RangeInclusive<u8> = 0x40..=0x7F;
/// First and last of those among them that only peers send: homes, parents, publications, configuration.
pub const PEER_TYPES: std::ops::RangeInclusive<u8> = 0x40..=0x5F;
/// First and last of those among them that version 3 added.
pub const QUEUE_TYPES: std::ops::RangeInclusive<u8> = 0x67..=0x6B;
/// First and last of the frame types that will never be given a meaning.
pub const NEVER_TYPES: std::ops::RangeInclusive<u8> = 0xF0..=0xFF;

macro_rules! messages {
    ($($(#[$doc:meta])* $variant:ident($body:ty) = $number:literal, $name:literal;)*) => {
        /// What follows a frame header.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum FrameType {
            $($(#[$doc])* $variant = $number,)*
            /// A piece header and raw bytes.
            Piece = 0x2F,
        }

        impl FrameType {
            /// All frame types that this version knows.
            pub const ALL: &[FrameType] = &[$(FrameType::$variant,)* FrameType::Piece];

            /// The frame type with this number.
            pub const fn from_number(number: u8) -> Option<FrameType> {
                match number {
                    $($number => Some(FrameType::$variant),)*
                    0x2F => Some(FrameType::Piece),
                    _ => None,
                }
            }

            /// The name, as the specification writes it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(FrameType::$variant => $name,)*
                    FrameType::Piece => "PIECE",
                }
            }
        }

        /// A control message: everything but a piece.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Message {
            $($(#[$doc])* $variant($body),)*
        }

        impl Message {
            /// The frame type that carries this message.
            pub const fn frame_type(&self) -> FrameType {
                match self {
                    $(Message::$variant(_) => FrameType::$variant,)*
                }
            }

            fn check(&self) -> Result<(), FieldError> {
                match self {
                    $(Message::$variant(body) => body.check(),)*
                }
            }

            fn append_to(&self, out: &mut BytesMut, bytes_max: usize) -> bool {
                match self {
                    $(Message::$variant(body) => wire::append_section(body, out, bytes_max),)*
                }
            }

            fn from_payload(frame_type: FrameType, mut payload: &[u8]) -> Option<Message> {
                match frame_type {
                    $(FrameType::$variant => wire::first_section(&mut payload).map(Message::$variant),)*
                    FrameType::Piece => None,
                }
            }
        }
    };
}

macro_rules! bodies_of_one_message {
    ($($body:ident => $variant:ident,)*) => {
        $(impl From<$body> for Message {
            fn from(body: $body) -> Message {
                Message::$variant(body)
            }
        })*
    };
}

messages! {
    /// Opens the connection: who connects, what for, with which credentials.
    Hello(Hello) = 0x01, "HELLO";
    /// Accepts the connection.
    HelloAck(HelloAck) = 0x02, "HELLO_ACK";
    /// Ends a request, or the connection, without success.
    Error(ErrorReply) = 0x03, "ERROR";
    /// Ends a request whose success needs no words.
    Done(Done) = 0x04, "DONE";
    /// Asks for a PONG.
    Ping(Ping) = 0x05, "PING";
    /// Answers a PING with its number.
    Pong(Ping) = 0x06, "PONG";
    /// Grants more pieces.
    Credit(Credit) = 0x07, "CREDIT";
    /// Announces that no new request will be taken.
    GoAway(GoAway) = 0x08, "GO_AWAY";
    /// The side that made a request has no more use for its answer.
    Cancel(Cancel) = 0x09, "CANCEL";
    /// Asks what is known about an object.
    Stat(Stat) = 0x10, "STAT";
    /// Answers STAT.
    StatOk(VersionInfo) = 0x11, "STAT_OK";
    /// Asks for one page of a listing.
    List(List) = 0x12, "LIST";
    /// Answers LIST.
    ListOk(ListOk) = 0x13, "LIST_OK";
    /// Deletes an object. Answered with DONE, also when there was none.
    Delete(Delete) = 0x14, "DELETE";
    /// Copies an object to another name.
    Copy(Copy) = 0x15, "COPY";
    /// Answers COPY with the new version.
    CopyOk(VersionInfo) = 0x16, "COPY_OK";
    /// Creates a bucket. Answered with DONE.
    CreateBucket(CreateBucket) = 0x17, "CREATE_BUCKET";
    /// Asks for the version of an object that reads should name.
    Open(Open) = 0x20, "OPEN";
    /// Answers OPEN.
    OpenOk(VersionInfo) = 0x21, "OPEN_OK";
    /// Asks for pieces of a version. Answered with PIECE frames and READ_END.
    Read(Read) = 0x22, "READ";
    /// Ends a READ after its last piece.
    ReadEnd(ReadEnd) = 0x23, "READ_END";
    /// Begins an upload.
    PutBegin(PutBegin) = 0x30, "PUT_BEGIN";
    /// Answers PUT_BEGIN and PUT_JOIN: pieces may come.
    PutReady(PutReady) = 0x31, "PUT_READY";
    /// Joins an upload that another connection began.
    PutJoin(PutJoin) = 0x32, "PUT_JOIN";
    /// Ends this connection's part in an upload. Answered with DONE.
    PutLeave(PutLeave) = 0x33, "PUT_LEAVE";
    /// A piece of an upload is stored.
    PieceAck(PieceAck) = 0x34, "PIECE_ACK";
    /// All pieces are sent: make them the object.
    PutCommit(PutCommit) = 0x35, "PUT_COMMIT";
    /// Answers PUT_COMMIT: the object is written.
    PutDone(PutDone) = 0x36, "PUT_DONE";
    /// Throws an upload away. Answered with DONE.
    PutAbort(PutAbort) = 0x37, "PUT_ABORT";
    /// Asks the home of a task for its current version.
    Locate(Locate) = 0x40, "LOCATE";
    /// Answers LOCATE.
    Located(VersionInfo) = 0x41, "LOCATED";
    /// Asks a seed what it knows about a task by itself.
    Recall(Recall) = 0x42, "RECALL";
    /// Tells what the sender has of a version, and asks from whom to get the rest.
    Track(Track) = 0x43, "TRACK";
    /// Answers TRACK.
    Tracked(Tracked) = 0x44, "TRACKED";
    /// Asks for one piece. Answered with a PIECE frame and READ_END.
    Fetch(Fetch) = 0x45, "FETCH";
    /// Asks the home for the generation of a new version.
    Reserve(Reserve) = 0x46, "RESERVE";
    /// Answers RESERVE.
    Reserved(Reserved) = 0x47, "RESERVED";
    /// Tells a seed about a version.
    Publish(Publish) = 0x48, "PUBLISH";
    /// Answers PUBLISH.
    PublishOk(PublishOk) = 0x49, "PUBLISH_OK";
    /// Asks a seed for objects that the backend does not have yet, or still has.
    Pending(Pending) = 0x4A, "PENDING";
    /// Answers PENDING.
    PendingOk(PendingOk) = 0x4B, "PENDING_OK";
    /// Answers RECALL.
    Recalled(Recalled) = 0x4C, "RECALLED";
    /// Asks a manager for the backend's configuration.
    GetConfig(GetConfig) = 0x50, "GET_CONFIG";
    /// Answers GET_CONFIG.
    ConfigOk(ConfigOk) = 0x51, "CONFIG_OK";
    /// Asks where an object is.
    Where(Where) = 0x60, "WHERE";
    /// Answers WHERE.
    WhereOk(WhereOk) = 0x61, "WHERE_OK";
    /// Asks for the nodes of the cluster.
    Nodes(Nodes) = 0x62, "NODES";
    /// Answers NODES.
    NodesOk(NodesOk) = 0x63, "NODES_OK";
    /// Fetches an object into the cache.
    Prefetch(Prefetch) = 0x64, "PREFETCH";
    /// Drops an object from the cache.
    Evict(Evict) = 0x65, "EVICT";
    /// Answers PREFETCH and EVICT.
    Worked(Worked) = 0x66, "WORKED";
    /// Asks for a page of the write-back queue.
    Queue(Queue) = 0x67, "QUEUE";
    /// Answers QUEUE.
    QueueOk(QueueOk) = 0x68, "QUEUE_OK";
    /// Steers an entry of the write-back queue. Answered with DONE.
    Steer(Steer) = 0x69, "STEER";
    /// Asks how the check of the pieces on disk stands, or begins one.
    Scrub(Scrub) = 0x6A, "SCRUB";
    /// Answers SCRUB.
    ScrubOk(ScrubOk) = 0x6B, "SCRUB_OK";
}

// PING and PONG share a body, as do STAT_OK, OPEN_OK, COPY_OK and LOCATED: those are named where they are made.
bodies_of_one_message! {
    Hello => Hello, HelloAck => HelloAck, ErrorReply => Error, Done => Done, Credit => Credit, GoAway => GoAway,
    Cancel => Cancel, Stat => Stat, List => List, ListOk => ListOk, Delete => Delete, Copy => Copy,
    CreateBucket => CreateBucket, Open => Open, Read => Read, ReadEnd => ReadEnd, PutBegin => PutBegin,
    PutReady => PutReady, PutJoin => PutJoin, PutLeave => PutLeave, PieceAck => PieceAck, PutCommit => PutCommit,
    PutDone => PutDone, PutAbort => PutAbort, Locate => Locate, Recall => Recall, Recalled => Recalled, Track => Track,
    Tracked => Tracked, Fetch => Fetch, Reserve => Reserve, Reserved => Reserved, Publish => Publish,
    PublishOk => PublishOk, Pending => Pending, PendingOk => PendingOk, GetConfig => GetConfig, ConfigOk => ConfigOk,
    Where => Where, WhereOk => WhereOk, Nodes => Nodes, NodesOk => NodesOk, Prefetch => Prefetch, Evict => Evict,
    Worked => Worked, Queue => Queue, QueueOk => QueueOk, Steer => Steer, Scrub => Scrub, ScrubOk => ScrubOk,
}

impl FrameType {
    /// The number that travels.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The first version of the messages that has this type.
    pub fn version(self) -> u8 {
        match self.number() {
            number if QUEUE_TYPES.contains(&number) => VERSION_OF_QUEUE,
            number if CLUSTER_TYPES.contains(&number) => VERSION_OF_PEERS,
            _ => VERSION_MIN,
        }
    }

    /// Whether only connections of the role [`Role::Peer`] carry this type.
    pub fn is_between_peers(self) -> bool {
        PEER_TYPES.contains(&self.number())
    }
}

impl Message {
    /// Appends the whole frame to `out`. On failure `out` is as it was.
    pub fn encode(&self, request: RequestId, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.check()?;
        let start = out.len();
        let body = start + FRAME_HEADER_BYTES;
        out.resize(body, 0);
        if !self.append_to(out, body + CONTROL_BYTES_MAX as usize) {
            out.truncate(start);
            return Err(EncodeError::TooLong { max: CONTROL_BYTES_MAX });
        }
        let header = FrameHeader {
            payload_bytes: u32::try_from(out.len() - body).expect("at most CONTROL_BYTES_MAX"),
            frame_type: self.frame_type(),
            flags: 0,
            request,
            body_crc32: crc32fast::hash(&out[body..]),
        };
        out[start..body].copy_from_slice(&header.encode());
        Ok(())
    }

    /// Reads the payload of a control frame whose header was parsed, and checks every field against its bound.
    pub fn decode(header: &FrameHeader, payload: &[u8]) -> Result<Message, DecodeError> {
        let (expected, actual) = (header.body_crc32, crc32fast::hash(payload));
        if expected != actual {
            return Err(DecodeError::BodyChecksum { expected, actual });
        }
        let frame_type = header.frame_type.number();
        let message = Message::from_payload(header.frame_type, payload).ok_or(DecodeError::BadPayload(frame_type))?;
        message.check().map_err(|error| DecodeError::Field { frame_type, error })?;
        Ok(message)
    }
}

impl Bounded for ErrorReply {
    fn check(&self) -> Result<(), FieldError> {
        wire::at_most("message", &self.message, crate::limits::ERROR_MESSAGE_BYTES_MAX)?;
        wire::at_most("detail", &self.detail, crate::limits::ERROR_DETAIL_BYTES_MAX)
    }
}
