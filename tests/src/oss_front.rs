//! A front that refuses what OSS's S3-compatible endpoint refuses, and answers as OSS does.
//!
//! It listens as `oss.localhost` and serves a bucket only as `BUCKET.oss.localhost` (virtual-host style). Behind it is
//! s3s-fs. Refused, with OSS's codes: path style, `aws-chunked` bodies, any `x-amz-checksum-*` header or trailer,
//! multi-delete without `Content-MD5`, `If-None-Match` on writes. Understood instead: `x-oss-forbid-overwrite`. Where
//! s3s-fs knows less than OSS (conditions on reads, missing buckets, unknown uploads), the front adds
//! it. Sources: Alibaba Cloud's pages on S3 compatibility and on error responses.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, header};
use hyper::body::Incoming;
use tempfile::TempDir;

use crate::bucket::S3Endpoint;
use crate::dirs;
use crate::s3s_server::{self, Cut, FolderService, Front, Served};

/// The running front.
pub struct OssFront {
    served: Served,
    state: Arc<State>,
    _folder: TempDir,
}

struct State {
    service: FolderService,
    domain: String,
    refused: Mutex<Vec<&'static str>>,
}

/// A refusal: status, code and message as OSS words them.
struct Refusal(u16, &'static str, &'static str);

impl OssFront {
    /// Starts one.
    pub fn start() -> Result<OssFront> {
        let folder = dirs::temporary("oss")?;
        let mut made = None;
        let served = Served::start(|address: SocketAddr| {
            let domain = format!("oss.localhost:{}", address.port());
            let service = FolderService::new(folder.path(), Some(&domain))?;
            let state = Arc::new(State { service, domain, refused: Mutex::default() });
            made = Some(state.clone());
            Ok(state)
        })?;
        let state = made.expect("made when the server started");
        Ok(OssFront { served, state, _folder: folder })
    }

    /// The endpoint's URL and keys. Its host must be resolved to loopback by the client.
    pub fn endpoint(&self) -> S3Endpoint {
        s3s_server::endpoint(format!("http://{}", self.state.domain))
    }

    /// Where it listens, for raw requests.
    pub fn address(&self) -> SocketAddr {
        self.served.address()
    }

    /// Codes of the requests that broke one of OSS's own rules, in order. Empty for a well-behaved client.
    pub fn refused(&self) -> Vec<&'static str> {
        self.state.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl Front for State {
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Result<Response<s3s::Body>, Cut>> {
        Box::pin(async move {
            if let Some(refusal) = self.broken_rule(&request) {
                self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(refusal.1);
                return Ok(refusal.answer());
            }
            if let Some(refusal) = self.missing(&request) {
                return Ok(refusal.answer());
            }
            let wanted = request.headers().get(header::IF_MATCH).cloned();
            let reads = request.method() == Method::GET || request.method() == Method::HEAD;
            let response = self.service.call(request.map(s3s::Body::from)).await?;
            if reads && response.status().is_success() && wanted.is_some() {
                let got = response.headers().get(header::ETAG);
                if got != wanted.as_ref() {
                    return Ok(
                        Refusal(412, "PreconditionFailed", "At least one of the pre-conditions failed.").answer()
                    );
                }
            }
            Ok(response)
        })
    }
}

impl State {
    /// OSS's rules for every request.
    fn broken_rule(&self, request: &Request<Incoming>) -> Option<Refusal> {
        let headers = request.headers();
        let query = request.uri().query().unwrap_or_default();
        let has_path = request.uri().path().len() > 1;
        if self.bucket(headers).is_none() && has_path {
            let message = "Please use virtual hosted style to access.";
            return Some(Refusal(403, "SecondLevelDomainForbidden", message));
        }
        if contains(headers, "content-encoding", "aws-chunked")
            || contains(headers, "x-amz-content-sha256", "STREAMING-")
        {
            let message = "aws-chunked encoding is not supported with the specified x-amz-content-sha256 value.";
            return Some(Refusal(400, "InvalidArgument", message));
        }
        let checksum = |name: &str| {
            name.starts_with("x-amz-checksum-") || name == "x-amz-sdk-checksum-algorithm" || name == "x-amz-trailer"
        };
        if headers.keys().any(|name| checksum(name.as_str())) {
            return Some(Refusal(400, "InvalidArgument", "x-amz-checksum-* is not supported."));
        }
        let multi_delete = request.method() == Method::POST && query.split('&').any(|part| part.starts_with("delete"));
        if multi_delete && !headers.contains_key("content-md5") {
            return Some(Refusal(400, "MissingArgument", "Missing Some Required Arguments."));
        }
        let writes = request.method() == Method::PUT || request.method() == Method::POST;
        if writes && headers.contains_key(header::IF_NONE_MATCH) {
            let message = "A header you provided implies functionality that is not implemented.";
            return Some(Refusal(501, "NotImplemented", message));
        }
        None
    }

    /// What s3s-fs would answer otherwise, or not know.
    fn missing(&self, request: &Request<Incoming>) -> Option<Refusal> {
        let bucket = self.bucket(request.headers())?;
        let query = request.uri().query().unwrap_or_default();
        let key =
            percent_encoding::percent_decode_str(request.uri().path().trim_start_matches('/')).decode_utf8().ok()?;
        let folder = self.service.bucket_folder(bucket);
        let makes_bucket = request.method() == Method::PUT && key.is_empty();
        if !makes_bucket && !folder.is_dir() {
            return Some(Refusal(404, "NoSuchBucket", "The specified bucket does not exist."));
        }
        let upload_id = query.split('&').find_map(|part| part.strip_prefix("uploadId="));
        if upload_id.is_some_and(|upload_id| !self.service.has_upload(upload_id)) {
            return Some(Refusal(404, "NoSuchUpload", "The specified upload does not exist."));
        }
        let forbids = contains(request.headers(), "x-oss-forbid-overwrite", "true");
        if forbids && !key.is_empty() && folder.join(&*key).exists() {
            let message = "The object you specified already exists and can not be overwritten.";
            return Some(Refusal(409, "FileAlreadyExists", message));
        }
        None
    }

    /// The bucket in the host name.
    fn bucket<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let host = headers.get(header::HOST)?.to_str().ok()?;
        host.strip_suffix(&self.domain)?.strip_suffix('.')
    }
}

impl Refusal {
    fn answer(&self) -> Response<s3s::Body> {
        let Refusal(status, code, message) = self;
        s3s_server::refusal(*status, code, message)
    }
}

fn contains(headers: &HeaderMap, name: &str, part: &str) -> bool {
    headers.get_all(name).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_style_is_refused() {
        let front = OssFront::start().expect("a front");
        // The kit's own client uses paths.
        let through_path = S3Endpoint { url: format!("http://{}", front.address()), ..front.endpoint() };
        let error = through_path.bucket("some-bucket").put("key", b"x").expect_err("refused");
        assert!(format!("{error:?}").contains("SecondLevelDomainForbidden"), "{error:?}");
        assert_eq!(front.refused(), ["SecondLevelDomainForbidden"]);
    }
}
