//! Moves the bytes of one connection, in both directions, and spoils pieces on the way.
//!
//! Requests are copied as they come. Answers are cut into frames first; what the decoder does not understand (a newer
//! peer, or no peer) is copied from there on. Bytes are forwarded as they came, never encoded anew, except for a head
//! that is spoiled.

use std::io;

use dfstore_proto::decoder::{Decoder, Frame, Need};
use dfstore_proto::frame::{FrameLimits, PieceHead};
use dfstore_proto::limits::{CONTROL_BYTES_MAX, PIECE_BYTES_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::conditions::State;
use super::{Fault, Way};

const CHUNK_BYTES: usize = 64 << 10;

/// Until both sides have ended, or one of them in the middle.
pub(super) async fn both_ways(client: TcpStream, peer: TcpStream, state: &State) -> io::Result<()> {
    let (client_in, client_out) = client.into_split();
    let (peer_in, peer_out) = peer.into_split();
    let client_left = &Notify::new();
    let mut requests = Lane { from: client_in, to: peer_out, way: Way::ToPeer, state, client_left };
    let mut answers = Lane { from: peer_in, to: client_out, way: Way::FromPeer, state, client_left };
    tokio::try_join!(requests.copy(), answers.frames()).map(drop)
}

/// One direction.
struct Lane<'a> {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    way: Way,
    state: &'a State,
    /// Told once the client sends nothing more: whoever is silent towards it need not be so any longer.
    client_left: &'a Notify,
}

impl Lane<'_> {
    async fn forward(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.state.until_free(self.way, bytes.len()).await;
        self.to.write_all(bytes).await
    }

    /// Copies until the end.
    async fn copy(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = self.from.read(&mut buffer).await?;
            if count == 0 {
                self.client_left.notify_one();
                return self.to.shutdown().await;
            }
            self.state.frame_delay().await;
            self.forward(&buffer[..count]).await?;
        }
    }

    /// Copies frame by frame until the end.
    async fn frames(&mut self) -> io::Result<()> {
        let mut decoder =
            Decoder::new(FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: PIECE_BYTES_MAX });
        let mut held = Vec::new();
        loop {
            let Need::Bytes(wanted) = decoder.need() else { unreachable!("raw bytes are taken with their head") };
            let start = held.len();
            held.resize(start + wanted, 0);
            match self.from.read_exact(&mut held[start..]).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.to.shutdown().await,
                Err(error) => return Err(error),
            }
            let mut input = &held[start..];
            match decoder.push(&mut input) {
                Ok(None) => continue,
                Ok(Some(Frame::Message { .. })) => {
                    self.state.frame_delay().await;
                    self.forward(&held).await?;
                }
                Ok(Some(Frame::Piece { request, head })) => {
                    self.state.frame_delay().await;
                    let fault = self.state.fault_of_next_piece();
                    if fault == Some(Fault::OtherGeneration) {
                        held = PieceHead { generation: head.generation + 1, ..head }.frame(request).to_vec();
                    }
                    self.forward(&held).await?;
                    self.raw(head.length, fault).await?;
                    decoder.raw_taken(head.length as usize);
                }
                Err(_) => {
                    self.forward(&held).await?;
                    return self.copy().await;
                }
            }
            held.clear();
        }
    }

    /// The raw bytes of a piece of this length.
    async fn raw(&mut self, length: u32, fault: Option<Fault>) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let end = match fault {
            Some(Fault::CutAfter(after) | Fault::SilentAfter(after)) => after.min(length),
            _ => length,
        };
        let mut at = 0_u32;
        while at < end {
            let most = buffer.len().min((end - at) as usize);
            let count = self.from.read(&mut buffer[..most]).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(Fault::FlipByte(index)) = fault
                && let Some(byte) = index.checked_sub(at).and_then(|index| buffer[..count].get_mut(index as usize))
            {
                *byte ^= 0xFF;
            }
            self.forward(&buffer[..count]).await?;
            at += u32::try_from(count).unwrap_or(u32::MAX);
        }
        match fault {
            Some(Fault::CutAfter(_)) => Err(io::ErrorKind::ConnectionAborted.into()),
            Some(Fault::SilentAfter(_)) => {
                self.client_left.notified().await;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            _ => Ok(()),
        }
    }
}
