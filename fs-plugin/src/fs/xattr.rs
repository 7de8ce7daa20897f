//! Extended attributes: the lower inode's, but for ours.

use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{self, AtFlags, Mode, XattrFlags};
use rustix::io::Errno;
use warpcore_runtime::queue;

use super::STATS_NAME;
use super::file_in_use::File;
use super::lower::{attribute_of, proc_path};
use super::{Answer, Fs, Reply, reply};
use crate::fuse::abi::*;
use crate::fuse::reply::DONE;
use crate::fuse::request::Request;
use crate::store::format::ATTRIBUTE_NAME;

/// The longest value and the longest list that the kernel allows (XATTR_SIZE_MAX).
const LEN_MAX: usize = 65536;

impl Fs {
    pub(crate) async fn getxattr(&self, request: &Request) -> Answer {
        let args: fuse_getxattr_in = request.args()?;
        let (name, _) = request.name_and_rest()?;
        if name.as_bytes() == STATS_NAME {
            return sized(self.stats(request.nodeid).await?.as_bytes(), args.size);
        }
        visible(name).map_err(|_| Errno::NODATA)?;
        let fd = self.path_fd(request.nodeid)?;
        let mut value = vec![0; LEN_MAX.min(args.size as usize)];
        let len = attribute_of(&fd, name, &mut value)?;
        if args.size == 0 {
            return length(len);
        }
        value.truncate(len);
        Ok(Reply::Body(value))
    }

    pub(crate) fn listxattr(&self, request: &Request) -> Answer {
        let args: fuse_getxattr_in = request.args()?;
        let fd = self.path_fd(request.nodeid)?;
        let mut list = vec![0; LEN_MAX];
        let len = fs::listxattr(proc_path(&*fd), &mut list[..])?;
        let names = list[..len].split_inclusive(|byte| *byte == 0);
        let names = names.filter(|name| {
            let name = name.strip_suffix(b"\0").unwrap_or(name);
            // As the kernel does it: these are for root alone (xattr(7)).
            let permitted = request.uid == 0 || !name.starts_with(b"trusted.");
            permitted && visible(OsStr::from_bytes(name)).is_ok()
        });
        sized(&names.collect::<Vec<_>>().concat(), args.size)
    }

    pub(crate) async fn setxattr(&self, request: &Request) -> Answer {
        let args: fuse_setxattr_in = request.args()?;
        let (name, value) = request.name_and_rest()?;
        visible(name)?;
        let value = value.get(..args.size as usize).ok_or(Errno::INVAL)?;
        let file = self.used_file(request.nodeid).filter(|_| name == CAPABILITY);
        if let Some(file) = &file
            && let Some(contents) = &mut *file.write().await
        {
            // Later writes to the lower file would take them away again.
            let settled = contents.settle(&queue()).await;
            settled.map_err(|error| self.errno(request.nodeid, "setxattr", &error))?;
        }
        let fd = self.path_fd(request.nodeid)?;
        let flags = XattrFlags::from_bits(args.flags).ok_or(Errno::INVAL)?;
        fs::setxattr(proc_path(&*fd), name, value, flags)?;
        if let Some(file) = file {
            *file.capability() = Some(value.to_vec());
        }
        if args.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID != 0 {
            let mode = Mode::from_raw_mode(fs::statat(&*fd, "", AtFlags::EMPTY_PATH)?.st_mode);
            fs::chmod(proc_path(&*fd), mode.difference(Mode::SGID))?;
        }
        DONE
    }

    pub(crate) fn removexattr(&self, request: &Request) -> Answer {
        let name = request.name()?;
        visible(name).map_err(|_| Errno::NODATA)?;
        if name == CAPABILITY {
            self.forget_capability(request.nodeid);
        }
        let fd = self.path_fd(request.nodeid)?;
        fs::removexattr(proc_path(&*fd), name)?;
        DONE
    }
}

/// capabilities(7) of a program.
const CAPABILITY: &str = "security.capability";

impl Fs {
    /// Linux takes them away from now on, where it does.
    pub(crate) fn forget_capability(&self, nodeid: u64) {
        if let Some(file) = self.used_file(nodeid) {
            *file.capability() = None;
        }
    }

    /// Sets again what our own writes have taken away from a file in use, of which `fd` is a descriptor.
    pub(crate) fn restore_capability(&self, nodeid: u64, file: &File, fd: &impl AsRawFd) {
        if let Some(value) = &*file.capability()
            && let Err(errno) = fs::setxattr(proc_path(fd), CAPABILITY, value, XattrFlags::empty())
        {
            tracing::error!("node {nodeid}: its capabilities are lost: {errno}");
        }
    }
}

/// Ours are not shown, and must not be set.
fn visible(name: &OsStr) -> Result<(), Errno> {
    let is_ours = [ATTRIBUTE_NAME.to_bytes(), STATS_NAME].contains(&name.as_bytes());
    if is_ours { Err(Errno::OPNOTSUPP) } else { Ok(()) }
}

/// A list, or its length when the caller asks with no room.
fn sized(bytes: &[u8], room: u32) -> Answer {
    if room == 0 {
        return length(bytes.len());
    }
    if bytes.len() > room as usize {
        return Err(Errno::RANGE);
    }
    Ok(Reply::Body(bytes.to_vec()))
}

fn length(len: usize) -> Answer {
    let size = u32::try_from(len).map_err(|_| Errno::RANGE)?;
    reply::with(&fuse_getxattr_out { size, padding: 0 })
}
