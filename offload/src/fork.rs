//! Who may use a queue: the process that made it, not a child forked from it.
//!
//! A child has a copy of the queue's memory, but the device knows the parent's address space, and
//! the rings are the parent's. So the first word of a page that the kernel wipes in children
//! (`MADV_WIPEONFORK`, Linux 4.14) names the generation, and each queue remembers its own: one
//! load tells them apart, without `getpid`.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The process that a value belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Generation {
    /// 0 in a child that has made no generation of its own.
    word: &'static AtomicU32,
    value: u32,
}

impl Generation {
    /// Of this process.
    pub(crate) fn current() -> Self {
        /// Inherited by children, so that theirs is another value.
        static LAST: AtomicU32 = AtomicU32::new(0);
        static PAGE: OnceLock<&'static AtomicU32> = OnceLock::new();
        let word = *PAGE.get_or_init(|| {
            page().unwrap_or_else(|error| {
                // Kernels before 4.14: a fork goes unnoticed, as with most libraries.
                tracing::warn!("forks will not be noticed: {error}");
                Box::leak(Box::new(AtomicU32::new(0)))
            })
        });
        // Relaxed everywhere: the word is compared with itself; whoever hands a queue to another
        // thread synchronises with it anyhow.
        let mut value = word.load(Ordering::Relaxed);
        if value == 0 {
            let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            // Another thread may have been faster.
            value = match word.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => fresh,
                Err(value) => value,
            };
        }
        Self { word, value }
    }

    /// Whether this process is a child of the one meant.
    pub(crate) fn is_past(self) -> bool {
        self.word.load(Ordering::Relaxed) != self.value
    }
}

/// A word that reads 0 in children. It is never unmapped.
fn page() -> io::Result<&'static AtomicU32> {
    let len_bytes = rustix::param::page_size();
    // SAFETY: a fresh anonymous mapping touches no other memory.
    let start = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            len_bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )?
    };
    // SAFETY: advice about the mapping just made.
    if let Err(error) = unsafe { madvise(start, len_bytes, Advice::LinuxWipeOnFork) } {
        // SAFETY: nobody knows of the mapping yet.
        let _ = unsafe { munmap(start, len_bytes) };
        return Err(error.into());
    }
    // SAFETY: mapped for good, aligned to a page, and only ever used as an atomic.
    Ok(unsafe { &*start.cast::<AtomicU32>() })
}
