//! Download: from an object to a file (pieces in any order) or to a stream (in order).
//!
//! The version is named once, by OPEN, and every READ asks for that version: bytes of two versions never mix. When it
//! is replaced meanwhile, a download to a file starts over on the new one; a stream that has begun cannot.

mod lane;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use dfstore_proto::crc::whole_crc32;
use dfstore_proto::message::{ReadEnd, Target, VersionInfo};

use crate::client::Peer;
use crate::client::error::ClientError;
use crate::progress::Progress;
use crate::rt;
use crate::rt::buffer::{Buffer, Pool};
use crate::transfer::ledger::Ledger;
use crate::transfer::target::{PartialFile, write_error};
use crate::transfer::{Context, LANE_WINDOW, Moved, RESTARTS_MAX, Shape, lanes};

/// The account of sources comes right behind the last piece; it is not worth more waiting than this.
const SOURCES_PATIENCE: Duration = Duration::from_secs(1);

/// Where the bytes go.
pub enum Output<'a> {
    /// A regular file, which appears whole or not at all.
    File(&'a Path),
    /// A stream, which gets the bytes in order.
    Stream(&'a mut dyn Write),
}

/// What every lane of a download knows.
struct Job {
    peer: Peer,
    target: Target,
    info: VersionInfo,
    /// The file to write to; without one the pieces go to the coordinator.
    output: Option<File>,
    pool: Pool,
    work: async_channel::Receiver<u32>,
    news: flume::Sender<News>,
}

/// What a lane tells the coordinator.
enum News {
    Opened(Box<VersionInfo>),
    NotOpened(ClientError),
    /// A piece is in the file.
    Written {
        number: u32,
        crc32: u32,
        length: u32,
    },
    NotWritten(io::Error),
    /// A piece for the stream.
    Piece {
        number: u32,
        crc32: u32,
        buffer: Buffer,
    },
    /// A READ ended: where its bytes came from.
    Ended(ReadEnd),
    /// A connection failed and owes these pieces. `is_over`: the lane has ended.
    Lost {
        numbers: Vec<u32>,
        error: ClientError,
        is_over: bool,
    },
}

/// Downloads `target` to `output`. `opened` hears of the version before the first byte moves.
pub fn run(
    context: &Context,
    target: &Target,
    mut output: Output,
    opened: &mut dyn FnMut(&VersionInfo),
) -> Result<Moved> {
    let mut restarts = 0;
    loop {
        let mut attempt = Attempt::open(context, target)?;
        opened(&attempt.info);
        let result = attempt.run(&mut output);
        let cause = result.as_ref().err().and_then(|error| error.downcast_ref::<ClientError>());
        let changed = cause.is_some_and(ClientError::is_version_change);
        let may_restart = changed && !attempt.has_streamed && restarts < RESTARTS_MAX;
        if !may_restart {
            return match result {
                Err(error) if changed => Err(error.context("the object was replaced while it was being read")),
                result => result,
            };
        }
        restarts += 1;
    }
}

/// The download of one version.
struct Attempt<'a> {
    context: &'a Context<'a>,
    target: &'a Target,
    info: VersionInfo,
    start: flume::Sender<Arc<Job>>,
    news: flume::Receiver<News>,
    /// For the lanes that start later. Goes to them, so that their end can be heard.
    news_sender: Option<flume::Sender<News>>,
    /// Pieces of a stream that came before their turn, with their CRC32.
    waiting: BTreeMap<u32, (u32, Buffer)>,
    /// Next piece of a stream.
    next_out: u32,
    has_streamed: bool,
    sources: ReadEnd,
}

impl<'a> Attempt<'a> {
    fn open(context: &'a Context, target: &'a Target) -> Result<Attempt<'a>> {
        let shape = Shape::new(context.parallel, None, 1);
        // Room for everything the lanes may have to say at once: a lane rarely waits here, and only for us.
        let (news_sender, news) = flume::bounded(2 * shape.lanes * (LANE_WINDOW + 1));
        let (start, started) = flume::bounded(1);
        let (peer, of, to) = (context.peer.clone(), target.clone(), news_sender.clone());
        rt::spawn("lane 0", move || lane::first(peer, of, to, started)).context("cannot start a thread")?;
        let info = match news.recv() {
            Ok(News::Opened(info)) => *info,
            Ok(News::NotOpened(error)) => return Err(error.into()),
            _ => bail!("cannot start the input and output of this system (io_uring and epoll)"),
        };
        let news_sender = Some(news_sender);
        let (waiting, next_out, has_streamed, sources) = (BTreeMap::new(), 0, false, ReadEnd::default());
        Ok(Attempt { context, target, info, start, news, news_sender, waiting, next_out, has_streamed, sources })
    }

    fn run(&mut self, output: &mut Output) -> Result<Moved> {
        let partial = match output {
            Output::File(path) => Some(PartialFile::create(path, self.info.meta.length, self.context.unfinished)?),
            Output::Stream(_) => None,
        };
        let pieces = self.info.pieces();
        let shape = Shape::new(self.context.parallel, Some(pieces.into()), self.info.piece_bytes);
        let (work_sender, work) = async_channel::bounded(shape.window);
        let job = Arc::new(Job {
            peer: self.context.peer.clone(),
            target: self.target.clone(),
            info: self.info.clone(),
            output: partial.as_ref().map(|partial| partial.file().try_clone()).transpose()?,
            pool: Pool::new(shape.buffers, self.info.piece_bytes as usize),
            work,
            news: self.news_sender.take().context("an attempt runs once")?,
        });
        if pieces > 0 {
            let _ = self.start.try_send(job.clone());
            lanes::start_others(&job, shape.lanes, lane::other).context("cannot start a thread")?;
        }
        drop(job);
        let progress = Progress::new(self.context.progress, "Downloading", Some(self.info.meta.length));
        let mut ledger = Ledger::new(Some(pieces), shape);
        while !ledger.is_done() {
            while let Some(number) = ledger.hand_out() {
                // The channel has room for the whole window.
                work_sender.try_send(number).map_err(|_| anyhow!("all connections have ended"))?;
            }
            self.handle(output, &mut ledger, &progress)?;
        }
        drop(work_sender);
        self.collect_sources();
        self.check_whole(&ledger)?;
        if let Some(partial) = partial {
            partial.finish(self.info.meta.length)?;
        }
        let sources = std::mem::take(&mut self.sources);
        Ok(Moved { length: self.info.meta.length, sources, ..Moved::default() })
    }

    fn handle(&mut self, output: &mut Output, ledger: &mut Ledger, progress: &Progress) -> Result<()> {
        let news = self.news.recv().map_err(|_| anyhow!("all connections have ended"))?;
        match news {
            News::Written { number, crc32, length } => {
                ledger.done(number, crc32);
                progress.add(length.into());
            }
            News::Piece { number, crc32, buffer } => {
                self.waiting.insert(number, (crc32, buffer));
                self.write_in_order(output, ledger, progress)?;
            }
            News::Ended(end) => self.count(&end),
            News::NotWritten(error) => {
                let path = match output {
                    Output::File(path) => path.to_path_buf(),
                    Output::Stream(_) => "-".into(),
                };
                return Err(write_error(error, &path, self.info.meta.length));
            }
            News::Lost { numbers, error, is_over } => ledger.give_back(numbers, error, is_over)?,
            News::Opened(_) | News::NotOpened(_) => bail!("a lane opened twice"),
        }
        Ok(())
    }

    fn write_in_order(&mut self, output: &mut Output, ledger: &mut Ledger, progress: &Progress) -> Result<()> {
        let Output::Stream(stream) = output else { bail!("a piece came to the wrong place") };
        while let Some((crc32, buffer)) = self.waiting.remove(&self.next_out) {
            self.has_streamed = true;
            stream.write_all(&buffer).context("cannot write the object to its output")?;
            progress.add(buffer.len() as u64);
            ledger.done(self.next_out, crc32);
            self.next_out += 1;
        }
        if ledger.is_done() {
            stream.flush().context("cannot write the object to its output")?;
        }
        Ok(())
    }

    /// What is still said about sources after the last piece. Only for the account: nobody waits long for it.
    fn collect_sources(&mut self) {
        let pieces = u64::from(self.info.pieces());
        while self.sources.sources.iter().map(|line| u64::from(line.pieces)).sum::<u64>() < pieces {
            match self.news.recv_timeout(SOURCES_PATIENCE) {
                Ok(News::Ended(end)) => self.count(&end),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    fn count(&mut self, end: &ReadEnd) {
        for line in &end.sources {
            match self.sources.sources.iter_mut().find(|known| known.source == line.source) {
                Some(known) => {
                    known.pieces = known.pieces.saturating_add(line.pieces);
                    known.bytes = known.bytes.saturating_add(line.bytes);
                }
                None => self.sources.sources.push(*line),
            }
        }
    }

    fn check_whole(&self, ledger: &Ledger) -> Result<()> {
        let Some(expected) = self.info.crc32 else { return Ok(()) };
        let actual = whole_crc32(self.info.meta.length, self.info.piece_bytes, ledger.crcs());
        ensure!(actual == expected, "the object arrived damaged: its CRC32 is {actual:08x}, should be {expected:08x}");
        Ok(())
    }
}
