//! A small blocking HTTP/1.1 client that hides nothing: it can send any bytes and shows what came back.
//!
//! For tests of status codes, headers and malformed requests, and for benches that must not be limited by a client
//! stack. It owns one connection at a time and trusts the server with nothing but framing: a body that ends early is an
//! error. Reads time out, so a server that does not answer fails a test instead of stopping it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const READ_TIMEOUT: Duration = Duration::from_secs(60);
const READ_BUFFER_BYTES: usize = 256 << 10;
/// Longest body that is sent together with its head, as by curl, which has a buffer of this size.
const WITH_HEAD_BYTES_MAX: usize = 64 << 10;
/// Largest response head this client accepts.
const HEAD_BYTES_MAX: usize = 256 << 10;

/// Status line and headers of a response.
#[derive(Clone, Debug)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// Names in lower case and values, in the order they came.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of this name (any case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status line and headers.
    pub head: Head,
    /// Body, without its transfer encoding.
    pub body: Vec<u8>,
}

impl Response {
    /// Status code.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The first header of this name (any case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body as text, wrong UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection, kept alive between requests.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10));
        let stream = stream.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.set_write_timeout(Some(READ_TIMEOUT))?;
        Ok(Connection { stream: BufReader::with_capacity(READ_BUFFER_BYTES, stream) })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Says that nothing more will be sent; the answer can still be read.
    pub fn finish_sending(&mut self) -> io::Result<()> {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write)
    }

    /// Sends a request whose body is in memory and reads the whole response.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response> {
        let mut bytes = self.head_of(method, path, headers, body.len() as u64)?.into_bytes();
        let (with_head, rest) = if body.len() <= WITH_HEAD_BYTES_MAX { (body, &[][..]) } else { (&[][..], body) };
        bytes.extend_from_slice(with_head);
        self.send(&bytes).context("sending the request")?;
        self.send(rest).context("sending the body")?;
        self.response(method == "HEAD")
    }

    /// Sends the head of a request whose body of `length` bytes follows. `Host` is added, and `Content-Length` where
    /// there is a body or the method wants one.
    pub fn send_head(&mut self, method: &str, path: &str, headers: &[(&str, &str)], length: u64) -> Result<()> {
        let head = self.head_of(method, path, headers, length)?;
        self.send(head.as_bytes()).context("sending the head")
    }

    fn head_of(&self, method: &str, path: &str, headers: &[(&str, &str)], length: u64) -> Result<String> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.stream.get_ref().peer_addr()?);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if length > 0 || matches!(method, "PUT" | "POST") {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head.push_str("\r\n");
        Ok(head)
    }

    /// Reads a whole response.
    pub fn response(&mut self, to_head_request: bool) -> Result<Response> {
        let head = self.read_head()?;
        let mut body = Vec::new();
        if !to_head_request {
            self.read_body(&head, |bytes| body.extend_from_slice(bytes))?;
        }
        Ok(Response { head, body })
    }

    /// Reads the head of the next response; interim ones (1xx) are passed over.
    pub fn read_head(&mut self) -> Result<Head> {
        loop {
            let head = self.read_one_head()?;
            if head.status >= 200 {
                return Ok(head);
            }
        }
    }

    fn read_one_head(&mut self) -> Result<Head> {
        let line = self.line().context("reading the status line")?;
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
        let Some(status) = status else { bail!("not a status line: {line:?}") };
        let (mut headers, mut bytes) = (Vec::new(), 0);
        loop {
            let line = self.line().context("reading headers")?;
            if line.is_empty() {
                return Ok(Head { status, headers });
            }
            bytes += line.len();
            ensure!(bytes <= HEAD_BYTES_MAX, "response head is longer than {HEAD_BYTES_MAX} bytes");
            let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line:?}"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads the body that belongs to `head` and hands it on piece by piece; gives its length.
    pub fn read_body(&mut self, head: &Head, mut take: impl FnMut(&[u8])) -> Result<u64> {
        if matches!(head.status, 204 | 304) {
            return Ok(0);
        }
        if head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            return self.read_chunks(take);
        }
        if let Some(length) = head.header("content-length") {
            let length = length.parse().with_context(|| format!("Content-Length {length:?}"))?;
            self.read_exactly(length, &mut take)?;
            return Ok(length);
        }
        let mut total = 0;
        loop {
            let count = self.read_some(u64::MAX, &mut take)?;
            if count == 0 {
                return Ok(total);
            }
            total += count;
        }
    }

    fn read_chunks(&mut self, mut take: impl FnMut(&[u8])) -> Result<u64> {
        let mut total = 0;
        loop {
            let line = self.line().context("reading a chunk size")?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).with_context(|| format!("chunk size {line:?}"))?;
            self.read_exactly(size, &mut take)?;
            ensure!(self.line()?.is_empty(), "a chunk of {size} bytes does not end where it says");
            if size == 0 {
                return Ok(total);
            }
            total += size;
        }
    }

    fn read_exactly(&mut self, length: u64, take: &mut impl FnMut(&[u8])) -> Result<()> {
        let mut left = length;
        while left > 0 {
            let count = self.read_some(left, take)?;
            ensure!(count > 0, "the body ended {left} of {length} bytes early");
            left -= count;
        }
        Ok(())
    }

    fn read_some(&mut self, most: u64, take: &mut impl FnMut(&[u8])) -> Result<u64> {
        let bytes = self.stream.fill_buf().context("reading the body")?;
        let count = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        take(&bytes[..count]);
        self.stream.consume(count);
        Ok(count as u64)
    }

    /// A line without its end. CR LF is required.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        (&mut self.stream).take(HEAD_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        ensure!(!line.is_empty(), "the connection was closed");
        let Some(line) = line.strip_suffix(b"\r\n") else { bail!("a line without CR LF at its end: {line:?}") };
        Ok(String::from_utf8_lossy(line).into_owned())
    }

    /// Whether the server has closed the connection (waits for it, up to the read timeout).
    pub fn is_closed(&mut self) -> bool {
        match self.stream.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }
}

/// One request on a connection of its own.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    Connection::open(address)?.request(method, path, headers, body)
}

/// GET on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Result<Response> {
    request(address, "GET", path, &[], b"")
}

/// Sends these bytes on a connection of their own and reads one response; an error when there is none.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Result<Response> {
    let mut connection = Connection::open(address)?;
    // A server that refuses early closes while we send: what it answered counts, not the broken pipe.
    let sent = connection.send(bytes);
    let response = connection.response(bytes.starts_with(b"HEAD "));
    match (sent, response) {
        (_, Ok(response)) => Ok(response),
        (Err(error), Err(_)) => Err(error).context("sending, and no answer came"),
        (Ok(()), Err(error)) => Err(error),
    }
}

/// A form as the Go client sends it: the fields in order, then the file. Gives `Content-Type` and body.
pub fn multipart(fields: &[(&str, &str)], file: &[u8]) -> (String, Vec<u8>) {
    const BOUNDARY: &str = "dfstore-test-7f3a91c5e2";
    let mut body = Vec::with_capacity(file.len() + 1024);
    for (name, value) in fields {
        let part = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend_from_slice(part.as_bytes());
    }
    let part = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    body.extend_from_slice(part.as_bytes());
    body.extend_from_slice(file);
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Answers one connection with fixed bytes.
    fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            stream.write_all(answer).expect("the answer fits the socket");
        });
        address
    }

    #[test]
    fn reads_bodies_by_length_by_chunks_and_to_the_end() {
        let by_length = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc";
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        let to_end = b"HTTP/1.0 200 OK\r\nX-A:  b \r\n\r\nabc";
        for (answer, status) in [(&by_length[..], 206), (chunked, 200), (to_end, 200)] {
            let response = get(server(answer), "/").expect("a response");
            assert_eq!((response.status(), response.body.as_slice()), (status, &b"abc"[..]));
        }
    }

    #[test]
    fn refuses_short_bodies_and_bare_line_feeds() {
        let short = get(server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), "/").expect_err("short");
        assert!(format!("{short:#}").contains("6 of 9"), "{short:#}");
        assert!(get(server(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"), "/").is_err());
    }
}
