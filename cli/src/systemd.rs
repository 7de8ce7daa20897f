//! What a service manager is told, sd_notify(3), and the sockets that it gives, sd_listen_fds(3).

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::io::{FdFlags, fcntl_setfd};

/// Tells the state, if somebody has asked for it.
pub(crate) fn notify(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    };
    let send =
        |address: &SocketAddr| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), address);
    if let Err(error) = address.and_then(|address| send(&address)) {
        tracing::warn!("the service manager cannot be told {state}: {error}");
    }
}

/// Sockets that were opened for this process.
pub(crate) fn sockets() -> Vec<OwnedFd> {
    const FIRST: i32 = 3;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    if number("LISTEN_PID").and_then(|pid| u32::try_from(pid).ok()) != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).max(0);
    let take = |fd: i32| {
        // SAFETY: the service manager has opened these descriptors for this process
        // (sd_listen_fds(3)), and nobody else takes them: this is called once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Else the process that takes over had it once more, and would not know.
        fcntl_setfd(&fd, FdFlags::CLOEXEC).ok().map(|()| fd)
    };
    (FIRST..FIRST.saturating_add(count)).filter_map(take).collect()
}
