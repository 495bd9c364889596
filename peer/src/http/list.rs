//! `GET /buckets/:id/metadatas`: a page of a listing as the original's JSON, with two fields that tell whether there is
//! more.

use serde::Serialize;

use crate::engine::request::{ListEntry, ListPage, ListRequest};
use crate::engine::{ObjectError, target_of};
use crate::http::HttpFace;
use crate::http::answer::{self, Answer};
use crate::http::route::{first, pairs};
use crate::limits::LIST_LIMIT_MAX;

/// Answers a listing.
pub async fn list(face: &HttpFace, bucket: &str, query: Option<&str>) -> Result<Answer, ObjectError> {
    let page = face.engine.list(&request_of(bucket, query.unwrap_or_default())?).await?;
    Ok(answer::json(&Listing::from(page)))
}

/// What the query asks for. No limit, or 0, is the default, which is also the most.
fn request_of(bucket: &str, query: &str) -> Result<ListRequest, ObjectError> {
    // A listing names no key; any valid one lets the bucket be checked by the same rule.
    target_of(bucket, "-")?;
    let pairs = pairs(query)?;
    let text = |name| first(&pairs, name).unwrap_or_default().to_owned();
    let limit = match first(&pairs, "limit") {
        None | Some("") => 0,
        Some(limit) => limit.parse::<u64>().map_err(|error| {
            ObjectError::InvalidArgument(format!("limit must be a number from 0 to {LIST_LIMIT_MAX}: {error}"))
        })?,
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(LIST_LIMIT_MAX);
    Ok(ListRequest {
        bucket: bucket.to_owned(),
        prefix: text("prefix"),
        marker: text("marker"),
        delimiter: text("delimiter"),
        limit: if limit == 0 { LIST_LIMIT_MAX } else { limit },
    })
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listing {
    common_prefixes: Vec<String>,
    metadatas: Vec<Metadata>,
    is_truncated: bool,
    next_marker: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    key: String,
    content_disposition: String,
    content_encoding: String,
    content_language: String,
    content_length: u64,
    content_type: String,
    #[serde(rename = "ETag")]
    etag: String,
    digest: String,
    last_modified_time: String,
    storage_class: String,
}

impl From<ListPage> for Listing {
    fn from(page: ListPage) -> Listing {
        Listing {
            common_prefixes: page.common_prefixes,
            metadatas: page.entries.into_iter().map(Metadata::from).collect(),
            is_truncated: page.truncated,
            next_marker: page.next_marker,
        }
    }
}

impl From<ListEntry> for Metadata {
    fn from(entry: ListEntry) -> Metadata {
        let meta = entry.meta;
        Metadata {
            key: entry.key,
            content_disposition: meta.content_disposition,
            content_encoding: meta.content_encoding,
            content_language: meta.content_language,
            content_length: meta.length,
            content_type: meta.content_type,
            etag: meta.etag,
            digest: meta.digest,
            last_modified_time: rfc3339(meta.last_modified_ms / 1000),
            storage_class: meta.storage_class,
        }
    }
}

/// A time in seconds since the Unix epoch as `2023-01-02T03:04:05Z`.
fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of year 0, so that the leap day is the last of its year, in eras of 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use dfstore_proto::object::ObjectMeta;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_by_table() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_672_628_645, "2023-01-02T03:04:05Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }

    proptest! {
        #[test]
        fn times_agree_with_http_dates(seconds in 0u64..250_000_000_000) {
            let http = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            let ours = rfc3339(seconds);
            prop_assert_eq!(&http[5..7], &ours[8..10]);
            prop_assert_eq!(&http[12..16], &ours[..4]);
            prop_assert_eq!(&http[17..25], &ours[11..19]);
        }
    }

    #[test]
    fn the_document_has_the_names_that_clients_read() {
        let meta = ObjectMeta { length: 7, etag: "\"e\"".into(), last_modified_ms: 5999, ..ObjectMeta::default() };
        let page = ListPage {
            entries: vec![ListEntry { key: "k".into(), meta }],
            common_prefixes: vec!["p/".into()],
            truncated: true,
            next_marker: "k".into(),
        };
        let expected = concat!(
            r#"{"CommonPrefixes":["p/"],"Metadatas":[{"Key":"k","ContentDisposition":"","ContentEncoding":"","#,
            r#""ContentLanguage":"","ContentLength":7,"ContentType":"","ETag":"\"e\"","Digest":"","#,
            r#""LastModifiedTime":"1970-01-01T00:00:05Z","StorageClass":""}],"IsTruncated":true,"NextMarker":"k"}"#
        );
        assert_eq!(serde_json::to_string(&Listing::from(page)).expect("serialises"), expected);
        let empty = r#"{"CommonPrefixes":[],"Metadatas":[],"IsTruncated":false,"NextMarker":""}"#;
        assert_eq!(serde_json::to_string(&Listing::from(ListPage::default())).expect("serialises"), empty);
    }

    #[test]
    fn limits_by_table() {
        for (query, limit) in [("", 1000), ("limit=", 1000), ("limit=0", 1000), ("limit=7", 7), ("limit=5000", 1000)] {
            assert_eq!(request_of("b", query).expect("valid").limit, limit, "{query}");
        }
        for query in ["limit=-1", "limit=x", "limit=1.5", "prefix=%"] {
            assert!(request_of("b", query).is_err(), "{query}");
        }
        assert!(request_of("", "").is_err());
        let request = request_of("b", "prefix=a%2Bb/&marker=a+b&delimiter=%2F&limit=1").expect("valid");
        assert_eq!((&*request.prefix, &*request.marker, &*request.delimiter), ("a+b/", "a b", "/"));
    }
}
