//! Opening a link: connect, say hello, wait for the answer, each within its time.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use dfstore_proto::limits::{VERSION_MAX, VERSION_OF_PEERS};
use dfstore_proto::message::{Hello, HelloAck, Role, Route, Token};
use dfstore_proto::preface::Versions;
use dfstore_proto::session::{Event, Session};

use crate::limits::{LINK_CONNECT_TIMEOUT, LINK_FETCHES_MAX, LINK_HELLO_TIMEOUT, PIECE_BYTES};
use crate::links::LinkError;
use crate::links::link::{Link, next_event};
use crate::rt::net::connect;
use crate::rt::stream::{Incoming, Outgoing, Pulse, split};
use crate::rt::time::{Elapsed, timeout};

/// What this program calls itself.
const AGENT: &str = concat!("dfstore-peer/", env!("CARGO_PKG_VERSION"));

/// Whom to connect to.
#[derive(Clone, Debug)]
pub(super) struct Goal {
    pub address: SocketAddr,
    /// Its id where it is known: somebody else at its address is nobody to talk to.
    pub id: Option<Arc<str>>,
    pub route: Route,
}

impl Goal {
    /// What it is called in errors.
    pub fn name(&self) -> Arc<str> {
        self.id.clone().unwrap_or_else(|| self.address.to_string().into())
    }

    fn unreachable(&self, reason: impl ToString) -> LinkError {
        LinkError::Unreachable { node: self.name(), reason: reason.to_string().into() }
    }

    fn protocol(&self, reason: &impl ToString) -> LinkError {
        LinkError::Protocol { node: self.name(), reason: reason.to_string().into() }
    }
}

/// The three ends of a socket.
pub(super) type Socket = (Incoming, Outgoing, Pulse);

/// Opens a link; it is the caller's to keep going.
pub(super) async fn open(goal: &Goal, credential: &Token) -> Result<(Rc<Link>, Socket), LinkError> {
    let connected = connect(goal.address, LINK_CONNECT_TIMEOUT).await;
    let (mut incoming, mut outgoing, pulse) = split(connected.map_err(|error| goal.unreachable(error))?);
    let greeted = {
        let mut greeting = pin!(greet(goal, credential, &mut incoming, &mut outgoing));
        match timeout(LINK_HELLO_TIMEOUT, greeting.as_mut()).await {
            Ok(greeted) => greeted,
            Err(Elapsed) => {
                pulse.cut();
                drop(greeting.await);
                Err(LinkError::Silent { node: goal.name() })
            }
        }
    };
    let (session, ack) = greeted?;
    let link = Link::new(goal.name(), goal.address, session, ack.requests_max);
    Ok((link, (incoming, outgoing, pulse)))
}

async fn greet(
    goal: &Goal,
    credential: &Token,
    incoming: &mut Incoming,
    outgoing: &mut Outgoing,
) -> Result<(Session, HelloAck), LinkError> {
    let hello = Hello {
        versions: Versions { min: VERSION_OF_PEERS, max: VERSION_MAX },
        role: Role::Peer,
        route: goal.route,
        token: credential.clone(),
        agent: AGENT.to_owned(),
        piece_bytes_max: PIECE_BYTES,
        credits: LINK_FETCHES_MAX,
    };
    let mut out = BytesMut::new();
    let mut session = Session::connecting(hello, &mut out).map_err(|error| goal.protocol(&error))?;
    outgoing.write_all(vec![out.freeze()]).await.map_err(|error| goal.unreachable(error))?;
    loop {
        match next_event(&mut session, incoming) {
            Ok(Some(Event::Accepted(ack))) => {
                check(goal, &ack)?;
                return Ok((session, ack));
            }
            Ok(Some(Event::Closed(reply))) => return Err(LinkError::Rejected { node: goal.name(), reply }),
            Ok(Some(_)) => return Err(goal.protocol(&"its first frame is no HELLO_ACK")),
            Ok(None) => {}
            Err(error) => return Err(goal.protocol(&error)),
        }
        if !incoming.fill().await.map_err(|error| goal.unreachable(error))? {
            return Err(goal.unreachable("it closed the connection instead of answering"));
        }
    }
}

fn check(goal: &Goal, ack: &HelloAck) -> Result<(), LinkError> {
    if ack.version < VERSION_OF_PEERS {
        let version = ack.version;
        let reason = format!("it speaks version {version} of the protocol, peers speak {VERSION_OF_PEERS} or higher");
        return Err(goal.protocol(&reason));
    }
    if ack.piece_bytes != PIECE_BYTES {
        let reason = format!("its pieces are of {} bytes, those of this node of {PIECE_BYTES}", ack.piece_bytes);
        return Err(goal.protocol(&reason));
    }
    match &goal.id {
        Some(id) if **id != *ack.node => Err(goal.unreachable(format!("{} answers at its address", ack.node))),
        _ => Ok(()),
    }
}
