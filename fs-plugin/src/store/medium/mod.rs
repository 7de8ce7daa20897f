//! Where the bytes of one backing file lie.

mod crash;
mod directory;

use std::io;
use std::ops::Range;

pub use crash::{CrashMedium, CrashPoint};
pub use directory::FileMedium;

/// One backing file. Who changes it does nothing else meanwhile; those that read do so together, on any core.
#[expect(clippy::len_without_is_empty, reason = "a length that may fail")]
#[allow(async_fn_in_trait, reason = "futures stay on their shard; none needs to be Send")]
pub trait Medium {
    /// Up to `len` bytes at `offset`; fewer only at the end of the file.
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Writes all of `bytes` at `offset`.
    async fn write_at(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()>;

    /// Makes contents durable, and all metadata needed to read them.
    async fn sync_data(&self) -> io::Result<()>;

    /// Makes the inode durable too: mode, owner, times, names.
    async fn sync_inode(&self) -> io::Result<()>;

    /// What is read from here on is what is on the disk, as far as it is there.
    async fn forget(&self);

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Sets the length.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Frees the blocks of `range`; it reads as zeros, and the length stays.
    fn punch(&self, range: Range<u64>) -> io::Result<()>;

    /// The value of the extended attribute, if it has one; EOPNOTSUPP where there can be none.
    fn attribute(&self) -> io::Result<Option<Vec<u8>>>;

    /// Sets the extended attribute.
    fn set_attribute(&self, value: &[u8]) -> io::Result<()>;

    /// Whether bytes that are written where there are some already take their place, so that a sync
    /// of them needs no change of metadata. Copy-on-write filesystems do not.
    fn overwrites_in_place(&self) -> bool;

    /// Changes whenever bytes that were not synced may have been lost: with each start of the
    /// system.
    fn epoch(&self) -> u32;

    /// Puts the time of the last change back after our own writes: seconds and nanoseconds.
    fn set_modified(&self, modified: (i64, u32)) -> io::Result<()>;
}

impl<M: Medium> Medium for std::rc::Rc<M> {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        (**self).read_at(offset, len).await
    }

    async fn write_at(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        (**self).write_at(bytes, offset).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        (**self).sync_data().await
    }

    async fn sync_inode(&self) -> io::Result<()> {
        (**self).sync_inode().await
    }

    async fn forget(&self) {
        (**self).forget().await;
    }

    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        (**self).punch(range)
    }

    fn attribute(&self) -> io::Result<Option<Vec<u8>>> {
        (**self).attribute()
    }

    fn set_attribute(&self, value: &[u8]) -> io::Result<()> {
        (**self).set_attribute(value)
    }

    fn overwrites_in_place(&self) -> bool {
        (**self).overwrites_in_place()
    }

    fn epoch(&self) -> u32 {
        (**self).epoch()
    }

    fn set_modified(&self, modified: (i64, u32)) -> io::Result<()> {
        (**self).set_modified(modified)
    }
}
