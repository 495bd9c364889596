//! What every server must make possible.

use dfstore_peer::rt::mailbox::mailbox;
use dfstore_peer::sidecar::backend::{
    BackendErrorKind, BodySource, GetRequest, ListRequest, PutRequest, Result, Upload, UploadedPart, WriteCondition,
};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::object::ObjectMeta;
use dfstore_tests::data::Payload;

use crate::rig::{put_request, slot, slots, wait};
use crate::servers::{LONG_KEY, Server};

fn kind<T>(result: Result<T>) -> Option<BackendErrorKind> {
    result.err().map(|error| error.kind)
}

fn attributes() -> ObjectMeta {
    ObjectMeta {
        content_type: "text/x-test; charset=utf-8".to_owned(),
        content_disposition: "attachment; filename=\"a b.txt\"".to_owned(),
        content_encoding: "identity".to_owned(),
        content_language: "de".to_owned(),
        digest: "md5:900150983cd24fb0d6963f7d28e17f72".to_owned(),
        ..ObjectMeta::default()
    }
}

fn assert_attributes(meta: &ObjectMeta) {
    let expected = attributes();
    assert_eq!(meta.content_type, expected.content_type);
    assert_eq!(meta.content_disposition, expected.content_disposition);
    assert_eq!(meta.content_encoding, expected.content_encoding);
    assert_eq!(meta.content_language, expected.content_language);
    assert_eq!(meta.digest, expected.digest);
}

/// What a writer calls a version.
const WRITTEN_AS: &str = "352441c2-18f";

fn written_as(server: &Server, name: &ObjectName) -> String {
    wait(server.rig.handle.find(name.clone())).expect("head").written_as
}

pub fn gives_back_what_was_put(server: &Server) {
    let name = server.name("folder/object");
    let request = PutRequest { meta: attributes(), written_as: WRITTEN_AS.into(), ..put_request(&name, b"abc") };
    let stored = wait(server.rig.handle.put(request, BodySource::Slots(slots(b"abc")))).expect("put");
    let meta = server.rig.head(&name).expect("head");
    assert_eq!((meta.length, &meta.etag), (3, &stored.etag));
    assert!(meta.etag.starts_with('"') && meta.etag.len() > 2, "{}", meta.etag);
    assert!(meta.last_modified_ms > 1_600_000_000_000, "{}", meta.last_modified_ms);
    assert_attributes(&meta);
    let fetched = server.rig.read(&name, 0..3).expect("get");
    assert_eq!(&fetched.slot[..], b"abc");
    assert_eq!(fetched.crc32, crc32fast::hash(b"abc"));
    assert_eq!((fetched.meta.length, &fetched.meta.etag), (3, &stored.etag));
    assert_attributes(&fetched.meta);
    assert_eq!(written_as(server, &name), WRITTEN_AS);
    let second = server.rig.put(&name, b"other bytes").expect("put again");
    assert_eq!(written_as(server, &name), "", "that was the version before");
    assert_ne!(second.etag, stored.etag);
    assert_eq!(&server.rig.read_first(&name, 100).expect("get").slot[..], b"other bytes");
}

pub fn says_what_is_missing(server: &Server) {
    let name = server.name("there");
    server.rig.put(&name, b"x").expect("put");
    let absent = ObjectName::new(&name.bucket, "absent");
    assert_eq!(kind(server.rig.head(&absent)), Some(BackendErrorKind::NotFound));
    assert_eq!(kind(server.rig.read_first(&absent, 10)), Some(BackendErrorKind::NotFound));
    let nowhere = ObjectName::new(server.unused_bucket_name(), "key");
    let expected = match server.limits.missing_bucket_is_missing_object {
        true => BackendErrorKind::NotFound,
        false => BackendErrorKind::NoSuchBucket,
    };
    assert_eq!(kind(server.rig.read_first(&nowhere, 10)), Some(expected));
    let list = ListRequest { bucket: nowhere.bucket.clone(), limit: 10, ..ListRequest::default() };
    assert_eq!(kind(wait(server.rig.handle.list(list))), Some(BackendErrorKind::NoSuchBucket));
    let error = server.rig.read_first(&absent, 10).err().expect("absent");
    assert!(error.to_string().contains(&format!("dfs://{}/absent", name.bucket)), "{error}");
    assert!(!error.is_retryable() && !error.is_outage());
}

pub fn reads_exactly_the_range(server: &Server) {
    let name = server.name("ranges");
    let payload = Payload::new(7, 100_000);
    server.rig.put(&name, &payload.bytes()).expect("put");
    for range in [0..100_000, 0..1, 99_999..100_000, 4095..4097, 50_000..90_000] {
        let fetched = server.rig.read(&name, range.clone()).expect("get");
        assert_eq!(&fetched.slot[..], &payload.range(range)[..]);
        assert_eq!(fetched.meta.length, 100_000);
    }
    assert_eq!(kind(server.rig.read(&name, 100_000..100_001)), Some(BackendErrorKind::RangeNotSatisfiable));
    assert_eq!(kind(server.rig.read(&name, 99_999..100_001)), Some(BackendErrorKind::BadAnswer), "not that long");
    let first = server.rig.read_first(&name, 1 << 20).expect("a first read");
    assert_eq!((first.slot.len(), first.meta.length), (100_000, 100_000));
    let part = GetRequest { name: name.clone(), range: 90_000..200_000, exact: false, if_match: None };
    assert_eq!(server.rig.get(part).expect("to the end").slot.len(), 10_000);
    let empty = ObjectName::new(&name.bucket, "empty");
    server.rig.put(&empty, b"").expect("put nothing");
    let fetched = server.rig.read_first(&empty, 1 << 20).expect("a first read of nothing");
    assert_eq!((fetched.slot.len(), fetched.meta.length, fetched.crc32), (0, 0, 0));
    assert_eq!(server.rig.head(&empty).expect("head").length, 0);
}

pub fn reads_only_the_version_asked_for(server: &Server) {
    let name = server.name("versions");
    let first = server.rig.put(&name, b"first").expect("put").etag;
    let read = |etag: &str| {
        server.rig.get(GetRequest { name: name.clone(), range: 0..5, exact: true, if_match: Some(etag.to_owned()) })
    };
    assert_eq!(&read(&first).expect("this version").slot[..], b"first");
    let second = server.rig.put(&name, b"secnd").expect("put").etag;
    assert_eq!(kind(read(&first)), Some(BackendErrorKind::VersionChanged));
    assert_eq!(&read(&second).expect("this version").slot[..], b"secnd");
}

pub fn puts_a_stream_whole_or_not_at_all(server: &Server) {
    let name = server.name("stream");
    let bytes = Payload::new(8, 9 << 20).bytes();
    let stream = |given: usize| {
        let (sender, receiver) = mailbox(2);
        let body = BodySource::Stream { length_bytes: bytes.len() as u64, slots: receiver };
        let feed = async {
            for piece in bytes[..given].chunks(1 << 20).map(slot) {
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            drop(sender);
        };
        wait(async { futures_util::join!(server.rig.handle.put(put_request(&name, &bytes), body), feed).0 })
    };
    assert!(stream(8 << 20).is_err(), "the source ended early");
    assert_eq!(kind(server.rig.head(&name)), Some(BackendErrorKind::NotFound));
    stream(bytes.len()).expect("put");
    let fetched = server.rig.read(&name, (8 << 20)..(9 << 20)).expect("get");
    assert_eq!((&fetched.slot[..], fetched.meta.length), (&bytes[8 << 20..], 9 << 20));
}

pub fn refuses_bytes_that_do_not_fit_their_checksum(server: &Server) {
    let name = server.name("checked");
    let request = PutRequest { crc32: Some(1), ..put_request(&name, b"abc") };
    let result = wait(server.rig.handle.put(request, BodySource::Slots(slots(b"abc"))));
    if server.limits.no_checksums {
        result.expect("not noticed");
    } else {
        assert_eq!(kind(result), Some(BackendErrorKind::BadAnswer));
    }
    let request = put_request(&name, b"");
    let upload = wait(server.rig.handle.create_upload(request)).expect("create upload");
    let result = wait(server.rig.handle.put_part(upload.clone(), 1, 1, BodySource::Slots(slots(b"abc"))));
    if server.limits.no_checksums_of_parts {
        result.expect("not noticed");
    } else {
        assert_eq!(kind(result), Some(BackendErrorKind::BadAnswer));
    }
    wait(server.rig.handle.abort_upload(upload)).expect("abort");
}

pub fn writes_only_over_what_it_was_told(server: &Server) {
    let name = server.name("known");
    let put = |bytes: &[u8], condition| {
        let request = PutRequest { condition, ..put_request(&name, bytes) };
        wait(server.rig.handle.put(request, BodySource::Slots(slots(bytes))))
    };
    let first = put(b"first", WriteCondition::Always).expect("nothing is asked");
    put(b"second", WriteCondition::IfMatch(first.etag.clone())).expect("it is what is there");
    let third = put(b"third", WriteCondition::IfMatch(first.etag));
    let expected: &[u8] = if server.limits.writes_whatever_is_there {
        third.expect("the condition is not heeded");
        b"third"
    } else {
        assert_eq!(kind(third), Some(BackendErrorKind::PreconditionFailed));
        b"second"
    };
    assert_eq!(&server.rig.read_first(&name, 100).expect("get").slot[..], expected);
}

pub fn does_not_overwrite_when_told_so(server: &Server) {
    let name = server.name("once");
    let put = |bytes: &[u8]| {
        let request = PutRequest { condition: WriteCondition::IfAbsent, ..put_request(&name, bytes) };
        wait(server.rig.handle.put(request, BodySource::Slots(slots(bytes))))
    };
    put(b"first").expect("nothing there yet");
    assert_eq!(kind(put(b"second")), Some(BackendErrorKind::PreconditionFailed));
    let upload = upload_parts(server, &put_request(&name, b"upload"), &[b"upload"]);
    let request = PutRequest { condition: WriteCondition::IfAbsent, ..put_request(&name, b"upload") };
    let result = wait(server.rig.handle.complete_upload(upload.0, request, upload.1));
    let expected: &[u8] = if server.limits.completion_overwrites {
        result.expect("overwritten");
        b"upload"
    } else {
        assert_eq!(kind(result), Some(BackendErrorKind::PreconditionFailed));
        b"first"
    };
    assert_eq!(&server.rig.read_first(&name, 100).expect("get").slot[..], expected);
}

fn upload_parts(server: &Server, request: &PutRequest, parts: &[&[u8]]) -> (Upload, Vec<UploadedPart>) {
    let upload = wait(server.rig.handle.create_upload(request.clone())).expect("create upload");
    let put = |(number, bytes): (u32, &&[u8])| put_part(server, &upload, number, bytes);
    let parts = (1..).zip(parts).map(put).collect();
    (upload, parts)
}

fn put_part(server: &Server, upload: &Upload, number: u32, bytes: &[u8]) -> UploadedPart {
    let crc32 = crc32fast::hash(bytes);
    let body = BodySource::Slots(slots(bytes));
    let part = wait(server.rig.handle.put_part(upload.clone(), number, crc32, body)).expect("put part");
    assert_eq!((part.number, part.length_bytes, part.crc32), (number, bytes.len() as u64, Some(crc32)));
    part
}

pub fn makes_an_object_of_parts(server: &Server) {
    let name = server.name("folder/parts");
    let bytes = Payload::new(9, (10 << 20) + 3).bytes();
    let request = PutRequest { meta: attributes(), written_as: WRITTEN_AS.into(), ..put_request(&name, &bytes) };
    let (upload, parts) =
        upload_parts(server, &request, &[&bytes[..5 << 20], &bytes[5 << 20..10 << 20], &bytes[10 << 20..]]);
    assert_eq!(kind(server.rig.head(&name)), Some(BackendErrorKind::NotFound), "not before it is complete");
    let stored = wait(server.rig.handle.complete_upload(upload, request, parts)).expect("complete");
    let meta = server.rig.head(&name).expect("head");
    assert_eq!((meta.length, &meta.etag), (bytes.len() as u64, &stored.etag));
    assert_attributes(&meta);
    assert_eq!(written_as(server, &name), WRITTEN_AS);
    let fetched = server.rig.read(&name, (9 << 20)..(10 << 20) + 3).expect("get");
    assert_eq!(&fetched.slot[..], &bytes[9 << 20..]);
}

pub fn resumes_and_aborts_uploads(server: &Server) {
    let name = server.name("resumed");
    let bytes = Payload::new(10, (5 << 20) + 10).bytes();
    let (first, last) = bytes.split_at(5 << 20);
    let request = put_request(&name, &bytes);
    let (upload, parts) = upload_parts(server, &request, &[first]);
    // What a new process knows: the name of the upload.
    let mut found = wait(server.rig.handle.list_parts(upload.clone())).expect("list parts");
    assert_eq!(found.iter().map(|part| (part.number, part.length_bytes)).collect::<Vec<_>>(), [(1, 5 << 20)]);
    assert_eq!(found[0].etag.is_empty(), server.limits.no_etags_of_parts);
    if found[0].etag.is_empty() {
        found = parts;
    } else if found[0].crc32.is_none() {
        found[0].crc32 = parts[0].crc32;
    }
    put_part(server, &upload, 2, b"replaced below");
    found.push(put_part(server, &upload, 2, last));
    let uploads = wait(server.rig.handle.list_uploads(name.bucket.clone(), "res".to_owned()));
    let uploads = uploads.expect("list uploads");
    assert_eq!(uploads.iter().map(|listed| &listed.upload).collect::<Vec<_>>(), [&upload]);
    assert!(uploads[0].begun_at_ms > 1_700_000_000_000, "{uploads:?}");
    wait(server.rig.handle.complete_upload(upload, request.clone(), found)).expect("complete");
    assert_eq!(&server.rig.read(&name, 5 << 20..(5 << 20) + 10).expect("get").slot[..], last);

    let (upload, parts) = upload_parts(server, &request, &[first]);
    wait(server.rig.handle.abort_upload(upload.clone())).expect("abort");
    let completed = kind(wait(server.rig.handle.complete_upload(upload.clone(), request, parts)));
    let listed = wait(server.rig.handle.list_parts(upload.clone()));
    if server.limits.unknown_uploads_not_told {
        assert_eq!(completed, Some(BackendErrorKind::AccessDenied));
        assert_eq!(listed, Ok(vec![]));
    } else {
        assert_eq!(completed, Some(BackendErrorKind::NoSuchUpload));
        assert_eq!(kind(listed), Some(BackendErrorKind::NoSuchUpload));
        wait(server.rig.handle.abort_upload(upload)).expect("abort what is not there");
    }
    assert_eq!(server.rig.head(&name).expect("head").length, bytes.len() as u64, "the object is untouched");
}

pub fn copies_within_the_backend(server: &Server) {
    let source = server.name("a b/+%2F ü?&#");
    let target = ObjectName::new(&source.bucket, "copy/of %2B it");
    let request = PutRequest { meta: attributes(), ..put_request(&source, b"bytes") };
    wait(server.rig.handle.put(request, BodySource::Slots(slots(b"bytes")))).expect("put");
    wait(server.rig.handle.copy(source.clone(), target.clone())).expect("copy");
    let fetched = server.rig.read_first(&target, 100).expect("get");
    assert_eq!(&fetched.slot[..], b"bytes");
    assert_attributes(&fetched.meta);
    let absent = ObjectName::new(&source.bucket, "absent");
    assert_eq!(kind(wait(server.rig.handle.copy(absent, target))), Some(BackendErrorKind::NotFound));
}

pub fn deletes_what_is_there_and_what_is_not(server: &Server) {
    let name = server.name("short/lived");
    server.rig.put(&name, b"x").expect("put");
    wait(server.rig.handle.delete(name.clone())).expect("delete");
    assert_eq!(kind(server.rig.head(&name)), Some(BackendErrorKind::NotFound));
    wait(server.rig.handle.delete(name)).expect("delete again");
}

pub fn makes_buckets(server: &Server) {
    let bucket = server.unused_bucket_name();
    assert_eq!(kind(wait(server.rig.handle.head_bucket(bucket.clone()))), Some(BackendErrorKind::NoSuchBucket));
    wait(server.rig.handle.create_bucket(bucket.clone())).expect("create");
    wait(server.rig.handle.head_bucket(bucket.clone())).expect("head bucket");
    assert_eq!(kind(wait(server.rig.handle.create_bucket(bucket))), Some(BackendErrorKind::BucketExists));
    assert_eq!(kind(wait(server.rig.handle.create_bucket(String::new()))), Some(BackendErrorKind::InvalidArgument));
}

/// What a key may be made of, and what it may look like to something that is not careful.
pub const AWKWARD_KEYS: &[&str] = &[
    "plain",
    "with space",
    " leading and trailing ",
    "plus+plus",
    "per%cent",
    "%2F",
    "%00",
    "%41%2B",
    "hash#hash",
    "question?mark=1",
    "amper&sand=2",
    "a=b;c,d:e@f!g$h'i(j)k*l",
    "quote\"quote",
    "angle<b>&lt;",
    "back\\slash",
    "..\\up",
    "tilde~caret^pipe|brace{}[]`",
    "grüße/日本語/🦀",
    "e\u{301} is not é",
    "line\nbreak",
    "tab\tbell\u{7}",
    "carriage\rreturn",
    "\u{1}\u{1f}",
    "\u{7f}\u{a0}\u{2028}",
    "...",
    ".hidden",
    "a//b",
    "//",
    "/leading",
    "trailing/",
    "..",
    "../up",
    "a/../b",
    "./a",
    "a/.",
    LONG_KEY,
];

pub fn keeps_awkward_keys(server: &Server) {
    let mut bucket = server.bucket();
    let mut unkept = Vec::new();
    for key in AWKWARD_KEYS {
        if let Err(why) = round_trip(server, &bucket, key) {
            eprintln!("{:.40}: {why:.200}", format!("{key:?}"));
            unkept.push(*key);
            // Something may be left under another name.
            bucket = server.bucket();
        }
    }
    let shown: Vec<&str> = unkept.iter().map(|key| key.get(..40).unwrap_or(key)).collect();
    assert!(unkept == server.limits.unkept_keys, "{shown:?}");
}

/// Puts, finds, reads, copies and deletes an object of this name, which is alone in its bucket.
fn round_trip(server: &Server, bucket: &str, key: &str) -> std::result::Result<(), String> {
    let said = |error: dfstore_peer::sidecar::backend::BackendError| error.to_string();
    let name = ObjectName::new(bucket, key);
    server.rig.put(&name, key.as_bytes()).map_err(said)?;
    let fetched = server.rig.read_first(&name, 4096).map_err(said)?;
    if &fetched.slot[..] != key.as_bytes() {
        return Err(format!("read as {:?}", String::from_utf8_lossy(&fetched.slot)));
    }
    server.rig.head(&name).map_err(said)?;
    let all = ListRequest { bucket: bucket.to_owned(), limit: 10, ..ListRequest::default() };
    let listed = wait(server.rig.handle.list(all.clone())).map_err(said)?;
    let copy = ObjectName::new(bucket, "copy");
    let copied = wait(server.rig.handle.copy(name.clone(), copy.clone())).map_err(said);
    let copied_length = copied.and_then(|_| server.rig.head(&copy).map_err(said)).map(|meta| meta.length);
    wait(server.rig.handle.delete(copy)).map_err(said)?;
    wait(server.rig.handle.delete(name)).map_err(said)?;
    let left = wait(server.rig.handle.list(all)).map_err(said)?;
    let keys: Vec<&str> = listed.entries.iter().map(|entry| entry.key.as_str()).collect();
    if keys != [key] || !left.entries.is_empty() {
        return Err(format!("listed as {keys:?}, after deletion {:?}", left.entries));
    }
    if copied_length? != key.len() as u64 {
        return Err("the copy has another length".to_owned());
    }
    Ok(())
}
