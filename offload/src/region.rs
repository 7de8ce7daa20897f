//! Memory shared with a device: mapped, and read and written word by word.
//!
//! The other side writes these bytes whenever it likes, so that there is never a reference to
//! them: plain words are volatile, and the words that publish others are atomic. Words are
//! little-endian on the wire.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::fork::Generation;

/// A mapping of a queue file, unmapped when it is dropped.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    len_bytes: usize,
    /// The kernel does not give queue files to children (`VM_DONTCOPY`): what lies at the address
    /// in a child is somebody else's.
    generation: Generation,
}

// SAFETY: an address and a length; all access is volatile or atomic.
unsafe impl Send for Region {}

impl Region {
    /// Maps `len_bytes` of `file` from `offset` on, shared, to read and write.
    pub(crate) fn map(file: BorrowedFd<'_>, offset: u64, len_bytes: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses a place where nothing else is.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                offset,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len_bytes, generation: Generation::current() })
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Reads a word that nothing is inferred from but itself.
    pub(crate) fn read(&self, offset: usize) -> u32 {
        // SAFETY: `word` checked the place; any bits are a u32.
        u32::from_le(unsafe { self.word(offset).read_volatile() })
    }

    /// Writes a word that another publishes.
    pub(crate) fn write(&self, offset: usize, value: u32) {
        // SAFETY: `word` checked the place, and nobody has references to it.
        unsafe { self.word(offset).write_volatile(value.to_le()) };
    }

    /// Writes a word to a device register of 64 bits, in one store.
    pub(crate) fn write_register(&self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len_bytes, "outside the region");
        // SAFETY: checked above, and the mapping is aligned to a page.
        let register = unsafe { self.start.as_ptr().add(offset).cast::<u64>() };
        // SAFETY: as above.
        unsafe { register.write_volatile(value.to_le()) };
    }

    /// A word that publishes others, or is published by none. Its value is little-endian.
    pub(crate) fn atomic(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `word` checked the place and alignment; it is mapped for as long as `self`.
        unsafe { AtomicU32::from_ptr(self.word(offset)) }
    }

    fn word(&self, offset: usize) -> *mut u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len_bytes, "outside the region");
        // SAFETY: checked above, and the mapping is aligned to a page.
        unsafe { self.start.as_ptr().add(offset).cast() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if !self.generation.is_past() {
            // SAFETY: our own mapping, and every access borrows `self`.
            let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes) };
            debug_assert_eq!(unmapped, Ok(()), "a whole mapping can be unmapped");
        }
    }
}
