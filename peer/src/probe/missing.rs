//! What may be missing, in words: what it is, and what to do about it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::KERNEL_MIN;
use crate::config::units::show_size;
use crate::limits::{BLOCK_BYTES, LOCKED_MEMORY_BYTES_MIN, OPEN_FILES_MIN};

/// The machine does not offer what a peer needs; names all of it.
#[derive(Debug, thiserror::Error)]
pub struct ProbeError {
    /// Never empty.
    pub missing: Vec<Missing>,
}

/// One thing that is missing. `Display` says what; [`hint`](Self::hint) what to do.
#[derive(Debug)]
pub enum Missing {
    /// The kernel is too old.
    Kernel {
        /// Its name.
        release: String,
    },
    /// The kernel has no io_uring, or one without the operations needed.
    IoUringAbsent,
    /// io_uring is forbidden.
    IoUringForbidden {
        /// Value of `kernel.io_uring_disabled` if that is why; else it is a filter.
        sysctl: Option<u8>,
    },
    /// No memory for a ring.
    IoUringMemory,
    /// io_uring fails in another way.
    IoUring {
        /// How.
        error: io::Error,
    },
    /// Too little memory may be locked.
    LockedMemory {
        /// The limit.
        bytes: u64,
    },
    /// Too few files may be open.
    OpenFiles {
        /// The limit.
        files: u64,
    },
    /// The data folder cannot be made, or is no folder, or cannot be looked at.
    Folder {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The data folder is another user's.
    FolderOwner {
        /// Which.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// This process's user.
        user: u32,
    },
    /// The data folder cannot be written to.
    FolderNotWritable {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Another process uses the data folder.
    FolderLocked {
        /// Which.
        path: PathBuf,
        /// The other process, as it wrote itself down.
        holder: Option<u32>,
    },
    /// Direct I/O does not work in the data folder.
    DirectIo {
        /// Which.
        path: PathBuf,
        /// The kind of file system, as far as known.
        file_system: String,
        /// How it fails.
        error: io::Error,
    },
    /// The address cannot be listened on.
    Port {
        /// Which.
        address: SocketAddr,
        /// The last port tried; that of the address if there is one only.
        last: u16,
        /// The key that names it.
        key: &'static str,
        /// Why not.
        error: io::Error,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = KERNEL_MIN;
        match self {
            Missing::Kernel { release } => write!(f, "Linux {release} is too old: {major}.{minor} or newer is needed"),
            Missing::IoUringAbsent => f.write_str("this kernel has no io_uring that a peer can use"),
            Missing::IoUringForbidden { sysctl: Some(value) } => {
                write!(f, "io_uring is forbidden here: kernel.io_uring_disabled is {value}")
            }
            Missing::IoUringForbidden { sysctl: None } => {
                f.write_str("io_uring is forbidden here: a seccomp filter or security module refuses it")
            }
            Missing::IoUringMemory => f.write_str("io_uring finds no memory for a ring: locked memory is used up"),
            Missing::IoUring { error } => write!(f, "io_uring does not work: {error}"),
            Missing::LockedMemory { bytes } => {
                let (found, needed) = (show_size(*bytes), show_size(LOCKED_MEMORY_BYTES_MIN));
                write!(f, "only {found} of memory may be locked: {needed} are needed for io_uring")
            }
            Missing::OpenFiles { files } => {
                write!(f, "only {files} files may be open: {OPEN_FILES_MIN} are needed at least")
            }
            Missing::Folder { path, error } => write!(f, "data folder {}: {error}", path.display()),
            Missing::FolderOwner { path, owner, user } => {
                write!(f, "data folder {} belongs to user {owner}, this process runs as user {user}", path.display())
            }
            Missing::FolderNotWritable { path, error } => {
                write!(f, "data folder {} is not writable: {error}", path.display())
            }
            Missing::FolderLocked { path, holder } => {
                write!(f, "data folder {} is in use by {}", path.display(), process_name(*holder))
            }
            Missing::DirectIo { path, file_system, error } => {
                write!(f, "data folder {} ({file_system}): direct I/O fails: {error}", path.display())
            }
            Missing::Port { address, last, key, error } => {
                write!(f, "cannot listen on {address}")?;
                if *last != address.port() {
                    write!(f, " or any port up to {last}")?;
                }
                write!(f, " ({key}): {}", port_reason(error))
            }
        }
    }
}

impl Missing {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Missing::Kernel { .. } | Missing::IoUringAbsent => {
                "run on a newer kernel (uname -r); inside a container the host's kernel counts".to_owned()
            }
            Missing::IoUringForbidden { sysctl: Some(_) } => {
                "sysctl -w kernel.io_uring_disabled=0, and put it into /etc/sysctl.d to keep it".to_owned()
            }
            Missing::IoUringForbidden { sysctl: None } => {
                "allow the io_uring_* system calls in the container's seccomp profile (docker run --security-opt \
                 seccomp=FILE, systemd SystemCallFilter=)"
                    .to_owned()
            }
            Missing::IoUringMemory | Missing::LockedMemory { .. } => {
                "raise it: ulimit -l unlimited, LimitMEMLOCK=infinity in the systemd unit, docker run --ulimit memlock=-1"
                    .to_owned()
            }
            Missing::IoUring { .. } => "look into the kernel's log (dmesg)".to_owned(),
            Missing::OpenFiles { .. } => {
                "raise it: ulimit -Hn 65536, LimitNOFILE=65536 in the systemd unit, docker run --ulimit nofile=65536"
                    .to_owned()
            }
            Missing::Folder { .. } => "name a folder that exists or can be made: storage.dataPath, --data-path".to_owned(),
            Missing::FolderOwner { path, owner, user } => {
                format!("run as user {owner}, or give it away: chown -R {user} {}", path.display())
            }
            Missing::FolderNotWritable { path, .. } => {
                format!("check the mode of {} and whether its file system is mounted read-only", path.display())
            }
            Missing::FolderLocked { .. } => {
                "stop that process, or give this one a data folder of its own: storage.dataPath, --data-path".to_owned()
            }
            Missing::DirectIo { .. } => format!(
                "put storage.dataPath on a local ext4 or XFS file system whose blocks are {BLOCK_BYTES} bytes or fewer"
            ),
            Missing::Port { address, key, error, .. } => port_hint(*address, key, error),
        }
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, missing) in self.missing.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{missing}")?;
        }
        Ok(())
    }
}

fn process_name(holder: Option<u32>) -> String {
    holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

fn port_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address".to_owned(),
        io::ErrorKind::PermissionDenied => "not permitted".to_owned(),
        _ => error.to_string(),
    }
}

fn port_hint(address: SocketAddr, key: &str, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let kind = if key == "gossip.listen" { 'u' } else { 't' };
            format!("see who has it (ss -l{kind}np 'sport = :{port}') and stop it, or change {key}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("name an address of this machine (ip address), or 0.0.0.0, in {key}")
        }
        io::ErrorKind::PermissionDenied => format!("ports below 1024 need CAP_NET_BIND_SERVICE: change {key}"),
        _ => format!("change {key}"),
    }
}
