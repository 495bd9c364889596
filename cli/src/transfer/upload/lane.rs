//! One connection of an upload: reads pieces, sums them, sends them, and passes the acknowledgements on.
//!
//! Lane 0 begins the upload and, when the coordinator says so, commits or aborts it; its connection is the upload. The
//! others join and leave. A lane that fails says which pieces it had not seen acknowledged; a joined one comes back,
//! lane 0 cannot.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::message::{Message, PutAbort, PutBegin, PutJoin, PutLeave, PutReady};
use dfstore_proto::session::Event;

use super::{Job, News, Stored, Work};
use crate::client::error::ClientError;
use crate::client::{Backoff, Peer, Session};
use crate::rt;
use crate::rt::buffer::Buffer;
use crate::rt::file::PositionedFile;
use crate::transfer::{KEEPALIVE, LANE_WINDOW};

/// Why a lane stopped.
enum Stop {
    /// The connection or the peer.
    Peer(ClientError),
    /// The source of the bytes.
    Source(io::Error),
    /// Nobody listens any more.
    Unwanted,
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Stop {
        Stop::Peer(error)
    }
}

/// Lane 0: begins the upload, and goes on when the coordinator has made a job of it.
pub async fn first(peer: Peer, begin: PutBegin, news: flume::Sender<News>, start: flume::Receiver<Arc<Job>>) {
    let (session, request, ready) = match open(&peer, &begin).await {
        Ok(opened) => opened,
        Err(error) => {
            let _ = news.send_async(News::NotBegun(error)).await;
            return;
        }
    };
    if news.send_async(News::Begun(ready)).await.is_err() {
        return;
    }
    let Ok(job) = start.recv_async().await else { return };
    let Some(mut lane) = Lane::new(job, true).await else { return };
    lane.open = Some((session, request));
    let ended = match lane.pump().await {
        Ok(()) => lane.finish().await,
        Err(stop) => Err(stop),
    };
    let Err(stop) = ended else { return };
    let is_local = matches!(stop, Stop::Source(_));
    if lane.report(stop, true).await && is_local {
        let _ = lane.abort().await;
    }
}

/// Any other lane.
pub async fn other(job: Arc<Job>, _number: usize) {
    let Some(mut lane) = Lane::new(job, false).await else { return };
    let mut backoff = Backoff::new();
    loop {
        let before = lane.acknowledged;
        let ended = match lane.pump().await {
            Ok(()) => lane.leave().await,
            Err(stop) => Err(stop),
        };
        let Err(stop) = ended else { return };
        if lane.acknowledged > before {
            backoff.reset();
        }
        let delay = match &stop {
            Stop::Peer(error) => backoff.next(error),
            Stop::Source(_) | Stop::Unwanted => None,
        };
        lane.open = None;
        if !lane.report(stop, delay.is_none()).await {
            return;
        }
        match delay {
            Some(delay) => rt::time::sleep(delay).await,
            None => return,
        }
    }
}

async fn open(peer: &Peer, begin: &PutBegin) -> Result<(Session, RequestId, PutReady), ClientError> {
    let mut backoff = Backoff::new();
    loop {
        let error = match open_once(peer, begin).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        match backoff.next(&error) {
            Some(delay) if !peer.is_absent(&error) => rt::time::sleep(delay).await,
            _ => return Err(error),
        }
    }
}

async fn open_once(peer: &Peer, begin: &PutBegin) -> Result<(Session, RequestId, PutReady), ClientError> {
    let mut session = peer.connect(Some(begin.target.task())).await?;
    let request = session.request(begin.clone())?;
    match session.answer(request).await? {
        Message::PutReady(ready) => Ok((session, request, ready)),
        other => Err(peer.unexpected(&other)),
    }
}

struct Lane {
    job: Arc<Job>,
    /// Whether this lane's connection is the upload.
    is_first: bool,
    file: Option<PositionedFile>,
    /// The connection and its part in the upload.
    open: Option<(Session, RequestId)>,
    /// Pieces taken on and not yet acknowledged.
    owed: BTreeMap<u32, Stored>,
    acknowledged: u64,
}

impl Lane {
    async fn new(job: Arc<Job>, is_first: bool) -> Option<Lane> {
        match job.source.as_ref().map(PositionedFile::new).transpose() {
            Ok(file) => Some(Lane { job, is_first, file, open: None, owed: BTreeMap::new(), acknowledged: 0 }),
            Err(error) => {
                let _ = job.news.send_async(News::NotRead(error)).await;
                None
            }
        }
    }

    /// Tells the coordinator why this lane stopped; `false` when nobody listens.
    async fn report(&mut self, stop: Stop, is_over: bool) -> bool {
        let numbers = std::mem::take(&mut self.owed).into_keys().collect();
        let news = match stop {
            Stop::Unwanted => return false,
            Stop::Source(error) => News::NotRead(error),
            Stop::Peer(error) => News::Lost { numbers, error, is_over, is_first: self.is_first },
        };
        self.job.news.send_async(news).await.is_ok()
    }

    /// Sends pieces until there is no more work and all are acknowledged.
    async fn pump(&mut self) -> Result<(), Stop> {
        loop {
            let may_send = self.owed.len() < LANE_WINDOW && self.open.as_ref().is_none_or(|open| open.0.credits() > 0);
            let work = match self.owed.is_empty() {
                true if may_send => match self.next_work().await? {
                    Some(work) => Some(work),
                    None => return Ok(()),
                },
                _ if may_send => self.job.work.try_recv().ok(),
                _ => None,
            };
            match work {
                Some(work) => self.send(work).await?,
                None => self.hear().await?,
            }
        }
    }

    /// Waits for work; `None` when there will be no more. The peer gets a sign of life meanwhile.
    async fn next_work(&mut self) -> Result<Option<Work>, Stop> {
        loop {
            match rt::time::timeout(KEEPALIVE, self.job.work.recv()).await {
                Ok(work) => return Ok(work.ok()),
                Err(_) => {
                    if let Some((session, _)) = &mut self.open {
                        session.ping().await?;
                    }
                }
            }
        }
    }

    async fn send(&mut self, work: Work) -> Result<(), Stop> {
        // Owed from here on, so that a failed connection gives the piece back.
        self.owed.insert(work.number, Stored { number: work.number, length: 0, crc32: 0 });
        self.join().await?;
        let buffer = match work.data {
            Some(buffer) => buffer,
            None => self.read(work.number).await?,
        };
        let crc32 = crc32fast::hash(&buffer);
        let length = u32::try_from(buffer.len()).expect("a piece is at most 16 MiB");
        let ready = &self.job.ready;
        let head = PieceHead {
            task: ready.task,
            generation: ready.generation,
            offset: u64::from(work.number) * u64::from(ready.piece_bytes),
            number: work.number,
            length,
            crc32,
        };
        self.owed.insert(work.number, Stored { number: work.number, length, crc32 });
        let (session, request) = self.open.as_mut().expect("joined above");
        session.send_piece(*request, &head, buffer).await?;
        Ok(())
    }

    async fn join(&mut self) -> Result<(), Stop> {
        if self.open.is_some() {
            return Ok(());
        }
        let ready = &self.job.ready;
        let mut session = self.job.peer.connect(Some(ready.task)).await?;
        let request = session.request(PutJoin { task: ready.task, upload: ready.upload })?;
        match session.answer(request).await? {
            Message::PutReady(_) => {}
            other => return Err(self.job.peer.unexpected(&other).into()),
        }
        while session.credits() == 0 {
            match session.next().await? {
                Event::Credit(_) => {}
                _ => return Err(session.violation("a frame that nobody asked for").into()),
            }
        }
        self.open = Some((session, request));
        Ok(())
    }

    async fn read(&self, number: u32) -> Result<Buffer, Stop> {
        let piece_bytes = u64::from(self.job.ready.piece_bytes);
        let offset = u64::from(number) * piece_bytes;
        let wanted = piece_bytes.min(self.job.length.saturating_sub(offset));
        let wanted = usize::try_from(wanted).expect("at most a piece");
        let buffer = self.job.pool.take().await.map_err(Stop::Source)?;
        let file = self.file.as_ref().expect("pieces without data come from a file");
        let buffer = file.read_at(buffer, wanted, offset).await.map_err(Stop::Source)?;
        if buffer.len() < wanted {
            return Err(Stop::Source(super::changed()));
        }
        Ok(buffer)
    }

    /// Handles one event.
    async fn hear(&mut self) -> Result<(), Stop> {
        let Some((session, request)) = &mut self.open else { return Ok(()) };
        match session.next().await? {
            Event::Message { request: of, message: Message::PieceAck(ack), .. } if of == *request => {
                let Some(stored) = self.owed.remove(&ack.number) else {
                    return Err(session.violation("acknowledges a piece that was not sent").into());
                };
                self.acknowledged += 1;
                self.job.news.send_async(News::Stored(stored)).await.map_err(|_| Stop::Unwanted)
            }
            Event::Message { message: Message::Error(reply), .. } => Err(ClientError::Refused(reply).into()),
            Event::GoAway { abandoned, .. } if abandoned.contains(request) => Err(session.gone().into()),
            // An upload in flight is finished by a peer that is about to stop.
            Event::Credit(_) | Event::GoAway { .. } => Ok(()),
            _ => Err(session.violation("a frame that nobody asked for").into()),
        }
    }

    /// Ends the part of a joined lane.
    async fn leave(&mut self) -> Result<(), Stop> {
        if let Some((session, request)) = &mut self.open {
            session.follow(*request, PutLeave {})?;
            session.answer(*request).await?;
        }
        Ok(())
    }

    /// Commits, or aborts when the coordinator has gone or given up.
    async fn finish(&mut self) -> Result<(), Stop> {
        let commit = self.job.commit.recv_async().await.ok();
        let (session, request) = self.open.as_mut().expect("lane 0 begins with one");
        match commit {
            Some(commit) => {
                session.follow(*request, commit)?;
                let message = session.answer(*request).await?;
                let Message::PutDone(done) = message else { return Err(self.job.peer.unexpected(&message).into()) };
                self.job.news.send_async(News::Committed(done)).await.map_err(|_| Stop::Unwanted)
            }
            None => self.abort().await,
        }
    }

    /// Throws the upload away. Acknowledgements may still be on their way.
    async fn abort(&mut self) -> Result<(), Stop> {
        let (session, request) = self.open.as_mut().expect("lane 0 begins with one");
        session.follow(*request, PutAbort {})?;
        while let Message::PieceAck(_) = session.answer(*request).await? {}
        self.job.news.send_async(News::Aborted).await.map_err(|_| Stop::Unwanted)
    }
}
