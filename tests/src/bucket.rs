//! Direct access to a bucket behind the peer's back: what tests use to put objects there and to see what arrived.
//!
//! Blocking calls over the AWS SDK, on a tokio runtime of this module's own. It is the only part of the kit that knows
//! S3; it trusts nothing the peer says. Errors are the SDK's, with the operation and the key.

use std::future::Future;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::primitives::ByteStream;
use tokio::runtime::Runtime;

/// Where an S3 server listens and who may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Endpoint {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// Access key ID.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
}

impl S3Endpoint {
    /// A bucket of this server; it is not created.
    pub fn bucket(&self, name: &str) -> Bucket {
        Bucket { name: name.to_owned(), endpoint: self.clone(), client: client(self) }
    }
}

/// A bucket.
#[derive(Clone)]
pub struct Bucket {
    /// Name.
    pub name: String,
    /// Server it is on.
    pub endpoint: S3Endpoint,
    client: Client,
}

/// What the bucket says about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Length in bytes.
    pub length: u64,
    /// Entity tag, with its quotes.
    pub etag: String,
    /// `Content-Type`.
    pub content_type: String,
    /// User metadata, sorted by name.
    pub metadata: Vec<(String, String)>,
}

impl Bucket {
    /// Creates it.
    pub fn create(&self) -> Result<()> {
        let created = wait(self.client.create_bucket().bucket(&self.name).send());
        created.map(drop).with_context(|| format!("create bucket {}", self.name))
    }

    /// Puts an object; gives its entity tag.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<String> {
        let body = ByteStream::from(bytes.to_vec());
        let put = wait(self.client.put_object().bucket(&self.name).key(key).body(body).send());
        let put = put.with_context(|| format!("put {key:?}"))?;
        Ok(put.e_tag.unwrap_or_default())
    }

    /// An object's bytes; `None` when there is none.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let got = wait(self.client.get_object().bucket(&self.name).key(key).send());
        match got {
            Ok(object) => {
                let body = wait(object.body.collect()).with_context(|| format!("the body of {key:?}"))?;
                Ok(Some(body.to_vec()))
            }
            Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_key()) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("get {key:?}")),
        }
    }

    /// What the bucket says about an object; `None` when there is none.
    pub fn head(&self, key: &str) -> Result<Option<Stored>> {
        let head = wait(self.client.head_object().bucket(&self.name).key(key).send());
        let head = match head {
            Ok(head) => head,
            Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found()) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("head {key:?}")),
        };
        let mut metadata: Vec<_> = head.metadata.unwrap_or_default().into_iter().collect();
        metadata.sort();
        Ok(Some(Stored {
            length: u64::try_from(head.content_length.unwrap_or_default()).context("a negative length")?,
            etag: head.e_tag.unwrap_or_default(),
            content_type: head.content_type.unwrap_or_default(),
            metadata,
        }))
    }

    /// Deletes an object.
    pub fn delete(&self, key: &str) -> Result<()> {
        let deleted = wait(self.client.delete_object().bucket(&self.name).key(key).send());
        deleted.map(drop).with_context(|| format!("delete {key:?}"))
    }

    /// All keys, in the server's order.
    pub fn keys(&self) -> Result<Vec<String>> {
        let pages = self.client.list_objects_v2().bucket(&self.name).into_paginator().send();
        let pages = wait(pages.collect::<Result<Vec<_>, _>>()).with_context(|| format!("list {}", self.name))?;
        let objects = pages.into_iter().flat_map(|page| page.contents.unwrap_or_default());
        Ok(objects.filter_map(|object| object.key).collect())
    }
}

fn client(endpoint: &S3Endpoint) -> Client {
    let credentials = Credentials::new(&endpoint.access_key, &endpoint.secret_key, None, None, "dfstore-tests");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(&endpoint.url)
        .credentials_provider(credentials)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
        built.expect("a runtime without threads of its own starts")
    });
    runtime.block_on(future)
}
