//! A backend as small as can be: it keeps what it is sent, and marks in the log when it has it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::rt::disk_log::DiskLog;

/// Marks of the bucket are above those of the script.
pub const MARKS: u64 = 1 << 32;

/// An object, named by the CRC32 of its bytes.
#[derive(Clone, Debug)]
pub struct Held {
    pub crc32: u32,
    /// The writer's name for the version, empty for what was there before.
    written_as: String,
}

/// What the bucket holds, and what it held at each of its marks.
#[derive(Clone)]
pub struct Bucket(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    log: Option<DiskLog>,
    objects: HashMap<String, Held>,
    /// The key and what it holds from the mark with this number on.
    history: Vec<(String, Option<u32>)>,
    /// Bytes by their CRC32.
    contents: HashMap<u32, Vec<u8>>,
}

impl Bucket {
    /// Listens on a port of its own. It knows these contents by their checksum, and has these objects.
    pub fn start(contents: HashMap<u32, Vec<u8>>, objects: &[(String, u32)]) -> (Bucket, SocketAddr) {
        let held = |crc32: &u32| Held { crc32: *crc32, written_as: String::new() };
        let objects = objects.iter().map(|(key, crc32)| (key.clone(), held(crc32))).collect();
        let bucket = Bucket(Arc::new(Mutex::new(State { objects, contents, ..State::default() })));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let serving = bucket.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let bucket = serving.clone();
                std::thread::spawn(move || bucket.serve(stream));
            }
        });
        (bucket, address)
    }

    /// From now on what it gets is marked in this log.
    pub fn mark_in(&self, log: DiskLog) {
        self.state().log = Some(log);
    }

    /// What changed, by the number of its mark.
    pub fn history(&self) -> Vec<(String, Option<u32>)> {
        self.state().history.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
        loop {
            let lines = reader.by_ref().lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let Some(request) = head.first() else { return };
            let header = |name: &str| {
                let found = head.iter().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")));
                found.map(|line| line[name.len() + 2..].to_owned())
            };
            let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
            let mut words = request.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let key = path.split('?').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
            let answer = match method {
                "PUT" => self.put(key, header("x-amz-meta-dfstore-version").unwrap_or_default()),
                "DELETE" => self.delete(key),
                _ => self.read(key, header("range"), method == "HEAD"),
            };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    }

    fn put(&self, key: &str, written_as: String) -> Vec<u8> {
        // Some never get there, so that they stay dirty.
        if key.starts_with("stuck") {
            return b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec();
        }
        let crc32 = u32::from_str_radix(written_as.split('-').next().unwrap_or_default(), 16).expect("ours say so");
        self.changed(key, Some(Held { crc32, written_as }));
        format!("HTTP/1.1 200 OK\r\nETag: \"{crc32:08x}\"\r\nContent-Length: 0\r\n\r\n").into_bytes()
    }

    fn delete(&self, key: &str) -> Vec<u8> {
        self.changed(key, None);
        b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()
    }

    fn changed(&self, key: &str, held: Option<Held>) {
        let mut state = self.state();
        state.history.push((key.to_owned(), held.as_ref().map(|held| held.crc32)));
        let mark = MARKS + state.history.len() as u64 - 1;
        match held {
            Some(held) => drop(state.objects.insert(key.to_owned(), held)),
            None => drop(state.objects.remove(key)),
        }
        if let Some(log) = &state.log {
            log.mark(mark);
        }
    }

    fn read(&self, key: &str, range: Option<String>, head_only: bool) -> Vec<u8> {
        let state = self.state();
        let Some(held) = state.objects.get(key) else {
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
        };
        let bytes = &state.contents[&held.crc32];
        let range = range.and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some(first.parse().ok()?..last.parse::<usize>().ok()?.min(bytes.len() - 1) + 1)
        });
        let (status, part) = match &range {
            Some(range) => ("206 Partial Content", &bytes[range.clone()]),
            None => ("200 OK", &bytes[..]),
        };
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nETag: \"{:08x}\"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
             Content-Length: {}\r\n",
            held.crc32,
            part.len()
        );
        if let Some(range) = &range {
            answer += &format!("Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, bytes.len());
        }
        if !held.written_as.is_empty() {
            answer += &format!("x-amz-meta-dfstore-version: {}\r\n", held.written_as);
        }
        let mut answer = (answer + "\r\n").into_bytes();
        if !head_only {
            answer.extend_from_slice(part);
        }
        answer
    }
}
