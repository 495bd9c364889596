//! Who may speak here, and as what: decided once, by the HELLO of a connection and the door it came in by.
//!
//! Clients come in by the object port, peers of the cluster by the two others, with the cluster's credential. Whoever
//! is turned away is told why; a node with the wrong credential is also logged, once for each address, because a person
//! has to mend it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::message::{ConfigOk, Hello, Role, Token};

use crate::limits::{PIECE_BYTES, STRANGERS_MAX};
use crate::rt::net::Door;

/// What a node of a cluster adds to the native face. All shards share one.
pub struct ClusterFace {
    node: Arc<str>,
    credential: Token,
    uploads: Arc<AtomicU32>,
    config: Option<ConfigSource>,
    /// Addresses of nodes that were turned away and logged.
    strangers: Mutex<HashSet<IpAddr>>,
}

/// Gives what a manager tells about the backend.
pub type ConfigSource = Box<dyn Fn() -> Result<ConfigOk, ErrorReply> + Send + Sync>;

impl ClusterFace {
    /// The face of the node with this id. Other peers must present this credential. A manager has a `config`.
    pub fn new(node: Arc<str>, credential: Token, config: Option<ConfigSource>) -> Arc<ClusterFace> {
        let (uploads, strangers) = (Arc::default(), Mutex::default());
        Arc::new(ClusterFace { node, credential, uploads, config, strangers })
    }

    /// What this node presents to others.
    pub fn credential(&self) -> &Token {
        &self.credential
    }

    /// What this node tells as a manager; `None` when it is none.
    pub(super) fn config(&self) -> Option<Result<ConfigOk, ErrorReply>> {
        self.config.as_ref().map(|source| source())
    }

    /// The counter of pieces that are being sent to other peers.
    pub fn uploads_counter(&self) -> Arc<AtomicU32> {
        self.uploads.clone()
    }

    /// The id of this node.
    pub fn node(&self) -> &Arc<str> {
        &self.node
    }

    /// Pieces that are being sent to other peers now.
    pub fn uploads(&self) -> u32 {
        self.uploads.load(Ordering::Relaxed)
    }

    /// Counts a piece as being sent until the result is dropped.
    pub(super) fn upload(&self) -> UploadGuard {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        UploadGuard(self.uploads.clone())
    }

    /// Logs a node that was turned away, unless that was done before.
    fn report(&self, remote: IpAddr, agent: &str) {
        // Never held over anything that waits, and only for nodes that are turned away.
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() >= STRANGERS_MAX {
            strangers.clear();
        }
        if strangers.insert(remote) {
            tracing::warn!(%remote, agent, "a node with another cluster name or token was turned away");
        }
    }
}

/// A piece on its way to another peer.
pub(super) struct UploadGuard(Arc<AtomicU32>);

impl Drop for UploadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the sender of this HELLO is served.
pub(super) fn admit(
    hello: &Hello,
    door: Door,
    cluster: Option<&ClusterFace>,
    remote: IpAddr,
) -> Result<(), ErrorReply> {
    let refused = |code, text: String| Err(ErrorReply::new(code, text));
    match (hello.role, door) {
        (Role::Client, Door::Api) => Ok(()),
        (Role::Client, Door::Peer | Door::Manager) => {
            refused(ErrorCode::Unsupported, "this port is for peers: clients connect to the object port".into())
        }
        (Role::Peer, door) => {
            let Some(cluster) = cluster else {
                return refused(ErrorCode::Unsupported, "this peer is not part of a cluster".into());
            };
            if door == Door::Api {
                return refused(
                    ErrorCode::AccessDenied,
                    "peers connect to the peer port, not to the object port".into(),
                );
            }
            if !is_same(hello.token.reveal(), cluster.credential.reveal()) {
                cluster.report(remote, &hello.agent);
                let text = "cluster name or token differ from those of this node";
                return refused(ErrorCode::AccessDenied, text.into());
            }
            let longest = hello.piece_bytes_max;
            if longest != PIECE_BYTES {
                let text = format!("pieces of this node are of {PIECE_BYTES} bytes, those of the other of {longest}");
                return refused(ErrorCode::Unsupported, text);
            }
            Ok(())
        }
    }
}

/// Compares in a time that depends on nothing but the length of `given`.
fn is_same(given: &str, right: &str) -> bool {
    let (given, right) = (given.as_bytes(), right.as_bytes());
    let mut differs = u8::from(given.len() != right.len());
    for (index, byte) in given.iter().enumerate() {
        let other = right.get(index).copied().unwrap_or(!*byte);
        differs = std::hint::black_box(differs | (byte ^ other));
    }
    differs == 0
}

#[cfg(test)]
mod tests {
    use dfstore_proto::limits::VERSION_OF_PEERS;
    use dfstore_proto::message::Route;
    use dfstore_proto::preface::Versions;

    use super::*;

    const REMOTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn hello(role: Role, max: u8, token: &str) -> Hello {
        Hello {
            versions: Versions { min: 1, max },
            role,
            route: Route::Any,
            token: Token::new(token),
            agent: String::new(),
            piece_bytes_max: PIECE_BYTES,
            credits: 0,
        }
    }

    #[test]
    fn everybody_comes_in_by_their_own_door() {
        let cluster = ClusterFace::new("a".into(), Token::new("secret"), None);
        let of = |hello: &Hello, door, cluster: Option<&ClusterFace>| {
            admit(hello, door, cluster, REMOTE).map_err(|reply| reply.code)
        };
        let client = hello(Role::Client, 1, "");
        assert_eq!(of(&client, Door::Api, Some(&cluster)), Ok(()));
        assert_eq!(of(&client, Door::Api, None), Ok(()));
        assert_eq!(of(&client, Door::Peer, Some(&cluster)), Err(ErrorCode::Unsupported));
        let peer = hello(Role::Peer, VERSION_OF_PEERS, "secret");
        assert_eq!(of(&peer, Door::Peer, Some(&cluster)), Ok(()));
        assert_eq!(of(&peer, Door::Manager, Some(&cluster)), Ok(()));
        assert_eq!(of(&peer, Door::Api, Some(&cluster)), Err(ErrorCode::AccessDenied));
        assert_eq!(of(&peer, Door::Peer, None), Err(ErrorCode::Unsupported));
    }

    #[test]
    fn only_the_whole_credential_opens() {
        let cluster = ClusterFace::new("a".into(), Token::new("secret"), None);
        for token in ["", "s", "secre", "secret2", "Secret", "secrets"] {
            let refused = admit(&hello(Role::Peer, VERSION_OF_PEERS, token), Door::Peer, Some(&cluster), REMOTE);
            let refused = refused.expect_err(token);
            assert_eq!(refused.code, ErrorCode::AccessDenied);
            assert!(refused.message.contains("cluster name or token differ"), "{refused}");
            assert!(!refused.message.contains("secret"), "{refused}");
        }
        assert_eq!(cluster.strangers.lock().expect("no panic").len(), 1, "logged once");
        assert!(is_same("", "") && is_same("é", "é"));
    }

    #[test]
    fn the_memory_of_strangers_is_bounded() {
        let cluster = ClusterFace::new("a".into(), Token::new("secret"), None);
        for number in 0..3 * u32::try_from(STRANGERS_MAX).expect("small") {
            cluster.report(IpAddr::V4(number.into()), "");
        }
        assert!(cluster.strangers.lock().expect("no panic").len() <= STRANGERS_MAX);
    }

    #[test]
    fn uploads_count_while_they_are_on_their_way() {
        let cluster = ClusterFace::new("a".into(), Token::default(), None);
        let (one, two) = (cluster.upload(), cluster.upload());
        assert_eq!(cluster.uploads(), 2);
        drop((one, two));
        assert_eq!(cluster.uploads(), 0);
    }
}
