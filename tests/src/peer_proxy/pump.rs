//! Moves the bytes of one connection, in both directions, and spoils frames and pieces on the way.
//!
//! Both directions are cut into frames; what the decoder does not understand (HTTP, a newer peer, or no peer) is copied
//! from there on. Bytes are forwarded as they came, never encoded anew, except for what is spoiled.

use std::io;

use dfstore_proto::decoder::{Decoder, Frame, Need};
use dfstore_proto::frame::{FrameLimits, PieceHead};
use dfstore_proto::limits::{CONTROL_BYTES_MAX, PIECE_BYTES_MAX, PREFACE_BYTES};
use dfstore_proto::preface::looks_native;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::conditions::State;
use super::{Fault, Way, WireFault, WireRule};

const CHUNK_BYTES: usize = 64 << 10;

/// Until both sides have ended, or one of them in the middle.
pub(super) async fn both_ways(client: TcpStream, peer: TcpStream, state: &State) -> io::Result<()> {
    let (client_in, client_out) = client.into_split();
    let (peer_in, peer_out) = peer.into_split();
    let (client_left, wire) = (&Notify::new(), state.next_wire_rule());
    let lane = |from, to, way| {
        let wire = wire.filter(|rule| rule.way == way);
        Lane { from, to, way, state, client_left, wire, frames: 0, late: None }
    };
    let mut requests = lane(client_in, peer_out, Way::ToPeer);
    let mut answers = lane(peer_in, client_out, Way::FromPeer);
    tokio::try_join!(requests.run(), answers.run()).map(drop)
}

/// One direction.
struct Lane<'a> {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    way: Way,
    state: &'a State,
    /// Told once the client sends nothing more: whoever is silent towards it need not be so any longer.
    client_left: &'a Notify,
    /// What goes wrong with this connection in this direction.
    wire: Option<WireRule>,
    /// Frames that have come, the preface counted as one.
    frames: u64,
    /// A frame that is to come after the next one.
    late: Option<Vec<u8>>,
}

impl Lane<'_> {
    async fn run(&mut self) -> io::Result<()> {
        if self.way == Way::ToPeer {
            let mut preface = Vec::new();
            if !self.fill(&mut preface, PREFACE_BYTES).await? {
                return self.end(&preface).await;
            }
            if looks_native(&preface) != Some(true) {
                self.forward(&preface).await?;
                return self.copy().await;
            }
            self.deliver(preface).await?;
        }
        self.frames().await
    }

    async fn forward(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.state.until_free(self.way, bytes.len()).await;
        self.to.write_all(bytes).await
    }

    /// Reads so many more bytes; `false` when the end comes before.
    async fn fill(&mut self, held: &mut Vec<u8>, wanted: usize) -> io::Result<bool> {
        let end = held.len() + wanted;
        held.reserve(wanted);
        while held.len() < end {
            let mut rest = (&mut self.from).take((end - held.len()) as u64);
            if rest.read_buf(held).await? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The sender has ended, perhaps in the middle of a frame.
    async fn end(&mut self, held: &[u8]) -> io::Result<()> {
        let late = self.late.take().unwrap_or_default();
        self.forward(&late).await?;
        self.forward(held).await?;
        if self.way == Way::ToPeer {
            self.client_left.notify_one();
        }
        self.to.shutdown().await
    }

    /// Copies until the end.
    async fn copy(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut at = 0;
        loop {
            let count = self.from.read(&mut buffer).await?;
            if count == 0 {
                return self.end(&[]).await;
            }
            if let Some(WireRule { fault: WireFault::Flip(byte), .. }) = self.wire
                && let Some(byte) = byte.checked_sub(at).and_then(|index| buffer[..count].get_mut(index))
                && self.state.bites()
            {
                *byte ^= 0xFF;
            }
            at += count;
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
            if !self.fill(&mut held, wanted).await? {
                return self.end(&held).await;
            }
            let mut input = &held[start..];
            match decoder.push(&mut input) {
                Ok(None) => continue,
                Ok(Some(Frame::Message { .. })) => self.deliver(std::mem::take(&mut held)).await?,
                Ok(Some(Frame::Piece { head, .. })) if self.wire.is_some() => {
                    if !self.fill(&mut held, head.length as usize).await? {
                        return self.end(&held).await;
                    }
                    decoder.raw_taken(head.length as usize);
                    self.deliver(std::mem::take(&mut held)).await?;
                }
                Ok(Some(Frame::Piece { request, head })) => {
                    self.state.frame_delay().await;
                    self.count_frame();
                    let fault = self.fault_of_next_piece();
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

    /// Only what the peer sends is spoiled piece by piece.
    fn fault_of_next_piece(&self) -> Option<Fault> {
        if self.way == Way::FromPeer { self.state.fault_of_next_piece() } else { None }
    }

    fn count_frame(&mut self) -> u64 {
        self.frames += 1;
        self.state.note_frames(self.way, self.frames);
        self.frames - 1
    }

    /// Passes a whole frame on, unless something goes wrong with it.
    async fn deliver(&mut self, mut frame: Vec<u8>) -> io::Result<()> {
        self.state.frame_delay().await;
        let index = self.count_frame();
        if let Some(late) = self.late.take() {
            self.forward(&frame).await?;
            return self.forward(&late).await;
        }
        let bites = |rule: &WireRule| rule.frame == index && self.state.bites();
        let Some(rule) = self.wire.filter(bites) else { return self.forward(&frame).await };
        match rule.fault {
            WireFault::Reset => {
                let (_, _) = (self.to.as_ref().set_zero_linger(), self.from.as_ref().set_zero_linger());
                Err(io::ErrorKind::ConnectionReset.into())
            }
            WireFault::HalfClose => {
                self.to.shutdown().await?;
                self.discard().await
            }
            WireFault::Stall => {
                self.discard().await?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            WireFault::Flip(byte) => {
                let place = byte % frame.len();
                frame[place] ^= 0xFF;
                self.forward(&frame).await
            }
            WireFault::Swap => {
                self.late = Some(frame);
                Ok(())
            }
        }
    }

    /// Takes what comes until the sender ends, and passes nothing on.
    async fn discard(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        while self.from.read(&mut buffer).await? > 0 {}
        if self.way == Way::ToPeer {
            self.client_left.notify_one();
        }
        Ok(())
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
