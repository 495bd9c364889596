//! Arbitrary bytes into sessions, and arbitrary conversations of two sessions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    dfstore_proto_fuzz::session::check(data);
    dfstore_proto_fuzz::pair::check(data);
});
