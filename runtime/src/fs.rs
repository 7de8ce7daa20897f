//! Files with owned buffers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::{opcode, types};

use crate::buf::{IoBuf, IoBufMut};
use crate::op::{self, SharedFd};
use crate::ring::Sqe;

/// An open file. Clones share the descriptor; any shard may use it, each through its own ring.
#[derive(Debug, Clone)]
pub struct File {
    fd: SharedFd,
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> Self {
        Self { fd: Arc::new(OwnedFd::from(file)) }
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd) }
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl File {
    /// The descriptor, for system calls of the caller's own.
    pub fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Reads at `offset` into the buffer's room; 0 at the end of the file, or without room.
    pub async fn read_at<B: IoBufMut>(&self, buffer: B, offset: u64) -> (io::Result<usize>, B) {
        op::read_at(Arc::clone(&self.fd), buffer, offset).await
    }

    /// Reads the next bytes of something that has no offsets: a pipe, an eventfd, a device.
    pub async fn read_stream<B: IoBufMut>(&self, mut buffer: B) -> (io::Result<usize>, B) {
        let (start, len_bytes) = buffer.room();
        let fd = types::Fd(self.fd.as_raw_fd());
        // An offset of -1 is the file's own position.
        let sqe = opcode::Read::new(fd, start, op::len_of(len_bytes)).offset(u64::MAX).build();
        let keep = (Arc::clone(&self.fd), buffer);
        // SAFETY: the room stays where it is (`IoBufMut`); buffer and file are kept.
        let (result, (_, mut buffer)) = unsafe { op::submit(Sqe::Normal(sqe), keep) }.await;
        let result = result.map(|len| len as usize);
        if let Ok(len) = result {
            // SAFETY: the kernel wrote so many bytes at the start of the room.
            unsafe { buffer.filled(len) };
        }
        (result, buffer)
    }

    /// Writes the whole buffer at `offset`.
    pub async fn write_all_at<B: IoBuf>(&self, buffer: B, offset: u64) -> (io::Result<()>, B) {
        let (mut buffer, mut from) = (buffer, 0);
        while from < buffer.bytes().len() {
            let at = offset + from as u64;
            let (result, back) = op::write_at(Arc::clone(&self.fd), buffer, from, at).await;
            buffer = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(len) => from += len,
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Makes contents durable, and as much of the metadata as is needed to read them.
    pub async fn sync_data(&self) -> io::Result<()> {
        op::fsync(Arc::clone(&self.fd), true).await
    }

    /// Drops what the page cache has of it and the disk has too (posix_fadvise(2), POSIX_FADV_DONTNEED).
    pub async fn drop_cached(&self) -> io::Result<()> {
        let fd = types::Fd(self.fd.as_raw_fd());
        let sqe = opcode::Fadvise::new(fd, 0, libc::POSIX_FADV_DONTNEED).build();
        // SAFETY: nothing of ours is pointed to; the file is kept.
        let (result, _) = unsafe { op::submit(Sqe::Normal(sqe), Arc::clone(&self.fd)) }.await;
        result.map(drop)
    }

    /// Makes contents and metadata durable.
    pub async fn sync_all(&self) -> io::Result<()> {
        op::fsync(Arc::clone(&self.fd), false).await
    }
}
