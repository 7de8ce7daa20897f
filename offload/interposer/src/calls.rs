//! The functions that the program calls instead of the C library's: each looks whether it is about
//! a device of ours, and passes on what is not. The manual page of each has its conditions; that
//! the caller keeps them is what every `unsafe` here relies on.

use std::ffi::{CStr, CString};
use std::io;
use std::time::{Duration, Instant};

use libc::{c_char, c_int, c_ulong, c_void, mode_t, nfds_t, off_t, sigset_t, size_t, timespec};

use crate::files::{self, Place};
use crate::{next, queues, trap};

/// Where a path of the caller's leads.
///
/// # Safety
///
/// `path` is null or ends in 0.
unsafe fn place(path: *const c_char) -> Option<Place> {
    if path.is_null() {
        return None;
    }
    // SAFETY: passed on from the caller.
    files::find(unsafe { CStr::from_ptr(path) })
}

/// The file that stands for a path of ours.
///
/// # Safety
///
/// As [`place`].
unsafe fn file(path: *const c_char) -> Option<CString> {
    // SAFETY: passed on from the caller.
    match unsafe { place(path) }? {
        Place::File(file) | Place::Node(_, file) => Some(file),
    }
}

fn set_errno(error: &io::Error) {
    // SAFETY: this thread's own.
    unsafe { *libc::__errno_location() = error.raw_os_error().unwrap_or(libc::EIO) };
}

fn answer(result: io::Result<c_int>) -> c_int {
    result.unwrap_or_else(|error| {
        set_errno(&error);
        -1
    })
}

macro_rules! calls {
    ($($(#[$note:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty $body:block)*) => {
        $(
            $(#[$note])*
            #[cfg_attr(not(test), unsafe(no_mangle))]
            unsafe extern "C" fn $name($($argument: $type),*) -> $result {
                // SAFETY: the caller keeps the conditions of the C library's function, which are
                // those of everything that is done with the arguments here.
                unsafe { $body }
            }
        )*
    };
}

calls! {
    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        match place(path) {
            Some(Place::Node(model, _)) => answer(queues::open(&model)),
            Some(Place::File(file)) => next::open(file.as_ptr(), flags, mode),
            None => next::open(path, flags, mode),
        }
    }

    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        open(path, flags | libc::O_LARGEFILE, mode)
    }

    fn __open_2(path: *const c_char, flags: c_int) -> c_int {
        open(path, flags, 0)
    }

    fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
        open(path, flags | libc::O_LARGEFILE, 0)
    }

    fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        // Ours are absolute.
        match place(path) {
            Some(_) => open(path, flags, mode),
            None => next::openat(folder, path, flags, mode),
        }
    }

    fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        openat(folder, path, flags | libc::O_LARGEFILE, mode)
    }

    fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
        let file = file(path);
        next::fopen(file.as_ref().map_or(path, |file| file.as_ptr()), mode)
    }

    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
        fopen(path, mode)
    }

    fn opendir(path: *const c_char) -> *mut libc::DIR {
        let file = file(path);
        next::opendir(file.as_ref().map_or(path, |file| file.as_ptr()))
    }

    fn access(path: *const c_char, mode: c_int) -> c_int {
        let file = file(path);
        next::access(file.as_ref().map_or(path, |file| file.as_ptr()), mode)
    }

    fn stat(path: *const c_char, buffer: *mut libc::stat) -> c_int {
        let file = file(path);
        next::stat(file.as_ref().map_or(path, |file| file.as_ptr()), buffer)
    }

    fn realpath(path: *const c_char, resolved: *mut c_char) -> *mut c_char {
        let file = file(path);
        next::realpath(file.as_ref().map_or(path, |file| file.as_ptr()), resolved)
    }

    /// What `realpath` becomes with `_FORTIFY_SOURCE`.
    fn __realpath_chk(path: *const c_char, resolved: *mut c_char, len: size_t) -> *mut c_char {
        assert!(len >= 4096, "realpath into {len} bytes: PATH_MAX are needed");
        realpath(path, resolved)
    }

    fn close(fd: c_int) -> c_int {
        if queues::close(fd) { 0 } else { next::close(fd) }
    }

    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
        match queues::find(fd) {
            Some(queue) => answer(queue.ioctl(request, argument).map(|()| 0)),
            None => next::ioctl(fd, request, argument),
        }
    }

    fn mmap(start: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void {
        let Some(queue) = (fd >= 0).then(|| queues::find(fd)).flatten() else {
            if flags & libc::MAP_FIXED != 0 {
                trap::unwatch(start as usize, len);
            }
            return next::mmap(start, len, protection, flags, fd, offset);
        };
        queue.mmap(start, len, protection, flags, offset).unwrap_or_else(|error| {
            set_errno(&error);
            libc::MAP_FAILED
        })
    }

    fn mmap64(start: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void {
        mmap(start, len, protection, flags, fd, offset)
    }

    fn munmap(start: *mut c_void, len: size_t) -> c_int {
        trap::unwatch(start as usize, len);
        next::munmap(start, len)
    }

    fn poll(fds: *mut libc::pollfd, count: nfds_t, timeout: c_int) -> c_int {
        let Some(entries) = ours(fds, count) else { return next::poll(fds, count, timeout) };
        let deadline = u64::try_from(timeout)
            .ok()
            .map(|timeout| Instant::now() + Duration::from_millis(timeout));
        queues::poll(entries, |entries, now| {
            let left = deadline.map_or(-1, |deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up: never a loop of no time at all before the deadline.
                c_int::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
            });
            next::poll(entries.as_mut_ptr(), count, if now { 0 } else { left })
        })
    }

    /// What `poll` becomes with `_FORTIFY_SOURCE`.
    fn __poll_chk(fds: *mut libc::pollfd, count: nfds_t, timeout: c_int, _len: size_t) -> c_int {
        poll(fds, count, timeout)
    }

    fn ppoll(fds: *mut libc::pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let Some(entries) = ours(fds, count) else {
            return next::ppoll(fds, count, timeout, mask);
        };
        let zero = timespec { tv_sec: 0, tv_nsec: 0 };
        // One that cannot be counted is none.
        let deadline = timeout.as_ref().and_then(|timeout| {
            let whole = Duration::from_secs(u64::try_from(timeout.tv_sec).unwrap_or(0));
            let rest = Duration::from_nanos(u64::try_from(timeout.tv_nsec).unwrap_or(0));
            Instant::now().checked_add(whole.checked_add(rest)?)
        });
        queues::poll(entries, |entries, now| {
            let left = deadline.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                timespec {
                    tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                    tv_nsec: left.subsec_nanos().into(),
                }
            });
            let left = if now { Some(&zero) } else { left.as_ref() };
            next::ppoll(entries.as_mut_ptr(), count, left.map_or(std::ptr::null(), std::ptr::from_ref), mask)
        })
    }

    fn sigaction(signal: c_int, action: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
        if signal == libc::SIGSEGV && trap::is_set() {
            trap::chain(action.as_ref().copied(), old.as_mut());
            return 0;
        }
        next::sigaction(signal, action, old)
    }

    fn signal(signal: c_int, handler: usize) -> usize {
        if signal == libc::SIGSEGV && trap::is_set() {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler;
            action.sa_flags = libc::SA_RESTART;
            let mut old = action;
            trap::chain(Some(action), Some(&mut old));
            return old.sa_sigaction;
        }
        next::signal(signal, handler)
    }

    fn sigprocmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int {
        let open = open_to_faults(how, set);
        next::sigprocmask(how, open.as_ref().map_or(set, std::ptr::from_ref), old)
    }

    fn pthread_sigmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int {
        let open = open_to_faults(how, set);
        next::pthread_sigmask(how, open.as_ref().map_or(set, std::ptr::from_ref), old)
    }
}

/// The descriptors, if one of them is a queue file.
///
/// # Safety
///
/// As for `poll`.
unsafe fn ours<'a>(fds: *mut libc::pollfd, count: nfds_t) -> Option<&'a mut [libc::pollfd]> {
    if fds.is_null() {
        return None;
    }
    let count = usize::try_from(count).ok()?;
    // SAFETY: passed on from the caller.
    let entries = unsafe { std::slice::from_raw_parts_mut(fds, count) };
    entries.iter().any(|entry| queues::find(entry.fd).is_some()).then_some(entries)
}

/// A mask without SIGSEGV, if `set` would block it: a store to a doorbell would end the process.
///
/// # Safety
///
/// As for `sigprocmask`.
unsafe fn open_to_faults(how: c_int, set: *const sigset_t) -> Option<sigset_t> {
    // SAFETY: null, or a set (caller).
    let mut open = *unsafe { set.as_ref() }?;
    // SAFETY: a set, and a signal that there is.
    let blocks = how != libc::SIG_UNBLOCK
        && unsafe { libc::sigismember(&raw const open, libc::SIGSEGV) } == 1;
    if blocks {
        // SAFETY: as above.
        unsafe { libc::sigdelset(&raw mut open, libc::SIGSEGV) };
    }
    blocks.then_some(open)
}
