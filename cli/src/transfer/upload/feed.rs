//! The reader of a stream: cuts what comes into pieces on a thread of its own, because reading may block for long.
//!
//! Pieces wait in buffers of the transfer's pool, so a fast source is slowed down to the speed of the upload.

use std::io::{self, Read};
use std::time::Duration;

use super::{News, Work};
use crate::rt::buffer::{Buffer, Pool};

/// How often a reader that waits for a buffer looks whether anybody still wants it to read.
const PATIENCE: Duration = Duration::from_millis(100);

/// A stream and where its pieces go.
pub struct Feed {
    pub stream: Box<dyn Read + Send>,
    pub pool: Pool,
    pub piece_bytes: usize,
    pub work: async_channel::Sender<Work>,
    pub news: flume::Sender<News>,
}

impl Feed {
    /// Reads to the end. An upload that has failed meanwhile ends this silently.
    pub fn run(mut self) {
        match self.read_all() {
            Ok(Some((pieces, length))) => {
                let _ = self.news.send(News::End { pieces, length });
            }
            Ok(None) => {}
            Err(error) => {
                let _ = self.news.send(News::NotRead(error));
            }
        }
    }

    /// Pieces and bytes of the stream; `None` when nobody wants them any more.
    fn read_all(&mut self) -> io::Result<Option<(u32, u64)>> {
        let (mut number, mut length) = (0_u32, 0_u64);
        loop {
            let Some(buffer) = self.free_buffer()? else { return Ok(None) };
            let buffer = self.read_piece(buffer)?;
            if buffer.is_empty() {
                return Ok(Some((number, length)));
            }
            let is_last = buffer.len() < self.piece_bytes;
            length += buffer.len() as u64;
            if self.work.send_blocking(Work { number, data: Some(buffer) }).is_err() {
                return Ok(None);
            }
            number = number.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
            if is_last {
                return Ok(Some((number, length)));
            }
        }
    }

    /// Somewhere to read to; `None` when the upload has gone, perhaps with all the buffers.
    fn free_buffer(&self) -> io::Result<Option<Buffer>> {
        while !self.work.is_closed() {
            if let Some(buffer) = self.pool.take_blocking(PATIENCE)? {
                return Ok(Some(buffer));
            }
        }
        Ok(None)
    }

    /// A whole piece, or what is left.
    fn read_piece(&mut self, mut buffer: Buffer) -> io::Result<Buffer> {
        buffer.set_len(self.piece_bytes);
        let mut filled = 0;
        while filled < self.piece_bytes {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.set_len(filled);
        Ok(buffer)
    }
}
