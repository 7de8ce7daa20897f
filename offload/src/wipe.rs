//! Memory that has held secrets, where nobody else wipes it.

use std::hint::black_box;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;

use zeroize::Zeroize;

/// A value on the heap whose bytes are wiped once it is dropped: for types of others that leave them.
pub(crate) struct Wiped<T>(Box<ManuallyDrop<T>>);

impl<T> Wiped<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Box::new(ManuallyDrop::new(value)))
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: dropped here and nowhere else; the box drops nothing but its memory.
        unsafe { ManuallyDrop::drop(&mut self.0) };
        let start = std::ptr::from_mut(&mut *self.0).cast::<MaybeUninit<u8>>();
        // SAFETY: the place is ours and as long as its type; nothing lies in it any more.
        unsafe { std::slice::from_raw_parts_mut(start, size_of::<T>()) }.zeroize();
    }
}

/// What kernels and the libraries they call spill to the stack at most.
const SPILLED: usize = 32 * 1024;

/// Wipes what lies below the caller's frame: the frames of calls that have returned, with the secrets
/// that compilers spilled there.
#[inline(never)]
pub(crate) fn burn_stack() {
    // Written, since somebody might look at it.
    black_box(&mut [0_u8; SPILLED]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its own drop runs once, before the bytes go.
    #[test]
    fn what_is_wiped_is_dropped_first() {
        let counted = std::rc::Rc::new(());
        let wiped = Wiped::new((std::rc::Rc::clone(&counted), [0xa5_u8; 64]));
        assert_eq!((wiped.1[3], std::rc::Rc::strong_count(&counted)), (0xa5, 2));
        drop(wiped);
        assert_eq!(std::rc::Rc::strong_count(&counted), 1);
    }

    /// How many bytes at an address that nothing lies at any more are 0x5a. The kernel reads them: no
    /// rule of the language would allow it.
    /// `room`, `LEN` bytes, lies elsewhere.
    fn left(address: usize, room: &mut [u8]) -> usize {
        use std::io::{Read, Seek, SeekFrom};
        let mut memory = std::fs::File::open("/proc/self/mem").expect("Linux has it");
        memory.seek(SeekFrom::Start(address as u64)).expect("seeks");
        memory.read_exact(room).expect("our own memory");
        room.iter().filter(|byte| **byte == 0x5a).count()
    }

    const LEN: usize = 4096;

    #[test]
    fn what_is_wiped_leaves_no_bytes() {
        let mut room = vec![0; LEN];
        let wiped = Wiped::new([0x5a_u8; LEN]);
        let address = wiped.as_ptr().addr();
        assert_eq!(left(address, &mut room), LEN);
        drop(wiped);
        assert!(left(address, &mut room) < 64);
    }

    #[inline(never)]
    fn spill() -> usize {
        let mut secret = [0x5a_u8; LEN];
        black_box(&mut secret);
        secret.as_ptr().addr()
    }

    #[test]
    fn the_stack_is_burnt() {
        let mut room = vec![0; LEN];
        let address = spill();
        burn_stack();
        assert!(left(address, &mut room) < 64);
    }
}
