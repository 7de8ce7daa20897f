//! Regular files: open, read, write, make durable.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use warpcore_runtime::{queue, sleep};

use super::file_in_use::{Changing, File};
use super::lower::proc_path;
use super::{Answer, Fs, Reply, reply};
use crate::error::Error;
use crate::fuse::abi::*;
use crate::fuse::reply::DONE;
use crate::fuse::request::Request;
use crate::store::contents::Contents;
use crate::store::medium::FileMedium;

/// Bits of `open` as the kernel passes them.
const O_ACCMODE: u32 = libc::O_ACCMODE.cast_unsigned();
const O_RDONLY: u32 = libc::O_RDONLY.cast_unsigned();
const O_TRUNC: u32 = libc::O_TRUNC.cast_unsigned();
const O_EXCL: u32 = libc::O_EXCL.cast_unsigned();

impl Fs {
    pub(crate) async fn open(&self, request: &Request) -> Answer {
        let args: fuse_open_in = request.args()?;
        // In use until RELEASE.
        if args.flags & O_ACCMODE == O_RDONLY {
            self.load(request.nodeid).await?;
        } else {
            self.load_to_write(request.nodeid).await?;
        }
        reply::with(&opened(args.flags))
    }

    pub(crate) async fn create(&self, request: &Request) -> Answer {
        let args: fuse_create_in = request.args()?;
        let name = request.name()?;
        let parent = self.directory_fd(request.nodeid)?;
        mask(args.umask);
        match self.create_file(request, &parent, name, args.mode) {
            Ok(contents) => {
                let named = Some((&parent, name));
                let entry = self.entry_of(contents.medium().descriptor(), named).await?;
                let file = self.take_file(entry.nodeid)?;
                file.fill(&mut *file.write().await, contents);
                created(&entry, args.flags)
            }
            // Somebody else was first: as good as ours, unless it had to be new.
            Err(Errno::EXIST) if args.flags & O_EXCL == 0 => {
                let mut entry = self.entry_out(&parent, name).await?;
                match self.open_instead(entry.nodeid, &args).await {
                    Ok(attr) => entry.attr = attr,
                    Err(errno) => {
                        self.untold(entry.nodeid);
                        return Err(errno);
                    }
                }
                created(&entry, args.flags)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Opens what somebody else has created; its attributes then. In use until RELEASE.
    async fn open_instead(&self, nodeid: u64, args: &fuse_create_in) -> Result<fuse_attr, Errno> {
        let file = self.load_to_write(nodeid).await?;
        let opened = async {
            if args.flags & O_TRUNC != 0 {
                self.truncate(nodeid, &file, 0).await?;
            }
            if args.open_flags & FUSE_OPEN_KILL_SUIDGID != 0 {
                self.kill_privileges(nodeid)?;
            }
            self.attributes(nodeid, &*self.path_fd(nodeid)?).await
        };
        let opened = opened.await;
        if opened.is_err() {
            // Never opened: the error that counts is the first.
            let _ = self.put_file(nodeid, &file).await;
        }
        opened
    }

    pub(crate) async fn truncate(&self, nodeid: u64, file: &File, size: u64) -> Result<(), Errno> {
        let result = match &mut *file.write().await {
            Some(contents) => contents.set_size(size).await,
            // The mount is being closed.
            None => return Err(Errno::STALE),
        };
        result.map_err(|error| self.errno(nodeid, "truncate", &error))
    }

    /// A file without a name (open(2), O_TMPFILE), which may get one by link(2).
    pub(crate) async fn tmpfile(&self, request: &Request) -> Answer {
        let args: fuse_create_in = request.args()?;
        let parent = self.directory_fd(request.nodeid)?;
        let mode = Mode::from_raw_mode(args.mode);
        mask(args.umask);
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = fs::openat(&*parent, ".", flags, mode)?;
        self.give_to_caller(request, &parent, &fd, mode)?;
        let contents = self.create_contents(request, fd)?;
        let entry = self.entry_of(contents.medium().descriptor(), None).await?;
        let file = self.take_file(entry.nodeid)?;
        file.fill(&mut *file.write().await, contents);
        created(&entry, args.flags)
    }

    /// Creates a regular file, which belongs to the caller and is marked as ours before it can hold
    /// a byte.
    pub(crate) fn create_file(
        &self,
        request: &Request,
        parent: &OwnedFd,
        name: &OsStr,
        mode: u32,
    ) -> Result<Contents<FileMedium>, Errno> {
        let mode = Mode::from_raw_mode(mode);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = fs::openat(parent, name, flags | OFlags::CLOEXEC, mode)?;
        let given = self.give_to_caller(request, parent, &fd, mode);
        let created = given.and_then(|()| self.create_contents(request, fd));
        or_take_back(created, parent, name, AtFlags::empty())
    }

    fn create_contents(
        &self,
        request: &Request,
        fd: OwnedFd,
    ) -> Result<Contents<FileMedium>, Errno> {
        let contents = Contents::create(FileMedium::new(fd), self.options);
        contents.map_err(|error| self.errno(request.nodeid, "create", &error))
    }

    /// Makes what was just created in `parent` the caller's. In a set-group-id directory the group
    /// stays the directory's.
    pub(crate) fn give_to_caller(
        &self,
        request: &Request,
        parent: &OwnedFd,
        fd: &OwnedFd,
        mode: Mode,
    ) -> Result<(), Errno> {
        // The kernel has made it ours.
        if self.lower.owner() == (request.uid, request.gid) {
            return Ok(());
        }
        let directory = fs::statat(parent.as_fd(), "", AtFlags::EMPTY_PATH)?;
        let inherits = Mode::from_raw_mode(directory.st_mode).contains(Mode::SGID);
        let gid = (!inherits).then(|| Gid::from_raw(request.gid));
        let uid = Uid::from_raw(request.uid);
        match fs::chownat(fd, "", Some(uid), gid, AtFlags::EMPTY_PATH) {
            Ok(()) => {}
            // Not root: it belongs to us, who are the only one allowed in.
            Err(Errno::PERM) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        // Changing the owner of a file clears these.
        let special = mode.intersection(Mode::SUID | Mode::SGID);
        if !special.is_empty() {
            let kept = Mode::from_raw_mode(fs::fstat(fd)?.st_mode);
            fs::fchmod(fd, kept | special)?;
        }
        Ok(())
    }

    pub(crate) async fn read(&self, request: &Request, payload: &mut [u8]) -> Answer {
        let args: fuse_read_in = request.args()?;
        let len = payload.len().min(args.size as usize);
        let file = self.in_use(request.nodeid)?;
        let contents = file.read().await;
        let contents = contents.as_ref().ok_or(Errno::STALE)?;
        let read = contents.read(&queue(), args.offset, &mut payload[..len]).await;
        read.map(Reply::Payload).map_err(|error| self.errno(request.nodeid, "read", &error))
    }

    pub(crate) async fn write(&self, request: &Request, payload: &[u8]) -> Answer {
        let args: fuse_write_in = request.args()?;
        let bytes = payload.get(..args.size as usize).ok_or(Errno::INVAL)?;
        let file = self.in_use(request.nodeid)?;
        let mut contents = file.write().await;
        let written = async {
            // What cannot be stored is not accepted either.
            self.make_room(&mut contents).await?;
            let loaded = contents.as_mut().ok_or(Errno::STALE)?;
            loaded.write(&queue(), args.offset, bytes).await
        };
        if let Err(error) = written.await {
            // With its write-back cache the kernel has told its length already.
            file.has_refused.fetch_or(args.write_flags & FUSE_WRITE_CACHE != 0, Ordering::Relaxed);
            return Err(self.errno(request.nodeid, "write", &error));
        }
        // Who took room makes it. If that fails, the next write hears of it, or the next flush.
        let _ = self.make_room(&mut contents).await;
        if args.write_flags & FUSE_WRITE_KILL_SUIDGID != 0 {
            self.kill_privileges(request.nodeid)?;
        }
        if args.write_flags & FUSE_WRITE_CACHE == 0 {
            *file.capability() = None;
        }
        reply::with(&fuse_write_out { size: args.size, padding: 0 })
    }

    /// Stores what a file has in memory, if all files together have too much.
    async fn make_room(&self, contents: &mut Changing<'_>) -> Result<(), Error> {
        contents.count();
        let Some(contents) = &mut **contents else { return Ok(()) };
        if self.in_memory.is_dirty_full() {
            contents.commit(&queue()).await?;
        }
        if self.in_memory.is_index_full() {
            contents.store_index(&queue()).await?;
        }
        Ok(())
    }

    /// close(2) of one descriptor: what was written reaches the lower filesystem, or the caller
    /// hears why not.
    pub(crate) async fn flush(&self, request: &Request) -> Answer {
        let Some(file) = self.used_file(request.nodeid) else { return DONE };
        if let Some(contents) = &mut *file.write().await {
            let flushed = match contents.check_length() {
                // Also at the next: any descriptor of it is closed.
                Ok(()) if file.replaces.load(Ordering::Relaxed) => contents.sync(&queue()).await,
                Ok(()) => contents.commit(&queue()).await,
                cut => cut,
            };
            flushed.map_err(|error| self.errno(request.nodeid, "flush", &error))?;
        }
        if let Some(fd) = &*file.descriptor() {
            self.restore_capability(request.nodeid, &file, &**fd);
        }
        DONE
    }

    pub(crate) async fn commit_if_used(&self, nodeid: u64) -> Result<(), Errno> {
        let Some(file) = self.used_file(nodeid) else { return Ok(()) };
        let committed = match &mut *file.write().await {
            Some(contents) => contents.commit(&queue()).await,
            None => Ok(()),
        };
        committed.map_err(|error| self.errno(nodeid, "flush", &error))
    }

    pub(crate) async fn fsync(&self, request: &Request) -> Answer {
        let args: fuse_fsync_in = request.args()?;
        let file = self.in_use(request.nodeid)?;
        let mut contents = file.write().await;
        let contents = contents.as_mut().ok_or(Errno::STALE)?;
        if file.capability().is_some() {
            // All that is written comes before it.
            let settled = contents.settle(&queue()).await;
            settled.map_err(|error| self.errno(request.nodeid, "fsync", &error))?;
            self.restore_capability(request.nodeid, &file, contents.medium().descriptor());
        }
        let synced = match args.fsync_flags & FUSE_FSYNC_FDATASYNC {
            0 => contents.sync_inode(&queue()).await,
            _ => contents.sync(&queue()).await,
        };
        synced.map_err(|error| self.errno(request.nodeid, "fsync", &error))?;
        self.restore_capability(request.nodeid, &file, contents.medium().descriptor());
        DONE
    }

    pub(crate) async fn release(&self, request: &Request) -> Answer {
        let file = self.in_use(request.nodeid)?;
        // Nobody hears an error of this: FLUSH has told it. It is logged.
        let _ = self.put_file(request.nodeid, &file).await;
        DONE
    }

    /// The contents of a node, loaded, in use until [`Fs::put_file`].
    pub(crate) async fn load(&self, nodeid: u64) -> Result<Arc<File>, Errno> {
        self.load_for(nodeid, false).await
    }

    /// As [`Fs::load`], and they can be written.
    pub(crate) async fn load_to_write(&self, nodeid: u64) -> Result<Arc<File>, Errno> {
        self.load_for(nodeid, true).await
    }

    async fn load_for(&self, nodeid: u64, to_write: bool) -> Result<Arc<File>, Errno> {
        let file = self.take_file(nodeid)?;
        if let Err(errno) = self.fill(nodeid, &file, to_write).await {
            let _ = self.put_file(nodeid, &file).await;
            return Err(errno);
        }
        Ok(file)
    }

    async fn fill(&self, nodeid: u64, file: &File, to_write: bool) -> Result<(), Errno> {
        let mut contents = file.write().await;
        if contents.as_ref().is_some_and(|loaded| loaded.is_writable() || !to_write) {
            return Ok(());
        }
        let opened = self.open_contents(nodeid).await?;
        if self.is_guessed_wrong(nodeid, &opened) {
            self.give_up(nodeid, &opened);
            return Err(Errno::STALE);
        }
        self.forget_guess(nodeid);
        if self.is_told_wrong(nodeid, &opened) {
            if contents.is_some() {
                // Told right once nobody has it open any more.
                return Err(self.errno(nodeid, "open", &Error::Cut));
            }
            self.give_up(nodeid, &opened);
            return Err(Errno::STALE);
        }
        if to_write && !opened.is_writable() {
            return Err(Errno::ROFS);
        }
        // What was loaded while the lower could not be written has nothing in memory.
        *contents = None;
        file.fill(&mut contents, opened);
        Ok(())
    }

    async fn open_contents(&self, nodeid: u64) -> Result<Contents<FileMedium>, Errno> {
        let address = self.address(nodeid)?;
        // A lease holds it up for as long as its holder likes, up to a time that root sets (45 s).
        let (fd, writable) = loop {
            match self.lower.open_contents(&address) {
                Err(Errno::AGAIN) => sleep(Duration::from_millis(10)).await,
                opened => break opened?,
            }
        };
        let medium = FileMedium::new(fd);
        let opened = Contents::open(medium, self.options, writable).await;
        opened.map_err(|error| self.errno(nodeid, "open", &error))
    }

    pub(crate) fn in_use(&self, nodeid: u64) -> Result<Arc<File>, Errno> {
        self.used_file(nodeid).ok_or(Errno::BADF)
    }

    /// The errno of an error; tells the log what the caller cannot hear.
    pub(crate) fn errno(&self, nodeid: u64, what: &str, error: &Error) -> Errno {
        if !matches!(error, Error::Io(_)) {
            let path = self.path_fd(nodeid).ok();
            let path = path.and_then(|fd| std::fs::read_link(proc_path(&*fd)).ok());
            let path = path.unwrap_or_default();
            tracing::error!("{what} {}: {error}", path.display());
        }
        Errno::from_raw_os_error(error.errno())
    }

    /// Commits every file in use, as far as its bytes have come. Errors are logged; the bytes stay
    /// where they are.
    pub(crate) async fn commit_all(&self) {
        // Those that are busy last: a long fsync of one holds up none of the others.
        let mut busy = Vec::new();
        for (nodeid, file) in self.files() {
            match file.try_write() {
                Some(place) => self.commit_in_order(nodeid, &file, place).await,
                None => busy.push((nodeid, Arc::clone(&file))),
            }
        }
        for (nodeid, file) in busy {
            self.commit_in_order(nodeid, &file, file.write().await).await;
        }
    }

    async fn commit_in_order(&self, nodeid: u64, file: &File, mut place: Changing<'_>) {
        let Some(contents) = &mut *place else { return };
        let mut done = contents.commit_in_order(&queue()).await;
        if done.is_ok() && file.replaces.load(Ordering::Relaxed) {
            done = contents.sync(&queue()).await;
        }
        // Files that nobody touches would keep theirs.
        if done.is_ok() && self.in_memory.is_index_crowded() {
            done = contents.store_index(&queue()).await;
        }
        if let Err(error) = done {
            tracing::error!("node {nodeid}: cannot be written: {error}");
        }
    }

    /// Closes every file in use, whoever still has it open. False: some could not be.
    pub(crate) async fn close_all(&self) -> bool {
        let mut all = true;
        for (nodeid, file) in self.files() {
            // Held until it is closed: who opens it meanwhile, as a container may that has the mount too,
            // would take it for one that a crash has left.
            let mut place = file.write().await;
            let Some(contents) = &mut *place else { continue };
            if let Err(error) = contents.close(&queue()).await {
                tracing::error!("node {nodeid}: cannot be closed: {error}");
                all = false;
            }
            self.restore_capability(nodeid, &file, contents.medium().descriptor());
            *place = None;
        }
        all
    }
}

/// What could not be given to its owner, as where a quota is used up, is not left to ours.
pub(crate) fn or_take_back<T>(
    made: Result<T, Errno>,
    parent: &OwnedFd,
    name: &OsStr,
    flags: AtFlags,
) -> Result<T, Errno> {
    if made.is_err() {
        // The error that counts is the first.
        let _ = fs::unlinkat(parent, name, flags);
    }
    made
}

/// Sets the umask for the next file or directory that this shard makes: the lower filesystem applies
/// it, unless the directory has a default ACL, which takes its place.
pub(crate) fn mask(umask: u32) {
    thread_local! {
        static SET: Cell<Option<u32>> = const { Cell::new(None) };
    }
    if SET.replace(Some(umask)) != Some(umask) {
        rustix::process::umask(Mode::from_raw_mode(umask));
    }
}

/// How the kernel is to use a file that was opened with these flags: its pages stay valid, since
/// contents change only through it; who only reads has nothing to flush, which the
/// kernel heeds without its write-back cache only (`fuse_flush`).
fn opened(flags: u32) -> fuse_open_out {
    let reads_only = flags & O_ACCMODE == O_RDONLY;
    let open_flags = FOPEN_KEEP_CACHE | if reads_only { FOPEN_NOFLUSH } else { 0 };
    fuse_open_out { open_flags, ..Default::default() }
}

fn created(entry: &fuse_entry_out, flags: u32) -> Answer {
    use zerocopy::IntoBytes;
    let open = opened(flags);
    Ok(Reply::Body([entry.as_bytes(), open.as_bytes()].concat()))
}

pub(crate) fn os(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
