//! Stacks for coroutines: a bounded pool on each shard, wiped after each use.
//!
//! What rustls leaves on a stack are pieces of key schedules, so a stack stays out of core dumps,
//! and the span that was used is zeroed before the stack goes back.

use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;

use corosensei::stack::StackPointer;

/// Measured high-water mark of `process_new_packets` is about 10 KiB; certificates to verify would
/// add to it.
const STACK_LEN_BYTES: usize = 64 * 1024;

/// Below the stack: runs out of it fault instead of overwriting. The largest page there is (arm64
/// with 64 KiB), so that a protection of this length never reaches into the stack.
const GUARD_LEN_BYTES: usize = 64 * 1024;

/// Handshakes of one shard that may be suspended at a time. More sign in place.
const STACKS_MAX: usize = 512;

/// Memory for one coroutine. All zeros whenever it is in the pool.
pub(crate) struct Stack {
    /// Lowest address of the mapping, guard included.
    start: NonNull<u8>,
}

thread_local! {
    static FREE: RefCell<Vec<Stack>> = const { RefCell::new(Vec::new()) };
    /// Stacks that exist, in the pool or in use.
    static MADE: Cell<usize> = const { Cell::new(0) };
}

impl Stack {
    /// A stack from the pool, or a new one while there may be more.
    pub(crate) fn take() -> Option<Self> {
        if let Some(stack) = FREE.with(|free| free.borrow_mut().pop()) {
            return Some(stack);
        }
        if MADE.get() >= STACKS_MAX {
            return None;
        }
        match Self::map() {
            Ok(stack) => {
                MADE.set(MADE.get() + 1);
                Some(stack)
            }
            Err(error) => {
                tracing::warn!("no memory for another handshake stack: {error}");
                None
            }
        }
    }

    /// Wipes the stack and puts it back.
    pub(crate) fn put_back(mut self) {
        self.wipe();
        FREE.with(|free| free.borrow_mut().push(self));
    }

    fn map() -> io::Result<Self> {
        let len_bytes = GUARD_LEN_BYTES + STACK_LEN_BYTES;
        // SAFETY: a new private mapping; nothing else is touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).expect("mmap maps nothing at 0 unasked");
        // From here on, dropping unmaps.
        let stack = Self { start };
        // SAFETY: the first pages of our own mapping.
        if unsafe { libc::mprotect(start.as_ptr().cast(), GUARD_LEN_BYTES, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: our own mapping. A kernel without the flag leaves the stack in dumps.
        unsafe { libc::madvise(start.as_ptr().cast(), len_bytes, libc::MADV_DONTDUMP) };
        Ok(stack)
    }

    /// Zeroes from the lowest byte that is not zero up to the base.
    fn wipe(&mut self) {
        // SAFETY: our own mapping above the guard, initialised by the kernel, and no coroutine
        // runs on it: its owner took the stack out of the finished coroutine.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(
                self.start.as_ptr().add(GUARD_LEN_BYTES),
                STACK_LEN_BYTES,
            )
        };
        let words = bytes.chunks_exact(8);
        let clean = words.take_while(|word| **word == [0; 8]).count() * 8;
        bytes[clean..].fill(0);
        // The compiler may not drop the stores as dead: the bytes are looked at here.
        std::hint::black_box(bytes);
    }
}

// SAFETY: the memory between limit and base is ours, writable above the guard, and page-aligned.
unsafe impl corosensei::stack::Stack for Stack {
    fn base(&self) -> StackPointer {
        let base = self.start.as_ptr().addr() + GUARD_LEN_BYTES + STACK_LEN_BYTES;
        StackPointer::new(base).expect("not 0")
    }

    fn limit(&self) -> StackPointer {
        StackPointer::new(self.start.as_ptr().addr()).expect("not 0")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody runs on it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), GUARD_LEN_BYTES + STACK_LEN_BYTES) };
        // At the thread's end the counter may be gone, and no longer matters.
        let _ = MADE.try_with(|made| made.set(made.get().saturating_sub(1)));
    }
}

#[cfg(test)]
pub(crate) fn free() -> usize {
    FREE.with(|free| free.borrow().len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use corosensei::{Coroutine, CoroutineResult};

    #[test]
    fn a_stack_comes_back_without_what_was_on_it() {
        let stack = Stack::take().expect("the first stack");
        let start = stack.start;
        let mut coroutine = Coroutine::with_stack(stack, |yielder, ()| {
            let secret = std::hint::black_box([0xa5_u8; 1000]);
            yielder.suspend(());
            std::hint::black_box(secret);
        });
        assert!(matches!(coroutine.resume(()), CoroutineResult::Yield(())));
        assert!(matches!(coroutine.resume(()), CoroutineResult::Return(())));
        coroutine.into_stack().put_back();
        assert_eq!(free(), 1);
        // SAFETY: in the pool, so mapped and unused.
        let bytes = unsafe {
            std::slice::from_raw_parts(start.as_ptr().add(GUARD_LEN_BYTES), STACK_LEN_BYTES)
        };
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert_eq!(Stack::take().expect("from the pool").start, start);
    }

    #[test]
    fn the_pool_is_bounded() {
        let all: Vec<_> = std::iter::from_fn(Stack::take).collect();
        assert_eq!(all.len(), STACKS_MAX);
        drop(all);
        assert!(Stack::take().is_some());
    }
}
