//! Buckets: listing, making, asking for one.
//!
//! Listings use ListObjects version 1, whose marker is a key: it means the same to every provider, also together with
//! a delimiter, and survives restarts. Keys come URL-encoded (XML cannot carry control characters) and are decoded
//! exactly once, and only if the answer says that they are encoded. A page always moves on from its marker. Entries come
//! in the server's order, which on some servers is that of paths, not of bytes.

use std::borrow::Cow;

use aws_sdk_s3::operation::list_objects::ListObjectsOutput;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration, EncodingType, Object};
use dfstore_proto::object::ObjectMeta;
use percent_encoding::percent_decode_str;

use super::S3Backend;
use super::read::{milliseconds, non_negative, owned};
use super::write::text;
use crate::limits::LIST_LIMIT_MAX;
use crate::metrics::BackendOperation;
use crate::sidecar::backend::error::BackendErrorKind;
use crate::sidecar::backend::{ListEntry, ListPage, ListRequest, Result};

impl S3Backend {
    pub(super) async fn list_page(&self, request: &ListRequest) -> Result<ListPage> {
        let ListRequest { bucket, limit, .. } = request;
        self.check_bucket(BackendOperation::List, bucket)?;
        assert!((1..=LIST_LIMIT_MAX).contains(limit), "a page of {limit} entries");
        let sent = self
            .client
            .list_objects()
            .bucket(bucket)
            .set_prefix(text(&request.prefix))
            .set_marker(text(&request.marker))
            .set_delimiter(text(&request.delimiter))
            .encoding_type(EncodingType::Url)
            .max_keys(i32::try_from(*limit).expect("bounded above"))
            .send();
        let attempt = self.attempt(BackendOperation::List, bucket);
        let answer = attempt.answer(sent, None).await;
        attempt.end(answer.map(|answer| page_of(&answer, &request.marker)).and_then(|page| {
            // Not "comes after": not every server lists in the order of bytes.
            if page.truncated && (page.next_marker == request.marker || page.next_marker.is_empty()) {
                let message = format!("the listing does not move on from {:?}", request.marker);
                return Err((BackendErrorKind::BadAnswer, message));
            }
            Ok(page)
        }))
    }

    pub(super) async fn make_bucket(&self, bucket: &str) -> Result<()> {
        self.check_bucket(BackendOperation::CreateBucket, bucket)?;
        let configuration = self.profile.location_constraint.as_deref().map(|region| {
            CreateBucketConfiguration::builder().location_constraint(BucketLocationConstraint::from(region)).build()
        });
        let sent = self.client.create_bucket().bucket(bucket).set_create_bucket_configuration(configuration).send();
        self.ask(BackendOperation::CreateBucket, &bucket, sent).await.map(drop)
    }

    pub(super) async fn ask_bucket(&self, bucket: &str) -> Result<()> {
        self.check_bucket(BackendOperation::HeadBucket, bucket)?;
        let sent = self.client.head_bucket().bucket(bucket).send();
        self.ask(BackendOperation::HeadBucket, &bucket, sent).await.map(drop)
    }
}

fn page_of(answer: &ListObjectsOutput, marker: &str) -> ListPage {
    let encoding = answer.encoding_type();
    let entries: Vec<ListEntry> = answer.contents().iter().filter_map(|object| entry(encoding, object)).collect();
    let common_prefixes: Vec<String> = answer
        .common_prefixes()
        .iter()
        .filter_map(|rolled_up| rolled_up.prefix())
        .map(|prefix| decoded(encoding, prefix).into_owned())
        // Some servers give the prefix that the last page ended with once more.
        .filter(|prefix| prefix != marker)
        .collect();
    let truncated = answer.is_truncated().unwrap_or(false);
    let last_names = [entries.last().map(|entry| &entry.key), common_prefixes.last()];
    let next_marker = match answer.next_marker() {
        _ if !truncated => String::new(),
        Some(next) => {
            // It is the last name of the page; SeaweedFS encodes names, but not this.
            let readings = [Cow::Borrowed(next), decoded(encoding, next)];
            let named = readings.iter().find(|reading| last_names.into_iter().flatten().any(|name| name == *reading));
            named.unwrap_or(&readings[1]).to_string()
        }
        None => last_names.into_iter().flatten().max().cloned().unwrap_or_default(),
    };
    ListPage { entries, common_prefixes, truncated, next_marker }
}

fn entry(encoding: Option<&EncodingType>, object: &Object) -> Option<ListEntry> {
    let meta = ObjectMeta {
        length: non_negative(object.size()),
        etag: owned(object.e_tag()),
        last_modified_ms: milliseconds(object.last_modified()),
        storage_class: owned(object.storage_class().map(|class| class.as_str())),
        ..ObjectMeta::default()
    };
    Some(ListEntry { key: decoded(encoding, object.key()?).into_owned(), meta })
}

/// A key as the backend keeps it.
pub(super) fn decoded<'a>(encoding: Option<&EncodingType>, text: &'a str) -> Cow<'a, str> {
    if encoding != Some(&EncodingType::Url) {
        return Cow::Borrowed(text);
    }
    // As in forms, a plus stands for a space; a plus itself always comes as %2B.
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_once_and_only_if_encoded() {
        let url = Some(&EncodingType::Url);
        assert_eq!(decoded(url, "a+b%2Bc%252F%01"), "a b+c%2F\u{1}");
        assert_eq!(decoded(None, "a+b%2B"), "a+b%2B");
    }
}
