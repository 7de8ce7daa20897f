//! Less rights, once what needed them is done.

use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, open};
use rustix::io::Errno;
use rustix::process::geteuid;

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

/// Gives a file away that has no other name, which might be one that matters.
fn give(path: &Path, uid: u32, gid: u32) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty())?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1 {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(&file, "", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// Becomes `user`, with its groups, for good, if this is root; `log` is opened again as that user. While
/// this process has one thread: others would stay who they are.
pub(super) fn become_user(user: &User, log: Option<&Path>) -> Result<(), Failure> {
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
    if let Some(log) = log {
        give(log, uid, gid).map_err(|errno| fail("cannot give the log to", errno.into()))?;
    }
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
