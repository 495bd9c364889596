//! Gossip over UDP, each datagram signed: an HMAC-SHA256 of 16 bytes, keyed by the cluster's credential, then the message.
//!
//! A datagram without a valid signature is counted and dropped before anything in it is looked at, so that only nodes
//! of the cluster can make the decoder work. There is no secrecy: what nodes say about themselves can be read on the
//! way. An old datagram that somebody sends again says nothing new, because all that is gossiped has version numbers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::net::UdpSocket;

use crate::config::Secret;
use crate::limits::{GOSSIP_DATAGRAM_BYTES_MAX, GOSSIP_LOGGED_MAX};
use crate::metrics::Metrics;

/// Bytes of a signature.
pub(super) const MAC_BYTES: usize = 16;
/// Pause after a failed receive, so that the loop does not spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

type Signer = Hmac<Sha256>;

/// Opens the socket that was bound before.
pub(super) struct SignedTransport {
    socket: std::net::UdpSocket,
    signer: Signer,
    metrics: Metrics,
}

impl SignedTransport {
    pub(super) fn new(socket: std::net::UdpSocket, credential: &Secret, metrics: Metrics) -> SignedTransport {
        SignedTransport { socket, signer: signer(credential), metrics }
    }
}

pub(super) fn signer(credential: &Secret) -> Signer {
    Signer::new_from_slice(credential.expose().as_bytes()).expect("keys of any length are allowed")
}

#[async_trait]
impl Transport for SignedTransport {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = UdpSocket::from_std(self.socket.try_clone()?)?;
        Ok(Box::new(SignedSocket {
            speaks_ipv6: socket.local_addr()?.is_ipv6(),
            socket,
            signer: self.signer.clone(),
            metrics: self.metrics.clone(),
            received: vec![0; GOSSIP_DATAGRAM_BYTES_MAX].into_boxed_slice(),
            sent: Vec::new(),
            refused: Logged::default(),
            unreadable: Logged::default(),
        }))
    }
}

struct SignedSocket {
    socket: UdpSocket,
    speaks_ipv6: bool,
    signer: Signer,
    metrics: Metrics,
    received: Box<[u8]>,
    sent: Vec<u8>,
    /// Who was logged for want of a signature, and who for a message of another version.
    refused: Logged,
    unreadable: Logged,
}

#[async_trait]
impl Socket for SignedSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.sent.clear();
        self.sent.resize(MAC_BYTES, 0);
        message.serialize(&mut self.sent);
        if self.sent.len() > GOSSIP_DATAGRAM_BYTES_MAX {
            tracing::error!(bytes = self.sent.len(), "a gossip message is too long: there are too many nodes");
            return Ok(());
        }
        let mac = self.signer.clone().chain_update(&self.sent[MAC_BYTES..]).finalize().into_bytes();
        self.sent[..MAC_BYTES].copy_from_slice(&mac[..MAC_BYTES]);
        // A node that cannot be reached now may be later, and the crate would log each try.
        if let Err(error) = self.socket.send_to(&self.sent, self.reachable(to)).await {
            tracing::debug!(%error, %to, "a gossip datagram was not sent");
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            match self.socket.recv_from(&mut self.received).await {
                Ok((length, from)) => {
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    if let Some(message) = self.open(length, from) {
                        return Ok((from, message));
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot receive gossip");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }
}

impl SignedSocket {
    /// The message in a received datagram, if a node of this cluster sent it.
    fn open(&mut self, length: usize, from: SocketAddr) -> Option<ChitchatMessage> {
        let Some(mut message) = verified(&self.signer, &self.received[..length]) else {
            self.metrics.gossip_refused();
            if self.refused.is_new(from.ip()) {
                tracing::warn!(%from, "gossip from {from} is refused: it has another cluster.name or cluster.token");
            }
            return None;
        };
        let opened = ChitchatMessage::deserialize(&mut message);
        if let Err(error) = &opened
            && self.unreadable.is_new(from.ip())
        {
            tracing::warn!(%from, %error, "gossip from {from} is not understood: is it another version?");
        }
        opened.ok()
    }

    /// The address as this socket takes it: one for IPv6 reaches IPv4 through mapped addresses.
    fn reachable(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(ip) if self.speaks_ipv6 => SocketAddr::new(Ipv4Addr::to_ipv6_mapped(&ip).into(), to.port()),
            _ => to,
        }
    }
}

/// What follows the signature, if that is valid.
fn verified<'a>(signer: &Signer, datagram: &'a [u8]) -> Option<&'a [u8]> {
    let (mac, message) = datagram.split_at_checked(MAC_BYTES)?;
    signer.clone().chain_update(message).verify_truncated_left(mac).ok()?;
    Some(message)
}

/// Addresses that were logged; when there are too many no further one is.
#[derive(Default)]
struct Logged(BTreeSet<IpAddr>);

impl Logged {
    fn is_new(&mut self, ip: IpAddr) -> bool {
        self.0.len() < GOSSIP_LOGGED_MAX && self.0.insert(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_datagrams_signed_with_the_same_credential_are_opened() {
        let ours = signer(&Secret::new("credential"));
        let mac = ours.clone().chain_update(b"message").finalize().into_bytes();
        let datagram = [&mac[..MAC_BYTES], b"message"].concat();
        assert_eq!(verified(&ours, &datagram), Some(&b"message"[..]));
        assert_eq!(verified(&signer(&Secret::new("other")), &datagram), None);
        for at in 0..datagram.len() {
            assert_eq!(verified(&ours, &datagram[..at]), None, "cut at {at}");
            let mut changed = datagram.clone();
            changed[at] ^= 1;
            assert_eq!(verified(&ours, &changed), None, "changed at {at}");
        }
    }

    /// RFC 4231, test case 2: the signature is what its name says.
    #[test]
    fn the_signature_is_hmac_sha256() {
        let mac = signer(&Secret::new("Jefe")).chain_update(b"what do ya want for nothing?").finalize().into_bytes();
        let expected = [0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7];
        assert_eq!(mac[..MAC_BYTES], expected);
    }

    #[test]
    fn each_address_is_logged_once_and_no_more_than_fit() {
        let mut logged = Logged::default();
        let ip = |number: u32| IpAddr::V4(Ipv4Addr::from_bits(number));
        assert!(logged.is_new(ip(0)) && !logged.is_new(ip(0)));
        let limit = u32::try_from(GOSSIP_LOGGED_MAX).expect("small");
        assert_eq!((1..2 * limit).filter(|number| logged.is_new(ip(*number))).count(), GOSSIP_LOGGED_MAX - 1);
    }
}
