//! Every rule of the configuration, one sentence each.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::{Config, ConflictPolicy, Freshness, LogFormat, Overrides, Provider};

const STANDALONE: &str = "\
objectStorage:
  enable: true
  name: s3
  region: us-east-1
  endpoint: http://127.0.0.1:8333
  accessKey: KEY
  secretKey: SECRET
  tcpListen: { listen: 127.0.0.1, port: 65004 }
storage: { dataPath: /var/lib/dfstore, capacity: 20GiB }
memory: { budget: 1GiB }         # optional, as are the next two
metrics: { listen: 127.0.0.1:65005 }
shards: auto
";

fn parse(text: &str) -> Result<Config, super::ConfigError> {
    Config::parse("peer.yaml", text, &Overrides::default())
}

/// A valid file with these lines inside `objectStorage`, and these after it.
fn with(inside: &str, after: &str) -> Result<Config, super::ConfigError> {
    let inside: String = inside.lines().map(|line| format!("  {line}\n")).collect();
    parse(&format!("objectStorage:\n  enable: true\n  name: s3\n  endpoint: http://127.0.0.1:8333\n{inside}{after}\n"))
}

/// The backend of a valid file with these lines inside `objectStorage`.
fn backend(inside: &str) -> super::BackendOptions {
    with(inside, "").expect("valid").backend.expect("given")
}

fn problems(result: Result<Config, super::ConfigError>) -> Vec<String> {
    result.expect_err("must be refused").problems.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn refused(result: Result<Config, super::ConfigError>, expected: &str) {
    let found = problems(result);
    assert!(found.len() == 1 && found[0].contains(expected), "expected {expected:?}, found {found:#?}");
}

#[test]
fn the_standalone_file_means_what_it_says() {
    let config = parse(STANDALONE).expect("valid");
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.http.listen, IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(config.http.ports, 65004..=65004);
    assert_eq!(config.http.filter, ["Expires", "Signature", "ns"]);
    assert_eq!(config.http.replicas_default, 3);
    assert_eq!(config.cluster, None);
    assert_eq!(config.store.data_path, PathBuf::from("/var/lib/dfstore"));
    assert_eq!((config.store.capacity_bytes, config.store.dirty_limit_bytes), (20 << 30, 10 << 30));
    assert_eq!((config.store.high_watermark_percent, config.store.low_watermark_percent), (95, 90));
    let backend = config.backend.expect("given");
    assert_eq!((backend.provider, backend.path_style), (Provider::S3, true));
    assert_eq!(backend.description().name, "s3");
    assert_eq!(backend.description().endpoint, "http://127.0.0.1:8333");
    let keys = backend.credentials.expect("given");
    assert_eq!((keys.access_key.expose(), keys.secret_key.expose()), ("KEY", "SECRET"));
    assert_eq!(config.freshness.for_bucket("any"), Freshness::Ttl(Duration::from_secs(30)));
    assert_eq!(config.memory.budget_bytes, 1 << 30);
    assert_eq!(config.metrics.listen.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:65005"));
    assert!(config.shards >= 1);
    assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Text, "info"));
}

#[test]
fn all_but_the_backend_may_be_left_out() {
    let config = parse("objectStorage: { enable: true, name: s3 }").expect("valid");
    assert_eq!(config.http.ports, 65004..=65535);
    assert_eq!(config.http.listen, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    assert_eq!(config.store.data_path, PathBuf::from("/var/lib/dfstore"));
    let backend = config.backend.expect("given");
    assert_eq!(backend.credentials, None, "the SDK's default chain");
    assert_eq!(backend.region, None, "the SDK's default chain");
    assert_eq!(config.metrics.listen, None);
}

#[test]
fn keys_match_without_regard_to_case_but_once() {
    let config = parse("ObjectStorage: { ENABLE: true, name: s3, EndPoint: 'http://h' }").expect("valid");
    assert_eq!(config.backend.expect("given").endpoint.as_deref(), Some("http://h"));
    refused(with("region: a\nREGION: b", ""), "peer.yaml:6:3: \"objectStorage.region\" is given twice");
}

#[test]
fn an_unknown_key_names_its_place_and_the_nearest_one() {
    refused(
        with("", "storage: { capactiy: 20GiB }"),
        "peer.yaml:5:12: unknown key \"storage.capactiy\"; did you mean \"capacity\"?",
    );
    refused(with("endpont: x", ""), "peer.yaml:5:3: unknown key \"objectStorage.endpont\"; did you mean \"endpoint\"?");
    refused(with("", "storge: {}"), "unknown key \"storge\"; did you mean \"storage\"?");
    refused(with("capacity: 1GiB", ""), "did you mean \"storage.capacity\"?");
    refused(with("", "memory: { zebra: 1 }"), "unknown key \"memory.zebra\"; known here: budget, hot");
    refused(with("tcpListen: { prot: 1 }", ""), "unknown key \"objectStorage.tcpListen.prot\"; did you mean \"port\"?");
    refused(with("", "manager: { netAddr: [] }"), "did you mean \"netAddrs\"?");
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = "objectStorage:\n  enable: maybe\n  name: obs\nstorage: { capacity: lots, dataPath: relative }\nshards: 0\nlog: { level: loud }\n";
    let found = problems(parse(text));
    let places: Vec<&str> = found.iter().map(|problem| problem.split(": ").next().unwrap_or_default()).collect();
    let expected =
        ["peer.yaml:2:11", "peer.yaml:3:9", "peer.yaml:4:22", "peer.yaml:4:38", "peer.yaml:5:9", "peer.yaml:6:15"];
    assert_eq!(places, expected, "{found:#?}");
    assert!(found[1].contains("OBS is not supported"), "{found:#?}");
    assert!(found[2].contains("\"storage.capacity\": \"lots\" is not valid: expected a size such as 20GiB"));
}

#[test]
fn wrong_shapes_are_named() {
    assert!(problems(parse("just text"))[0].contains("the file: found a single value, expected keys and values"));
    refused(with("", "storage: [1]"), "\"storage\": found a list, expected keys and values");
    refused(with("region: [a]", ""), "\"objectStorage.region\": found a list, expected a single value");
    refused(with("buckets: 5", ""), "expected names and values");
    refused(parse(""), "\"objectStorage\" is required");
    refused(parse("storage: {}"), "\"objectStorage\" is required");
    refused(parse("objectStorage: [\n"), "not valid YAML");
    refused(parse("objectStorage: { enable: true }"), "\"objectStorage.name\" is required (s3 or oss)");
    refused(parse("objectStorage: { enable: false, name: s3 }"), "must be true");
    refused(parse("objectStorage: { name: s3 }"), "\"objectStorage.enable\" is required");
}

#[test]
fn listening_follows_the_original() {
    let ports = |text: &str| with(text, "").map(|config| config.http.ports);
    assert_eq!(ports("tcpListen: { port: 7 }"), Ok(7..=7));
    assert_eq!(ports("tcpListen: { port: 0 }"), Ok(0..=0));
    assert_eq!(ports("tcpListen: { port: { start: 7 } }"), Ok(7..=65535));
    assert_eq!(ports("tcpListen: { port: { start: 7, end: 9 } }"), Ok(7..=9));
    assert_eq!(ports("tcpListen: { listen: '::' }"), Ok(65004..=65535));
    refused(with("tcpListen: { port: 65536 }", ""), "expected a whole number from 0 to 65535");
    refused(with("tcpListen: { port: { end: 9 } }", ""), "port.start\" is required");
    refused(with("tcpListen: { port: { start: 9, end: 7 } }", ""), "start 9 is above end 7");
    refused(with("tcpListen: { listen: localhost }", ""), "expected an IP address");
    refused(with("tcpListen:", ""), "\"objectStorage.tcpListen\" is empty");
    refused(with("tcpListen: { namespace: /proc/1/ns/net }", ""), "start the peer inside the namespace");
    refused(with("tcpListen: { port: 9 }", "metrics: { listen: 127.0.0.1:9 }"), "both want port 9");
    let unix = with("unixListen: { socket: /tmp/x }", "").expect("accepted");
    assert!(unix.warnings[0].contains("\"objectStorage.unixListen\" has no effect"), "{:?}", unix.warnings);
}

#[test]
fn tls_is_refused_not_ignored() {
    refused(with("security: { insecure: false }", ""), "asks for TLS, which comes with a later version");
    let config = with("security: { insecure: true, tlsVerify: true }", "").expect("valid");
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    refused(with("security: { insecur: false }", ""), "did you mean \"insecure\"?");
}

#[test]
fn endpoints_are_urls_without_keys() {
    let endpoint = |value: &str| {
        let text = format!("objectStorage: {{ enable: true, name: s3, endpoint: '{value}' }}");
        parse(&text).map(|config| config.backend.expect("given").endpoint)
    };
    assert_eq!(endpoint("http://h:9000/"), Ok(Some("http://h:9000".to_owned())));
    assert_eq!(endpoint("s3.example.com"), Ok(Some("https://s3.example.com".to_owned())));
    assert_eq!(endpoint("127.0.0.1:8333"), Ok(Some("https://127.0.0.1:8333".to_owned())));
    assert_eq!(endpoint("http://[::1]:8333"), Ok(Some("http://[::1]:8333".to_owned())));
    assert_eq!(endpoint(""), Ok(None));
    for bad in ["ftp://h", "http://", "http://h:99999", "http://h:", "http://h?x=1", "http://h#x", "http://a b"] {
        refused(endpoint(bad).map(|_| parse(STANDALONE).expect("valid")), "expected a URL such as");
    }
    let found = problems(endpoint("http://user:canary@h").map(|_| parse(STANDALONE).expect("valid")));
    assert!(found[0].contains("use accessKey and secretKey") && !found[0].contains("canary"), "{found:?}");
}

#[test]
fn keys_of_the_backend_come_in_pairs_or_not_at_all() {
    assert!(backend("accessKey: ''\nsecretKey: ''").credentials.is_none());
    refused(with("accessKey: a", ""), "belong together");
    refused(with("secretKey: a", ""), "belong together");
    refused(with("sessionToken: a", ""), "belong together");
    let keys = backend("accessKey: 0123\nsecretKey: 1e5\nsessionToken: ~").credentials.expect("given");
    assert_eq!((keys.access_key.expose(), keys.secret_key.expose()), ("0123", "1e5"), "kept as written");
    assert_eq!(keys.session_token, None);
    let config = backend("accessKey: a\nsecretKey: b\nsessionToken: c");
    assert_eq!(config.credentials.and_then(|keys| keys.session_token).expect("given").expose(), "c");
}

#[test]
fn oss_knows_no_path_style_and_needs_a_place() {
    let oss = |rest: &str| parse(&format!("objectStorage: {{ enable: true, name: oss{rest} }}"));
    let backend_of = |config: Config| config.backend.expect("given");
    let found = backend_of(oss(", region: cn-hangzhou").expect("valid"));
    assert_eq!((found.provider, found.path_style), (Provider::Oss, false));
    assert_eq!(found.region.as_deref(), Some("cn-hangzhou"));
    assert!(oss(", endpoint: oss-cn-hangzhou.aliyuncs.com").is_ok());
    refused(oss(""), "is required for oss");
    let forced = oss(", region: cn-hangzhou, s3ForcePathStyle: true").expect("valid");
    assert!(forced.warnings.len() == 1 && !backend_of(forced).path_style);
    assert!(!backend("s3ForcePathStyle: false").path_style);
}

#[test]
fn freshness_is_a_rule_per_bucket() {
    let text = "freshness: immutable\nbuckets:\n  models: { freshness: { ttl: 5m } }\n  live: { freshness: always }\n  old: { freshness: 'ttl: 1h' }\n  plain: {}";
    let policy = with(text, "").expect("valid").freshness;
    assert_eq!(policy.default, Freshness::Immutable);
    let expected = BTreeMap::from([
        ("models".to_owned(), Freshness::Ttl(Duration::from_secs(300))),
        ("live".to_owned(), Freshness::Always),
        ("old".to_owned(), Freshness::Ttl(Duration::from_secs(3600))),
    ]);
    assert_eq!(policy.buckets, expected);
    assert_eq!(policy.for_bucket("plain"), Freshness::Immutable);
    refused(with("freshness: sometimes", ""), "expected immutable, always or {ttl: 30s}");
    refused(with("freshness: { ttl: 0s }", ""), "longer than 0");
    refused(with("freshness: { tll: 1s }", ""), "did you mean \"ttl\"?");
    refused(with("buckets: { b: { fresh: always } }", ""), "unknown key \"objectStorage.buckets.b.fresh\"");
}

#[test]
fn the_scrub_has_a_period_and_a_speed() {
    let store = |text: &str| with("", &format!("storage: {{ {text} }}")).expect("valid").store;
    let standard = store("capacity: 1GiB");
    assert_eq!(
        (standard.scrub_period, standard.scrub_bytes_per_second),
        (Some(Duration::from_secs(604_800)), 32 << 20)
    );
    let other = store("scrubPeriod: 12h, scrubRate: 8MiB");
    assert_eq!((other.scrub_period, other.scrub_bytes_per_second), (Some(Duration::from_secs(43_200)), 8 << 20));
    assert_eq!(store("scrubPeriod: never").scrub_period, None);
    refused(with("", "storage: { scrubPeriod: sometimes }"), "or never");
    refused(with("", "storage: { scrubRate: 1KiB }"), "expected a size from 1MiB");
}

#[test]
fn conflicts_have_a_rule_per_bucket() {
    let policy = with("buckets:\n  both: { conflict: keep-both }\n  plain: { freshness: always }", "").expect("valid");
    let (all, shown) = (policy.conflict.clone(), policy.to_string());
    assert_eq!(all.default, ConflictPolicy::Overwrite);
    assert_eq!(all.for_bucket("both"), ConflictPolicy::KeepBoth);
    assert!(
        shown.contains("\"both\": { conflict: keep-both }") && shown.contains("\"plain\": { freshness: always }"),
        "{shown}"
    );
    assert_eq!(with("conflict: Fail", "").expect("valid").conflict.for_bucket("any"), ConflictPolicy::Fail);
    refused(with("conflict: merge", ""), "expected overwrite, fail or keep-both");
    refused(with("buckets: { b: { conflict: 1 } }", ""), "expected overwrite, fail or keep-both");
}

#[test]
fn sizes_are_held_against_their_bounds() {
    refused(with("", "memory: { budget: 63MiB }"), "expected a size from 64MiB to 4TiB");
    assert_eq!(with("", "memory: { budget: 64MiB }").expect("valid").memory.budget_bytes, 64 << 20);
    refused(
        with("", "storage: { capacity: 1KiB }"),
        "\"storage.capacity\": \"1KiB\" is not valid: expected a size from",
    );
    refused(with("", "storage: { capacity: 1GiB, dirtyLimit: 1GiB }"), "85 percent of the capacity");
    refused(with("", "storage: { capacity: 1GiB, dirtyLimit: 1KiB }"), "expected a size from 4MiB");
    let store = with("", "storage: { capacity: 1GiB, dirtyLimit: 100MiB }").expect("valid").store;
    assert_eq!(store.dirty_limit_bytes, 100 << 20);
    refused(with("maxReplicas: 0", ""), "expected a whole number from 1 to 100");
    refused(with("maxReplicas: 101", ""), "expected a whole number from 1 to 100");
    refused(with("", "shards: 65"), "expected a whole number from 1 to 64, or auto");
    assert_eq!(with("", "shards: 2").expect("valid").shards, 2);
}

#[test]
fn storage_keys_of_the_original_are_understood() {
    let text = "storage:\n  taskExpireTime: 6h\n  diskGCThreshold: 50Gi\n  diskGCThresholdPercent: 80\n  multiplex: true\n  strategy: io.d7y.storage.v2.simple\n  dataPath: /data\nkeepStorage: true\ngcInterval: 1m\naliveTime: 0s\n";
    let config = with("", text).expect("valid");
    assert_eq!(config.store.capacity_bytes, 50 << 30);
    assert_eq!((config.store.high_watermark_percent, config.store.low_watermark_percent), (80, 75));
    assert_eq!(config.warnings.len(), 6, "one each: {:#?}", config.warnings);
    refused(with("", "storage: { diskGCThresholdPercent: 50 }"), "expected a whole number from 60 to 99");
    assert_eq!(with("", "storage: { diskGCThresholdPercent: 60 }").expect("valid").store.dirty_limit_bytes, 10 << 30);
    let both = with("", "storage: { capacity: 1GiB, diskGCThreshold: 2GiB }").expect("valid");
    assert_eq!(both.store.capacity_bytes, 1 << 30);
    assert_eq!(both.warnings.len(), 1, "{:?}", both.warnings);
    assert_eq!(with("", "storage: { diskGCThreshold: 0 }").expect("valid").store.capacity_bytes, 20 << 30);
}

#[test]
fn log_levels_are_words_or_directives() {
    for level in ["debug", "info,dfstore_peer::engine=debug", "WARN", "off"] {
        assert_eq!(with("", &format!("log: {{ level: '{level}' }}")).expect("valid").log.level, level);
    }
    for level in ["debgu", "a=b", "", "info,,"] {
        refused(with("", &format!("log: {{ level: '{level}' }}")), "expected error, warn, info, debug, trace");
    }
    assert_eq!(with("", "log: { format: json }").expect("valid").log.format, LogFormat::Json);
    refused(with("", "log: { format: xml }"), "expected text or json");
}

#[test]
fn flags_win_over_the_file_and_pass_the_same_rules() {
    let mut flags = Overrides::default();
    flags.set("storage.dataPath", "--data-path", "/elsewhere");
    flags.set("objectStorage.tcpListen.port", "--port", "0");
    flags.set("objectStorage.region", "DFSTORE_REGION", "eu-1");
    let config = Config::parse("peer.yaml", STANDALONE, &flags).expect("valid");
    assert_eq!(config.store.data_path, PathBuf::from("/elsewhere"));
    assert_eq!(config.http.ports, 0..=0);
    assert_eq!(config.backend.expect("given").region.as_deref(), Some("eu-1"));

    flags.set("storage.capacity", "--capacity", "lots");
    refused(Config::parse("peer.yaml", STANDALONE, &flags), "--capacity: \"storage.capacity\": \"lots\" is not valid");

    let mut alone = Overrides::default();
    for (path, value) in [("objectStorage.enable", "true"), ("objectStorage.name", "s3"), ("memory.budget", "64MiB")] {
        alone.set(path, "--some-flag", value);
    }
    assert_eq!(Config::parse("peer.yaml", "", &alone).expect("valid").memory.budget_bytes, 64 << 20);
    assert!(Config::parse("peer.yaml", "objectStorage: 5", &alone).is_ok(), "a wrong shape gives way");
}

#[test]
fn no_message_and_no_view_shows_a_secret() {
    let good = STANDALONE.replace("SECRET", "canary\n  sessionToken: canary").replace("KEY", "canary");
    let config = parse(&good).expect("valid");
    let shown = format!("{config:?}\n{config:#?}\n{config}");
    assert!(!shown.contains("canary") && shown.contains("[redacted]"), "{shown}");

    let broken = [
        "accessKey: a\nsecretKey: 'canary canary'",
        "secretKey:canary",
        "secretKey: !!int canary",
        "secretKey: !!binary canary",
        "secretKey: !!float canary",
        "secretKey: [canary]",
        "secretKey: {canary",
        "secretKey: 'canary",
        "secretKey: canary: b",
        "secretKey: *canary\nx",
        "secretKey: \"\\q canary\"",
        "accessKey: a\nsecretKey: canary\nregion: [",
        "sessionToken: canary",
        "sessionToken: canary\nsessionToken: canary",
        "endpoint2: http://a:canary@b",
    ];
    for text in broken {
        let found = problems(with(text, "")).join("\n");
        assert!(!found.contains("canary"), "{text:?} gives {found}");
        println!("{text:?}: {found}");
    }
}

#[test]
fn what_check_prints_is_again_a_valid_configuration() {
    let text = "filter: a&b\nfreshness: always\nbuckets: { models: { freshness: { ttl: 5m } } }\nregion: eu-1";
    let config =
        with(text, "storage: { capacity: 1GiB, dirtyLimit: 100MiB }\nlog: { format: json, level: debug }\nshards: 3")
            .expect("valid");
    assert_eq!(parse(&config.to_string()).expect("valid"), config);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(objectStorage|storage|enable|name|tcpListen|port|buckets|[a-z:{}\\[\\] \n&*!|>'\"#-]){0,40}") {
        let _ = parse(&text);
        let _ = with(&text, "");
    }
}
