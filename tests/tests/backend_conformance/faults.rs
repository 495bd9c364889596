//! Bad days: each fault gives the right error in time, and nothing that is not verified.

use std::time::{Duration, Instant};

use dfstore_peer::config::{Provider, Secret};
use dfstore_peer::rt::arena::Holder;
use dfstore_peer::rt::mailbox::mailbox;
use dfstore_peer::sidecar::backend::{
    BackendError, BackendErrorKind, BackendTuning, BodySource, GetRequest, ListRequest, Result,
};
use dfstore_proto::ids::ObjectName;
use dfstore_tests::bucket::S3Endpoint;
use dfstore_tests::faulty_backend::{Fault, FaultyBackend, Rule};
use dfstore_tests::ports;
use http::Method;
use percent_encoding::percent_decode_str;

use crate::cases::AWKWARD_KEYS;
use crate::rig::{Rig, arena, put_request, slot, slots, wait};

const BYTES: &[u8] = b"0123456789";

/// Fast enough for tests, slow enough for a busy machine.
fn tuning() -> BackendTuning {
    BackendTuning {
        connect_timeout: Duration::from_secs(2),
        first_byte_timeout: Duration::from_millis(300),
        server_work_timeout: Duration::from_millis(400),
        body_window: Duration::from_millis(300),
        body_window_bytes: 1000,
        attempts: 1,
        retry_pause: Duration::from_millis(1),
    }
}

/// A backend with one object, which then fails by these rules.
struct Day {
    backend: FaultyBackend,
    rig: Rig,
    name: ObjectName,
    etag: String,
}

impl Day {
    fn new(tuning: BackendTuning) -> Day {
        let backend = FaultyBackend::start().expect("it starts");
        let bucket = backend.bucket("bad-days").expect("a bucket");
        let etag = bucket.put("object", BYTES).expect("put");
        backend.forget();
        let rig = Rig::new(Provider::S3, &backend.endpoint(), tuning);
        Day { backend, rig, name: ObjectName::new("bad-days", "object"), etag }
    }

    fn read(&self) -> Result<Vec<u8>> {
        self.rig.read(&self.name, 0..BYTES.len() as u64).map(|fetched| fetched.slot.to_vec())
    }

    /// The error of reading while the backend fails like this.
    fn read_with(&self, fault: Fault) -> BackendError {
        self.backend.set_rules([Rule::on(Method::GET, fault)]);
        let error = self.read().expect_err("the backend failed");
        arena_is_returned();
        error
    }
}

/// No slot is left behind by a failed read. Other tests hold some for a moment.
fn arena_is_returned() {
    let free = dfstore_tests::eventually("all slots are back", Duration::from_secs(20), || {
        (arena().held_bytes(Holder::Fetch) == 0).then_some(())
    });
    free.expect("a slot was lost");
}

#[test]
fn server_errors_are_outages() {
    let day = Day::new(tuning());
    let error = day.read_with(Fault::internal_error());
    assert_eq!(error.kind, BackendErrorKind::Unavailable);
    assert!(error.is_retryable() && error.is_outage() && day.rig.health.backend_reachable());
    day.backend.set_rules([Rule::always(Fault::Status { status: 502, code: "", retry_after_s: None })]);
    assert_eq!(day.rig.head(&day.name).expect_err("502").kind, BackendErrorKind::Unavailable);
    assert_eq!(
        day.read_with(Fault::Status { status: 504, code: "", retry_after_s: None }).kind,
        BackendErrorKind::Unavailable
    );
    day.backend.set_rules([]);
    assert_eq!(day.read().expect("a good day again"), BYTES);
}

#[test]
fn requests_to_slow_down_carry_their_time() {
    let day = Day::new(BackendTuning { attempts: 3, ..tuning() });
    assert_eq!(day.read_with(Fault::slow_down(None)).kind, BackendErrorKind::SlowDown { retry_after: None });
    assert_eq!(day.backend.requests(), 1, "not asked again at once");
    let in_7_s = BackendErrorKind::SlowDown { retry_after: Some(Duration::from_secs(7)) };
    assert_eq!(day.read_with(Fault::slow_down(Some(7))).kind, in_7_s);
    let fault = Fault::Status { status: 503, code: "ServiceUnavailable", retry_after_s: Some(7) };
    assert_eq!(day.read_with(fault).kind, in_7_s);
    let fault = Fault::Status { status: 429, code: "TooManyRequests", retry_after_s: None };
    assert_eq!(day.read_with(fault).kind, BackendErrorKind::SlowDown { retry_after: None });
}

#[test]
fn refusals_are_final_and_skewed_clocks_are_not() {
    let day = Day::new(tuning());
    let error = day.read_with(Fault::access_denied());
    assert_eq!(error.kind, BackendErrorKind::AccessDenied);
    assert!(!error.is_retryable() && !error.is_outage());
    for code in ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"] {
        let error = day.read_with(Fault::Status { status: 403, code, retry_after_s: None });
        assert_eq!(error.kind, BackendErrorKind::AccessDenied, "{code}");
    }
    let error = day.read_with(Fault::Status { status: 403, code: "RequestTimeTooSkewed", retry_after_s: None });
    assert!(error.kind == BackendErrorKind::ClockSkew && error.is_retryable());
    let error = day.read_with(Fault::Status { status: 400, code: "InvalidArgument", retry_after_s: None });
    assert!(error.kind == BackendErrorKind::InvalidArgument && !error.is_retryable());
    let error = day.read_with(Fault::Status { status: 409, code: "PositionNotEqualToLength", retry_after_s: None });
    assert!(error.kind == BackendErrorKind::InvalidArgument && !error.is_retryable());
}

#[test]
fn wrong_keys_are_access_denied_and_stay_secret() {
    let day = Day::new(tuning());
    let endpoint = day.backend.endpoint();
    for (access_key, secret_key) in [("NOSUCHKEYCANARY", "secret-canary"), (&endpoint.access_key, "secret-canary")] {
        let keys = S3Endpoint { access_key: access_key.into(), secret_key: secret_key.into(), ..endpoint.clone() };
        let rig = Rig::new(Provider::S3, &keys, tuning());
        let error = rig.read_first(&day.name, 10).err().expect("refused");
        assert_eq!(error.kind, BackendErrorKind::AccessDenied, "{error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("canary") && !shown.to_lowercase().contains("signature="), "{shown}");
    }
}

#[test]
fn lost_connections_are_outages() {
    let day = Day::new(tuning());
    let error = day.read_with(Fault::Cut);
    assert_eq!(error.kind, BackendErrorKind::Unreachable, "{error}");
    assert!(error.is_retryable() && error.is_outage() && !day.rig.health.backend_reachable());
    day.backend.set_rules([]);
    day.backend.set_down(true);
    assert_eq!(day.read().expect_err("down").kind, BackendErrorKind::Unreachable);
    day.backend.set_down(false);
    assert_eq!(day.read().expect("up again"), BYTES);
    assert!(day.rig.health.backend_reachable());
}

#[test]
fn nobody_listening_is_an_outage() {
    let port = ports::free(1).expect("a port")[0];
    let endpoint =
        S3Endpoint { url: format!("http://127.0.0.1:{port}"), access_key: "a".into(), secret_key: "s".into() };
    let rig = Rig::new(Provider::S3, &endpoint, tuning());
    let error = rig.head(&ObjectName::new("bucket", "key")).expect_err("nobody there");
    assert_eq!(error.kind, BackendErrorKind::Unreachable, "{error}");
    let endpoint = S3Endpoint { url: "http://no-such-host.invalid".into(), ..endpoint };
    let rig = Rig::new(Provider::S3, &endpoint, tuning());
    let error = rig.head(&ObjectName::new("bucket", "key")).expect_err("no such host");
    assert!(error.is_outage(), "{error}");
}

#[test]
fn silence_ends_in_time() {
    let day = Day::new(BackendTuning { attempts: 3, ..tuning() });
    let started = Instant::now();
    let error = day.read_with(Fault::Hang);
    assert_eq!(error.kind, BackendErrorKind::Timeout);
    assert!(error.is_outage() && !day.rig.health.backend_reachable());
    assert_eq!(day.backend.requests(), 1, "waiting once is enough");
    assert_eq!(day.read_with(Fault::Delay(Duration::from_secs(30))).kind, BackendErrorKind::Timeout);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    day.backend.set_rules([Rule::on(Method::GET, Fault::Delay(Duration::from_millis(50)))]);
    assert_eq!(day.read().expect("late, but in time"), BYTES);
}

#[test]
fn bodies_that_break_off_or_stall_give_nothing() {
    let day = Day::new(tuning());
    for after in [0, 1, 9] {
        let error = day.read_with(Fault::BodyBreaks(after));
        assert_eq!(error.kind, BackendErrorKind::BadAnswer, "{error}");
        assert_eq!(day.read_with(Fault::BodyHangs(after)).kind, BackendErrorKind::Timeout);
    }
}

#[test]
fn bodies_must_keep_the_minimum_rate() {
    let day = Day::new(tuning());
    let bytes = vec![7; 8000];
    let name = ObjectName::new("bad-days", "long");
    day.rig.put(&name, &bytes).expect("put");
    // 8000 bytes in 8 steps: 10,000 bytes in 300 ms are asked for.
    day.backend.set_rules([Rule::on(Method::GET, Fault::BodyTrickles(10, Duration::from_millis(20)))]);
    let error = day.rig.read(&name, 0..8000).err().expect("10 bytes in 20 ms are too few");
    assert_eq!(error.kind, BackendErrorKind::Timeout);
    day.backend.set_rules([Rule::on(Method::GET, Fault::BodyTrickles(800, Duration::from_millis(40)))]);
    assert_eq!(&day.rig.read(&name, 0..8000).expect("slow, but not too slow").slot[..], &bytes[..]);
}

#[test]
fn answers_to_another_question_are_refused() {
    let day = Day::new(tuning());
    let faults = [
        Fault::BodyShort(1),
        Fault::BodyShort(10),
        Fault::ContentRange("bytes 0-8/10".into()),
        Fault::ContentRange("bytes 1-10/11".into()),
        Fault::ContentRange("bytes 0-9/5".into()),
        Fault::ContentRange("bytes */10".into()),
        Fault::ContentRange("nonsense".into()),
    ];
    for fault in faults {
        let error = day.read_with(fault.clone());
        assert_eq!(error.kind, BackendErrorKind::BadAnswer, "{fault:?}: {error}");
    }
    day.backend.set_rules([Rule::on(Method::GET, Fault::RangeIgnored)]);
    assert_eq!(day.read().expect("the whole object was asked for"), BYTES);
    let error = day.rig.read(&day.name, 5..10).err().expect("the wrong part");
    assert_eq!(error.kind, BackendErrorKind::BadAnswer);
}

#[test]
fn another_version_is_told_even_if_the_backend_ignores_conditions() {
    let day = Day::new(tuning());
    day.backend.set_rules([Rule::on(Method::GET, Fault::Etag("\"another\"".into()))]);
    let request = |if_match| GetRequest { name: day.name.clone(), range: 0..10, exact: true, if_match };
    let error = day.rig.get(request(Some(day.etag.clone()))).err().expect("another version");
    assert_eq!(error.kind, BackendErrorKind::VersionChanged);
    assert_eq!(day.rig.get(request(None)).expect("any version").meta.etag, "\"another\"");
    let fault = Fault::Status { status: 412, code: "PreconditionFailed", retry_after_s: None };
    assert_eq!(day.read_with(fault).kind, BackendErrorKind::VersionChanged);
}

#[test]
fn reads_are_tried_again_when_that_may_help() {
    let day = Day::new(BackendTuning { attempts: 3, ..tuning() });
    for fault in [Fault::internal_error(), Fault::Cut, Fault::BodyBreaks(3), Fault::BodyShort(1)] {
        day.backend.forget();
        day.backend.set_rules([Rule::on(Method::GET, fault.clone()).times(2)]);
        assert_eq!(day.read().expect("the third time"), BYTES, "{fault:?}");
        // A broken connection may be tried again below us, too.
        assert!(day.backend.requests() >= 3, "{fault:?}");
    }
    day.backend.set_rules([Rule::always(Fault::internal_error()).times(2)]);
    day.rig.head(&day.name).expect("the third time");
    day.backend.set_rules([Rule::always(Fault::internal_error()).times(2)]);
    let list = ListRequest { bucket: "bad-days".into(), limit: 10, ..ListRequest::default() };
    assert_eq!(wait(day.rig.handle.list(list)).expect("the third time").entries.len(), 1);
    let metrics = day.rig.metrics.encode();
    assert!(metrics.contains("dfstore_backend_retries_total 12"), "{metrics}");
    assert!(metrics.contains(r#"dfstore_backend_requests_total{operation="get",outcome="ok"} 4"#), "{metrics}");
    assert!(metrics.contains("dfstore_backend_requests_in_flight 0"), "{metrics}");
}

/// A backend that closes an idle connection takes the request with it that is on its way there.
#[test]
fn a_copy_is_tried_again_when_its_connection_breaks() {
    let day = Day::new(BackendTuning { attempts: 3, ..tuning() });
    for fault in [Fault::Cut, Fault::LoseAnswer, Fault::internal_error()] {
        let copy = ObjectName::new("bad-days", "copy");
        day.backend.set_rules([Rule::on(Method::PUT, fault.clone()).times(2)]);
        let copied = wait(day.rig.handle.copy(day.name.clone(), copy.clone())).expect("the third time");
        assert_eq!(copied.etag, day.etag, "{fault:?}");
        assert_eq!(day.rig.head(&copy).expect("it is there").length, BYTES.len() as u64);
        wait(day.rig.handle.delete(copy)).expect("delete");
    }
}

#[test]
fn writes_fail_once_and_say_so() {
    let day = Day::new(BackendTuning { attempts: 3, ..tuning() });
    let name = ObjectName::new("bad-days", "written");
    for (fault, kind) in [
        (Fault::internal_error(), BackendErrorKind::Unavailable),
        (Fault::slow_down(Some(1)), BackendErrorKind::SlowDown { retry_after: Some(Duration::from_secs(1)) }),
        (Fault::access_denied(), BackendErrorKind::AccessDenied),
        (Fault::Cut, BackendErrorKind::Unreachable),
        (Fault::LoseAnswer, BackendErrorKind::Unreachable),
        (Fault::Hang, BackendErrorKind::Timeout),
        (Fault::Crc32("AAAAAA==".into()), BackendErrorKind::BadAnswer),
    ] {
        day.backend.forget();
        day.backend.set_rules([Rule::on(Method::PUT, fault.clone())]);
        let error = day.rig.put(&name, BYTES).expect_err("the backend failed");
        assert_eq!(error.kind, kind, "{fault:?}: {error}");
        assert_eq!(day.backend.requests_of(&Method::PUT), 1, "{fault:?}");
    }
}

#[test]
fn waiting_for_the_source_of_a_body_is_not_the_backends_fault() {
    let day = Day::new(tuning());
    let name = ObjectName::new("bad-days", "streamed");
    let bytes = [1; 100];
    let (sender, receiver) = mailbox(1);
    let body = BodySource::Stream { length_bytes: 100, slots: receiver };
    let feed = async {
        sender.send(slot(&bytes[..50])).await.expect("taken");
        // Longer than a window and than the time for an answer.
        tokio::time::sleep(Duration::from_millis(900)).await;
        sender.send(slot(&bytes[50..])).await.expect("taken");
    };
    let (put, ()) = wait(async { futures_util::join!(day.rig.handle.put(put_request(&name, &bytes), body), feed) });
    put.expect("put");
    assert_eq!(day.rig.head(&name).expect("head").length, 100);
}

#[test]
fn temporary_credentials_carry_their_token() {
    let day = Day::new(tuning());
    let token = Some(Secret::new("token-canary"));
    let rig = Rig::with_token(Provider::S3, &day.backend.endpoint(), tuning(), token);
    rig.head(&day.name).expect("head");
    assert_eq!(day.backend.seen()[0].session_token.as_deref(), Some("token-canary"));
}

/// Whatever a server makes of a key: what reaches it is the key, byte for byte.
#[test]
fn keys_travel_byte_for_byte() {
    let day = Day::new(tuning());
    for key in AWKWARD_KEYS {
        day.backend.forget();
        let name = ObjectName::new("bad-days", *key);
        let _ = day.rig.head(&name);
        let _ = wait(day.rig.handle.copy(name, ObjectName::new("bad-days", "copy")));
        let seen = day.backend.seen();
        let path = percent_decode_str(&seen[0].path).decode_utf8().expect("UTF-8").into_owned();
        assert_eq!(path, format!("/bad-days/{key}"));
        let source = seen[1].copy_source.as_deref().map(percent_decode_str).expect("a copy names its source");
        assert_eq!(source.decode_utf8().expect("UTF-8"), format!("bad-days/{key}"));
    }
}

#[test]
fn completing_an_upload_may_take_longer_than_a_read() {
    let day = Day::new(BackendTuning { server_work_timeout: Duration::from_secs(20), ..tuning() });
    let name = ObjectName::new("bad-days", "parts");
    let request = put_request(&name, BYTES);
    let upload = wait(day.rig.handle.create_upload(request.clone())).expect("create upload");
    let crc32 = crc32fast::hash(BYTES);
    let part = wait(day.rig.handle.put_part(upload.clone(), 1, crc32, BodySource::Slots(slots(BYTES)))).expect("part");
    day.backend.set_rules([Rule::on(Method::POST, Fault::Delay(Duration::from_millis(700)))]);
    wait(day.rig.handle.complete_upload(upload, request, vec![part])).expect("complete");
}

#[test]
fn a_caller_that_goes_away_ends_its_request() {
    let day = Day::new(BackendTuning { first_byte_timeout: Duration::from_secs(50), ..tuning() });
    day.backend.set_rules([Rule::always(Fault::Hang)]);
    wait(async {
        let asked = day.rig.handle.head(day.name.clone());
        assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
    });
    let ended = dfstore_tests::eventually("the request ends", Duration::from_secs(20), || {
        let metrics = day.rig.metrics.encode();
        let counted = metrics.contains(r#"dfstore_backend_requests_total{operation="head",outcome="other"} 1"#);
        (counted && metrics.contains("dfstore_backend_requests_in_flight 0")).then_some(())
    });
    ended.expect("no request is left");
}

#[test]
fn only_so_many_requests_run_at_once() {
    use dfstore_peer::limits::BACKEND_REQUESTS_MAX;
    let day = Day::new(BackendTuning { first_byte_timeout: Duration::from_secs(50), ..tuning() });
    day.backend.set_rules([Rule::always(Fault::Delay(Duration::from_millis(100)))]);
    let asked = (0..BACKEND_REQUESTS_MAX * 2).map(|_| day.rig.handle.head(day.name.clone()));
    let answers = wait(futures_util::future::join_all(asked));
    assert!(answers.iter().all(std::result::Result::is_ok));
    assert_eq!(day.backend.open_max(), BACKEND_REQUESTS_MAX as u64);
}
