//! Many connections that want little: idle ones, silent ones, and clients that send a head byte by byte.
//!
//! For showing that others are served beside them, and how fast. Owns its sockets, all in this thread; raises this
//! process's limit of open files. Nothing waits here: whoever has a crowd looks at it now and then.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// What the slow ones send, a byte at a time.
const SLOW_HEAD: &[u8] =
    b"GET /healthy HTTP/1.1\r\nHost: peer\r\nX-Patience: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy";

/// Connections to one peer.
pub struct Crowd {
    /// Served once, and kept.
    idle: Vec<TcpStream>,
    /// Never said a word.
    silent: Vec<TcpStream>,
    /// Still sending a head; the second is how much of it.
    slow: Vec<(TcpStream, usize)>,
}

impl Crowd {
    /// Opens so many of each kind.
    pub fn gather(address: SocketAddr, idle: usize, silent: usize, slow: usize) -> Result<Crowd> {
        raise_open_files((idle + silent + slow) as u64)?;
        let connect = || TcpStream::connect_timeout(&address, ANSWER_TIMEOUT).context("one of a crowd is not let in");
        let idle = (0..idle).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        let mut crowd = Crowd { idle, silent: Vec::new(), slow: Vec::new() };
        crowd.use_idle()?;
        crowd.silent = (0..silent).map(|_| connect()).collect::<Result<_>>()?;
        crowd.slow = (0..slow).map(|_| Ok((connect()?, 0))).collect::<Result<_>>()?;
        Ok(crowd)
    }

    /// A request on each of the idle ones.
    pub fn use_idle(&mut self) -> Result<()> {
        for stream in &mut self.idle {
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.write_all(b"GET /healthy HTTP/1.1\r\nHost: peer\r\n\r\n")?;
        }
        for stream in &mut self.idle {
            let mut answer = [0; 512];
            let count = stream.read(&mut answer).context("an idle connection is not served")?;
            ensure!(answer[..count].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..count]));
        }
        Ok(())
    }

    /// One more byte from each of the slow ones that are still there.
    pub fn trickle(&mut self) {
        for (stream, sent) in &mut self.slow {
            let byte = SLOW_HEAD[*sent.min(&mut (SLOW_HEAD.len() - 1))];
            *sent += usize::from(stream.write(&[byte]).is_ok());
        }
    }

    /// How many of the silent and the slow ones the peer has not sent away.
    pub fn lingering(&mut self) -> usize {
        self.silent.retain_mut(is_open);
        self.slow.retain_mut(|(stream, _)| is_open(stream));
        self.silent.len() + self.slow.len()
    }
}

/// Whether the other side has neither closed nor answered; looks without waiting.
fn is_open(stream: &mut TcpStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| stream.read(&mut [0; 512]));
    let open = matches!(looked, Err(ref error) if error.kind() == ErrorKind::WouldBlock);
    open && stream.set_nonblocking(false).is_ok()
}

/// Lets this process open that many files more than it usually does.
fn raise_open_files(more: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = more + 1024;
    if limit.current.is_some_and(|current| current < wanted) {
        let current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum }).context("more open files")?;
    }
    Ok(())
}
