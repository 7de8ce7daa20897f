//! The functions of the C library that we stand in front of.

use std::ffi::CStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_char, c_int, c_ulong, c_void, mode_t, nfds_t, off_t, sigset_t, size_t, timespec};

/// The next definition of `name` after ours.
fn find(cache: &AtomicUsize, name: &CStr) -> usize {
    // Relaxed: whoever looks it up finds the same.
    let known = cache.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: a name that ends in 0; the handle is a constant.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) } as usize;
    assert!(found != 0, "the C library has no {}", name.to_string_lossy());
    cache.store(found, Ordering::Relaxed);
    found
}

macro_rules! next {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(
            /// The C library's own; its manual page has the conditions.
            pub(crate) unsafe fn $name($($argument: $type),*) -> $result {
                static CACHE: AtomicUsize = AtomicUsize::new(0);
                let name = concat!(stringify!($name), "\0");
                let name = CStr::from_bytes_with_nul(name.as_bytes()).expect("ends in 0");
                let found = find(&CACHE, name);
                type Function = unsafe extern "C" fn($($type),*) -> $result;
                // SAFETY: the C library's function of this name has this type, for variadic ones
                // as far as x86-64 passes arguments: in the same registers.
                let function = unsafe { std::mem::transmute::<usize, Function>(found) };
                // SAFETY: passed on from the caller.
                unsafe { function($($argument),*) }
            }
        )*
    };
}

next! {
    access(path: *const c_char, mode: c_int) -> c_int;
    close(fd: c_int) -> c_int;
    fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE;
    ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int;
    mmap(start: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void;
    munmap(start: *mut c_void, len: size_t) -> c_int;
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    opendir(path: *const c_char) -> *mut libc::DIR;
    poll(fds: *mut libc::pollfd, count: nfds_t, timeout: c_int) -> c_int;
    ppoll(fds: *mut libc::pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    pthread_sigmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int;
    realpath(path: *const c_char, resolved: *mut c_char) -> *mut c_char;
    sigaction(signal: c_int, action: *const libc::sigaction, old: *mut libc::sigaction) -> c_int;
    signal(signal: c_int, handler: usize) -> usize;
    sigprocmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int;
    stat(path: *const c_char, buffer: *mut libc::stat) -> c_int;
}
