//! Less rights, once what needed them is done.

use std::ffi::CString;
use std::io;

use rustix::process::geteuid;
use warpcore_tls::Proxy;

use crate::Failure;

/// Somebody that this machine knows.
pub(super) struct User {
    name: CString,
    uid: u32,
    gid: u32,
}

/// Who is called `name`. While this process has one thread.
pub(super) fn find(name: &str) -> Result<User, Failure> {
    let name = CString::new(name).map_err(|_| format!("no user is called {name:?}"))?;
    // SAFETY: `name` is a C string; nobody else asks for users, and what is returned is read before
    // anybody could.
    let found = unsafe { libc::getpwnam(name.as_ptr()).as_ref() };
    let found = found.ok_or_else(|| format!("no user is called `{}`", name.to_string_lossy()))?;
    Ok(User { uid: found.pw_uid, gid: found.pw_gid, name })
}

/// Becomes `user`, with its groups, for good, if this is root; the log of `proxy` is opened again as that
/// user. While this process has one thread: others would stay who they are.
pub(super) fn become_user(user: &User, proxy: &Proxy) -> Result<(), Failure> {
    let (name, uid, gid) = (user.name.to_string_lossy(), user.uid, user.gid);
    let fail =
        |what: &str, error: io::Error| -> Failure { format!("{what} {name}: {error}").into() };
    if !geteuid().is_root() {
        // It is already if the process before this one was.
        if geteuid().as_raw() != uid {
            tracing::warn!(
                "only root can become {name}: going on as user id {}",
                geteuid().as_raw()
            );
        }
        return Ok(());
    }
    proxy.give_log(uid, gid).map_err(|error| fail("cannot give the log to", error))?;
    // SAFETY: takes a C string and numbers only.
    if unsafe { libc::initgroups(user.name.as_ptr(), gid) } != 0 {
        return Err(fail("cannot take the groups of", io::Error::last_os_error()));
    }
    // SAFETY: takes numbers only.
    if unsafe { libc::setgid(gid) } != 0 {
        return Err(fail("cannot take the group of", io::Error::last_os_error()));
    }
    // SAFETY: as above.
    if unsafe { libc::setuid(uid) } != 0 {
        return Err(fail("cannot become", io::Error::last_os_error()));
    }
    Ok(())
}
