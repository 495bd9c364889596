//! Files at positions: reading a source and writing a target, and giving a fresh file its size.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use monoio::buf::IoBufMut;

use crate::rt::buffer::Buffer;

/// A file of the runtime of this thread.
pub struct PositionedFile(monoio::fs::File);

impl PositionedFile {
    /// A handle of its own for this thread's runtime.
    pub fn new(file: &File) -> io::Result<PositionedFile> {
        monoio::fs::File::from_std(file.try_clone()?).map(PositionedFile)
    }

    /// Reads `len` bytes at `offset` into the front of `buffer`; fewer only at the end of the file. An error drops it.
    pub async fn read_at(&self, mut buffer: Buffer, len: usize, offset: u64) -> io::Result<Buffer> {
        assert!(len <= buffer.capacity());
        let mut filled = 0;
        while filled < len {
            let view = buffer.slice_mut(filled..len);
            let (result, view) = self.0.read_at(view, offset + filled as u64).await;
            buffer = view.into_inner();
            match result {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.set_len(filled);
        Ok(buffer)
    }

    /// Writes all of `buffer` at `offset`, and gives it back.
    pub async fn write_at(&self, buffer: Buffer, offset: u64) -> io::Result<Buffer> {
        let (result, buffer) = self.0.write_all_at(buffer, offset).await;
        result.map(|()| buffer)
    }
}

/// Takes the space of a fresh file at once, so that a full disk shows itself before the transfer. Filesystems that
/// cannot do so are left alone.
pub fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    let Ok(bytes) = libc::off_t::try_from(bytes) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the descriptor is open and nothing else is passed.
    if unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, bytes) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINTR | libc::EINVAL) => Ok(()),
        _ => Err(error),
    }
}
