//! Multipart uploads: parts may come in any order and again, also after a restart.
//!
//! Each part carries its CRC32 where the provider checks it. AWS also checks the CRC32 of the whole object, combined
//! from those of its pieces; others check each part's once more when the upload is completed.

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart, EncodingType, Part};
use aws_smithy_types::base64;

use super::read::{non_negative, owned};
use super::write::{FORBID_OVERWRITE, crc32_header, same_crc32, text, user_metadata};
use super::{BackendError, S3Backend};
use crate::limits::PARTS_MAX;
use crate::metrics::BackendOperation;
use crate::sidecar::backend::body::UploadBody;
use crate::sidecar::backend::error::BackendErrorKind;
use crate::sidecar::backend::s3::bucket::decoded;
use crate::sidecar::backend::{BodySource, ListedUpload, PutRequest, Result, Stored, Upload, UploadedPart};
use dfstore_proto::ids::ObjectName;

impl S3Backend {
    pub(super) async fn create_multipart(&self, request: &PutRequest) -> Result<Upload> {
        let PutRequest { name, meta, .. } = request;
        self.check_name(BackendOperation::CreateUpload, name)?;
        let sent = self
            .client
            .create_multipart_upload()
            .bucket(&name.bucket)
            .key(&name.key)
            .set_content_type(text(&meta.content_type))
            .set_content_encoding(text(&meta.content_encoding))
            .set_content_disposition(text(&meta.content_disposition))
            .set_content_language(text(&meta.content_language))
            .set_metadata(user_metadata(request))
            .set_checksum_algorithm(self.profile.sends_checksums.then_some(ChecksumAlgorithm::Crc32))
            .set_checksum_type(self.profile.checks_whole_object.then_some(ChecksumType::FullObject))
            .send();
        let answer = self.ask(BackendOperation::CreateUpload, name, sent).await?;
        match answer.upload_id() {
            Some(upload_id) if !upload_id.is_empty() => {
                Ok(Upload { name: name.clone(), upload_id: upload_id.to_owned() })
            }
            _ => Err(BackendError {
                kind: BackendErrorKind::BadAnswer,
                operation: BackendOperation::CreateUpload,
                target: name.to_string(),
                message: "the answer has no upload ID".to_owned(),
            }),
        }
    }

    pub(super) async fn upload_part(
        &self,
        upload: &Upload,
        number: u32,
        crc32: u32,
        body: BodySource,
    ) -> Result<UploadedPart> {
        assert!((1..=PARTS_MAX).contains(&u64::from(number)), "part number {number}");
        let name = &upload.name;
        let body = UploadBody::new(body);
        let length_bytes = body.length_bytes();
        let Ok(announced) = i64::try_from(length_bytes) else {
            return self.refuse(BackendOperation::UploadPart, name, "the part is too long");
        };
        let progress = body.progress();
        let checksum = self.profile.sends_checksums.then(|| crc32_header(crc32));
        let sent = self
            .client
            .upload_part()
            .bucket(&name.bucket)
            .key(&name.key)
            .upload_id(&upload.upload_id)
            .part_number(number.cast_signed())
            .content_length(announced)
            .set_checksum_crc32(checksum.clone())
            .body(body.into_stream())
            .send();
        let attempt = self.attempt(BackendOperation::UploadPart, name);
        let answer = attempt.answer(sent, Some(progress)).await;
        let checked = answer.and_then(|answer| {
            same_crc32(checksum.as_deref(), answer.checksum_crc32())?;
            Ok(answer)
        });
        let answer = attempt.end(checked).map_err(missing_upload)?;
        self.metrics.backend_sent(length_bytes);
        Ok(UploadedPart { number, etag: owned(answer.e_tag()), length_bytes, crc32: Some(crc32) })
    }

    pub(super) async fn complete_multipart(
        &self,
        upload: &Upload,
        request: &PutRequest,
        parts: &[UploadedPart],
    ) -> Result<Stored> {
        let name = &upload.name;
        let whole = request.crc32.filter(|_| self.profile.checks_whole_object).map(crc32_header);
        let completed = parts.iter().map(|part| self.completed(part)).collect();
        let condition = self.profile.condition_headers(&request.condition);
        let sent = self
            .client
            .complete_multipart_upload()
            .bucket(&name.bucket)
            .key(&name.key)
            .upload_id(&upload.upload_id)
            .set_if_none_match(condition.if_none_match)
            .set_if_match(condition.if_match)
            .set_checksum_type(whole.is_some().then_some(ChecksumType::FullObject))
            .set_checksum_crc32(whole.clone())
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(completed)).build())
            .customize()
            .mutate_request(move |request| {
                if condition.forbid_overwrite {
                    request.headers_mut().insert(FORBID_OVERWRITE, "true");
                }
            })
            .send();
        let attempt = self.attempt(BackendOperation::CompleteUpload, name);
        let answer = attempt.answer(sent, None).await;
        let checked = answer.and_then(|answer| {
            same_crc32(whole.as_deref(), answer.checksum_crc32())?;
            Ok(answer)
        });
        let answer = attempt.end(checked).map_err(missing_upload)?;
        Ok(Stored { etag: owned(answer.e_tag()) })
    }

    fn completed(&self, part: &UploadedPart) -> CompletedPart {
        let crc32 = part.crc32.filter(|_| self.profile.sends_checksums).map(crc32_header);
        CompletedPart::builder()
            .part_number(part.number.cast_signed())
            .e_tag(&part.etag)
            .set_checksum_crc32(crc32)
            .build()
    }

    pub(super) async fn abort_multipart(&self, upload: &Upload) -> Result<()> {
        let name = &upload.name;
        let sent = self
            .client
            .abort_multipart_upload()
            .bucket(&name.bucket)
            .key(&name.key)
            .upload_id(&upload.upload_id)
            .send();
        match self.ask(BackendOperation::AbortUpload, name, sent).await {
            Err(error) if matches!(error.kind, BackendErrorKind::NoSuchUpload | BackendErrorKind::NotFound) => Ok(()),
            result => result.map(drop),
        }
    }

    pub(super) async fn parts_of(&self, upload: &Upload) -> Result<Vec<UploadedPart>> {
        let name = &upload.name;
        let mut parts = Vec::new();
        let mut marker = None;
        loop {
            let sent = self
                .client
                .list_parts()
                .bucket(&name.bucket)
                .key(&name.key)
                .upload_id(&upload.upload_id)
                .set_part_number_marker(marker)
                .send();
            let page = self.ask(BackendOperation::ListParts, name, sent).await.map_err(missing_upload)?;
            parts.extend(page.parts().iter().filter_map(found));
            marker = page.next_part_number_marker().map(ToOwned::to_owned);
            let more = page.is_truncated().unwrap_or(false) && marker.is_some() && !page.parts().is_empty();
            if !more || parts.len() as u64 >= PARTS_MAX {
                parts.sort_unstable_by_key(|part| part.number);
                return Ok(parts);
            }
        }
    }

    pub(super) async fn uploads_of(&self, bucket: &str, prefix: &str) -> Result<Vec<ListedUpload>> {
        self.check_bucket(BackendOperation::ListUploads, bucket)?;
        let sent =
            self.client.list_multipart_uploads().bucket(bucket).prefix(prefix).encoding_type(EncodingType::Url).send();
        let page = self.ask(BackendOperation::ListUploads, &bucket, sent).await?;
        let encoding = page.encoding_type();
        let uploads = page.uploads().iter().filter_map(|upload| {
            let key = decoded(encoding, upload.key()?);
            let begun_at_ms = upload.initiated().and_then(|at| at.to_millis().ok()?.try_into().ok()).unwrap_or(0);
            let upload_id = upload.upload_id()?.to_owned();
            Some(ListedUpload { upload: Upload { name: ObjectName::new(bucket, key), upload_id }, begun_at_ms })
        });
        Ok(uploads.collect())
    }
}

/// In the life of an upload, a missing object is a missing upload.
fn missing_upload(error: BackendError) -> BackendError {
    match error.kind {
        BackendErrorKind::NotFound => BackendError { kind: BackendErrorKind::NoSuchUpload, ..error },
        _ => error,
    }
}

fn found(part: &Part) -> Option<UploadedPart> {
    let crc32 = part.checksum_crc32().and_then(|text| base64::decode(text).ok());
    Some(UploadedPart {
        number: u32::try_from(part.part_number()?).ok()?,
        etag: owned(part.e_tag()),
        length_bytes: non_negative(part.size()),
        crc32: crc32.and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes),
    })
}
