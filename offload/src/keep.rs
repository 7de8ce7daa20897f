//! A place in a slot where a request of any type lies while it is in flight.
//!
//! Boxing would allocate on each submission, and an enum of all requests could not hold the
//! caller's own buffer types. So a slot has room for any request up to [`KEEP_LEN_BYTES`]; the
//! size is checked when the request type is compiled.

use std::cell::UnsafeCell;
use std::fmt;
use std::mem::{MaybeUninit, align_of, size_of};

/// Room in a slot: a signature of RSA-4096 (512 B) inline, the caller's buffers (24 to 32 B
/// each), a key and the small change.
const KEEP_LEN_BYTES: usize = 640;

/// Untyped room for one request. Who stores the request remembers its type and calls the right
/// `take` or `drop_in_place`; the room itself never drops anything.
#[repr(C, align(64))]
pub(crate) struct Keep(UnsafeCell<MaybeUninit<[u8; KEEP_LEN_BYTES]>>);

impl Keep {
    pub(crate) const fn empty() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Moves `value` in. It stays there until taken.
    pub(crate) fn put<R>(&self, value: R) {
        const {
            assert!(size_of::<R>() <= KEEP_LEN_BYTES, "request too large for a slot");
            assert!(align_of::<R>() <= 64, "request aligned more strictly than a slot");
        }
        let place = self.0.get().cast::<R>();
        // SAFETY: large and aligned enough (checked above), and we own the cell.
        unsafe { place.write(value) };
    }

    /// # Safety
    ///
    /// The last call that put or took was `put::<R>`, and nobody uses the value meanwhile.
    #[allow(clippy::mut_from_ref, reason = "an UnsafeCell's; the caller keeps it exclusive")]
    pub(crate) unsafe fn as_mut<R>(&self) -> &mut R {
        // SAFETY: an `R` lies here, and is ours alone (caller).
        unsafe { &mut *self.0.get().cast::<R>() }
    }

    /// # Safety
    ///
    /// The last call that put or took was `put::<R>`, and no pointer into the value is used again.
    pub(crate) unsafe fn take<R>(&self) -> R {
        // SAFETY: an `R` lies here (caller); it is not read again.
        unsafe { self.0.get().cast::<R>().read() }
    }

    /// # Safety
    ///
    /// As [`Keep::take`].
    pub(crate) unsafe fn discard<R>(&self) {
        // SAFETY: an `R` lies here (caller); it is not used again.
        unsafe { self.0.get().cast::<R>().drop_in_place() }
    }
}

impl fmt::Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keep")
    }
}
