//! The rules of clusters, and the files that the manual and the original's manual show.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Config, ConfigError, Overrides, Provider, Secret};

const MANUAL: &str = include_str!("../../../docs/OPERATIONS.md");
const IDENTITY: &str = "cluster: { name: demo, token: canary-token }\n";
const BACKEND: &str = "objectStorage: { enable: true, name: s3, endpoint: 'http://127.0.0.1:8333' }\n";
const NO_BACKEND: &str = "objectStorage: { enable: true, tcpListen: { listen: 127.0.0.1, port: 65014 } }\n";
const ASKS: &str = "manager: { enable: true, netAddrs: [{ type: tcp, addr: 127.0.0.1:65003 }] }\n";

fn parse(parts: &[&str]) -> Result<Config, ConfigError> {
    Config::parse("peer.yaml", &parts.concat(), &Overrides::default())
}

#[track_caller]
fn valid(parts: &[&str]) -> Config {
    parse(parts).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn refused(parts: &[&str], expected: &str) {
    let error = parse(parts).expect_err("must be refused");
    let found: Vec<_> = error.problems.iter().map(ToString::to_string).collect();
    assert!(found.len() == 1 && found[0].contains(expected), "expected {expected:?}, found {found:#?}");
    assert!(!error.to_string().contains("canary"), "{error}");
}

/// The YAML block of this number in the manual.
fn manual_file(number: usize) -> &'static str {
    let block = MANUAL.split("```yaml\n").nth(number).and_then(|rest| rest.split("```").next());
    block.expect("an example")
}

#[test]
fn the_manuals_seed_and_peer_are_nodes_of_one_cluster() {
    let seed = valid(&[manual_file(2)]);
    assert_eq!(seed.warnings, Vec::<String>::new());
    let cluster = seed.cluster.expect("given");
    assert_eq!((cluster.name.as_str(), cluster.is_seed), ("demo", true));
    assert_eq!(cluster.manager_listen, Some(SocketAddr::from(([127, 0, 0, 1], 65003))));
    assert_eq!((cluster.peer.listen, cluster.peer.ports.clone()), (IpAddr::from([127, 0, 0, 1]), 65002..=65002));
    assert_eq!(cluster.gossip.listen, SocketAddr::from(([127, 0, 0, 1], 65006)));
    assert_eq!(seed.backend.map(|backend| backend.provider), Some(Provider::S3));

    let peer = valid(&[manual_file(3)]);
    assert_eq!(peer.warnings, Vec::<String>::new());
    assert_eq!(peer.backend, None);
    let other = peer.cluster.expect("given");
    assert_eq!((other.is_seed, other.manager_listen), (false, None));
    assert_eq!(
        (other.managers, other.refresh_interval),
        (vec!["127.0.0.1:65003".to_owned()], Duration::from_secs(600))
    );
    assert_eq!(other.name, cluster.name);
    assert_eq!(other.token, cluster.token);
}

#[test]
fn what_is_left_out_has_the_usual_ports() {
    let cluster = valid(&[BACKEND, IDENTITY]).cluster.expect("given");
    assert_eq!((cluster.peer.listen.to_string(), cluster.peer.ports), ("0.0.0.0".to_owned(), 65002..=65002));
    assert_eq!(cluster.gossip.listen.to_string(), "0.0.0.0:65006");
    assert!(!cluster.is_seed && cluster.managers.is_empty() && cluster.gossip.seeds.is_empty());
    assert_eq!((cluster.refresh_interval, cluster.repair_after), (Duration::from_secs(600), Duration::from_secs(300)));
}

#[test]
fn every_key_of_a_cluster_is_read() {
    let text = "seedPeer: { enable: yes }\nmanager: { listen: '[::1]:1', refreshInterval: 5s }\n\
                peer: { listen: '::', port: { start: 7, end: 9 }, advertise: 'fd00::1' }\n\
                gossip: { listen: '[::]:0', advertise: 10.0.0.7, seeds: ['10.0.0.1:65006', 'seeds.example:65006'] }\n\
                replicas: { repairAfter: 1m }\n";
    let config = valid(&[BACKEND, IDENTITY, text]);
    let cluster = config.cluster.clone().expect("given");
    assert_eq!(cluster.manager_listen, Some("[::1]:1".parse().expect("an address")));
    assert_eq!((cluster.peer.listen.to_string(), cluster.peer.ports), ("::".to_owned(), 7..=9));
    assert_eq!(cluster.peer.advertise, Some("fd00::1".parse().expect("an address")));
    assert_eq!(cluster.gossip.listen, "[::]:0".parse().expect("an address"));
    assert_eq!(cluster.gossip.advertise, Some(IpAddr::from([10, 0, 0, 7])));
    assert_eq!(cluster.gossip.seeds, ["10.0.0.1:65006", "seeds.example:65006"]);
    assert_eq!((cluster.refresh_interval, cluster.repair_after), (Duration::from_secs(5), Duration::from_secs(60)));

    let printed = config.to_string();
    assert!(!printed.contains("canary") && printed.contains("token: [redacted]"), "{printed}");
    let again = valid(&[&printed.replace("[redacted]", "canary-token")]);
    assert_eq!(again, config, "what --check prints means the same");
}

#[test]
fn flawed_values_say_what_is_allowed() {
    let with = |text| [BACKEND, IDENTITY, text];
    refused(&with("peer: { port: 70000 }"), "expected a whole number from 0 to 65535");
    refused(&with("peer: { advertise: 0.0.0.0 }"), "under which other nodes reach this one");
    refused(&with("gossip: { listen: 127.0.0.1 }"), "an IP address and a port");
    refused(
        &with("gossip: { seeds: [host] }"),
        "\"gossip.seeds[0]\": \"host\" is not valid: expected a host and a port",
    );
    refused(&with("gossip: { seeds: host:1 }"), "expected a list");
    refused(&with("gossip: { sedes: [] }"), "did you mean \"seeds\"?");
    refused(&with("replicas: { repairAfter: 0s }"), "longer than 0");
    refused(&with("seedPeer: { enable: perhaps }"), "expected true or false");
    refused(&with("manager: { netAddr: [] }"), "did you mean \"netAddrs\"?");
    let many = format!("gossip: {{ seeds: [{}] }}", vec!["a:1"; 65].join(", "));
    refused(&with(&many), "more than 64 seeds");
    let many = vec!["{ type: tcp, addr: a:1 }"; 17].join(", ");
    refused(&with(&format!("manager: {{ enable: true, netAddrs: [{many}] }}")), "more than 16 managers");
}

#[test]
fn a_cluster_has_a_name_and_a_token_that_cannot_be_guessed() {
    refused(&[BACKEND, "cluster: { name: '', token: canary-token }"], "expected a name of 1 to 255 bytes");
    refused(&[BACKEND, "cluster: { name: demo }"], "\"cluster.token\" is required");
    refused(&[BACKEND, "cluster: { name: demo, token: canary }"], "expected 8 to 1024 characters");
    refused(&[BACKEND, "cluster: { name: demo, token: 'canary canary' }"], "without white space");
    refused(&[BACKEND, "cluster: demo"], "expected keys and values");
    let long = format!("cluster: {{ name: demo, token: {} }}", "canary".repeat(200));
    refused(&[BACKEND, &long], "expected 8 to 1024 characters");

    let mut variables = Overrides::default();
    variables.set("cluster.token", "DFSTORE_CLUSTER_TOKEN", "canary-token");
    let config = Config::parse("f", &[BACKEND, "cluster: { name: demo }"].concat(), &variables).expect("valid");
    assert_eq!(config.cluster.map(|cluster| cluster.token), Some(Secret::new("canary-token")));
    let alone = Config::parse("f", BACKEND, &variables).expect("the token makes it a cluster");
    assert_eq!(alone.cluster.map(|cluster| cluster.name).as_deref(), Some("dfstore"));
}

#[test]
fn what_asks_for_a_cluster_needs_one() {
    for text in [
        "seedPeer: { enable: true }",
        "manager: { listen: 127.0.0.1:65003 }",
        ASKS,
        "manager: { seedPeer: { enable: true } }",
        "scheduler: { manager: { listen: 127.0.0.1:65003 } }",
        "peer: { port: 65002 }",
        "gossip: { listen: 127.0.0.1:65006 }",
        "replicas: { repairAfter: 5m }",
    ] {
        refused(&[BACKEND, text], "needs a cluster: add \"cluster: { token: SECRET }\"");
    }
    for text in
        ["seedPeer: { enable: false }", "manager: { enable: false, netAddrs: [], refreshInterval: 10m }", "peer:"]
    {
        let config = valid(&[BACKEND, text]);
        assert_eq!((config.cluster, config.warnings), (None, Vec::new()), "{text}");
    }
}

#[test]
fn a_backend_comes_from_the_file_or_from_a_manager() {
    assert_eq!(valid(&[NO_BACKEND, IDENTITY, ASKS]).backend, None);
    refused(&[NO_BACKEND], "\"objectStorage.name\" is required (s3 or oss), or \"manager.enable\"");
    refused(&[NO_BACKEND, IDENTITY], "\"objectStorage.name\" is required (s3 or oss), or \"manager.enable\"");
    let half = "objectStorage: { enable: true, endpoint: 'http://h' }\n";
    refused(&[half, IDENTITY, ASKS], "beside region, endpoint and keys");
    let both = valid(&[BACKEND, IDENTITY, ASKS]);
    assert!(both.backend.is_some());
    assert!(both.warnings[0].contains("the backend in this file is used"), "{:?}", both.warnings);
}

#[test]
fn who_gives_a_backend_has_one_and_seeds_can_get_one() {
    let gives = "manager: { enable: true, netAddrs: [{ addr: a:1 }], listen: 127.0.0.1:65003 }\n";
    refused(&[NO_BACKEND, IDENTITY, gives], "\"manager.listen\" needs a backend in this file");
    assert!(valid(&[NO_BACKEND, IDENTITY, ASKS, "seedPeer: { enable: true }"]).cluster.expect("given").is_seed);
    let error = parse(&[NO_BACKEND, IDENTITY, "seedPeer: { enable: true }"]).expect_err("no source").to_string();
    assert!(error.contains("\"seedPeer.enable\" needs a backend"), "{error}");
}

#[test]
fn asking_managers_means_naming_them() {
    refused(
        &[BACKEND, IDENTITY, "manager: { enable: true }"],
        "\"manager.netAddrs\" is required with \"manager.enable: true\"",
    );
    refused(&[BACKEND, IDENTITY, "manager: { enable: true, netAddrs: [] }"], "\"manager.netAddrs\" is required");
    let wrong = |address: &str| format!("manager: {{ enable: true, netAddrs: [{address}] }}");
    refused(&[NO_BACKEND, IDENTITY, &wrong("{ type: tcp, addr: host }")], "expected a host and a port");
    refused(&[NO_BACKEND, IDENTITY, &wrong("{ type: unix, addr: a:1 }")], "expected tcp");
    refused(&[NO_BACKEND, IDENTITY, &wrong("{ type: tcp }")], "\"manager.netAddrs[0].addr\" is required");
    refused(&[NO_BACKEND, IDENTITY, &wrong("host:1")], "expected keys and values");
    let ignored = valid(&[BACKEND, IDENTITY, "manager: { netAddrs: [{ type: tcp, addr: a:1 }] }"]);
    assert!(ignored.warnings[0].contains("has no effect without \"enable: true\""), "{:?}", ignored.warnings);
    assert!(ignored.cluster.expect("given").managers.is_empty());
    refused(&[BACKEND, IDENTITY, "manager: { refreshInterval: 0s }"], "longer than 0");
}

#[test]
fn both_spellings_of_manager_mean_the_same_but_not_together() {
    let nested = format!("scheduler:\n  {ASKS}");
    assert_eq!(valid(&[NO_BACKEND, IDENTITY, &nested]), valid(&[NO_BACKEND, IDENTITY, ASKS]));
    refused(&[NO_BACKEND, IDENTITY, ASKS, &nested], "are one section: keep one of them");
    refused(&[BACKEND, IDENTITY, "scheduler: { manager: { enabel: true } }"], "did you mean \"enable\"?");
    let ignored = valid(&[BACKEND, "scheduler: { scheduleTimeout: 30s }"]);
    assert!(ignored.warnings[0].contains("there is no scheduler"), "{:?}", ignored.warnings);
}

#[test]
fn two_listeners_never_want_one_port() {
    let collides = |text: &str, ports: &str| {
        refused(&[BACKEND, IDENTITY, "peer: { port: 65002 }\n", text], ports);
    };
    collides("manager: { listen: 127.0.0.1:65002 }", "\"peer.port\" and \"manager.listen\" both want port 65002");
    collides("metrics: { listen: 127.0.0.1:65002 }", "\"metrics.listen\" and \"peer.port\" both want port 65002");
    let api = "objectStorage: { enable: true, name: s3, tcpListen: { listen: 127.0.0.1, port: 65002 } }\n";
    refused(&[api, IDENTITY], "\"objectStorage.tcpListen.port\" and \"peer.port\" both want port 65002");
    valid(&[api, IDENTITY, "peer: { listen: 127.0.0.2 }"]);
    valid(&[api, IDENTITY, "peer: { port: { start: 65002 } }"]);
    valid(&[api, IDENTITY, "peer: { port: 0 }\nmanager: { listen: 127.0.0.1:0 }"]);
    valid(&[BACKEND, IDENTITY, "gossip: { listen: 0.0.0.0:65002 }"]);
}

/// The original's manual shows three files; a cluster of theirs had neither name nor token.
#[test]
fn the_three_files_of_the_originals_manual_work_as_written() {
    let mut variables = Overrides::default();
    variables.set("cluster.token", "DFSTORE_CLUSTER_TOKEN", "canary-token");
    let with_token = |texts: &[&str]| Config::parse("f", &texts.concat(), &variables).expect("valid");
    let manager =
        "objectStorage:\n  enable: true\n  name: s3\n  region: ''\n  endpoint: ''\n  accessKey: ''\n  secretKey: ''\n";
    assert_eq!(valid(&[manager]).warnings, Vec::<String>::new());
    let config = with_token(&[manager]);
    let first = config.cluster.expect("the token makes it one");
    assert_eq!((first.is_seed, first.manager_listen), (true, Some(SocketAddr::from(([0, 0, 0, 0], 65003)))));
    assert_eq!((first.name.as_str(), config.warnings.len()), ("dfstore", 1));
    assert!(config.warnings[0].contains("this is the first node"), "{:?}", config.warnings);

    let asks = "manager:\n  enable: true\n  netAddrs:\n    - type: tcp\n      addr: dragonfly-manager:65003\n  \
                refreshInterval: 10m\n";
    let seed = "  seedPeer:\n    enable: true\n    type: super\n    clusterID: 1\n";
    let service = "objectStorage:\n  enable: true\n  filter: 'Expires&Signature&ns'\n  maxReplicas: 3\n  security:\n    \
                   insecure: true\n    tlsVerify: true\n  tcpListen:\n    listen: 0.0.0.0\n    port: 65004\n";
    for (seed, is_seed) in [("", false), (seed, true)] {
        let config = with_token(&[service, asks, seed]);
        let cluster = config.cluster.expect("given");
        assert!(config.backend.is_none() && cluster.manager_listen.is_none());
        assert_eq!((cluster.is_seed, cluster.managers), (is_seed, vec!["dragonfly-manager:65003".to_owned()]));
        assert_eq!((cluster.name, cluster.token), (first.name.clone(), first.token.clone()));
        assert_eq!(config.http.ports, 65004..=65004);
    }
    let error = parse(&[service, asks]).expect_err("no cluster").to_string();
    assert!(error.lines().all(|line| line.contains("the original had no such secret")), "{error}");
}

#[test]
fn who_speaks_of_other_nodes_is_not_the_first() {
    assert!(!valid(&[BACKEND, IDENTITY]).cluster.expect("given").is_seed, "a name is given");
    let unnamed = "cluster: { token: canary-token }\n";
    for text in [
        "seedPeer: { enable: false }",
        "gossip: { seeds: ['other:65006'] }",
        "manager: { listen: '0.0.0.0:65003' }",
        "manager: { enable: true, netAddrs: [{ addr: a:1 }] }",
    ] {
        let other = valid(&[BACKEND, unnamed, text]).cluster.expect("given");
        assert!(!other.is_seed && (other.manager_listen.is_none() || text.contains("listen")), "{text}");
    }
}

#[test]
fn the_credential_depends_on_name_and_token_and_shows_neither() {
    let credential = |name: &str, token: &str| {
        let text = format!("cluster: {{ name: {name}, token: {token} }}");
        valid(&[BACKEND, &text]).cluster.expect("given").credential()
    };
    let one = credential("demo", "canary-token");
    assert_eq!(
        one, "f7eeaaed13dd141774f8274ad2568f24ae898e23c88804e33d697e1f10d4d323",
        "a golden value: nodes of all versions must agree on it"
    );
    assert!(one.len() == 64 && one.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
    assert_ne!(one, credential("demo2", "canary-token"));
    assert_ne!(one, credential("demo", "canary-token2"));
    assert_ne!(credential("demo1", "23456789"), credential("demo", "123456789"), "lengths count");
    let config = valid(&[BACKEND, IDENTITY]);
    assert!(!format!("{config:?} {config:#?} {config}").contains("canary"));
}
