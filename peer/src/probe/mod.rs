//! What the machine must offer, tried out before anything else starts.
//!
//! Each check does the real thing once (sets up a ring, writes a block past the page cache, binds the port) and says
//! what is missing, where, and what to do. All that is missing is told at once. Owns the lock of the data folder from
//! then on. Called by `main`; knows the configuration's structs and the kernel, no component.

pub mod address;
mod data_folder;
mod missing;
mod ports;
#[cfg(test)]
mod tests;

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{ClusterOptions, Config, units::show_size};
use crate::limits::{LOCKED_MEMORY_BYTES_MIN, OPEN_FILES_MIN};
use crate::rt::probe::try_io_uring;

pub use data_folder::DataLock;
pub use missing::{Missing, ProbeError};

/// Oldest kernel whose io_uring the executors are known to work on.
const KERNEL_MIN: (u32, u32) = (5, 10);

/// What a peer that may start has.
#[derive(Debug)]
pub struct Ready {
    /// Nobody else uses the data folder while this lives.
    pub lock: DataLock,
    /// The port of the object API: the first free one, or 0 where the system shall choose.
    pub port: u16,
    /// The same of the port for other peers, in a cluster.
    pub peer_port: Option<u16>,
    /// Things the user should know that do not stop the start.
    pub warnings: Vec<String>,
}

/// Tries everything out.
pub fn run(config: &Config) -> Result<Ready, ProbeError> {
    let mut missing = Vec::new();
    let mut warnings = Vec::new();
    missing.extend(check_kernel(&kernel_release()));
    missing.extend(check_io_uring(try_io_uring()));
    missing.extend(check_locked_memory(raise(Resource::Memlock)));
    missing.extend(check_open_files(raise(Resource::Nofile)));
    warnings.extend(check_memory(config));
    let folder = data_folder::open(&config.store);
    let lock = match folder {
        Ok(folder) => {
            warnings.extend(folder.warnings);
            Some(folder.lock)
        }
        Err(found) => {
            missing.push(found);
            None
        }
    };
    let port = ports::first_free(config.http.listen, &config.http.ports, "objectStorage.tcpListen");
    let port = port.map_err(|found| missing.push(found)).ok();
    let peer_port = config.cluster.as_ref().and_then(|cluster| check_cluster(cluster, &mut missing));
    if let Some(address) = config.metrics.listen {
        missing.extend(ports::try_bind(address, "metrics.listen").err());
    }
    match (lock, port) {
        (Some(lock), Some(port)) if missing.is_empty() => Ok(Ready { lock, port, peer_port, warnings }),
        _ => Err(ProbeError { missing }),
    }
}

/// Tries the listeners of a node of a cluster. Gives the first free port for other peers.
fn check_cluster(cluster: &ClusterOptions, missing: &mut Vec<Missing>) -> Option<u16> {
    let port = ports::first_free(cluster.peer.listen, &cluster.peer.ports, "peer.port");
    if let Some(address) = cluster.manager_listen {
        missing.extend(ports::try_bind(address, "manager.listen").err());
    }
    missing.extend(ports::try_bind_udp(cluster.gossip.listen, "gossip.listen").err());
    port.map_err(|found| missing.push(found)).ok()
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn check_kernel(release: &str) -> Option<Missing> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    // A name without numbers says nothing: the other checks decide.
    let (major, minor) = (numbers.next()?, numbers.next()?);
    ((major, minor) < KERNEL_MIN).then(|| Missing::Kernel { release: release.to_owned() })
}

fn check_io_uring(result: io::Result<()>) -> Option<Missing> {
    let error = result.err()?;
    Some(match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL) => Missing::IoUringAbsent,
        Some(libc::EPERM | libc::EACCES) => Missing::IoUringForbidden { sysctl: io_uring_sysctl() },
        Some(libc::ENOMEM) => Missing::IoUringMemory,
        _ => Missing::IoUring { error },
    })
}

/// Value of `kernel.io_uring_disabled`, where the kernel has it and it is not 0.
fn io_uring_sysctl() -> Option<u8> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok().filter(|value| *value != 0)
}

/// Raises the soft limit to the hard one and gives what is now in force; `None` is no limit.
fn raise(resource: Resource) -> Option<u64> {
    let limit = getrlimit(resource);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(resource, wanted).is_ok() {
        return limit.maximum;
    }
    limit.current
}

fn check_locked_memory(limit: Option<u64>) -> Option<Missing> {
    let bytes = limit.filter(|bytes| *bytes < LOCKED_MEMORY_BYTES_MIN)?;
    Some(Missing::LockedMemory { bytes })
}

fn check_open_files(limit: Option<u64>) -> Option<Missing> {
    let files = limit.filter(|files| *files < OPEN_FILES_MIN)?;
    Some(Missing::OpenFiles { files })
}

/// A budget that this machine cannot hold ends in the out-of-memory killer: worth saying, not worth refusing.
fn check_memory(config: &Config) -> Option<String> {
    let machine = rustix::system::sysinfo();
    let total = machine.totalram.saturating_mul(u64::from(machine.mem_unit));
    let budget = config.memory.budget_bytes;
    let (shown, total_shown) = (show_size(budget), show_size(total >> 20 << 20));
    (budget > total / 10 * 9)
        .then(|| format!("memory.budget ({shown}) is nearly all memory of this machine ({total_shown}): lower it"))
}
