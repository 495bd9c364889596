//! Asks the kernel, by doing it, whether io_uring works here. The raw system calls are in this file; what an answer
//! means for the user is said in [`crate::probe`].

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct io_uring_params` of the kernel's interface, 120 bytes, all zero for a ring with defaults.
#[repr(C, align(8))]
struct RingParams([u8; 120]);

/// `struct io_uring_probe` with room for every operation: a head of 16 bytes, then 8 bytes for each.
#[repr(C, align(8))]
struct OperationProbe([u8; 16 + 256 * 8]);

const REGISTER_PROBE: libc::c_uint = 8;
/// Bit of a probed operation that says the kernel has it.
const OPERATION_SUPPORTED: u8 = 1;
/// The youngest operations that the executors need, by number: `recv` (27) and `openat2` (28), Linux 5.6.
const OPERATIONS_NEEDED: [usize; 2] = [27, 28];

/// Sets up a small ring, asks it for the operations that are needed, and closes it. `ENOSYS`: the kernel has none.
/// `EPERM` or `EACCES`: a sysctl or a seccomp filter forbids it. `ENOMEM`: locked memory. `EOPNOTSUPP`: too old.
pub fn try_io_uring() -> io::Result<()> {
    let ring = set_up_ring(8)?;
    let mut probe = OperationProbe([0; 16 + 256 * 8]);
    // SAFETY: the kernel writes at most 256 records of 8 bytes behind the head, which is what `probe` has room for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_PROBE,
            std::ptr::from_mut(&mut probe),
            256 as libc::c_uint,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = |operation: usize| probe.0[16 + operation * 8 + 2];
    if OPERATIONS_NEEDED.iter().all(|operation| flags(*operation) & OPERATION_SUPPORTED != 0) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
}

fn set_up_ring(entries: libc::c_uint) -> io::Result<OwnedFd> {
    let mut params = RingParams([0; 120]);
    // SAFETY: `params` is zeroed and has the size of the kernel's structure, which it fills in.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, std::ptr::from_mut(&mut params)) };
    let descriptor = libc::c_int::try_from(result).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_machine_has_io_uring() {
        super::try_io_uring().expect("development needs it");
    }
}
