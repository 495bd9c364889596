//! Readers as outside processes: one `curl` each, in a network namespace of its own, that throws away what it reads.
//!
//! A reader that fails, is answered with an error, or gets another number of bytes than it should is an error. All are
//! bounded in time.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use dfstore_tests::bucket::S3Endpoint;
use dfstore_tests::eventually;
use dfstore_tests::process::{leashed_in, spawn};

/// What curl may take beyond the time it is given.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// One reader.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Network namespace it runs in.
    pub namespace: Option<String>,
    /// What it reads.
    pub url: String,
    /// Signs its request for S3 with these keys.
    pub keys: Option<S3Endpoint>,
}

impl Reader {
    fn command(&self, time_max: Duration) -> Command {
        let mut command = leashed_in(self.namespace.as_deref(), "curl");
        command.args([
            "--silent",
            "--show-error",
            "--output",
            "/dev/null",
            "--max-time",
            &time_max.as_secs().to_string(),
        ]);
        command.args(["--write-out", "%{http_code} %{size_download} %{time_total}"]);
        if let Some(S3Endpoint { access_key, secret_key, .. }) = &self.keys {
            command.args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &format!("{access_key}:{secret_key}")]);
            // Of no body; older versions of curl do not send it themselves.
            command.args([
                "--header",
                "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ]);
        }
        command.arg(&self.url).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn read(&self, length: u64, time_max: Duration) -> Result<Duration> {
        let mut child = spawn(self.command(time_max)).context("curl is needed")?;
        // What it says fits into its pipes.
        let ended = eventually("curl ends", time_max + STOP_TIMEOUT, || child.try_wait().transpose());
        if ended.is_err() {
            let _ = child.kill();
        }
        let output = child.wait_with_output().context("waiting for curl")?;
        ended?.context("waiting for curl")?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "curl {}: {}: {said}", self.url, output.status);
        let (status, received, took) = report(&String::from_utf8_lossy(&output.stdout))?;
        ensure!(
            status == 200 && received == length,
            "curl {}: status {status}, {received} of {length} bytes",
            self.url
        );
        Ok(took)
    }
}

/// Lets all readers read at once; gives how long each of them took.
pub fn read_at_once(readers: &[Reader], length: u64, time_max: Duration) -> Result<Vec<Duration>> {
    thread::scope(|scope| {
        let threads: Vec<_> = readers.iter().map(|reader| scope.spawn(move || reader.read(length, time_max))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a reader panicked"))?).collect()
    })
}

/// Status, bytes and time, as our `--write-out` has them.
fn report(text: &str) -> Result<(u16, u64, Duration)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [status, bytes, seconds] = words.as_slice() else { return Err(anyhow!("not what curl should say: {text:?}")) };
    let seconds: f64 = seconds.parse().with_context(|| format!("time of curl {seconds:?}"))?;
    Ok((status.parse()?, bytes.parse()?, Duration::try_from_secs_f64(seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfstore_tests::s3s_server::S3sServer;

    #[test]
    fn reads_a_report() {
        assert_eq!(report("200 1024 1.500000").expect("a report"), (200, 1024, Duration::from_millis(1500)));
        assert!(report("200 1024").is_err() && report("200 1024 -1").is_err());
    }

    #[test]
    fn signed_requests_read_a_bucket() {
        let server = S3sServer::start().expect("a server");
        let bucket = server.bucket("curl").expect("a bucket");
        bucket.put("a/b", &[3; 5000]).expect("put");
        let url = format!("{}/curl/a/b", bucket.endpoint.url);
        let reader = Reader { namespace: None, url, keys: Some(bucket.endpoint.clone()) };
        let time_max = Duration::from_secs(20);
        assert_eq!(read_at_once(&[reader.clone(), reader.clone()], 5000, time_max).expect("read").len(), 2);
        assert!(read_at_once(std::slice::from_ref(&reader), 5001, time_max).is_err(), "one byte is missing");
        let unsigned = Reader { keys: None, ..reader };
        let refused = read_at_once(&[unsigned], 5000, time_max).expect_err("not signed").to_string();
        assert!(refused.contains("403"), "{refused}");
    }
}
