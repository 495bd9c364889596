//! Checks that can be made to fail without another process; the others are in `peer/tests/startup.rs`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Missing, check_io_uring, check_kernel, check_locked_memory, check_open_files, data_folder, ports, run};
use crate::config::{Config, Overrides, StoreOptions};

fn config(folder: &Path) -> Config {
    let text = format!(
        "objectStorage: {{ enable: true, name: s3, tcpListen: {{ listen: 127.0.0.1, port: 0 }} }}\n\
         storage: {{ dataPath: {}, capacity: 64MiB }}\nmemory: {{ budget: 64MiB }}\n",
        folder.display()
    );
    Config::parse("test", &text, &Overrides::default()).expect("valid")
}

fn store(folder: &Path) -> StoreOptions {
    config(folder).store
}

#[test]
fn a_machine_that_has_everything_is_ready() {
    let folder = tempfile::tempdir().expect("made");
    let data = folder.path().join("a/b/data");
    let ready = run(&config(&data)).expect("development machines have everything");
    assert_eq!(ready.port, 0);
    assert_eq!(data.metadata().expect("made").permissions().mode() & 0o777, 0o700);
    let left: Vec<_> =
        std::fs::read_dir(&data).expect("readable").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(left, ["LOCK"], "nothing else is left behind");
    drop(ready);
    run(&config(&data)).expect("the lock went with its holder");
}

#[test]
fn a_folder_has_one_holder_and_its_name_is_told() {
    let folder = tempfile::tempdir().expect("made");
    let held = data_folder::open(&store(folder.path())).map_err(|missing| missing.to_string()).expect("free");
    let missing = data_folder::open(&store(folder.path())).err().expect("locked");
    assert!(matches!(&missing, Missing::FolderLocked { holder, .. } if *holder == Some(std::process::id())));
    assert!(missing.to_string().ends_with(&format!("is in use by process {}", std::process::id())), "{missing}");
    drop(held);
}

#[test]
fn what_is_no_folder_is_refused() {
    let folder = tempfile::tempdir().expect("made");
    let file = folder.path().join("file");
    std::fs::write(&file, "x").expect("written");
    for path in [file.clone(), file.join("below")] {
        let missing = data_folder::open(&store(&path)).err().expect("refused");
        assert!(matches!(missing, Missing::Folder { .. }), "{missing}");
    }
}

#[test]
fn too_small_a_disk_is_a_warning() {
    let folder = tempfile::tempdir().expect("made");
    let greedy = StoreOptions { capacity_bytes: 1 << 50, ..store(folder.path()) };
    let found = data_folder::open(&greedy).map_err(|missing| missing.to_string()).expect("usable");
    assert!(found.warnings[0].contains("storage.capacity is 1024TiB, but"), "{:?}", found.warnings);
}

#[test]
fn a_folder_in_memory_is_a_warning() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return eprintln!("SKIPPED: no /dev/shm here") };
    match data_folder::open(&store(folder.path())) {
        Ok(found) => assert!(found.warnings.iter().any(|text| text.contains("on tmpfs")), "{:?}", found.warnings),
        // Older kernels cannot do direct I/O there.
        Err(missing) => assert!(missing.to_string().contains("tmpfs"), "{missing}"),
    }
}

#[test]
fn the_first_free_port_of_a_range_is_taken() {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let taken = TcpListener::bind((local, 0)).expect("free");
    let port = taken.local_addr().expect("bound").port();
    let missing = ports::first_free(local, &(port..=port), "some.key").expect_err("in use");
    assert!(missing.to_string().contains(&format!("cannot listen on 127.0.0.1:{port} (some.key): in use")));
    assert!(missing.hint().contains("ss -ltnp"), "{}", missing.hint());
    if port < u16::MAX {
        // Another process may take any of them, but hardly all.
        assert!(ports::first_free(local, &(port..=u16::MAX), "some.key").expect("one is free") > port);
    }
    let foreign = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let elsewhere = ports::first_free(foreign, &(1024..=65535), "some.key").expect_err("not ours");
    assert!(elsewhere.to_string().contains("this machine does not have the address"), "{elsewhere}");
}

#[test]
fn every_port_of_a_node_that_is_taken_is_named() {
    let folder = tempfile::tempdir().expect("made");
    let local = (Ipv4Addr::LOCALHOST, 0);
    let (peer, manager) = (TcpListener::bind(local).expect("free"), TcpListener::bind(local).expect("free"));
    let gossip = UdpSocket::bind(local).expect("free");
    let text = format!(
        "objectStorage: {{ enable: true, name: s3, tcpListen: {{ listen: 127.0.0.1, port: 0 }} }}\n\
         storage: {{ dataPath: {}, capacity: 64MiB }}\nmemory: {{ budget: 64MiB }}\n\
         cluster: {{ name: demo, token: 12345678 }}\npeer: {{ listen: 127.0.0.1, port: {} }}\n\
         manager: {{ listen: '{}' }}\ngossip: {{ listen: '{}' }}\n",
        folder.path().display(),
        peer.local_addr().expect("bound").port(),
        manager.local_addr().expect("bound"),
        gossip.local_addr().expect("bound"),
    );
    let config = Config::parse("test", &text, &Overrides::default()).expect("valid");
    let error = run(&config).expect_err("all three are taken");
    let keys: Vec<_> = error
        .missing
        .iter()
        .map(|missing| match missing {
            Missing::Port { key, .. } => *key,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(keys, ["manager.listen", "gossip.listen", "peer.port"]);
    assert!(error.missing[1].hint().contains("ss -lunp"), "{}", error.missing[1].hint());
    drop((manager, gossip));
    let free = run(&config).expect_err("the peer's own port is taken still");
    assert_eq!(free.missing.len(), 1);
    drop(peer);
    let port = *config.cluster.as_ref().expect("given").peer.ports.start();
    assert_eq!(run(&config).expect("all is free").peer_port, Some(port));
}

#[test]
fn each_refusal_of_io_uring_has_its_own_advice() {
    let refused = |errno| check_io_uring(Err(io::Error::from_raw_os_error(errno))).expect("missing");
    assert!(matches!(refused(libc::ENOSYS), Missing::IoUringAbsent));
    assert!(matches!(refused(libc::EPERM), Missing::IoUringForbidden { .. }));
    assert!(matches!(refused(libc::ENOMEM), Missing::IoUringMemory));
    assert!(matches!(refused(libc::EMFILE), Missing::IoUring { .. }));
    assert!(refused(libc::ENOMEM).hint().contains("LimitMEMLOCK="));
    let sysctl = Missing::IoUringForbidden { sysctl: Some(2) };
    assert!(sysctl.to_string().contains("kernel.io_uring_disabled is 2") && sysctl.hint().contains("sysctl -w"));
    let filter = Missing::IoUringForbidden { sysctl: None };
    assert!(filter.to_string().contains("seccomp") && filter.hint().contains("seccomp"));
    assert!(check_io_uring(Ok(())).is_none());
}

#[test]
fn kernels_and_limits_are_compared_as_numbers() {
    for old in ["5.9.16", "4.19.0-amd64", "3.10"] {
        assert!(check_kernel(old).is_some(), "{old}");
    }
    for new in ["5.10.0", "5.15.0-91-generic", "6.18.44-fc", "10.0", "strange"] {
        assert!(check_kernel(new).is_none(), "{new}");
    }
    assert!(check_locked_memory(Some(64 << 10)).is_some_and(|missing| missing.to_string().contains("only 64KiB")));
    assert!(check_locked_memory(Some(8 << 20)).is_none() && check_locked_memory(None).is_none());
    assert!(check_open_files(Some(1024)).is_some() && check_open_files(None).is_none());
}
