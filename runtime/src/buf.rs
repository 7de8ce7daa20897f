//! Owned buffers for I/O: who holds the memory while the kernel uses it.
//!
//! The kernel keeps the address after the future that passed it is gone, so a buffer is moved into
//! the operation and its bytes must not lie inside the value that is moved.

use bytes::{Bytes, BytesMut};

/// Memory that the kernel reads.
///
/// # Safety
///
/// Until the value is dropped or handed out mutably, [`IoBuf::bytes`] returns the same address and
/// length, wherever the value was moved in between.
pub unsafe trait IoBuf: 'static {
    /// The bytes to be written or sent.
    fn bytes(&self) -> &[u8];
}

/// Memory that the kernel writes.
///
/// # Safety
///
/// Until the value is dropped, [`IoBufMut::room`] returns the same address and length as long as
/// [`IoBufMut::filled`] is not called, wherever the value was moved in between, and nobody else
/// uses those bytes.
pub unsafe trait IoBufMut: 'static {
    /// Where the kernel may write: start and length in bytes.
    fn room(&mut self) -> (*mut u8, usize);

    /// Told how many bytes at the start of the room were written.
    ///
    /// # Safety
    ///
    /// So many bytes of the room are initialised.
    unsafe fn filled(&mut self, len_bytes: usize);
}

// SAFETY: the heap block of a Vec stays while the Vec is only moved.
unsafe impl IoBuf for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above. The room is the whole capacity; `filled` sets the length.
unsafe impl IoBufMut for Vec<u8> {
    fn room(&mut self) -> (*mut u8, usize) {
        (self.as_mut_ptr(), self.capacity())
    }

    unsafe fn filled(&mut self, len_bytes: usize) {
        // SAFETY: within the capacity and initialised (caller).
        unsafe { self.set_len(len_bytes) }
    }
}

// SAFETY: shared and immutable.
unsafe impl IoBuf for Bytes {
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: the block of a BytesMut stays while it is not grown.
unsafe impl IoBuf for BytesMut {
    fn bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above. The room is what the capacity has left behind the contents, so that a stream
// is read into one buffer piece by piece; `filled` lengthens the contents.
unsafe impl IoBufMut for BytesMut {
    fn room(&mut self) -> (*mut u8, usize) {
        let spare = self.spare_capacity_mut();
        (spare.as_mut_ptr().cast(), spare.len())
    }

    unsafe fn filled(&mut self, len_bytes: usize) {
        // SAFETY: within the spare capacity and initialised (caller).
        unsafe { self.set_len(self.len() + len_bytes) }
    }
}

// SAFETY: static memory.
unsafe impl IoBuf for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}
