//! One suite that every provider profile passes, on every server we have: what the backend client promises to the rest
//! of the peer, however the server behaves. `faults` shows what it makes of bad days.
//!
//! A server that cannot do something says so as data in [`servers::Limits`]; the cases check the limit itself then, so
//! that a limit which no longer exists fails its test.

mod cases;
mod faults;
mod listing;
mod rig;
mod servers;

macro_rules! on_every_server {
    ($($area:ident::$name:ident,)*) => {
        mod s3_profile_on_s3s_fs { $(#[test] fn $name() { crate::$area::$name(&crate::servers::s3s_fs()) })* }
        mod s3_profile_on_seaweedfs { $(#[test] fn $name() { crate::$area::$name(&crate::servers::seaweedfs()) })* }
        mod oss_profile_on_strict_front { $(#[test] fn $name() { crate::$area::$name(&crate::servers::strict_oss()) })* }
    };
}

on_every_server! {
    cases::gives_back_what_was_put,
    cases::says_what_is_missing,
    cases::reads_exactly_the_range,
    cases::reads_only_the_version_asked_for,
    cases::puts_a_stream_whole_or_not_at_all,
    cases::refuses_bytes_that_do_not_fit_their_checksum,
    cases::does_not_overwrite_when_told_so,
    cases::writes_only_over_what_it_was_told,
    cases::makes_an_object_of_parts,
    cases::resumes_and_aborts_uploads,
    cases::copies_within_the_backend,
    cases::deletes_what_is_there_and_what_is_not,
    cases::makes_buckets,
    cases::keeps_awkward_keys,
    listing::pages_like_the_model,
}
