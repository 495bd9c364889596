//! Refuses request heads that two readers could understand differently (request smuggling).
//!
//! hyper accepts some of them and hides the evidence: it drops the second of two equal `Content-Length`, drops
//! `Content-Length` beside `Transfer-Encoding`, and takes a bare line feed for a line end. This guard sees the bytes
//! before hyper does, follows the framing (heads, bodies of known length, chunks), and notes the number of the first
//! request of the connection that is ambiguous. The service then answers that request with 400 and closes. Pure: no
//! I/O, memory bounded by one line's beginning.

use std::cell::Cell;
use std::rc::Rc;

use crate::rt::hyper_io::{Expecting, Inspector};

/// As much of each head line is kept as the longest legitimate one of the headers that matter here.
const LINE_KEPT_BYTES: usize = 96;

/// What the guard found, shared with the service of the connection.
#[derive(Clone, Default)]
pub struct Verdict(Rc<Cell<Option<Refused>>>);

#[derive(Clone, Copy)]
struct Refused {
    request: u64,
    reason: &'static str,
}

impl Verdict {
    /// Why the connection's request number `request` (from 0) is refused, if it is.
    pub fn on(&self, request: u64) -> Option<&'static str> {
        self.0.get().filter(|refused| refused.request == request).map(|refused| refused.reason)
    }
}

/// The guard of one connection.
pub struct HeadGuard {
    state: State,
    /// Beginning of the current line, without its end.
    line: Vec<u8>,
    /// Length of the current line so far, and its last byte.
    line_bytes: usize,
    last: u8,
    head: Head,
    /// Heads that ended.
    heads: u64,
    verdict: Verdict,
}

/// Where in the stream of requests the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// In a body of known length.
    Body(u64),
    ChunkSize,
    /// In a chunk and the line end after it.
    Chunk(u64),
    Trailers,
    /// Ambiguous: what follows has no meaning any more.
    Lost,
}

/// What is known of the current head.
#[derive(Default)]
struct Head {
    lines: usize,
    length: Option<u64>,
    chunked: bool,
    refused: Option<&'static str>,
}

impl HeadGuard {
    /// A guard at the start of a connection, and what it will find.
    pub fn new() -> (HeadGuard, Verdict) {
        let verdict = Verdict::default();
        let guard = HeadGuard {
            state: State::Head,
            line: Vec::with_capacity(LINE_KEPT_BYTES),
            line_bytes: 0,
            last: 0,
            head: Head::default(),
            heads: 0,
            verdict: verdict.clone(),
        };
        (guard, verdict)
    }

    /// Takes the part of `bytes` that belongs to the current state; returns the rest.
    fn step<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let skipped = match self.state {
            State::Lost => return &[],
            State::Body(left) | State::Chunk(left) => left.min(bytes.len() as u64),
            State::Head | State::ChunkSize | State::Trailers => return self.step_line(bytes),
        };
        self.state = match self.state {
            State::Body(left) if left > skipped => State::Body(left - skipped),
            State::Body(_) => State::Head,
            State::Chunk(left) if left > skipped => State::Chunk(left - skipped),
            _ => State::ChunkSize,
        };
        &bytes[usize::try_from(skipped).expect("at most the slice's length")..]
    }

    fn step_line<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        let kept = part.len().min(LINE_KEPT_BYTES - self.line.len());
        self.line.extend_from_slice(&part[..kept]);
        self.line_bytes += part.len();
        self.last = part.last().copied().unwrap_or(self.last);
        if end.is_none() {
            return &[];
        }
        let bare = self.line_bytes == 0 || self.last != b'\r';
        self.end_line(bare);
        self.line.clear();
        self.line_bytes = 0;
        self.last = 0;
        &rest[1..]
    }

    /// A line is complete; `bare` when it ended without a carriage return.
    fn end_line(&mut self, bare: bool) {
        let empty = self.line_bytes == usize::from(!bare);
        match self.state {
            State::Head => {
                if bare {
                    self.head.refuse("a line ends with a bare line feed");
                }
                match (empty, self.head.lines) {
                    // Empty lines before a request line are skipped, as everyone does.
                    (true, 0) => {}
                    (true, _) => self.end_head(),
                    (false, 0) => self.head.lines = 1,
                    (false, _) => self.head.header(&self.line, self.line_bytes),
                }
            }
            State::ChunkSize => {
                let digits = self.line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                let digits = std::str::from_utf8(&self.line[..digits]).unwrap_or_default();
                self.state = match u64::from_str_radix(digits, 16) {
                    Ok(0) => State::Trailers,
                    Ok(size) => State::Chunk(size.saturating_add(2)),
                    Err(_) => State::Lost,
                };
            }
            State::Trailers if empty => self.state = State::Head,
            State::Trailers | State::Body(_) | State::Chunk(_) | State::Lost => {}
        }
    }

    fn end_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        let refused = head.refused.or_else(|| {
            (head.length.is_some() && head.chunked).then_some("Content-Length and Transfer-Encoding exclude each other")
        });
        self.state = match (refused, head.chunked, head.length) {
            (Some(reason), _, _) => {
                self.verdict.0.set(Some(Refused { request: self.heads, reason }));
                State::Lost
            }
            (None, true, _) => State::ChunkSize,
            (None, false, Some(length)) if length > 0 => State::Body(length),
            (None, false, _) => State::Head,
        };
        self.heads += 1;
    }
}

impl Head {
    fn refuse(&mut self, reason: &'static str) {
        self.refused.get_or_insert(reason);
    }

    fn header(&mut self, line: &[u8], line_bytes: usize) {
        self.lines += 1;
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let number = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
            match number.and_then(|number| number.parse().ok()) {
                Some(_) if self.length.is_some() => self.refuse("more than one Content-Length"),
                Some(length) if line_bytes <= LINE_KEPT_BYTES => self.length = Some(length),
                _ => self.refuse("Content-Length is not a number"),
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                self.refuse("the only Transfer-Encoding understood is one `chunked`");
            }
            self.chunked = true;
        }
    }
}

impl Inspector for HeadGuard {
    fn inspect(&mut self, bytes: &[u8]) -> Expecting {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            bytes = self.step(bytes);
        }
        match self.state {
            State::Head if self.head.lines == 0 && self.line_bytes == 0 => Expecting::Request,
            State::Head => Expecting::Head,
            _ => Expecting::Body,
        }
    }
}

#[cfg(test)]
mod tests;
