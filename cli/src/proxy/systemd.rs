//! What a service manager is told: sd_notify(3).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells the state, if somebody has asked for it.
pub(super) fn notify(state: &str) {
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
