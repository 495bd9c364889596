//! Section `objectStorage`: the object API, the backend, and how long its answers count as fresh.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use super::options::{BackendOptions, ConflictPolicy, Credentials, Freshness, HttpOptions, PerBucket, Provider};
use super::report::Report;
use super::secret::Secret;
use super::section::{Field, Section};
use super::units;
use super::yaml::{Place, Value};
use crate::limits::{BUCKET_BYTES_MAX, FRESHNESS_TTL_DEFAULT, REPLICAS_DEFAULT, REPLICAS_MAX};

/// Query parameters that carry a signature: never part of an object's identity.
const FILTER_DEFAULT: &str = "Expires&Signature&ns";
/// Ports tried in order when the configuration names none.
const PORTS_DEFAULT: RangeInclusive<u16> = 65004..=65535;

/// What the section gives.
pub(super) struct ObjectStorage {
    pub(super) http: HttpOptions,
    /// `None` where the file names no backend.
    pub(super) backend: Option<BackendOptions>,
    pub(super) freshness: PerBucket<Freshness>,
    pub(super) conflict: PerBucket<ConflictPolicy>,
}

/// Reads the section. `None` when something in it is wrong, which the report then says. With `asks_managers` a backend
/// may be missing.
pub(super) fn read(report: &mut Report, root: &mut Section<'_>, asks_managers: bool) -> Option<ObjectStorage> {
    let Some(mut section) = root.section(report, "objectStorage") else {
        let message = "\"objectStorage\" is required: it says where clients are served, and which backend this peer \
                       stands in front of";
        report.problem(root.place(), message);
        return None;
    };
    enable(report, &mut section);
    let backend = read_backend(report, &mut section, asks_managers);
    let (freshness, conflict) = read_rules(report, &mut section);
    let filter = section.value(report, "filter", units::text).unwrap_or_else(|| FILTER_DEFAULT.to_owned());
    let replicas = section.value(report, "maxReplicas", |text| units::number(text, &(1..=REPLICAS_MAX)));
    security(report, &mut section);
    section.without_effect(report, "unixListen", "this service has no Unix socket");
    let (listen, ports) = listen(report, &mut section);
    section.done(report);
    let http = HttpOptions {
        listen,
        ports,
        filter: filter.split('&').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        replicas_default: replicas.unwrap_or(REPLICAS_DEFAULT),
    };
    Some(ObjectStorage { http, backend, freshness, conflict })
}

fn enable(report: &mut Report, section: &mut Section<'_>) {
    if let Some(field) = section.get(report, "enable") {
        if field.value(report, units::boolean) == Some(false) {
            let message = "\"objectStorage.enable\" must be true: a peer without the object API has nothing to do";
            report.problem(&field.node.place, message);
        }
    } else {
        let message = "\"objectStorage.enable\" is required and must be true";
        report.problem(section.place(), message);
    }
}

fn read_backend(report: &mut Report, section: &mut Section<'_>, asks_managers: bool) -> Option<BackendOptions> {
    let name = section.get(report, "name").filter(|field| !is_empty(field));
    let region = section.get(report, "region").filter(|field| !is_empty(field));
    let region = region.and_then(|field| field.value(report, region_name));
    let endpoint = section.get(report, "endpoint").filter(|field| !is_empty(field));
    let endpoint = endpoint.and_then(|field| match &field.node.value {
        // Keys in a URL are refused, and not repeated in the message.
        Value::Scalar(text) if text.contains('@') => field.secret(report, endpoint_url),
        _ => field.value(report, endpoint_url),
    });
    let credentials = read_credentials(report, section);
    let path_style = section.get(report, "s3ForcePathStyle");
    let path_style_value = path_style.as_ref().and_then(|field| field.value(report, units::boolean));
    let Some(name) = name else {
        let described = region.is_some() || endpoint.is_some() || credentials.is_some();
        report_nameless(report, section, asks_managers, described);
        return None;
    };
    let provider = name.value(report, provider)?;
    if provider == Provider::Oss && region.is_none() && endpoint.is_none() {
        report.problem(section.place(), "\"objectStorage.region\" or \"objectStorage.endpoint\" is required for oss");
    }
    if let Some(field) = path_style.filter(|_| provider == Provider::Oss && path_style_value == Some(true)) {
        report.warning(&field.node.place, "\"objectStorage.s3ForcePathStyle\" has no effect: OSS knows no path style");
    }
    // An S3-compatible service behind an endpoint of its own takes any region, but signing needs one.
    let default_region = (provider == Provider::S3 && endpoint.is_some()).then(|| "us-east-1".to_owned());
    Some(BackendOptions {
        provider,
        region: region.or(default_region),
        endpoint,
        credentials,
        path_style: provider == Provider::S3 && path_style_value.unwrap_or(true),
    })
}

/// No name, no backend: fine for those who ask a manager, if nothing else looks like a backend either.
fn report_nameless(report: &mut Report, section: &Section<'_>, asks_managers: bool, described: bool) {
    if described {
        let message = "\"objectStorage.name\" is required (s3 or oss) beside region, endpoint and keys: give it, or \
                       remove them to get the backend from a manager";
        report.problem(section.place(), message);
    } else if !asks_managers {
        let message = "\"objectStorage.name\" is required (s3 or oss), or \"manager.enable\" with \
                       \"manager.netAddrs\" to get the backend from a manager";
        report.problem(section.place(), message);
    }
}

pub(super) fn provider(text: &str) -> Result<Provider, String> {
    if text.eq_ignore_ascii_case("obs") {
        return Err("OBS is not supported, expected s3 or oss".to_owned());
    }
    Provider::from_name(text).ok_or_else(|| "expected s3 or oss".to_owned())
}

fn read_credentials(report: &mut Report, section: &mut Section<'_>) -> Option<Credentials> {
    let mut unreadable = false;
    let mut key = |name| {
        let field = section.get(report, name).filter(|field| !is_empty(field))?;
        let secret = field.secret(report, units::secret);
        unreadable |= secret.is_none();
        secret
    };
    let (access, secret, token): (Option<Secret>, Option<Secret>, Option<Secret>) =
        (key("accessKey"), key("secretKey"), key("sessionToken"));
    match (access, secret) {
        (Some(access_key), Some(secret_key)) => Some(Credentials { access_key, secret_key, session_token: token }),
        (None, None) if token.is_none() => None,
        _ if unreadable => None,
        _ => {
            let message = "\"objectStorage.accessKey\" and \"objectStorage.secretKey\" belong together: give both, or \
                           none (then the keys come from the environment, a profile or the instance)";
            report.problem(section.place(), message);
            None
        }
    }
}

pub(super) fn region_name(text: &str) -> Result<String, String> {
    let valid = text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if valid { Ok(text.to_owned()) } else { Err("expected a region name such as us-east-1".to_owned()) }
}

/// A URL with scheme and host. A bare host gets `https://`, as the original's client libraries did it.
pub(super) fn endpoint_url(text: &str) -> Result<String, String> {
    let allowed = || "expected a URL such as https://s3.example.com or http://127.0.0.1:8333".to_owned();
    let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: http::Uri = url.parse().map_err(|_| allowed())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.query().is_some() || url.contains('#') {
        return Err(allowed());
    }
    let authority = uri.authority().ok_or_else(allowed)?;
    if authority.as_str().contains('@') {
        return Err("keys do not belong into the URL: use accessKey and secretKey".to_owned());
    }
    let port_valid = authority.as_str().len() == authority.host().len() || authority.port_u16().is_some();
    if authority.host().is_empty() || !port_valid {
        return Err(allowed());
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// The rules for all buckets, and the exceptions.
fn read_rules(report: &mut Report, section: &mut Section<'_>) -> (PerBucket<Freshness>, PerBucket<ConflictPolicy>) {
    let default = section.get(report, "freshness").and_then(|field| freshness(report, &field));
    let default = default.unwrap_or(Freshness::Ttl(FRESHNESS_TTL_DEFAULT));
    let mut fresh = PerBucket { default, buckets: BTreeMap::new() };
    let default = section.value(report, "conflict", conflict).unwrap_or_default();
    let mut conflicts = PerBucket { default, buckets: BTreeMap::new() };
    let named = section.get(report, "buckets").map(|field| field.named(report)).unwrap_or_default();
    for (entry, field) in named {
        if entry.key.is_empty() || entry.key.len() > BUCKET_BYTES_MAX || entry.key.contains('/') {
            report.problem(&entry.place, format!("{:?} is not a bucket name", entry.key));
        }
        let Some(mut bucket) = field.section(report) else { continue };
        let rule = bucket.get(report, "freshness").and_then(|field| freshness(report, &field));
        let twice = rule.is_some_and(|rule| fresh.buckets.insert(entry.key.clone(), rule).is_some());
        let rule = bucket.value(report, "conflict", conflict);
        if rule.is_some_and(|rule| conflicts.buckets.insert(entry.key.clone(), rule).is_some()) || twice {
            report.problem(&entry.place, format!("bucket {:?} is given twice", entry.key));
        }
        bucket.done(report);
    }
    (fresh, conflicts)
}

fn conflict(text: &str) -> Result<ConflictPolicy, String> {
    let named = [ConflictPolicy::Overwrite, ConflictPolicy::Fail, ConflictPolicy::KeepBoth];
    let found = named.into_iter().find(|policy| text.eq_ignore_ascii_case(&policy.to_string()));
    found.ok_or_else(|| "expected overwrite, fail or keep-both".to_owned())
}

fn freshness(report: &mut Report, field: &Field<'_>) -> Option<Freshness> {
    if matches!(field.node.value, Value::Map(_)) {
        let mut section = field.section(report)?;
        let ttl = section.value(report, "ttl", units::positive_duration);
        section.done(report);
        return ttl.map(Freshness::Ttl);
    }
    field.value(report, |text| match text.to_ascii_lowercase().as_str() {
        "immutable" => Ok(Freshness::Immutable),
        "always" => Ok(Freshness::Always),
        other => match other.strip_prefix("ttl:") {
            Some(ttl) => units::positive_duration(ttl.trim()).map(Freshness::Ttl),
            None => Err("expected immutable, always or {ttl: 30s}".to_owned()),
        },
    })
}

fn security(report: &mut Report, section: &mut Section<'_>) {
    let Some(mut security) = section.section(report, "security") else { return };
    if let Some(field) = security.get(report, "insecure")
        && field.value(report, units::boolean) == Some(false)
    {
        let message = "\"objectStorage.security.insecure: false\" asks for TLS, which comes with a later version: set \
                       it to true or remove it, and put a TLS proxy in front where the network is not trusted";
        report.problem(&field.node.place, message);
    }
    for key in ["caCert", "cert", "key", "tlsVerify", "tlsConfig"] {
        security.without_effect(report, key, "the connection is not encrypted (insecure: true)");
    }
    security.done(report);
}

fn listen(report: &mut Report, section: &mut Section<'_>) -> (IpAddr, RangeInclusive<u16>) {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let Some(field) = section.find(report, "tcpListen") else { return (any, PORTS_DEFAULT) };
    if matches!(field.node.value, Value::Null) {
        report.problem(&field.node.place, "\"objectStorage.tcpListen\" is empty: give it an address, or remove it");
        return (any, PORTS_DEFAULT);
    }
    let Some(mut tcp) = field.section(report) else { return (any, PORTS_DEFAULT) };
    let listen = tcp.value(report, "listen", units::ip).unwrap_or(any);
    let ports = tcp.get(report, "port").and_then(|field| read_ports(report, &field)).unwrap_or(PORTS_DEFAULT);
    if let Some(namespace) = tcp.get(report, "namespace").filter(|field| !is_empty(field)) {
        let message = "\"objectStorage.tcpListen.namespace\" is not supported: start the peer inside the namespace \
                       (ip netns exec, nsenter)";
        report.problem(&namespace.node.place, message);
    }
    tcp.done(report);
    (listen, ports)
}

/// A number is that port and no other; `{start, end}` is the first free one.
pub(super) fn read_ports(report: &mut Report, field: &Field<'_>) -> Option<RangeInclusive<u16>> {
    if !matches!(field.node.value, Value::Map(_)) {
        let port = field.value(report, |text| units::number(text, &(0..=u16::MAX)))?;
        return Some(port..=port);
    }
    let mut range = field.section(report)?;
    let place: Place = range.place().clone();
    let start_given = range.get(report, "start");
    let start = start_given.as_ref().and_then(|field| field.value(report, |text| units::number(text, &(1..=u16::MAX))));
    let end = range.value(report, "end", |text| units::number(text, &(1..=u16::MAX))).unwrap_or(u16::MAX);
    range.done(report);
    if start_given.is_none() {
        report.problem(&place, format!("\"{}.start\" is required", field.path));
    }
    let start = start?;
    if start > end {
        report.problem(&place, format!("\"{}\": start {start} is above end {end}", field.path));
    }
    Some(start..=end)
}

pub(super) fn is_empty(field: &Field<'_>) -> bool {
    matches!(&field.node.value, Value::Scalar(text) if text.is_empty())
}
