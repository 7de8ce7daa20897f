//! Owned memory that a request lends to the queue.
//!
//! A device reads and writes these bytes while the value that owns them may be moved about, so the
//! bytes must not lie inside the value.

use bytes::{Bytes, BytesMut};

/// Memory a request reads.
///
/// # Safety
///
/// Until the value is dropped or handed out mutably, every call returns the same address and
/// length, wherever the value was moved in between, and nobody writes those bytes.
pub unsafe trait Source: Send + 'static {
    /// The bytes to read.
    fn source(&self) -> &[u8];
}

/// Memory a request writes. Its length bounds the result.
///
/// # Safety
///
/// Until the value is dropped, every call returns the same address and length, wherever the value
/// was moved in between, and nobody else reads or writes those bytes.
pub unsafe trait Target: Send + 'static {
    /// The bytes to write.
    fn target(&mut self) -> &mut [u8];
}

// SAFETY: the heap block of a Vec neither moves nor changes while the Vec is only moved.
unsafe impl Source for Vec<u8> {
    fn source(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above; a Vec is the sole owner of its block.
unsafe impl Target for Vec<u8> {
    fn target(&mut self) -> &mut [u8] {
        self
    }
}

// SAFETY: shared, immutable and counted; the bytes stay while one handle lives.
unsafe impl Source for Bytes {
    fn source(&self) -> &[u8] {
        self
    }
}

// SAFETY: the block of a BytesMut does not move unless the BytesMut is grown.
unsafe impl Source for BytesMut {
    fn source(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above; a BytesMut is the sole owner of its part of the block.
unsafe impl Target for BytesMut {
    fn target(&mut self) -> &mut [u8] {
        self
    }
}

// SAFETY: static memory.
unsafe impl Source for &'static [u8] {
    fn source(&self) -> &[u8] {
        self
    }
}

/// Address and length of bytes to read; the slot that names it owns them.
#[derive(Debug, Clone, Copy)]
pub struct SourceSpan {
    start: *const u8,
    len_bytes: usize,
}

impl SourceSpan {
    pub(crate) fn of(source: &impl Source) -> Self {
        let bytes = source.source();
        Self { start: bytes.as_ptr(), len_bytes: bytes.len() }
    }

    /// # Safety
    ///
    /// The [`Source`] must outlive `'a`, and not be handed out mutably during it.
    pub(crate) unsafe fn as_slice<'a>(self) -> &'a [u8] {
        // SAFETY: `of` took both from a live slice; the caller keeps its owner alive.
        unsafe { std::slice::from_raw_parts(self.start, self.len_bytes) }
    }
}

/// Address and length of bytes to write; the slot that names it owns them.
#[derive(Debug, Clone, Copy)]
pub struct TargetSpan {
    start: *mut u8,
    len_bytes: usize,
}

impl TargetSpan {
    pub(crate) fn of(bytes: &mut [u8]) -> Self {
        Self { start: bytes.as_mut_ptr(), len_bytes: bytes.len() }
    }

    /// # Safety
    ///
    /// The owner of the bytes must outlive `'a` and nobody else may touch them during it.
    pub(crate) unsafe fn as_slice<'a>(self) -> &'a mut [u8] {
        // SAFETY: `of` took both from a live exclusive slice; the caller keeps it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len_bytes) }
    }
}
