//! Attributes: the lower inode's, with the length of the contents.

use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::lookup::{VALID_S, is_file};
use super::lower::proc_path;
use super::{Answer, Fs, reply};
use crate::fuse::abi::*;
use crate::fuse::request::Request;
use crate::store::format::{ATTRIBUTE_NAME, Attribute};

impl Fs {
    pub(crate) async fn getattr(&self, request: &Request) -> Answer {
        self.attr_out(request.nodeid).await
    }

    pub(crate) async fn attr_out(&self, nodeid: u64) -> Answer {
        let fd = self.path_fd(nodeid)?;
        let stat = fs::statat(&*fd, "", AtFlags::EMPTY_PATH)?;
        let attr = self.attributes(nodeid, &stat).await?;
        reply::with(&fuse_attr_out { attr_valid: VALID_S, attr, ..Default::default() })
    }

    /// The attributes of a node whose lower inode has these.
    pub(crate) async fn attributes(&self, nodeid: u64, stat: &Stat) -> Result<fuse_attr, Errno> {
        let mut size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut modified = (stat.st_mtime, narrow(stat.st_mtime_nsec));
        if is_file(stat) {
            (size, modified) = self.size_and_time(nodeid, size, modified).await?;
        }
        Ok(fuse_attr {
            ino: stat.st_ino,
            size,
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            atime: stat.st_atime.cast_unsigned(),
            mtime: modified.0.cast_unsigned(),
            ctime: stat.st_ctime.cast_unsigned(),
            atimensec: narrow(stat.st_atime_nsec),
            mtimensec: modified.1,
            ctimensec: narrow(stat.st_ctime_nsec),
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
            blksize: 4096,
            flags: 0,
        })
    }

    /// Length and time of the last change of a regular file: from memory while it is in use, from
    /// the extended attribute if it was closed in order, else by opening it.
    async fn size_and_time(
        &self,
        nodeid: u64,
        backing_len: u64,
        modified: (i64, u32),
    ) -> Result<(u64, (i64, u32)), Errno> {
        if let Some(file) = self.used_file(nodeid)
            && let Some(contents) = &*file.contents.hold().await
        {
            let size = contents.size().map_err(|error| self.errno(nodeid, "getattr", &error))?;
            return Ok((size, contents.modified().unwrap_or(modified)));
        }
        if backing_len == 0 {
            return Ok((0, modified));
        }
        let fd = self.path_fd(nodeid)?;
        let mut value = [0; Attribute::LEN + 1];
        let size = match fs::getxattr(proc_path(&*fd), ATTRIBUTE_NAME, &mut value[..]) {
            Ok(len) => Attribute::parse(&value[..len])
                .map_err(|error| self.errno(nodeid, "getattr", &error))?
                .size_if_clean(backing_len),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
            Err(errno) => return Err(errno),
        };
        if let Some(size) = size {
            return Ok((size, modified));
        }
        let file = self.load(nodeid).await?;
        let size = match &*file.contents.hold().await {
            Some(contents) => contents.size().map_err(|error| self.errno(nodeid, "stat", &error)),
            None => Err(Errno::STALE),
        };
        self.put_file(nodeid, &file).await?;
        Ok((size?, modified))
    }

    pub(crate) async fn setattr(&self, request: &Request) -> Answer {
        let nodeid = request.nodeid;
        let args: fuse_setattr_in = request.args()?;
        let set = |flag: u32| args.valid & flag != 0;
        let fd = self.path_fd(nodeid)?;
        if set(FATTR_MODE) {
            fs::chmod(proc_path(&*fd), Mode::from_raw_mode(args.mode))?;
        }
        if set(FATTR_UID | FATTR_GID) {
            let uid = set(FATTR_UID).then(|| Uid::from_raw(args.uid));
            let gid = set(FATTR_GID).then(|| Gid::from_raw(args.gid));
            fs::chownat(&*fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if set(FATTR_SIZE) {
            let file = self.load(nodeid).await?;
            let result = match &mut *file.contents.hold().await {
                Some(contents) => contents.set_size(args.size).await,
                None => unreachable!("just loaded, and in use"),
            };
            let result = result.map_err(|error| self.errno(nodeid, "truncate", &error));
            self.put_file(nodeid, &file).await?;
            result?;
            if set(FATTR_KILL_SUIDGID) {
                self.kill_privileges(nodeid)?;
            }
        }
        if set(FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW) {
            let time = |now: u32, set_to: u32, seconds: u64, nanoseconds: u32| Timespec {
                tv_sec: seconds.cast_signed(),
                tv_nsec: match (set(now), set(set_to)) {
                    (true, _) => fs::UTIME_NOW,
                    (false, true) => nanoseconds.into(),
                    (false, false) => fs::UTIME_OMIT,
                },
            };
            let times = Timestamps {
                last_access: time(FATTR_ATIME_NOW, FATTR_ATIME, args.atime, args.atimensec),
                last_modification: time(FATTR_MTIME_NOW, FATTR_MTIME, args.mtime, args.mtimensec),
            };
            fs::utimensat(&*fd, "", &times, AtFlags::EMPTY_PATH)?;
            if set(FATTR_MTIME | FATTR_MTIME_NOW)
                && let Some(file) = self.used_file(nodeid)
                && let Some(contents) = &mut *file.contents.hold().await
            {
                // Later writes of ours put this back.
                let stat = fs::statat(fd.as_fd(), "", AtFlags::EMPTY_PATH)?;
                contents.set_modified((stat.st_mtime, narrow(stat.st_mtime_nsec)));
            }
        }
        self.attr_out(nodeid).await
    }

    /// Clears set-user-id, and set-group-id where it means that, after a change of contents.
    pub(crate) fn kill_privileges(&self, nodeid: u64) -> Result<(), Errno> {
        let fd = self.path_fd(nodeid)?;
        let mode = Mode::from_raw_mode(fs::statat(&*fd, "", AtFlags::EMPTY_PATH)?.st_mode);
        let mut killed = Mode::SUID;
        if mode.contains(Mode::XGRP) {
            killed |= Mode::SGID;
        }
        if mode.intersects(killed) {
            fs::chmod(proc_path(&*fd), mode.difference(killed))?;
        }
        Ok(())
    }
}

/// Nanoseconds of a second fit 32 bits.
fn narrow(nanoseconds: impl TryInto<u32>) -> u32 {
    nanoseconds.try_into().unwrap_or(0)
}
