//! Arbitrary bytes into the decoder.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dfstore_proto_fuzz::decoder::check(data));
