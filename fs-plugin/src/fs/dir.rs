//! Names: they are the lower directory's, and go straight to it.

use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime};
use slab::Slab;
use warpcore_runtime::fs::File as RingFile;
use warpcore_runtime::queue;
use zerocopy::IntoBytes;

use super::file::{mask, or_take_back, os};
use super::file_in_use::File;
use super::inodes::Directory;
use super::lookup::is_file;
use super::lower::{Found, proc_path};
use super::{Answer, Fs, MAX_WRITE, Reply, reply};
use crate::fuse::abi::*;
use crate::fuse::reply::DONE;
use crate::fuse::request::Request;

/// `new` is on the disk before it replaces another file, or a power cut might leave neither of them. Also on
/// ext4: it begins to write what replaces another (`ext4_rename`, `auto_da_alloc`), but to extents that read as
/// zeros until a later transaction says that they are written (`dioread_nolock`, its default).
/// False: it replaces none.
async fn sync_replacement(new: &Found, old: &Found) -> Result<bool, Errno> {
    let is_file = |found: &Found| fs::fstat(&found.fd).is_ok_and(|stat| is_file(&stat));
    if !is_file(old) || !is_file(new) {
        return Ok(false);
    }
    // Of who has a lease on it the next sync hears.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match fs::open(proc_path(&*new.fd), flags, Mode::empty()) {
        Ok(fd) => RingFile::from(fd).sync_data().await.map_err(|error| os(&error))?,
        // Of mode 0, to somebody without root's rights; or of who has a lease on it, and may not be waited for.
        Err(Errno::ACCESS | Errno::AGAIN) => {}
        Err(errno) => return Err(errno),
    }
    Ok(true)
}

/// As the lower filesystem dates what it makes now.
fn now() -> Timespec {
    clock_gettime(ClockId::RealtimeCoarse)
}

/// One entry of a directory.
struct DirectoryEntry {
    name: CString,
    number: u64,
    kind: FileType,
    /// Where the next one starts.
    next: u64,
}

impl Fs {
    pub(crate) fn readlink(&self, request: &Request) -> Answer {
        let fd = self.path_fd(request.nodeid)?;
        Ok(Reply::Body(fs::readlinkat(&*fd, "", Vec::new())?.into_bytes()))
    }

    pub(crate) async fn symlink(&self, request: &Request) -> Answer {
        let (name, target) = request.name_and_rest()?;
        let target = target.strip_suffix(b"\0").ok_or(Errno::INVAL)?;
        let parent = self.directory_fd(request.nodeid)?;
        let since = now();
        fs::symlinkat(OsStr::from_bytes(target), &*parent, name)?;
        self.made(request, &parent, name, FileType::Symlink, since).await
    }

    pub(crate) async fn mkdir(&self, request: &Request) -> Answer {
        let args: fuse_mkdir_in = request.args()?;
        let (name, mode) = (request.name()?, Mode::from_raw_mode(args.mode));
        let parent = self.directory_fd(request.nodeid)?;
        mask(args.umask);
        let since = now();
        fs::mkdirat(&*parent, name, mode)?;
        self.made(request, &parent, name, FileType::Directory, since).await
    }

    /// What was just made by its name, and tells the kernel of it. Somebody may rename there meanwhile: what
    /// is not what was made is not given away.
    async fn made(
        &self,
        request: &Request,
        parent: &Directory,
        name: &OsStr,
        kind: FileType,
        since: Timespec,
    ) -> Answer {
        if self.lower.owner() == (request.uid, request.gid) {
            // The kernel has made it theirs.
            return self.entry(parent, name).await;
        }
        let fd = self.lower.made(parent.as_fd(), name, kind, since)?;
        let given = self.give_to_caller(request, parent, &fd, Mode::empty());
        let flags = match kind {
            FileType::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        or_take_back(given, parent, name, flags)?;
        reply::with(&self.entry_of(&fd, Some((parent, name))).await?)
    }

    pub(crate) async fn mknod(&self, request: &Request) -> Answer {
        let args: fuse_mknod_in = request.args()?;
        let name = request.name()?;
        let parent = self.directory_fd(request.nodeid)?;
        mask(args.umask);
        let kind = FileType::from_raw_mode(args.mode);
        if kind == FileType::RegularFile {
            let mut contents = self.create_file(request, &parent, name, args.mode)?;
            let closed = contents.close(&queue()).await;
            let closed = closed.map_err(|error| self.errno(request.nodeid, "mknod", &error));
            or_take_back(closed, &parent, name, AtFlags::empty())?;
            self.entry(&parent, name).await
        } else {
            let mode = Mode::from_raw_mode(args.mode);
            let since = now();
            fs::mknodat(&*parent, name, kind, mode, u64::from(args.rdev))?;
            self.made(request, &parent, name, kind, since).await
        }
    }

    pub(crate) fn unlink(&self, request: &Request, directory: bool) -> Answer {
        let parent = self.directory_fd(request.nodeid)?;
        let name = request.name()?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let _names = self.names_change();
        let held = self.hold(&parent, name);
        fs::unlinkat(&*parent, name, flags)?;
        self.keep_nameless(held, &parent, name)?;
        DONE
    }

    pub(crate) async fn rename(&self, request: &Request) -> Answer {
        let (target, flags) = if request.opcode == opcode::RENAME2 {
            let args: fuse_rename2_in = request.args()?;
            (args.newdir, RenameFlags::from_bits(args.flags).ok_or(Errno::INVAL)?)
        } else {
            (request.args::<u64>()?, RenameFlags::empty())
        };
        let [from, to] = request.names()?;
        let source = self.directory_fd(request.nodeid)?;
        let target = self.directory_fd(target)?;
        // Data before the name that stands for them.
        let file = self.commit_name(&source, from).await?;
        if flags.is_empty() {
            let new = self.lower.find(source.as_fd(), from)?;
            match self.lower.find(target.as_fd(), to) {
                Ok(old) => {
                    if sync_replacement(&new, &old).await?
                        && let Some(file) = file
                    {
                        file.replaces.store(true, Ordering::Relaxed);
                    }
                }
                // There is none, or who renames it tells.
                Err(Errno::NOENT | Errno::XDEV) => {}
                Err(errno) => return Err(errno),
            }
        }
        let names = self.names_change();
        let moved = names.as_ref().and_then(|_| self.hold(&source, from));
        let replaced = self.hold(&target, to);
        fs::renameat_with(&*source, from, &*target, to, flags)?;
        match flags.contains(RenameFlags::EXCHANGE) {
            true => self.keep_named(replaced, &source, from)?,
            false => self.keep_nameless(replaced, &target, to)?,
        }
        self.keep_named(moved, &target, to)?;
        DONE
    }

    pub(crate) async fn link(&self, request: &Request) -> Answer {
        let args: fuse_link_in = request.args()?;
        self.commit_if_used(args.oldnodeid).await?;
        let source = self.path_fd(args.oldnodeid)?;
        let parent = self.directory_fd(request.nodeid)?;
        let name = request.name()?;
        fs::linkat(CWD, proc_path(&*source), &*parent, name, AtFlags::SYMLINK_FOLLOW)?;
        self.entry(&parent, name).await
    }

    /// The file of this name, if it is in use.
    async fn commit_name(
        &self,
        parent: &Directory,
        name: &OsStr,
    ) -> Result<Option<Arc<File>>, Errno> {
        let Some(nodeid) = self.known(&self.lower.find(parent.as_fd(), name)?) else {
            return Ok(None);
        };
        self.commit_if_used(nodeid).await?;
        Ok(self.used_file(nodeid))
    }

    pub(crate) fn opendir(&self, request: &Request) -> Answer {
        let address = self.address(request.nodeid)?;
        let fd = self.lower.open_unseen(&address, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let fh = self.directories().insert(Arc::new(fd)) as u64;
        reply::with(&fuse_open_out { fh, ..Default::default() })
    }

    pub(crate) fn release_directory(&self, request: &Request) -> Answer {
        let args: fuse_release_in = request.args()?;
        let directory = usize::try_from(args.fh).map_err(|_| Errno::BADF)?;
        self.directories().try_remove(directory).ok_or(Errno::BADF)?;
        DONE
    }

    pub(crate) async fn fsync_directory(&self, request: &Request) -> Answer {
        let args: fuse_fsync_in = request.args()?;
        let directory = self.directory(args.fh)?;
        let fd = directory.as_fd().try_clone_to_owned().map_err(|error| os(&error))?;
        RingFile::from(fd).sync_all().await.map_err(|error| os(&error))?;
        DONE
    }

    /// As many entries as fit; with their attributes, each a lookup, if `plus`.
    pub(crate) async fn readdir(&self, request: &Request, plus: bool) -> Answer {
        let args: fuse_read_in = request.args()?;
        let directory = Directory::new(request.nodeid, self.directory(args.fh)?);
        let room = args.size.min(MAX_WRITE) as usize;
        let entries = read_entries(&directory, args.offset, room, plus)?;
        let mut bytes = Vec::with_capacity(room);
        for entry in entries {
            let name = OsStr::from_bytes(entry.name.as_bytes());
            if plus {
                let told = if name == "." || name == ".." {
                    None
                } else {
                    // Gone meanwhile, or not to be looked up: a name without an inode.
                    self.entry_out(&directory, name).await.ok()
                };
                bytes.extend(told.unwrap_or_default().as_bytes());
            }
            entry.encode(&mut bytes);
        }
        Ok(Reply::Body(bytes))
    }

    fn directories(&self) -> MutexGuard<'_, Slab<Arc<OwnedFd>>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, fh: u64) -> Result<Arc<OwnedFd>, Errno> {
        let index = usize::try_from(fh).map_err(|_| Errno::BADF)?;
        self.directories().get(index).cloned().ok_or(Errno::BADF)
    }
}

/// Entries from `offset` on, as many as fit `room` bytes of the answer.
fn read_entries(
    directory: &OwnedFd,
    offset: u64,
    room: usize,
    plus: bool,
) -> Result<Vec<DirectoryEntry>, Errno> {
    fs::seek(directory, SeekFrom::Start(offset))?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 * 1024];
    let mut raw = RawDir::new(directory, &mut buffer);
    let mut entries = Vec::new();
    let mut used = 0;
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let entry = DirectoryEntry {
            name: entry.file_name().to_owned(),
            number: entry.ino(),
            kind: entry.file_type(),
            next: entry.next_entry_cookie(),
        };
        used += entry.len(plus);
        if used > room {
            break;
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// `struct fuse_dirent` without the name.
const DIRENT_LEN: usize = 24;

impl DirectoryEntry {
    /// Length in the answer: entries are padded to 8 bytes.
    fn len(&self, plus: bool) -> usize {
        let plus = if plus { size_of::<fuse_entry_out>() } else { 0 };
        plus + (DIRENT_LEN + self.name.as_bytes().len()).next_multiple_of(8)
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        let name = self.name.as_bytes();
        let len = u32::try_from(name.len()).expect("names are short");
        // The type is the upper four bits of a mode's 16.
        let kind = self.kind.as_raw_mode() >> 12;
        bytes.extend(self.number.to_ne_bytes());
        bytes.extend(self.next.to_ne_bytes());
        bytes.extend(len.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
}
