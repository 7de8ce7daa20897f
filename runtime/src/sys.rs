//! Raw system calls that have no better home.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The return value of a system call, or its error.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A counter that threads without a ring can wake a shard by (eventfd(2)).
pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: just made, and nobody else has it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// What a thread blocked before; blocked again, and no more, when dropped on that thread.
pub(crate) struct SignalMask(libc::sigset_t);

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: a valid set, as the kernel gave it.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut());
        }
    }
}

/// Makes `signals` readable from a file and keeps them from this thread's handlers, and from those
/// of the threads that it starts later (signalfd(2)).
pub(crate) fn signalfd(signals: &[libc::c_int]) -> io::Result<(File, SignalMask)> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: a valid set.
        check(unsafe { libc::sigaddset(&raw mut set, *signal) })?;
    }
    let mut before = set;
    // SAFETY: two valid sets.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let before = SignalMask(before);
    // SAFETY: a valid set.
    let fd = check(unsafe {
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    })?;
    // SAFETY: just made, and nobody else has it.
    Ok((File::from(unsafe { OwnedFd::from_raw_fd(fd) }), before))
}

/// Whether a signal does nothing, as nohup(1) has it.
pub(crate) fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks only, and writes what there is.
    check(unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) })?;
    // SAFETY: written by the call.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Waits until one of two descriptors can be read; says which.
pub(crate) fn poll_either(one: RawFd, other: RawFd) -> io::Result<(bool, bool)> {
    let wanted = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut both = [wanted(one), wanted(other)];
    // SAFETY: two valid entries.
    match check(unsafe { libc::poll(both.as_mut_ptr(), 2, -1) }) {
        Ok(_) => Ok((both[0].revents != 0, both[1].revents != 0)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok((false, false)),
        Err(error) => Err(error),
    }
}

/// The cores that this process may run on.
pub(crate) fn cores() -> io::Result<Vec<usize>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the size is that of the set.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) })?;
    // SAFETY: all zeros is an empty set, and the call filled it.
    let set = unsafe { set.assume_init() };
    let limit = 8 * size_of::<libc::cpu_set_t>();
    // SAFETY: the index is below the size of the set.
    Ok((0..limit).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect())
}

/// Keeps this thread on `cores`, which came from [`cores`].
pub(crate) fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    for core in cores {
        // SAFETY: all zeros is an empty set, and the core came from `cores` and so fits.
        unsafe { libc::CPU_SET(*core, set.assume_init_mut()) };
    }
    // SAFETY: the size is that of the set.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set.as_ptr()) })?;
    Ok(())
}

/// Closes a descriptor that came out of an operation nobody waits for.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: the kernel has just given it to us and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// Reads without waiting for a device (preadv2(2), RWF_NOWAIT). `WouldBlock`: not in memory.
///
/// # Safety
///
/// `room` is writable for `len_bytes` and nobody else uses it.
pub(crate) unsafe fn read_nowait(
    file: &impl AsRawFd,
    room: *mut u8,
    len_bytes: usize,
    offset: u64,
) -> io::Result<usize> {
    let part = libc::iovec { iov_base: room.cast(), iov_len: len_bytes };
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: one valid part; the caller vouches for its memory.
    let len =
        unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}
