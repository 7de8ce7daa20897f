//! Open queue files: what ioctl, mmap, poll and close do to them.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use libc::{c_int, c_ulong, c_void};
use warpcore_offload::{Model, ModelQueue};

use crate::{next, trap};

/// An open queue file.
pub(crate) struct Queue {
    pub(crate) file: ModelQueue,
    /// Each region can be mapped once.
    mapped: [AtomicBool; 2],
}

/// By descriptor, which is that of the queue's event, so that it can be waited for.
static OPEN: LazyLock<Mutex<HashMap<RawFd, Arc<Queue>>>> = LazyLock::new(Mutex::default);

fn table() -> MutexGuard<'static, HashMap<RawFd, Arc<Queue>>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The queue file of a descriptor, if it is one.
pub(crate) fn find(fd: RawFd) -> Option<Arc<Queue>> {
    if trap::is_child() { None } else { table().get(&fd).cloned() }
}

/// Opens a queue of `model`.
pub(crate) fn open(model: &Model) -> io::Result<RawFd> {
    trap::notice_forks();
    let file = model.open()?;
    let fd = file.event().as_raw_fd();
    table().insert(fd, Arc::new(Queue { file, mapped: Default::default() }));
    Ok(fd)
}

/// Closes a descriptor if it is a queue's: it goes with the last call that still uses it.
pub(crate) fn close(fd: RawFd) -> bool {
    if trap::is_child() {
        // A copy of the parent's; the descriptor is closed as any other.
        return false;
    }
    let Some(queue) = table().remove(&fd) else { return false };
    trap::settle();
    trap::forget(&queue);
    drop(queue);
    true
}

impl Queue {
    /// # Safety
    ///
    /// `argument` is what the ioctl takes, as `uacce.h` and `hisi_qm.h` say.
    pub(crate) unsafe fn ioctl(&self, request: c_ulong, argument: *mut c_void) -> io::Result<()> {
        // Doorbells that were rung before are heard before.
        trap::settle();
        // SAFETY: passed on from the caller.
        unsafe { self.file.ioctl(request, argument) }
    }

    /// Maps a region; the number of its first page says which (`enum uacce_qfrt`).
    ///
    /// # Safety
    ///
    /// As for `mmap`: with `MAP_FIXED` nothing of use is at `start`.
    pub(crate) unsafe fn mmap(
        self: &Arc<Self>,
        start: *mut c_void,
        len_bytes: usize,
        protection: c_int,
        flags: c_int,
        offset: i64,
    ) -> io::Result<*mut c_void> {
        let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
        let page = 4096;
        let region = usize::try_from(offset / page).map_err(|_| wrong())?;
        let right_len = match region {
            0 => (1..=self.file.mmio_len_bytes()).contains(&len_bytes),
            1 => len_bytes == self.file.memory_len_bytes(),
            _ => false,
        };
        if !right_len || offset % page != 0 || flags & libc::MAP_SHARED == 0 {
            return Err(wrong());
        }
        // AcqRel: one of two who map a region at once is told that it is.
        if self.mapped[region].swap(true, Ordering::AcqRel) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let fixed = flags & libc::MAP_FIXED;
        // SAFETY: passed on from the caller. The doorbells' page is ours, and cannot be written.
        let mapped = unsafe {
            if region == 0 {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
                next::mmap(start, len_bytes, libc::PROT_READ, flags, -1, 0)
            } else {
                let memory = self.file.memory().as_raw_fd();
                next::mmap(start, len_bytes, protection, libc::MAP_SHARED | fixed, memory, 0)
            }
        };
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            self.mapped[region].store(false, Ordering::Release);
            return Err(error);
        }
        // As the kernel: children do not get it (`VM_DONTCOPY`).
        // SAFETY: the mapping just made.
        unsafe { libc::madvise(mapped, len_bytes, libc::MADV_DONTFORK) };
        if region == 0
            && let Err(error) = trap::watch(mapped as usize, len_bytes, self)
        {
            // SAFETY: the mapping just made, which nobody knows of.
            unsafe { next::munmap(mapped, len_bytes) };
            return Err(error);
        }
        Ok(mapped)
    }
}

/// `poll` with queue files among the descriptors. `wait` is the C library's, with the time that is
/// left.
pub(crate) fn poll(
    fds: &mut [libc::pollfd],
    mut wait: impl FnMut(&mut [libc::pollfd], bool) -> c_int,
) -> c_int {
    let wanted: Vec<_> = fds.iter().map(|entry| entry.events).collect();
    let result = poll_input(fds, &mut wait);
    fds.iter_mut().zip(wanted).for_each(|(entry, events)| entry.events = events);
    result
}

fn poll_input(
    fds: &mut [libc::pollfd],
    wait: &mut impl FnMut(&mut [libc::pollfd], bool) -> c_int,
) -> c_int {
    // Of our files there is input only; an event can always be written.
    for entry in fds.iter_mut().filter(|entry| find(entry.fd).is_some()) {
        entry.events &= libc::POLLIN;
    }
    loop {
        trap::settle();
        // Descriptors of queues that have news, by their own count of it.
        let news: Vec<_> = fds
            .iter()
            .map(|entry| find(entry.fd).map(|queue| wants_input(entry) && queue.file.poll()))
            .collect();
        let now = news.contains(&Some(true));
        let waited = wait(fds, now);
        if waited < 0 {
            return waited;
        }
        let mut ready = 0;
        for (entry, news) in fds.iter_mut().zip(news) {
            if let Some(news) = news {
                // The event of a completion that was reported before says nothing.
                let new = news
                    || entry.revents != 0 && find(entry.fd).is_some_and(|queue| queue.file.poll());
                entry.revents = if new { libc::POLLIN } else { 0 };
            }
            ready += c_int::from(entry.revents != 0);
        }
        if ready > 0 || now || waited == 0 {
            return ready;
        }
    }
}

fn wants_input(entry: &libc::pollfd) -> bool {
    entry.events & libc::POLLIN != 0
}
