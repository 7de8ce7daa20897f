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

    /// Reads `words` from `offset` on, two at a time, as [`read`](Self::read).
    pub(crate) fn read_words(&self, offset: usize, words: &mut [u32]) {
        let (pairs, rest) = words.as_chunks_mut::<2>();
        for (index, [low, high]) in pairs.iter_mut().enumerate() {
            // SAFETY: `pair` checked the place; any bits are a u64.
            let bits = u64::from_le(unsafe { self.pair(offset + index * 8).read_volatile() });
            let [a, b, c, d, e, f, g, h] = bits.to_le_bytes();
            (*low, *high) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        }
        assert!(rest.is_empty(), "descriptors have words by the pair");
    }

    /// Writes `words` from `offset` on, two at a time, as [`write`](Self::write).
    pub(crate) fn write_words(&self, offset: usize, words: &[u32]) {
        let (pairs, rest) = words.as_chunks::<2>();
        for (index, [low, high]) in pairs.iter().enumerate() {
            let bits = u64::from(*low) | u64::from(*high) << 32;
            // SAFETY: `pair` checked the place, and nobody has references to it.
            unsafe { self.pair(offset + index * 8).write_volatile(bits.to_le()) };
        }
        assert!(rest.is_empty(), "descriptors have words by the pair");
    }

    /// Writes a word to a device register of 64 bits, in one store.
    pub(crate) fn write_register(&self, offset: usize, value: u64) {
        // SAFETY: `pair` checked the place.
        unsafe { self.pair(offset).write_volatile(value.to_le()) };
    }

    /// A word that publishes others, or is published by none. Its value is little-endian.
    pub(crate) fn atomic(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `word` checked the place and alignment; it is mapped for as long as `self`.
        unsafe { AtomicU32::from_ptr(self.word(offset)) }
    }

    fn pair(&self, offset: usize) -> *mut u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len_bytes, "outside the region");
        // SAFETY: checked above, and the mapping is aligned to a page.
        unsafe { self.start.as_ptr().add(offset).cast() }
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
