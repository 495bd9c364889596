//! The demo's S3 server as a process: it keeps objects, checks signatures, and says how it wants to be called.

use std::fs;
use std::process::Command;
use std::time::Duration;

use dfstore_tests::bucket::S3Endpoint;
use dfstore_tests::peer::listening_address;
use dfstore_tests::process::{Process, leashed};
use dfstore_tests::{dirs, eventually};

const SERVER: &str = env!("CARGO_BIN_EXE_dfstore-test-s3");
const DEMO: &str = env!("CARGO_BIN_EXE_dfstore-demo");

#[test]
fn keeps_objects_and_refuses_wrong_signatures() {
    let folder = dirs::temporary("test-s3").expect("folder");
    let objects = folder.path().join("objects");
    fs::create_dir(&objects).expect("created");
    let mut command = leashed(SERVER);
    command.arg("--dir").arg(&objects).args(["--access-key", "key", "--secret-key", "secret"]);
    let server = Process::start("dfstore-test-s3", command, &folder.path().join("log")).expect("starts");
    let address = eventually("it listens", Duration::from_secs(20), || listening_address(&server.log()));
    let url = format!("http://{}", address.expect("listens"));
    let endpoint =
        |secret: &str| S3Endpoint { url: url.clone(), access_key: "key".to_owned(), secret_key: secret.to_owned() };
    let bucket = endpoint("secret").bucket("demo");
    bucket.create().expect("created");
    bucket.put("a/b", b"bytes").expect("put");
    assert_eq!(bucket.get("a/b").expect("got").as_deref(), Some(&b"bytes"[..]));
    assert!(endpoint("wrong").bucket("demo").get("a/b").is_err());
}

#[test]
fn wrong_usage_exits_with_2() {
    let wrong = [(SERVER, &["--bogus"][..]), (DEMO, &["--size", "huge"]), (DEMO, &["--peers", "2"])];
    for (program, arguments) in wrong {
        let output = Command::new(program).args(arguments).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
