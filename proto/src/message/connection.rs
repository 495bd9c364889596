//! Messages about the connection itself: hello, credits, ping, going away, and the two plain answers.

use serde::{Deserialize, Serialize};

use super::Bounded;
use crate::error::{ErrorCode, FieldError};
use crate::ids::TaskId;
use crate::limits::{
    CREDITS_MAX, ERROR_MESSAGE_BYTES_MAX, NAME_BYTES_MAX, PIECE_BYTES_MAX, REQUESTS_MAX, SHARDS_MAX, TOKEN_BYTES_MAX,
};
use crate::preface::Versions;
use crate::wire::{at_most, number_at_most};

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A program that reads and writes objects.
    Client,
    /// Another peer of the cluster.
    Peer,
}

/// Which shard the connection should live on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Route {
    /// Any.
    Any,
    /// The owner of this task.
    Task(TaskId),
    /// This one.
    Shard(u16),
}

/// A credential. Shown nowhere.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token(String);

impl Token {
    /// A credential with this text; empty for none.
    pub fn new(text: impl Into<String>) -> Token {
        Token(text.into())
    }

    /// The text. Compare it in constant time.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "Token(none)" } else { "Token(hidden)" })
    }
}

/// The first frame of a connection, right behind the preface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions of the messages the sender speaks: the same range as in the preface.
    pub versions: Versions,
    /// Who connects.
    pub role: Role,
    /// Which shard the connection should live on.
    pub route: Route,
    /// Credential, empty for none.
    pub token: Token,
    /// Program and version, for logs.
    pub agent: String,
    /// Raw bytes of the longest piece the sender takes.
    pub piece_bytes_max: u32,
    /// Pieces the other side may send before it needs a CREDIT.
    pub credits: u32,
}

impl Bounded for Hello {
    fn check(&self) -> Result<(), FieldError> {
        if !self.versions.is_valid() {
            return Err(FieldError::Invalid("versions"));
        }
        at_most("token", &self.token.0, TOKEN_BYTES_MAX)?;
        at_most("agent", &self.agent, NAME_BYTES_MAX)?;
        check_intake(self.piece_bytes_max, self.credits)
    }
}

/// The first frame from the side that was connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// The version that both sides speak from now on.
    pub version: u8,
    /// Name of the node.
    pub node: String,
    /// Program and version, for logs.
    pub agent: String,
    /// Shards of the node: a task belongs to shard `task mod shards`.
    pub shards: u16,
    /// The shard that this connection lives on now.
    pub shard: u16,
    /// Size of the pieces of new versions.
    pub piece_bytes: u32,
    /// Raw bytes of the longest piece the sender takes.
    pub piece_bytes_max: u32,
    /// Requests that may be in flight on this connection.
    pub requests_max: u16,
    /// Pieces the other side may send before it needs a CREDIT.
    pub credits: u32,
}

impl Bounded for HelloAck {
    fn check(&self) -> Result<(), FieldError> {
        at_most("node", &self.node, NAME_BYTES_MAX)?;
        at_most("agent", &self.agent, NAME_BYTES_MAX)?;
        number_at_most("shards", self.shards.into(), SHARDS_MAX.into())?;
        if self.shard >= self.shards {
            return Err(FieldError::Invalid("shard"));
        }
        if self.requests_max == 0 {
            return Err(FieldError::Empty("requests_max"));
        }
        number_at_most("requests_max", self.requests_max.into(), REQUESTS_MAX.into())?;
        if self.piece_bytes == 0 {
            return Err(FieldError::Empty("piece_bytes"));
        }
        number_at_most("piece_bytes", self.piece_bytes.into(), PIECE_BYTES_MAX.into())?;
        check_intake(self.piece_bytes_max, self.credits)
    }
}

fn check_intake(piece_bytes_max: u32, credits: u32) -> Result<(), FieldError> {
    if piece_bytes_max == 0 {
        return Err(FieldError::Empty("piece_bytes_max"));
    }
    number_at_most("piece_bytes_max", piece_bytes_max.into(), PIECE_BYTES_MAX.into())?;
    number_at_most("credits", credits.into(), CREDITS_MAX.into())
}

/// Success that needs no words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

impl Bounded for Done {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// PING, and PONG with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Any number; the answer repeats it.
    pub nonce: u64,
}

impl Bounded for Ping {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// Grants the other side more pieces on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// Pieces added to those still granted. Not zero.
    pub pieces: u32,
}

impl Bounded for Credit {
    fn check(&self) -> Result<(), FieldError> {
        if self.pieces == 0 {
            return Err(FieldError::Empty("pieces"));
        }
        number_at_most("pieces", self.pieces.into(), CREDITS_MAX.into())
    }
}

/// No new request will be taken; those up to `last_request` are finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoAway {
    /// Why.
    pub code: ErrorCode,
    /// Why, for people.
    pub message: String,
    /// The highest request that was taken. Higher ones left no trace and may be made elsewhere.
    pub last_request: u64,
}

impl Bounded for GoAway {
    fn check(&self) -> Result<(), FieldError> {
        at_most("message", &self.message, ERROR_MESSAGE_BYTES_MAX)
    }
}

/// Ends interest in the request that the frame header names. The other side still ends it with its usual last frame
/// or with the error `Cancelled`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {}

impl Bounded for Cancel {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}
