//! A file of the lower filesystem.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{self, Timespec, Timestamps, XattrFlags};
use warpcore_runtime::fs::File;

use super::Medium;
use crate::store::format::{ATTRIBUTE_NAME, Attribute};

/// An open file, read and written through the shard's ring.
#[derive(Debug)]
pub struct FileMedium {
    file: File,
}

impl FileMedium {
    /// Takes over an open file.
    pub fn new(fd: OwnedFd) -> Self {
        Self { file: File::from(fd) }
    }

    /// Makes the inode durable too: mode, owner, times.
    pub(crate) async fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all().await
    }
}

impl AsFd for FileMedium {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Medium for FileMedium {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            // The capacity is the room: exactly what is still wanted.
            let part = Vec::with_capacity(len - all.len());
            let (result, part) = self.file.read_at(part, offset + all.len() as u64).await;
            let read = result?;
            if all.is_empty() {
                all = part;
            } else {
                all.extend_from_slice(&part);
            }
            all.truncate(len);
            if read == 0 || all.len() == len {
                return Ok(all);
            }
        }
    }

    async fn write_at(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset).await.0
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().await
    }

    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(fs::fstat(&self.file)?.st_size).unwrap_or(0))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(fs::ftruncate(&self.file, len)?)
    }

    fn attribute(&self) -> io::Result<Option<Vec<u8>>> {
        // One byte more than ours: a longer one is somebody else's.
        let mut value = vec![0; Attribute::LEN + 1];
        match fs::fgetxattr(&self.file, ATTRIBUTE_NAME, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                Ok(Some(value))
            }
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_attribute(&self, value: &[u8]) -> io::Result<()> {
        Ok(fs::fsetxattr(&self.file, ATTRIBUTE_NAME, value, XattrFlags::empty())?)
    }

    fn epoch(&self) -> u32 {
        static EPOCH: OnceLock<u32> = OnceLock::new();
        *EPOCH.get_or_init(|| {
            // Without procfs, an epoch that no file was closed in: everything is verified.
            let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
            let id = if boot.is_empty() { std::process::id() } else { 0 };
            crc32c::crc32c_append(id, &boot)
        })
    }

    fn set_modified(&self, (seconds, nanoseconds): (i64, u32)) -> io::Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
            last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
        };
        Ok(fs::futimens(&self.file, &times)?)
    }
}
