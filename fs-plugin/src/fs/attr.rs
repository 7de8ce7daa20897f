//! Attributes: the lower inode's, with the length of the contents.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, Gid, Mode, Stat, StatxFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::lookup::is_file;
use super::lower::{attribute_of, proc_path};
use super::{Answer, Fs, reply};
use crate::fuse::abi::*;
use crate::fuse::request::Request;
use crate::store::contents::Time;
use crate::store::format::{ATTRIBUTE_NAME, Attribute};

impl Fs {
    pub(crate) async fn getattr(&self, request: &Request) -> Answer {
        self.attr_out(request.nodeid).await
    }

    pub(crate) async fn attr_out(&self, nodeid: u64) -> Answer {
        let attr = self.attributes(nodeid, &*self.path_fd(nodeid)?).await?;
        reply::with(&fuse_attr_out { attr_valid: self.cache.valid_s(), attr, ..Default::default() })
    }

    /// As getattr, and the time of birth.
    pub(crate) async fn statx(&self, request: &Request) -> Answer {
        let fd = self.path_fd(request.nodeid)?;
        let attr = self.attributes(request.nodeid, &fd).await?;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let lower = fs::statx(&*fd, "", AtFlags::EMPTY_PATH, wanted)?;
        let time = |tv_sec: u64, tv_nsec| fuse_sx_time {
            tv_sec: tv_sec.cast_signed(),
            tv_nsec,
            ..Default::default()
        };
        let stat = fuse_statx {
            mask: lower.stx_mask & wanted.bits(),
            blksize: attr.blksize,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            mode: lower.stx_mode,
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            atime: time(attr.atime, attr.atimensec),
            btime: fuse_sx_time {
                tv_sec: lower.stx_btime.tv_sec,
                tv_nsec: lower.stx_btime.tv_nsec,
                ..Default::default()
            },
            ctime: time(attr.ctime, attr.ctimensec),
            mtime: time(attr.mtime, attr.mtimensec),
            rdev_major: lower.stx_rdev_major,
            rdev_minor: lower.stx_rdev_minor,
            ..Default::default()
        };
        reply::with(&fuse_statx_out {
            attr_valid: self.cache.valid_s(),
            stat,
            ..Default::default()
        })
    }

    /// The attributes of a node, of which `fd` is a descriptor.
    pub(crate) async fn attributes(&self, nodeid: u64, fd: &OwnedFd) -> Result<fuse_attr, Errno> {
        let mut memory = None;
        if let Some(file) = self.used_file(nodeid)
            && let Some(contents) = &*file.read().await
        {
            memory = Some((
                contents.size().ok(),
                contents.modified(),
                contents.changed(),
                contents.dirty_len(),
            ));
        }
        // After it: a file that is not in use any more has reached the lower one.
        let stat = fs::fstat(fd)?;
        let mut size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut modified = (stat.st_mtime, narrow(stat.st_mtime_nsec));
        let mut changed = changed(&stat);
        let mut blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        if let Some((known, modified_here, changed_here, dirty)) = memory {
            size = known.unwrap_or(size);
            modified = modified_here.unwrap_or(modified);
            // What is only in memory has not moved the lower's.
            changed = changed.max(changed_here.unwrap_or(changed));
            // A file without blocks would be taken for a hole.
            blocks += dirty.div_ceil(512);
        } else if is_file(&stat) && size > 0 {
            size = self.stored_size(nodeid, &stat, fd).await?;
        }
        Ok(fuse_attr {
            ino: stat.st_ino,
            size,
            blocks,
            atime: stat.st_atime.cast_unsigned(),
            mtime: modified.0.cast_unsigned(),
            ctime: changed.0.cast_unsigned(),
            atimensec: narrow(stat.st_atime_nsec),
            mtimensec: modified.1,
            ctimensec: changed.1,
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
            blksize: 4096,
            flags: 0,
        })
    }

    /// Length of a regular file that nobody uses: from the extended attribute if it was closed in
    /// order, else by opening it. One that cannot be read has the length of its backing file, so
    /// that it can be seen and removed; opening it tells what is wrong.
    async fn stored_size(&self, nodeid: u64, stat: &Stat, fd: &OwnedFd) -> Result<u64, Errno> {
        let backing_len = u64::try_from(stat.st_size).unwrap_or(0);
        let size = match self.marked_size(nodeid, backing_len, fd) {
            Ok(Some(size)) => Ok(self.unmarked_size(nodeid, changed(stat)).unwrap_or(size)),
            Ok(None) => self.opened_size(nodeid).await,
            Err(errno) => Err(errno),
        };
        match size {
            // Looked up again, it is told right. The kernel would keep a guess for longer than these last.
            Err(
                errno @ (Errno::AGAIN
                | Errno::INTR
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOMEM
                | Errno::STALE),
            ) => Err(errno),
            Err(_) => {
                self.guess(nodeid, backing_len);
                Ok(backing_len)
            }
            size => size,
        }
    }

    fn marked_size(
        &self,
        nodeid: u64,
        backing_len: u64,
        fd: &OwnedFd,
    ) -> Result<Option<u64>, Errno> {
        let mut value = [0; Attribute::LEN + 1];
        let len = match attribute_of(fd, ATTRIBUTE_NAME, &mut value) {
            Ok(len) => len,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        Attribute::parse(&value[..len])
            .map(|attribute| attribute.size_if_clean(backing_len))
            .map_err(|error| self.errno(nodeid, "stat", &error))
    }

    async fn opened_size(&self, nodeid: u64) -> Result<u64, Errno> {
        let file = self.load(nodeid).await?;
        let size = match &*file.read().await {
            Some(contents) => contents.size().map_err(|error| self.errno(nodeid, "stat", &error)),
            None => Err(Errno::STALE),
        };
        // An error of closing is logged; the size is known all the same.
        let _ = self.put_file(nodeid, &file).await;
        size
    }

    pub(crate) async fn setattr(&self, request: &Request) -> Answer {
        let nodeid = request.nodeid;
        let args: fuse_setattr_in = request.args()?;
        let set = |flag: u32| args.valid & flag != 0;
        let fd = self.path_fd(nodeid)?;
        if set(FATTR_UID | FATTR_GID | FATTR_SIZE) {
            self.forget_capability(nodeid);
        }
        if set(FATTR_MODE) {
            // Under the lock: without root, setting our attribute may change the mode and put it back.
            let file = self.used_file(nodeid);
            let _contents = match &file {
                Some(file) => Some(file.write().await),
                None => None,
            };
            fs::chmod(proc_path(&*fd), Mode::from_raw_mode(args.mode))?;
        }
        if set(FATTR_UID | FATTR_GID) {
            let uid = set(FATTR_UID).then(|| Uid::from_raw(args.uid));
            let gid = set(FATTR_GID).then(|| Gid::from_raw(args.gid));
            fs::chownat(&*fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if set(FATTR_SIZE) {
            let file = self.load_to_write(nodeid).await?;
            let result = self.truncate(nodeid, &file, args.size).await;
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
            // Under the lock: a commit under way would put the old time back.
            let file = self.used_file(nodeid);
            let mut contents = match &file {
                Some(file) => Some(file.write().await),
                None => None,
            };
            match fs::utimensat(&*fd, "", &times, AtFlags::EMPTY_PATH) {
                // Not ours. The kernel has not let its caller set any time but now, if it is not what it tells
                // by itself when it has sent what was written (`fuse_flush_times`).
                Err(Errno::PERM) => {
                    fs::utimensat(&*fd, "", &NOW, AtFlags::EMPTY_PATH).map_err(|_| Errno::PERM)?;
                }
                set => set?,
            }
            if set(FATTR_MTIME | FATTR_MTIME_NOW)
                && let Some(Some(contents)) = contents.as_deref_mut()
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

/// What every writer may set the times to.
const NOW: Timestamps = {
    let now = Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW };
    Timestamps { last_access: now, last_modification: now }
};

/// The ctime.
pub(super) fn changed(stat: &Stat) -> Time {
    (stat.st_ctime, narrow(stat.st_ctime_nsec))
}

/// Nanoseconds of a second fit 32 bits.
fn narrow(nanoseconds: impl TryInto<u32>) -> u32 {
    nanoseconds.try_into().unwrap_or(0)
}
