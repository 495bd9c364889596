//! Upload: from a file (pieces in any order over several connections) or from a stream (one connection, in order).
//!
//! PUT_BEGIN names the upload, pieces are sent and acknowledged, PUT_COMMIT makes them the object with the length and
//! the CRC32 of the whole. Until then nobody sees anything of it, and an upload whose first connection ends is gone. An
//! upload from a file then starts over; a stream cannot be read twice.

mod feed;
mod lane;

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use dfstore_proto::crc::whole_crc32;
use dfstore_proto::message::{PutBegin, PutCommit, PutDone, PutReady};

use crate::client::Peer;
use crate::client::error::ClientError;
use crate::progress::Progress;
use crate::rt;
use crate::rt::buffer::{Buffer, Pool};
use crate::transfer::ledger::Ledger;
use crate::transfer::{Context, LANE_WINDOW, Moved, RESTARTS_MAX, Shape, lanes};
use feed::Feed;

/// How long a failed upload waits for the peer to confirm that it was thrown away.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);

/// Where the bytes come from.
pub enum Source {
    /// A regular file.
    File(File),
    /// A stream; its length where it is known, which must then be right.
    Stream(Box<dyn Read + Send>, Option<u64>),
}

/// What every lane of an upload knows.
struct Job {
    peer: Peer,
    ready: PutReady,
    /// The file to read from; without one the pieces come with their data.
    source: Option<File>,
    /// Bytes of the file.
    length: u64,
    pool: Pool,
    work: async_channel::Receiver<Work>,
    /// For lane 0: what to commit. Closed without a word, it aborts.
    commit: flume::Receiver<PutCommit>,
    news: flume::Sender<News>,
}

/// A piece to send.
struct Work {
    number: u32,
    /// Its bytes, when they come from a stream.
    data: Option<Buffer>,
}

/// A piece that the peer has acknowledged.
#[derive(Clone, Copy)]
struct Stored {
    number: u32,
    length: u32,
    crc32: u32,
}

/// What lanes, and the reader of a stream, tell the coordinator.
enum News {
    Begun(PutReady),
    NotBegun(ClientError),
    Stored(Stored),
    /// The source failed.
    NotRead(io::Error),
    /// The stream has ended after so many pieces and bytes.
    End {
        pieces: u32,
        length: u64,
    },
    /// A connection failed and had not seen these pieces acknowledged. `is_over`: the lane has ended.
    Lost {
        numbers: Vec<u32>,
        error: ClientError,
        is_over: bool,
        is_first: bool,
    },
    Committed(PutDone),
    Aborted,
}

/// The error for a source that is not what it was.
fn changed() -> io::Error {
    io::Error::other("the file changed while it was being read")
}

/// Uploads `source` as `begin` says. The length in `begin` is filled in here.
pub fn run(context: &Context, begin: &PutBegin, source: Source) -> Result<Moved> {
    let (file, length) = match source {
        Source::Stream(stream, length) => {
            let begin = PutBegin { length, ..begin.clone() };
            return Attempt::begin(context, &begin)?.run_stream(stream, length);
        }
        Source::File(file) => {
            let length = file.metadata().context("cannot look at the source")?.len();
            (file, length)
        }
    };
    let begin = PutBegin { length: Some(length), ..begin.clone() };
    let mut restarts = 0;
    loop {
        let error = match Attempt::begin(context, &begin)?.run_file(&file) {
            Ok(moved) => return Ok(moved),
            Err(error) => error,
        };
        let cause = error.downcast_ref::<ClientError>();
        if restarts == RESTARTS_MAX || !cause.is_some_and(ClientError::is_worth_a_new_upload) {
            return Err(error);
        }
        restarts += 1;
    }
}

/// One upload, from PUT_BEGIN on.
struct Attempt<'a> {
    context: &'a Context<'a>,
    ready: PutReady,
    start: flume::Sender<Arc<Job>>,
    news: flume::Receiver<News>,
    /// For the lanes that start later. Goes to them, so that their end can be heard.
    news_sender: flume::Sender<News>,
}

/// What the coordinator keeps of an upload once its lanes run.
struct Running {
    ready: PutReady,
    news: flume::Receiver<News>,
    /// Absent when a reader of a stream has it.
    work: Option<async_channel::Sender<Work>>,
    commit: flume::Sender<PutCommit>,
    ledger: Ledger,
    length: Option<u64>,
}

impl<'a> Attempt<'a> {
    fn begin(context: &'a Context, begin: &PutBegin) -> Result<Attempt<'a>> {
        let (news_sender, news) = flume::bounded(2 * context.parallel * (LANE_WINDOW + 1));
        let (start, started) = flume::bounded(1);
        let (peer, begin, to) = (context.peer.clone(), begin.clone(), news_sender.clone());
        rt::spawn("lane 0", move || lane::first(peer, begin, to, started)).context("cannot start a thread")?;
        let ready = match news.recv() {
            Ok(News::Begun(ready)) => ready,
            Ok(News::NotBegun(error)) => return Err(error.into()),
            _ => bail!("cannot start the input and output of this system (io_uring and epoll)"),
        };
        Ok(Attempt { context, ready, start, news, news_sender })
    }

    fn run_file(self, file: &File) -> Result<Moved> {
        let before = file.metadata().context("cannot look at the source")?;
        let pieces = before.len().div_ceil(u64::from(self.ready.piece_bytes));
        let shape = Shape::new(self.context.parallel, Some(pieces), self.ready.piece_bytes);
        let pieces = u32::try_from(pieces).context("the file is too large")?;
        let progress = Progress::new(self.context.progress, "Uploading", Some(before.len()));
        let ledger = Ledger::new(Some(pieces), shape);
        let source = Some(file.try_clone().context("cannot open the source again")?);
        let (mut running, _, _) = self.start(source, before.len(), shape, ledger)?;
        let done = running.store(&progress).and_then(|()| {
            ensure_unchanged(&before, file)?;
            running.commit()
        });
        done.inspect_err(|_| running.abort())
    }

    fn run_stream(self, stream: Box<dyn Read + Send>, expected: Option<u64>) -> Result<Moved> {
        let shape = Shape::new(1, None, self.ready.piece_bytes);
        let piece_bytes = self.ready.piece_bytes as usize;
        let progress = Progress::new(self.context.progress, "Uploading", expected);
        let (mut running, pool, news) = self.start(None, 0, shape, Ledger::new(None, shape))?;
        let work = running.work.take().context("a fresh upload has its sender")?;
        let feed = Feed { stream, pool, piece_bytes, work, news };
        std::thread::Builder::new().name("source".into()).spawn(move || feed.run()).context("cannot start a thread")?;
        let done = running.store(&progress).and_then(|()| {
            let is_short = expected.is_some_and(|expected| running.length != Some(expected));
            ensure!(!is_short, "the source ended early");
            running.commit()
        });
        done.inspect_err(|_| running.abort())
    }

    fn start(
        self,
        source: Option<File>,
        length: u64,
        shape: Shape,
        ledger: Ledger,
    ) -> Result<(Running, Pool, flume::Sender<News>)> {
        let (work_sender, work) = async_channel::bounded(shape.window);
        let (commit_sender, commit) = flume::bounded(1);
        let pool = Pool::new(shape.buffers, self.ready.piece_bytes as usize);
        let known = source.is_some().then_some(length);
        let job = Arc::new(Job {
            peer: self.context.peer.clone(),
            ready: self.ready,
            source,
            length,
            pool: pool.clone(),
            work,
            commit,
            news: self.news_sender.clone(),
        });
        let _ = self.start.try_send(job.clone());
        lanes::start_others(&job, shape.lanes, lane::other).context("cannot start a thread")?;
        let (ready, news, work) = (self.ready, self.news, Some(work_sender));
        let running = Running { ready, news, work, commit: commit_sender, ledger, length: known };
        Ok((running, pool, self.news_sender))
    }
}

impl Running {
    /// Gets every piece stored.
    fn store(&mut self, progress: &Progress) -> Result<()> {
        while !self.ledger.is_done() {
            while let Some(work) = &self.work
                && let Some(number) = self.ledger.hand_out()
            {
                // The channel has room for the whole window.
                let sent = work.try_send(Work { number, data: None });
                sent.map_err(|_| anyhow!("all connections have ended"))?;
            }
            let Some(news) = self.hear()? else { continue };
            match news {
                News::Stored(stored) => {
                    self.ledger.done(stored.number, stored.crc32);
                    progress.add(stored.length.into());
                }
                News::End { pieces, length } => {
                    self.ledger.end(pieces);
                    self.length = Some(length);
                }
                _ => bail!("an upload ended before its last piece"),
            }
        }
        self.work = None;
        Ok(())
    }

    fn commit(&mut self) -> Result<Moved> {
        let length = self.length.context("the length is known at the end")?;
        let crc32 = whole_crc32(length, self.ready.piece_bytes, self.ledger.crcs());
        let pieces = u32::try_from(length.div_ceil(u64::from(self.ready.piece_bytes))).context("too many pieces")?;
        let commit = PutCommit { upload: self.ready.upload, length, crc32, pieces };
        self.commit.try_send(commit).map_err(|_| anyhow!("the connection has ended"))?;
        loop {
            if let Some(News::Committed(done)) = self.hear()? {
                return Ok(Moved { length, written: Some(done), ..Moved::default() });
            }
        }
    }

    /// The next news; `None` when it was a failure that others can make good.
    fn hear(&mut self) -> Result<Option<News>> {
        match self.news.recv().map_err(|_| anyhow!("all connections have ended"))? {
            News::NotRead(error) => Err(anyhow::Error::new(error).context("cannot read the source")),
            News::Lost { error, is_first: true, .. } => Err(error.into()),
            News::Lost { numbers, error, is_over, .. } => {
                self.ledger.give_back(numbers, error, is_over)?;
                Ok(None)
            }
            news => Ok(Some(news)),
        }
    }

    /// Lets lane 0 tell the peer that the upload is not wanted, so that its space is free at once.
    fn abort(self) {
        let Running { news, work, commit, .. } = self;
        drop((work, commit));
        let deadline = Instant::now() + ABORT_PATIENCE;
        while let Ok(news) = news.recv_deadline(deadline) {
            if matches!(news, News::Aborted) {
                return;
            }
        }
    }
}

fn ensure_unchanged(before: &Metadata, file: &File) -> Result<()> {
    let after = file.metadata().context("cannot look at the source")?;
    let is_same =
        (before.len(), before.mtime(), before.mtime_nsec()) == (after.len(), after.mtime(), after.mtime_nsec());
    if is_same { Ok(()) } else { Err(anyhow::Error::new(changed()).context("cannot read the source")) }
}
