//! One connection of a download: asks for pieces, a few at a time, checks them and passes them on.
//!
//! A lane that fails says which pieces it owes, waits, and connects again; it ends when there is no more work, when
//! its failure is final, or when nobody listens.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::message::{Message, Open, Read, Target, VersionInfo};
use dfstore_proto::session::Event;

use super::{Job, News};
use crate::client::error::ClientError;
use crate::client::{Backoff, Peer, Session};
use crate::rt;
use crate::rt::file::PositionedFile;
use crate::transfer::LANE_WINDOW;

/// Lane 0: asks for the version, and goes on when the coordinator has made a job of it.
pub async fn first(peer: Peer, target: Target, news: flume::Sender<News>, start: flume::Receiver<Arc<Job>>) {
    let (session, info) = match open(&peer, &target).await {
        Ok(opened) => opened,
        Err(error) => {
            let _ = news.send_async(News::NotOpened(error)).await;
            return;
        }
    };
    if news.send_async(News::Opened(Box::new(info))).await.is_err() {
        return;
    }
    if let Ok(job) = start.recv_async().await {
        run(job, Some(session)).await;
    }
}

/// Any other lane.
pub async fn other(job: Arc<Job>, _number: usize) {
    run(job, None).await;
}

async fn open(peer: &Peer, target: &Target) -> Result<(Session, VersionInfo), ClientError> {
    let mut backoff = Backoff::new();
    loop {
        let error = match open_once(peer, target).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let is_absent = matches!(error, ClientError::Connect { .. });
        match backoff.next(&error) {
            Some(delay) if !is_absent => rt::time::sleep(delay).await,
            _ => return Err(error),
        }
    }
}

async fn open_once(peer: &Peer, target: &Target) -> Result<(Session, VersionInfo), ClientError> {
    let mut session = peer.connect(Some(target.task())).await?;
    match session.call(Open { target: target.clone(), no_cache: false }).await? {
        Message::OpenOk(info) => Ok((session, info)),
        other => Err(peer.unexpected(&other)),
    }
}

async fn run(job: Arc<Job>, session: Option<Session>) {
    let file = match job.output.as_ref().map(PositionedFile::new).transpose() {
        Ok(file) => file.map(Rc::new),
        Err(error) => {
            let _ = job.news.send_async(News::NotWritten(error)).await;
            return;
        }
    };
    let mut lane = Lane { job, file, session, owed: BTreeMap::new(), backoff: Backoff::new() };
    loop {
        let error = match lane.pump().await {
            Ok(()) => return,
            Err(error) => error,
        };
        lane.session = None;
        let delay = if error.is_version_change() { None } else { lane.backoff.next(&error) };
        let numbers = std::mem::take(&mut lane.owed).into_values().flatten().collect();
        let lost = News::Lost { numbers, error, is_over: delay.is_none() };
        if lane.job.news.send_async(lost).await.is_err() {
            return;
        }
        match delay {
            Some(delay) => rt::time::sleep(delay).await,
            None => return,
        }
    }
}

struct Lane {
    job: Arc<Job>,
    file: Option<Rc<PositionedFile>>,
    session: Option<Session>,
    /// Reads in flight, each with the piece it still owes.
    owed: BTreeMap<RequestId, Option<u32>>,
    backoff: Backoff,
}

impl Lane {
    /// Moves pieces until there is no more work.
    async fn pump(&mut self) -> Result<(), ClientError> {
        loop {
            if self.owed.is_empty() {
                let Ok(number) = self.job.work.recv().await else { return Ok(()) };
                self.ask(number).await?;
            }
            while self.owed.len() < self.window()
                && let Ok(number) = self.job.work.try_recv()
            {
                self.ask(number).await?;
            }
            self.session().await?.flush().await?;
            if !self.take_next().await? {
                return Ok(());
            }
        }
    }

    fn window(&self) -> usize {
        self.session.as_ref().map_or(1, Session::requests_max).min(LANE_WINDOW)
    }

    async fn session(&mut self) -> Result<&mut Session, ClientError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.job.peer.connect(Some(self.job.info.task)).await?,
        };
        Ok(self.session.insert(session))
    }

    async fn ask(&mut self, number: u32) -> Result<(), ClientError> {
        // Owed from here on, so that a failed connection gives the piece back.
        self.owed.insert(RequestId::CONNECTION, Some(number));
        let read = Read {
            target: self.job.target.clone(),
            generation: self.job.info.generation,
            first_piece: number,
            piece_count: 1,
        };
        let request = self.session().await?.request(read)?;
        self.owed.remove(&RequestId::CONNECTION);
        self.owed.insert(request, Some(number));
        Ok(())
    }

    /// Handles one event; `false` when nobody wants pieces any more.
    async fn take_next(&mut self) -> Result<bool, ClientError> {
        let session = self.session().await?;
        match session.next().await? {
            Event::Piece { request, head, .. } => self.take_piece(request, &head).await,
            Event::Message { message: Message::Error(reply), .. } => Err(ClientError::Refused(reply)),
            Event::Message { request, message: Message::ReadEnd(end), .. } => {
                match self.owed.remove(&request) {
                    Some(None) => {}
                    _ => return Err(self.session().await?.violation("a READ ended without its piece")),
                }
                Ok(self.job.news.send_async(News::Ended(end)).await.is_ok())
            }
            Event::Credit(_) => Ok(true),
            Event::GoAway { abandoned, .. } if abandoned.is_empty() => Ok(true),
            Event::GoAway { .. } => Err(session.gone()),
            _ => Err(session.violation("a frame that nobody asked for")),
        }
    }

    async fn take_piece(&mut self, request: RequestId, head: &PieceHead) -> Result<bool, ClientError> {
        let info = &self.job.info;
        let fits = head.fits(info.piece_bytes, Some(info.meta.length));
        let buffer = self.job.pool.take().await;
        let session = self.session.as_mut().expect("a piece came on it");
        if !fits {
            return Err(session.violation("a piece does not fit its object"));
        }
        let buffer = buffer.map_err(|error| session.violation(&format!("no memory for a piece: {error}")))?;
        let buffer = session.take_piece(head, buffer).await?;
        session.grant()?;
        self.owed.insert(request, None);
        self.backoff.reset();
        let (news, head) = (self.job.news.clone(), *head);
        let Some(file) = self.file.clone() else {
            let piece = News::Piece { number: head.number, crc32: head.crc32, buffer };
            return Ok(news.send_async(piece).await.is_ok());
        };
        // Written while the next piece arrives.
        rt::spawn_local(async move {
            let written = match file.write_at(buffer, head.offset).await {
                Ok(_) => News::Written { number: head.number, crc32: head.crc32, length: head.length },
                Err(error) => News::NotWritten(error),
            };
            let _ = news.send_async(written).await;
        });
        Ok(true)
    }
}
