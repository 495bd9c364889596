//! Requests with one answer: STAT, OPEN, LIST, DELETE, COPY, CREATE_BUCKET.
//!
//! Each runs as a task of its own. Questions are dropped when the connection ends; what changes something runs to its
//! end, whether somebody waits for the answer or not. OPEN also keeps the version it found readable while the
//! connection lives, so that the client may read it over other connections while newer ones are written.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::RequestId;
use dfstore_proto::ids::TaskId;
use dfstore_proto::message::{self, Done, ListOk, ListPage, Message, VersionState};
use dfstore_proto::object::WriteMode;
use futures_util::future::{Either, select};

use crate::engine::request::{self, ListRequest, Target};
use crate::engine::{Reader, target_of};
use crate::limits::{LIST_LIMIT_MAX, NATIVE_PINS_MAX};
use crate::metrics::{Face, Operation};
use crate::native::answer::{error_reply, status_of};
use crate::native::link::{Gone, Link};
use crate::rt::shard::spawn_local;

/// Versions that stay readable because this connection opened them; the oldest gives way.
#[derive(Default)]
pub(super) struct Pins(RefCell<VecDeque<(TaskId, Reader)>>);

impl Pins {
    fn keep(&self, task: TaskId, reader: Reader) {
        let mut pins = self.0.borrow_mut();
        let generation = reader.stat().generation;
        pins.retain(|(other, pinned)| *other != task || pinned.stat().generation != generation);
        pins.truncate(NATIVE_PINS_MAX - 1);
        pins.push_front((task, reader));
    }

    /// The version, if this connection opened it lately.
    pub fn find(&self, task: &TaskId, generation: u64) -> Option<Reader> {
        let pins = self.0.borrow();
        let found = pins.iter().find(|(other, pinned)| other == task && pinned.stat().generation == generation);
        found.map(|(_, reader)| reader.clone())
    }

    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

/// Starts a request.
pub(super) fn begin(link: &Rc<Link>, request: RequestId, message: Message) {
    let link = link.clone();
    spawn_local(async move {
        let timer = link.context.metrics.request(Face::Native, operation_of(&message));
        let answer = match run(&link, message).await {
            Ok(answer) => answer,
            Err(Gone) => return,
        };
        let status = answer.as_ref().map_or_else(|reply| status_of(reply.code), |_| 200);
        let answer = answer.unwrap_or_else(Message::from);
        if link.send(request, answer).await.is_ok() {
            timer.finish(status);
        }
    });
}

fn operation_of(message: &Message) -> Operation {
    match message {
        Message::Stat(_) | Message::Open(_) => Operation::Head,
        Message::List(_) => Operation::List,
        Message::Delete(_) => Operation::Delete,
        Message::Copy(_) => Operation::Copy,
        Message::CreateBucket(_) => Operation::CreateBucket,
        _ => Operation::Other,
    }
}

type Answer = Result<Message, ErrorReply>;

async fn run(link: &Link, message: Message) -> Result<Answer, Gone> {
    Ok(match message {
        Message::Stat(asked) => or_gone(link, stat(link, asked)).await?,
        Message::Open(asked) => or_gone(link, open(link, asked)).await?,
        Message::List(asked) => or_gone(link, list(link, asked)).await?,
        Message::Delete(asked) => delete(link, asked).await,
        Message::Copy(asked) => copy(link, asked).await,
        Message::CreateBucket(asked) => create_bucket(link, asked).await,
        other => {
            let name = other.frame_type().name();
            Err(ErrorReply::new(ErrorCode::Unsupported, format!("{name} is not a request that this peer answers")))
        }
    })
}

/// The answer, unless the connection ends first.
pub(super) async fn or_gone<T>(link: &Link, work: impl Future<Output = T>) -> Result<T, Gone> {
    match select(pin!(work), pin!(link.until_ended())).await {
        Either::Left((answer, _)) => Ok(answer),
        Either::Right(_) => Err(Gone),
    }
}

async fn stat(link: &Link, asked: message::Stat) -> Answer {
    let target = target_from(&asked.target)?;
    let stat = link.context.engine.stat(&target, asked.fresh).await.map_err(|error| error_reply(&error))?;
    Ok(Message::StatOk(stat.to_info(target.task)))
}

async fn open(link: &Link, asked: message::Open) -> Answer {
    let target = target_from(&asked.target)?;
    let reader = link.context.engine.open(&target, asked.no_cache).await.map_err(|error| error_reply(&error))?;
    let info = reader.stat().to_info(target.task);
    link.pins.keep(target.task, reader);
    Ok(Message::OpenOk(info))
}

async fn delete(link: &Link, asked: message::Delete) -> Answer {
    let target = target_from(&asked.target)?;
    link.context.engine.delete(&target).await.map_err(|error| error_reply(&error))?;
    Ok(Message::Done(Done {}))
}

async fn copy(link: &Link, asked: message::Copy) -> Answer {
    // The backend makes the copy, so it is there when the answer is given: more than any mode but one promises.
    if asked.mode == Some(WriteMode::Ephemeral) {
        let why = "a copy is made by the backend and cannot be ephemeral";
        return Err(ErrorReply::new(ErrorCode::InvalidArgument, why));
    }
    let (source, target) = (target_from(&asked.source)?, target_from(&asked.target)?);
    let stat = link.context.engine.copy(&source, &target).await.map_err(|error| error_reply(&error))?;
    Ok(Message::CopyOk(stat.to_info(target.task)))
}

async fn create_bucket(link: &Link, asked: message::CreateBucket) -> Answer {
    link.context.engine.create_bucket(&asked.bucket).await.map_err(|error| error_reply(&error))?;
    Ok(Message::Done(Done {}))
}

async fn list(link: &Link, asked: message::List) -> Answer {
    let limit = match asked.limit as usize {
        0 => LIST_LIMIT_MAX,
        limit => limit.min(LIST_LIMIT_MAX),
    };
    let request = ListRequest {
        bucket: asked.bucket,
        prefix: asked.prefix,
        marker: asked.marker,
        delimiter: asked.delimiter,
        limit,
    };
    let page = link.context.engine.list(&request).await.map_err(|error| error_reply(&error))?;
    Ok(Message::ListOk(page_from(page)))
}

/// The engine's page as a frame: cut short, with a marker to go on from, where it would not fit.
fn page_from(page: request::ListPage) -> ListOk {
    let mut fitting = ListPage::new(0);
    let mut prefixes = page.common_prefixes.into_iter().peekable();
    let mut entries = page.entries.into_iter().peekable();
    loop {
        let prefix_first = match (prefixes.peek(), entries.peek()) {
            (None, None) => break,
            (Some(prefix), Some(entry)) => *prefix < entry.key,
            (prefix, _) => prefix.is_some(),
        };
        let fits = if prefix_first {
            prefixes.next().is_none_or(|prefix| fitting.push_common_prefix(prefix))
        } else {
            entries.next().is_none_or(|entry| fitting.push_entry(list_entry(entry)))
        };
        if !fits {
            return fitting.finish(true);
        }
    }
    let mut all = fitting.finish(page.truncated);
    if page.truncated {
        // The backend's marker may lie behind the last item: what is between was hidden or is a prefix's content.
        all.truncated = true;
        all.next_marker = page.next_marker;
    }
    all
}

pub(super) fn list_entry(entry: request::ListEntry) -> message::ListEntry {
    message::ListEntry {
        key: entry.key,
        length: entry.meta.length,
        etag: entry.meta.etag,
        last_modified_ms: entry.meta.last_modified_ms,
        storage_class: entry.meta.storage_class,
        state: VersionState::Clean,
    }
}

/// The object that a message names. Query parameters that count are refused: the backend would not see them, so two
/// tasks would stand for the same object.
pub(super) fn target_from(target: &message::Target) -> Result<Target, ErrorReply> {
    let object = &target.object;
    let plain = target_of(&object.bucket, &object.key).map_err(|error| error_reply(&error))?;
    if !target.query.is_empty() && target.task() != plain.task {
        return Err(ErrorReply::new(ErrorCode::Unsupported, "an object with query parameters is not supported"));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use dfstore_proto::ids::ObjectName;
    use dfstore_proto::limits::{CONTROL_BYTES_MAX, KEY_BYTES_MAX};
    use dfstore_proto::object::ObjectMeta;

    use super::*;

    fn entry(key: impl Into<String>) -> request::ListEntry {
        request::ListEntry { key: key.into(), meta: ObjectMeta { length: 7, ..ObjectMeta::default() } }
    }

    #[test]
    fn a_page_keeps_all_items_and_the_backends_marker() {
        let page = request::ListPage {
            entries: vec![entry("a"), entry("c")],
            common_prefixes: vec!["b/".into(), "d/".into()],
            truncated: true,
            next_marker: "d0".into(),
        };
        let sent = page_from(page);
        let keys: Vec<_> = sent.entries.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!((keys, sent.common_prefixes.len()), (vec!["a", "c"], 2));
        assert_eq!((sent.truncated, sent.next_marker.as_str()), (true, "d0"));
        let last = page_from(request::ListPage { entries: vec![entry("a")], ..request::ListPage::default() });
        assert_eq!((last.truncated, last.next_marker.as_str()), (false, ""));
        let hidden = request::ListPage { truncated: true, next_marker: "x".into(), ..request::ListPage::default() };
        assert_eq!(page_from(hidden).next_marker, "x");
    }

    #[test]
    fn a_page_of_long_keys_is_cut_where_the_frame_is_full() {
        let keys = (0..1000).map(|number| format!("{number:04}{}", "k".repeat(KEY_BYTES_MAX - 4)));
        let page = request::ListPage { entries: keys.map(entry).collect(), ..request::ListPage::default() };
        let sent = page_from(page);
        assert!(sent.truncated && sent.entries.len() < 100);
        assert_eq!(sent.next_marker, sent.entries.last().expect("some fit").key);
        let mut out = bytes::BytesMut::new();
        Message::ListOk(sent).encode(RequestId(1), &mut out).expect("it fits");
        assert!(out.len() <= CONTROL_BYTES_MAX as usize + 24);
    }

    #[test]
    fn a_target_is_its_object_unless_a_query_counts() {
        let mut target = message::Target::new(ObjectName::new("bucket", "key"));
        let plain = target_from(&target).expect("valid");
        assert_eq!(plain.task, target.task());
        target.query = "Signature=x".into();
        target.filter = "Signature".into();
        assert_eq!(target_from(&target).expect("filtered").task, plain.task);
        target.filter.clear();
        assert_eq!(target_from(&target).expect_err("it counts").code, ErrorCode::Unsupported);
        target.object.bucket = "a/b".into();
        assert_eq!(target_from(&target).expect_err("a slash").code, ErrorCode::InvalidArgument);
    }
}
