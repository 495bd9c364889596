//! Writing whole objects, copying and deleting.
//!
//! A write carries its CRC32 as a header where the provider checks it; where the answer carries one, it is compared.

use std::collections::HashMap;

use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_smithy_types::base64;
use dfstore_proto::ids::ObjectName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::S3Backend;
use super::read::{DIGEST_METADATA, VERSION_METADATA, owned};
use crate::metrics::BackendOperation;
use crate::sidecar::backend::body::UploadBody;
use crate::sidecar::backend::error::BackendErrorKind;
use crate::sidecar::backend::failure::Refusal;
use crate::sidecar::backend::{BodySource, PutRequest, Result, Stored};

/// OSS's way to write only if there is no such object.
pub(super) const FORBID_OVERWRITE: &str = "x-oss-forbid-overwrite";

/// What stands for itself in the header that names the source of a copy.
const COPY_SOURCE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl S3Backend {
    pub(super) async fn put_object(&self, request: &PutRequest, body: BodySource) -> Result<Stored> {
        let name = &request.name;
        self.check_name(BackendOperation::Put, name)?;
        let body = UploadBody::new(body);
        let length = body.length_bytes();
        let Ok(announced) = i64::try_from(length) else {
            return self.refuse(BackendOperation::Put, name, "the object is too long");
        };
        let crc32 = request.crc32.filter(|_| self.profile.sends_checksums).map(crc32_header);
        let progress = body.progress();
        let fluent = self
            .client
            .put_object()
            .bucket(&name.bucket)
            .key(&name.key)
            .content_length(announced)
            .set_checksum_crc32(crc32.clone());
        let fluent = with_attributes(fluent, request);
        let condition = self.profile.condition_headers(&request.condition);
        let sent = fluent
            .set_if_none_match(condition.if_none_match)
            .set_if_match(condition.if_match)
            .body(body.into_stream())
            .customize()
            .mutate_request(move |request| {
                if condition.forbid_overwrite {
                    request.headers_mut().insert(FORBID_OVERWRITE, "true");
                }
            })
            .send();
        let attempt = self.attempt(BackendOperation::Put, name);
        let answer = attempt.answer(sent, Some(progress)).await;
        let answer = attempt.end(answer.and_then(|answer| {
            same_crc32(crc32.as_deref(), answer.checksum_crc32())?;
            Ok(answer)
        }))?;
        self.metrics.backend_sent(length);
        Ok(Stored { etag: owned(answer.e_tag()) })
    }

    pub(super) async fn copy_object(&self, source: &ObjectName, target: &ObjectName) -> Result<Stored> {
        self.check_name(BackendOperation::Copy, source)?;
        self.check_name(BackendOperation::Copy, target)?;
        let sent =
            self.client.copy_object().bucket(&target.bucket).key(&target.key).copy_source(copy_source(source)).send();
        let answer = self.ask(BackendOperation::Copy, source, sent).await?;
        Ok(Stored { etag: owned(answer.copy_object_result().and_then(|result| result.e_tag())) })
    }

    pub(super) async fn delete_object(&self, name: &ObjectName) -> Result<()> {
        self.check_name(BackendOperation::Delete, name)?;
        let sent = self.client.delete_object().bucket(&name.bucket).key(&name.key).send();
        match self.ask(BackendOperation::Delete, name, sent).await {
            Err(error) if error.kind == BackendErrorKind::NotFound => Ok(()),
            result => result.map(drop),
        }
    }
}

/// A checksum in the answer must be the one that was sent.
pub(super) fn same_crc32(sent: Option<&str>, answered: Option<&str>) -> std::result::Result<(), Refusal> {
    match (sent, answered) {
        (Some(sent), Some(answered)) if sent != answered => {
            Err((BackendErrorKind::BadAnswer, format!("sent CRC32 {sent}, the backend has {answered}")))
        }
        _ => Ok(()),
    }
}

fn copy_source(source: &ObjectName) -> String {
    let key = utf8_percent_encode(&source.key, COPY_SOURCE);
    format!("{}/{key}", source.bucket)
}

/// A CRC32 as the header carries it: base64 of its four bytes, most significant first.
pub(super) fn crc32_header(crc32: u32) -> String {
    base64::encode(crc32.to_be_bytes())
}

pub(super) fn text(value: &str) -> Option<String> {
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

fn with_attributes(fluent: PutObjectFluentBuilder, request: &PutRequest) -> PutObjectFluentBuilder {
    let meta = &request.meta;
    fluent
        .set_content_type(text(&meta.content_type))
        .set_content_encoding(text(&meta.content_encoding))
        .set_content_disposition(text(&meta.content_disposition))
        .set_content_language(text(&meta.content_language))
        .set_metadata(user_metadata(request))
}

/// What is kept with an object under names of our own.
pub(super) fn user_metadata(request: &PutRequest) -> Option<HashMap<String, String>> {
    let all = [(DIGEST_METADATA, &request.meta.digest), (VERSION_METADATA, &request.written_as)];
    let kept = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), text(value)?)));
    Some(kept.collect::<HashMap<_, _>>()).filter(|kept| !kept.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_source_is_encoded_once() {
        assert_eq!(copy_source(&ObjectName::new("b", "a b/+%2F?é")), "b/a%20b/%2B%252F%3F%C3%A9");
    }

    #[test]
    fn crc32_is_sent_as_s3_writes_it() {
        // The CRC32 of "123456789" is 0xcbf43926.
        assert_eq!(crc32_header(crc32fast::hash(b"123456789")), "y/Q5Jg==");
    }
}
