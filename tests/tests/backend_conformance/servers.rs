//! The servers the suite runs on, and what each of them cannot do.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use dfstore_peer::config::Provider;
use dfstore_peer::sidecar::backend::{BackendErrorKind, BackendTuning};
use dfstore_proto::ids::ObjectName;
use dfstore_tests::oss_front::OssFront;
use dfstore_tests::s3s_server::S3sServer;
use dfstore_tests::seaweed;

use crate::rig::{Rig, wait};

/// What a server cannot do, or does differently from S3.
pub struct Limits {
    /// Listings carry no entity tags.
    pub no_etags_in_listings: bool,
    /// `If-Match` on a write is not heeded, or not sent to such a provider.
    pub writes_whatever_is_there: bool,
    /// Parts that are listed carry no entity tags.
    pub no_etags_of_parts: bool,
    /// An upload that is not there cannot be told from an empty one, or is "denied".
    pub unknown_uploads_not_told: bool,
    /// Reading from a bucket that is not there says that the object is missing.
    pub missing_bucket_is_missing_object: bool,
    /// A wrong CRC32 of an object is not noticed (it may not even be sent).
    pub no_checksums: bool,
    /// A wrong CRC32 of a part is not noticed.
    pub no_checksums_of_parts: bool,
    /// "Only if absent" does not hold when an upload is completed.
    pub completion_overwrites: bool,
    /// Listings are in the order of paths (`a/b` before `a b`), not of bytes.
    pub lists_in_path_order: bool,
    /// Keys that it does not keep byte for byte.
    pub unkept_keys: &'static [&'static str],
}

/// A server with the client for it.
pub struct Server {
    pub rig: Rig,
    pub limits: Limits,
    bucket_prefix: &'static str,
    oss: Option<&'static OssFront>,
}

impl Server {
    /// A new bucket. A server that has just refused a body may cut the connection that this is asked on.
    pub fn bucket(&self) -> String {
        loop {
            let bucket = self.unused_bucket_name();
            match wait(self.rig.handle.create_bucket(bucket.clone())) {
                Ok(()) => return bucket,
                Err(error) if error.kind == BackendErrorKind::Unreachable => eprintln!("once more: {error}"),
                Err(error) => panic!("create bucket: {error}"),
            }
        }
    }

    pub fn unused_bucket_name(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("{}-{}-{number}", self.bucket_prefix, std::process::id())
    }

    /// An object in a new bucket.
    pub fn name(&self, key: &str) -> ObjectName {
        ObjectName::new(self.bucket(), key)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(oss) = self.oss {
            assert!(oss.refused().is_empty(), "the client broke OSS's rules: {:?}", oss.refused());
        }
    }
}

/// Keys that a file system cannot keep: it has no empty names, `.` and `..` mean something, a name is a folder or a
/// file, and no name has over 255 bytes (s3s-fs keeps attributes under a name made of the whole key).
const NO_FILE_NAMES: &[&str] =
    &["a//b", "//", "/leading", "trailing/", "..", "../up", "a/../b", "./a", "a/.", LONG_KEY];

/// SeaweedFS cleans keys like paths, and takes a backslash for a slash.
const SEAWEED_UNKEPT: &[&str] =
    &["back\\slash", "..\\up", "a//b", "//", "/leading", "trailing/", "..", "../up", "a/../b", "./a", "a/."];

/// As long as S3 allows: 1024 bytes, in names of a length that file systems allow.
pub const LONG_KEY: &str = {
    const BYTES: [u8; 1024] = {
        let mut bytes = [b'k'; 1024];
        let mut slash = 127;
        while slash < bytes.len() - 1 {
            bytes[slash] = b'/';
            slash += 128;
        }
        bytes
    };
    match std::str::from_utf8(&BYTES) {
        Ok(key) => key,
        Err(_) => unreachable!(),
    }
};

pub fn s3s_fs() -> Server {
    static SERVER: OnceLock<S3sServer> = OnceLock::new();
    let server = SERVER.get_or_init(|| S3sServer::start().expect("s3s-fs starts"));
    Server {
        rig: Rig::new(Provider::S3, &server.endpoint(), BackendTuning::default()),
        limits: Limits {
            no_etags_in_listings: true,
            writes_whatever_is_there: false,
            no_etags_of_parts: true,
            unknown_uploads_not_told: true,
            missing_bucket_is_missing_object: true,
            no_checksums: false,
            no_checksums_of_parts: true,
            completion_overwrites: false,
            lists_in_path_order: false,
            unkept_keys: NO_FILE_NAMES,
        },
        bucket_prefix: "s3s",
        oss: None,
    }
}

pub fn seaweedfs() -> Server {
    // Making a bucket of the kit's starts the server that all tests of this program share.
    static BUCKET: OnceLock<dfstore_tests::bucket::Bucket> = OnceLock::new();
    let endpoint = &BUCKET.get_or_init(|| seaweed::bucket().expect("SeaweedFS starts")).endpoint;
    Server {
        rig: Rig::new(Provider::S3, endpoint, BackendTuning::default()),
        limits: Limits {
            no_etags_in_listings: false,
            writes_whatever_is_there: false,
            no_etags_of_parts: false,
            unknown_uploads_not_told: false,
            missing_bucket_is_missing_object: false,
            no_checksums: false,
            no_checksums_of_parts: false,
            completion_overwrites: false,
            lists_in_path_order: true,
            unkept_keys: SEAWEED_UNKEPT,
        },
        bucket_prefix: "weed",
        oss: None,
    }
}

pub fn strict_oss() -> Server {
    static FRONT: OnceLock<OssFront> = OnceLock::new();
    let front = FRONT.get_or_init(|| OssFront::start().expect("the front starts"));
    Server {
        rig: Rig::new(Provider::Oss, &front.endpoint(), BackendTuning::default()),
        limits: Limits {
            no_etags_in_listings: true,
            writes_whatever_is_there: true,
            no_etags_of_parts: true,
            unknown_uploads_not_told: false,
            missing_bucket_is_missing_object: false,
            no_checksums: true,
            no_checksums_of_parts: true,
            completion_overwrites: false,
            lists_in_path_order: false,
            unkept_keys: NO_FILE_NAMES,
        },
        bucket_prefix: "oss",
        oss: Some(front),
    }
}
