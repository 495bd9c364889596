//! ListMultipartUploads for s3s-fs, which does not know it: what its folder says about uploads in progress.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// An upload in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InProgress {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Its name.
    pub upload_id: String,
    begun: SystemTime,
}

/// The uploads in progress, by key. Those that were begun without any metadata are not seen: ours have some.
pub fn in_progress(root: &Path) -> Vec<InProgress> {
    let names = fs::read_dir(root).into_iter().flatten().flatten();
    let mut found: Vec<InProgress> = names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (bucket, rest) = name.strip_prefix(".bucket-")?.split_once(".object-")?;
            let (key, upload_id) = rest.strip_suffix(".metadata.json")?.split_once(".upload-")?;
            let begun = fs::metadata(root.join(format!(".upload-{upload_id}.json"))).ok()?.modified().ok()?;
            let (bucket, key) = (decode(bucket)?, decode(key)?);
            Some(InProgress { bucket, key, upload_id: upload_id.to_owned(), begun })
        })
        .collect();
    found.sort_by(|left, right| left.key.cmp(&right.key));
    found
}

/// The answer to ListMultipartUploads of a bucket.
pub fn listing(root: &Path, bucket: &str, prefix: &str) -> String {
    let all = in_progress(root);
    let wanted = all.iter().filter(|upload| upload.bucket == bucket && upload.key.starts_with(prefix));
    let uploads: String = wanted
        .map(|InProgress { key, upload_id, begun, .. }| {
            let key = utf8_percent_encode(key, NON_ALPHANUMERIC);
            let begun = httpdate_to_iso(*begun);
            format!("<Upload><Key>{key}</Key><UploadId>{upload_id}</UploadId><Initiated>{begun}</Initiated></Upload>")
        })
        .collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>{bucket}</Bucket>\
         <EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{uploads}</ListMultipartUploadsResult>"
    )
}

/// A time as S3 writes it.
fn httpdate_to_iso(time: SystemTime) -> String {
    let format = aws_sdk_s3::primitives::DateTimeFormat::DateTime;
    let time = aws_sdk_s3::primitives::DateTime::from(time);
    time.fmt(format).expect("a time of today")
}

/// Base64 with the alphabet of URLs and without padding, as s3s-fs names its files.
fn decode(text: &str) -> Option<String> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for byte in text.bytes() {
        let value = ALPHABET.iter().position(|letter| *letter == byte)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xFF).ok()?);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_decoded() {
        for (text, name) in [("Zg", "f"), ("Zm8", "fo"), ("Zm9v", "foo"), ("YT8-L2I", "a?>/b")] {
            assert_eq!(decode(text).as_deref(), Some(name));
        }
        assert_eq!(decode("a=b"), None);
    }
}
