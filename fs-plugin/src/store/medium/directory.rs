//! A file of the lower filesystem.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use rustix::fs::{self, FallocateFlags, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use warpcore_runtime::fs::File;

use super::Medium;
use crate::store::format::{ATTRIBUTE_NAME, Attribute};

/// An open file, read and written through the shard's ring.
#[derive(Debug)]
pub struct FileMedium {
    file: File,
    /// What was read last, with what lies around it, by its offset: head, records and extents of a
    /// small file come with one read.
    window: Mutex<Option<(u64, Bytes)>>,
}

/// The longest write that is not worth a thread of its own: 3 us or so.
const INLINE_LEN_MAX: usize = 16 << 10;

/// Length of the window.
const WINDOW_LEN: usize = 16 << 10;

impl FileMedium {
    /// Takes over an open file.
    pub fn new(fd: OwnedFd) -> Self {
        Self { file: File::from(fd), window: Mutex::default() }
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        self.file.descriptor()
    }

    fn window(&self) -> MutexGuard<'_, Option<(u64, Bytes)>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to `len` bytes of the window, if it has them: all, or as many as the file has.
    fn in_window(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let window = self.window();
        let (start, bytes) = window.as_ref()?;
        let from = usize::try_from(offset.checked_sub(*start)?).ok()?;
        let is_end = bytes.len() < WINDOW_LEN;
        if from + len > bytes.len() && !is_end {
            return None;
        }
        Some(bytes.get(from..bytes.len().min(from + len)).unwrap_or_default().to_vec())
    }

    /// Refuses what would take of the room that is kept for root, to make the file longer: we may be
    /// root, and who writes through us is mostly not. Two system calls, 2 us or so.
    fn leave_reserve(&self, len: u64, offset: u64) -> io::Result<()> {
        if offset + len <= self.len()? {
            return Ok(());
        }
        let stat = fs::fstatvfs(&self.file)?;
        let is_reserved =
            stat.f_bavail < stat.f_bfree && stat.f_bavail < len.div_ceil(stat.f_frsize);
        if is_reserved { Err(Errno::NOSPC.into()) } else { Ok(()) }
    }

    async fn read_file(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
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
}

impl AsFd for FileMedium {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Medium for FileMedium {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if let Some(bytes) = self.in_window(offset, len) {
            return Ok(bytes);
        }
        if len > WINDOW_LEN / 4 {
            return self.read_file(offset, len).await;
        }
        // From the start of the file, or as much before as is asked for: records are looked for
        // from the end.
        let start = (offset + len as u64).saturating_sub(WINDOW_LEN as u64);
        let bytes = Bytes::from(self.read_file(start, WINDOW_LEN).await?);
        let from = bytes.len().min(usize::try_from(offset - start).expect("within a window"));
        let found = bytes[from..bytes.len().min(from + len)].to_vec();
        // Another reader may put its own there at once.
        *self.window() = Some((start, bytes));
        Ok(found)
    }

    async fn write_at(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        *self.window() = None;
        self.leave_reserve(bytes.len() as u64, offset)?;
        if bytes.len() <= INLINE_LEN_MAX {
            // Into the page cache, as fast as any system call. Through the ring it would be a
            // worker thread's: ext4 and XFS make no file longer without waiting (IOCB_NOWAIT).
            let (mut left, mut at) = (&bytes[..], offset);
            while !left.is_empty() {
                match rustix::io::pwrite(&self.file, left, at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(len) => (left, at) = (&left[len..], at + len as u64),
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            return Ok(());
        }
        self.file.write_all_at(bytes, offset).await.0
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().await
    }

    async fn sync_inode(&self) -> io::Result<()> {
        self.file.sync_all().await
    }

    async fn forget(&self) {
        *self.window() = None;
        // Nothing is lost if it cannot be done, but the check that it is for.
        let _ = self.file.drop_cached().await;
    }

    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(fs::fstat(&self.file)?.st_size).unwrap_or(0))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        *self.window() = None;
        Ok(fs::ftruncate(&self.file, len)?)
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        *self.window() = None;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fs::fallocate(&self.file, flags, range.start, range.end - range.start)?)
    }

    fn attribute(&self) -> io::Result<Option<Vec<u8>>> {
        // One byte more than ours: a longer one is somebody else's.
        let mut value = vec![0; Attribute::LEN + 1];
        match fs::fgetxattr(&self.file, ATTRIBUTE_NAME, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                Ok(Some(value))
            }
            Err(Errno::NODATA) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_attribute(&self, value: &[u8]) -> io::Result<()> {
        let set = || fs::fsetxattr(&self.file, ATTRIBUTE_NAME, value, XattrFlags::empty());
        match set() {
            // Not root, and nobody may write to the file (mode 0444, as git makes its objects): the
            // descriptor does not count here, the mode does (`xattr_permission`), which is ours to set.
            Err(Errno::ACCESS) => {
                let mode = Mode::from_raw_mode(fs::fstat(&self.file)?.st_mode);
                fs::fchmod(&self.file, mode | Mode::WUSR)?;
                let result = set();
                fs::fchmod(&self.file, mode)?;
                Ok(result?)
            }
            result => Ok(result?),
        }
    }

    fn overwrites_in_place(&self) -> bool {
        let known = [libc::EXT4_SUPER_MAGIC, libc::XFS_SUPER_MAGIC];
        fs::fstatfs(&self.file).is_ok_and(|stat| known.contains(&stat.f_type))
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
