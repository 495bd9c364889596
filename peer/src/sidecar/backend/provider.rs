//! What differs between providers, as data.
//!
//! Pure: a [`Profile`] is made from the options and nothing else. The client asks the profile and never the provider's
//! name, so that another provider is another row here. Sources: AWS's and Alibaba Cloud's API references.

use super::WriteCondition;
use crate::config::{BackendOptions, Provider};

/// One provider's dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Region for signatures.
    pub region: String,
    /// URL of the endpoint; `None` for AWS's own.
    pub endpoint_url: Option<String>,
    /// Whether the bucket is in the path instead of in the host name.
    pub path_style: bool,
    /// Whether writes carry `x-amz-checksum-crc32` (a header, never a trailer).
    pub sends_checksums: bool,
    /// Whether a multipart upload is checked by the CRC32 of the whole object. Only AWS and the newest others can.
    pub checks_whole_object: bool,
    /// How "only if absent" is said.
    pub only_if_absent: OnlyIfAbsent,
    /// Whether a write may carry `If-Match`.
    pub writes_if_match: bool,
    /// Location constraint of new buckets, if they need one.
    pub location_constraint: Option<String>,
}

/// How a write is made conditional on the object not being there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnlyIfAbsent {
    /// `If-None-Match: *`.
    IfNoneMatch,
    /// `x-oss-forbid-overwrite: true`.
    ForbidOverwrite,
}

/// The headers of a conditional write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConditionHeaders {
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
    /// `If-Match`.
    pub if_match: Option<String>,
    /// `x-oss-forbid-overwrite: true`.
    pub forbid_overwrite: bool,
}

impl Profile {
    /// How this provider is told of a condition.
    pub fn condition_headers(&self, condition: &WriteCondition) -> ConditionHeaders {
        let mut headers = ConditionHeaders::default();
        match condition {
            WriteCondition::Always => {}
            WriteCondition::IfAbsent => match self.only_if_absent {
                OnlyIfAbsent::IfNoneMatch => headers.if_none_match = Some("*".to_owned()),
                OnlyIfAbsent::ForbidOverwrite => headers.forbid_overwrite = true,
            },
            WriteCondition::IfMatch(etag) => headers.if_match = self.writes_if_match.then(|| etag.clone()),
        }
        headers
    }

    /// The dialect that these options ask for, in this region (empty where unknown).
    pub fn of(options: &BackendOptions, region: &str) -> Profile {
        match options.provider {
            Provider::S3 => s3(options, region),
            Provider::Oss => oss(options, region),
        }
    }

    /// Says why a bucket of this name cannot be reached, if so.
    pub fn check_bucket(&self, bucket: &str) -> Result<(), &'static str> {
        if bucket.is_empty() {
            return Err("the bucket name is empty");
        }
        let label = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if !self.path_style && self.endpoint_url.is_some() && !bucket.bytes().all(label) {
            return Err("a bucket that is part of the host name has lower-case letters, digits and hyphens only");
        }
        Ok(())
    }
}

fn s3(options: &BackendOptions, region: &str) -> Profile {
    let endpoint_url = given(options).map(with_scheme);
    let is_aws = endpoint_url.as_deref().is_none_or(|url| host(url).ends_with(".amazonaws.com"));
    let region = or_default(region, "us-east-1");
    Profile {
        location_constraint: Some(region.clone()).filter(|region| region != "us-east-1"),
        region,
        path_style: options.path_style,
        sends_checksums: true,
        checks_whole_object: is_aws,
        only_if_absent: OnlyIfAbsent::IfNoneMatch,
        writes_if_match: true,
        endpoint_url,
    }
}

fn oss(options: &BackendOptions, region: &str) -> Profile {
    let region = or_default(region.trim_start_matches("oss-"), "cn-hangzhou");
    let endpoint_url = match given(options) {
        Some(endpoint) => s3_compatible_oss(&with_scheme(endpoint)),
        None => format!("https://s3.oss-{region}.aliyuncs.com"),
    };
    Profile {
        region,
        endpoint_url: Some(endpoint_url),
        path_style: false,
        sends_checksums: false,
        checks_whole_object: false,
        only_if_absent: OnlyIfAbsent::ForbidOverwrite,
        writes_if_match: false,
        // The endpoint decides where a bucket lives.
        location_constraint: None,
    }
}

fn given(options: &BackendOptions) -> Option<&str> {
    let endpoint = options.endpoint.as_deref()?.trim().trim_end_matches('/');
    Some(endpoint).filter(|endpoint| !endpoint.is_empty())
}

/// OSS speaks S3 under another name than its own API: `oss-REGION` becomes `s3.oss-REGION`. Other hosts (a private
/// address, a front for tests) are left alone.
fn s3_compatible_oss(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, host)) if host.starts_with("oss-") && host.contains(".aliyuncs.com") => {
            format!("{scheme}://s3.{host}")
        }
        _ => url.to_owned(),
    }
}

fn with_scheme(endpoint: &str) -> String {
    if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") }
}

fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', ':']).next().unwrap_or(rest)
}

fn or_default(value: &str, default: &str) -> String {
    if value.is_empty() { default.to_owned() } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(provider: Provider, region: &str, endpoint: &str) -> Profile {
        let endpoint = Some(endpoint.to_owned());
        let options = BackendOptions { provider, region: None, endpoint, credentials: None, path_style: true };
        Profile::of(&options, region)
    }

    #[test]
    fn oss_endpoints_are_rewritten_to_the_s3_compatible_ones() {
        let url = |region, endpoint| profile(Provider::Oss, region, endpoint).endpoint_url;
        let expected = Some("https://s3.oss-cn-beijing.aliyuncs.com".to_owned());
        assert_eq!(url("cn-beijing", ""), expected);
        assert_eq!(url("oss-cn-beijing", ""), expected);
        assert_eq!(url("", "oss-cn-beijing.aliyuncs.com"), expected);
        assert_eq!(url("", "https://oss-cn-beijing.aliyuncs.com/"), expected);
        assert_eq!(url("", "https://s3.oss-cn-beijing.aliyuncs.com"), expected);
        let internal = Some("http://s3.oss-cn-beijing-internal.aliyuncs.com".to_owned());
        assert_eq!(url("", "http://oss-cn-beijing-internal.aliyuncs.com"), internal);
        assert_eq!(url("", "http://oss.localhost:8080"), Some("http://oss.localhost:8080".into()));
    }

    #[test]
    fn oss_never_uses_paths_or_checksums() {
        let profile = profile(Provider::Oss, "cn-beijing", "");
        assert!(!profile.path_style && !profile.sends_checksums);
        assert_eq!(profile.only_if_absent, OnlyIfAbsent::ForbidOverwrite);
        assert!(profile.check_bucket("a-1").is_ok());
        assert!(profile.check_bucket("a.b").is_err());
    }

    #[test]
    fn conditions_are_said_in_the_providers_own_way() {
        let (s3, oss) = (profile(Provider::S3, "", ""), profile(Provider::Oss, "cn-beijing", ""));
        let none = ConditionHeaders::default();
        let if_match = WriteCondition::IfMatch("\"e\"".into());
        let star = ConditionHeaders { if_none_match: Some("*".into()), ..none.clone() };
        assert_eq!(s3.condition_headers(&WriteCondition::IfAbsent), star);
        let forbidden = ConditionHeaders { forbid_overwrite: true, ..none.clone() };
        assert_eq!(oss.condition_headers(&WriteCondition::IfAbsent), forbidden);
        let matching = ConditionHeaders { if_match: Some("\"e\"".into()), ..none.clone() };
        assert_eq!(s3.condition_headers(&if_match), matching);
        assert_eq!(oss.condition_headers(&if_match), none, "OSS has no such condition");
        assert_eq!(s3.condition_headers(&WriteCondition::Always), none);
    }

    #[test]
    fn only_aws_checks_whole_objects() {
        let checks = |endpoint| profile(Provider::S3, "", endpoint).checks_whole_object;
        assert!(checks(""));
        assert!(checks("https://s3.eu-west-1.amazonaws.com"));
        assert!(!checks("http://127.0.0.1:8333"));
        assert!(!checks("https://amazonaws.com.example.org"));
    }

    #[test]
    fn buckets_outside_the_default_region_name_it() {
        assert_eq!(profile(Provider::S3, "", "").location_constraint, None);
        let profile = profile(Provider::S3, "eu-west-1", "");
        assert_eq!(profile.location_constraint, Some("eu-west-1".into()));
    }
}
