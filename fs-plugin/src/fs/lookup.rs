//! Names to inodes, and inodes to descriptors.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{self, FileType, Stat};
use rustix::io::Errno;
use warpcore_runtime::queue;
use zerocopy::FromBytes;

use super::attr::changed;
use super::file_in_use::File;
use super::inodes::{Base, Directory, Inode, Inodes, Shorter, Way, Whereabouts};
use super::lower::{Address, Found};
use super::{Answer, Fs, Reply, reply};
use crate::error::Error;
use crate::fuse::abi::*;
use crate::fuse::request::Request;
use crate::store::contents::{Contents, Time};
use crate::store::medium::FileMedium;

/// An inode whose name is being taken away, which the kernel knows.
pub(crate) struct Held {
    nodeid: u64,
    fd: Arc<OwnedFd>,
}

impl Fs {
    /// Never held across an await.
    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn lookup(&self, request: &Request) -> Answer {
        let parent = self.directory_fd(request.nodeid)?;
        self.entry(&parent, request.name()?).await
    }

    /// Finds a name and tells the kernel of it.
    pub(crate) async fn entry(&self, parent: &Directory, name: &OsStr) -> Answer {
        reply::with(&self.entry_out(parent, name).await?)
    }

    pub(crate) async fn entry_out(
        &self,
        parent: &Directory,
        name: &OsStr,
    ) -> Result<fuse_entry_out, Errno> {
        match self.find_and_tell(parent, name).await {
            // Given up meanwhile: there is another.
            Err(Errno::STALE) => self.find_and_tell(parent, name).await,
            told => told,
        }
    }

    async fn find_and_tell(
        &self,
        parent: &Directory,
        name: &OsStr,
    ) -> Result<fuse_entry_out, Errno> {
        let (found, node) = {
            let _names = self.names_stay();
            let found = self.lower.find(parent.as_fd(), name)?;
            let node = self.inodes().remember(&found, Some((parent, name)))?;
            (found, node)
        };
        self.told(node, &found.fd).await
    }

    /// As [`Fs::entry_out`], of a file that was just made, with this name or none.
    pub(crate) async fn entry_of(
        &self,
        fd: &Arc<OwnedFd>,
        name: Option<(&Directory, &OsStr)>,
    ) -> Result<fuse_entry_out, Errno> {
        let node = self.inodes().remember(&self.lower.identify(fd)?, name)?;
        self.told(node, fd).await
    }

    async fn told(
        &self,
        (nodeid, generation): (u64, u64),
        fd: &OwnedFd,
    ) -> Result<fuse_entry_out, Errno> {
        match self.attributes(nodeid, fd).await {
            Ok(attr) => Ok(fuse_entry_out {
                nodeid,
                generation,
                entry_valid: self.cache.valid_s(),
                attr_valid: self.cache.valid_s(),
                attr,
                ..Default::default()
            }),
            Err(errno) => {
                self.untold(nodeid);
                Err(errno)
            }
        }
    }

    /// The kernel is told of an error in place of this node, and forgets nothing.
    pub(super) fn untold(&self, nodeid: u64) {
        self.inodes().forget(nodeid, 1);
    }

    pub(crate) fn forget(&self, request: &Request) -> Answer {
        let args: fuse_forget_in = request.args()?;
        self.inodes().forget(request.nodeid, args.nlookup);
        Ok(Reply::None)
    }

    pub(crate) fn batch_forget(&self, request: &Request) -> Answer {
        let args: fuse_batch_forget_in = request.args()?;
        let mut inodes = self.inodes();
        let each = request.payload.chunks_exact(size_of::<fuse_forget_one>());
        for bytes in each.take(args.count as usize) {
            if let Ok(one) = fuse_forget_one::read_from_bytes(bytes) {
                inodes.forget(one.nodeid, one.nlookup);
            }
        }
        Ok(Reply::None)
    }

    /// A descriptor of a node, open for nothing, or for whatever its contents need.
    pub(crate) fn path_fd(&self, nodeid: u64) -> Result<Arc<OwnedFd>, Errno> {
        let file = self.inodes().get(nodeid)?.file.clone();
        match file.and_then(|file| file.descriptor().clone()) {
            Some(fd) => Ok(fd),
            None => self.lower.path_fd(&self.address(nodeid)?),
        }
    }

    /// Where a node is now.
    pub(crate) fn address(&self, nodeid: u64) -> Result<Address, Errno> {
        let _names = self.names_stay();
        let Way { base, names } = {
            let inodes = self.inodes();
            match &inodes.get(nodeid)?.whereabouts {
                Whereabouts::At(address) => return Ok(address.clone()),
                Whereabouts::Named { .. } | Whereabouts::Nowhere => inodes.way_to(nodeid)?,
            }
        };
        let mut fd = match base {
            Base::Open(fd) => fd,
            Base::At(address) => self.lower.path_fd(&address)?,
        };
        for (name, number) in names.into_iter().rev() {
            fd = match self.lower.find(fd.as_fd(), &name) {
                Ok(found) if found.number == number => found.fd,
                // Somebody has moved it below us. The kernel looks it up again.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::STALE),
                Err(errno) => return Err(errno),
            };
        }
        Address::pinned(&fd)
    }

    /// Where inodes are found by names, none is taken away meanwhile. Locked before the inodes are, and never
    /// held across an await.
    fn names_stay(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let names = self.names.as_ref()?;
        Some(names.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// As [`Fs::names_stay`], while names are taken away.
    pub(crate) fn names_change(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let names = self.names.as_ref()?;
        Some(names.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// A directory, kept open for the next who asks.
    pub(crate) fn directory_fd(&self, nodeid: u64) -> Result<Directory, Errno> {
        if let Some(fd) = self.inodes().directories.get(&nodeid) {
            return Ok(Directory::new(nodeid, Arc::clone(fd)));
        }
        let fd = self.path_fd(nodeid)?;
        let mut inodes = self.inodes();
        let crowded = inodes.directories.len() >= inodes.directories_max;
        let old = crowded.then(|| std::mem::take(&mut inodes.directories));
        inodes.directories.insert(nodeid, Arc::clone(&fd));
        drop(inodes);
        // Closing them takes time.
        drop(old);
        Ok(Directory::new(nodeid, fd))
    }

    /// Before a name is taken away: its inode, if the kernel knows that.
    pub(crate) fn hold(&self, parent: &Directory, name: &OsStr) -> Option<Held> {
        let found = self.lower.find(parent.as_fd(), name).ok()?;
        let nodeid = self.inodes().node_of(&found)?;
        Some(Held { nodeid, fd: found.fd })
    }

    /// After it: an inode without a name, or of which we know no other, is found by the descriptor that
    /// was held, as long as the kernel knows it (it may be a working directory, or a FIFO that is open).
    pub(crate) fn keep_nameless(
        &self,
        held: Option<Held>,
        parent: &Directory,
        name: &OsStr,
    ) -> Result<(), Errno> {
        let Some(Held { nodeid, fd }) = held else { return Ok(()) };
        let stat = fs::fstat(&fd)?;
        let mut inodes = self.inodes();
        if let Ok(node) = inodes.get(nodeid)
            && node.number == stat.st_ino
            && !matches!(node.whereabouts, Whereabouts::Nowhere)
            && (stat.st_nlink == 0 || node.whereabouts.is(parent.nodeid, name))
        {
            inodes.move_to(nodeid, Whereabouts::At(Address::pinned(&fd)?))?;
        }
        Ok(())
    }

    /// After it has got another name: that is where it is found, if there are no handles.
    pub(crate) fn keep_named(
        &self,
        held: Option<Held>,
        parent: &Directory,
        name: &OsStr,
    ) -> Result<(), Errno> {
        match held {
            Some(Held { nodeid, .. }) if !self.lower.by_handle() => {
                self.inodes().name(nodeid, parent, name)
            }
            _ => Ok(()),
        }
    }

    /// The node of an inode, if the kernel knows it, without telling it again.
    pub(crate) fn known(&self, found: &Found) -> Option<u64> {
        self.inodes().node_of(found)
    }

    /// The contents of a node, in use until [`Fs::put_file`]. Not loaded yet, maybe.
    pub(crate) fn take_file(&self, nodeid: u64) -> Result<Arc<File>, Errno> {
        let mut inodes = self.inodes();
        let node = inodes.get_mut(nodeid)?;
        let file =
            node.file.get_or_insert_with(|| Arc::new(File::new(Arc::clone(&self.in_memory))));
        file.users.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::clone(file))
    }

    /// The contents of a node, if somebody uses them.
    pub(crate) fn used_file(&self, nodeid: u64) -> Option<Arc<File>> {
        self.inodes().get(nodeid).ok()?.file.clone()
    }

    /// Lets go of the contents; the last user closes them.
    pub(crate) async fn put_file(&self, nodeid: u64, file: &Arc<File>) -> Result<(), Errno> {
        {
            let _inodes = self.inodes();
            if file.users.fetch_sub(1, Ordering::Relaxed) > 1 {
                return Ok(());
            }
        }
        let mut contents = file.write().await;
        // Somebody may have come while we waited.
        if file.users.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        let closed = match &mut *contents {
            Some(contents) => contents.close(&queue()).await,
            None => Ok(()),
        };
        if let Some(contents) = &*contents
            && (closed.is_err()
                || file.has_refused.swap(false, Ordering::Relaxed)
                || self.is_told_wrong(nodeid, contents))
        {
            self.give_up(nodeid, contents);
        }
        let fd = file.descriptor().take();
        if let Some(fd) = fd {
            self.restore_capability(nodeid, file, &*fd);
        }
        *file.capability() = None;
        *contents = None;
        drop(contents);
        let mut inodes = self.inodes();
        if let Ok(node) = inodes.get_mut(nodeid)
            && node.file.as_ref().is_some_and(|other| Arc::ptr_eq(other, file))
            && file.users.load(Ordering::Relaxed) == 0
        {
            node.file = None;
        }
        drop(inodes);
        closed.map_err(|error| {
            if let Error::Io(error) = &error {
                // Else nobody might hear of it: RELEASE has no answer.
                tracing::error!("node {nodeid}: what was not stored yet is lost: {error}");
            }
            self.errno(nodeid, "close", &error)
        })
    }

    /// Whether the kernel was told a length that the contents do not have.
    pub(super) fn is_told_wrong(&self, nodeid: u64, contents: &Contents<FileMedium>) -> bool {
        contents.was_cut()
            && fs::fstat(contents.medium().descriptor()).is_ok_and(|stat| {
                self.unmarked_size(nodeid, changed(&stat)) != contents.size().ok()
            })
    }

    /// The kernel is told this length, and keeps the first, with its write-back cache.
    pub(super) fn guess(&self, nodeid: u64, size: u64) {
        self.inodes().guessed.entry(nodeid).or_insert(size);
    }

    /// Whether the kernel was told a length that was guessed, and is another.
    pub(super) fn is_guessed_wrong(&self, nodeid: u64, contents: &Contents<FileMedium>) -> bool {
        let guessed = self.inodes().guessed.get(&nodeid).copied();
        guessed.is_some_and(|guessed| contents.size().is_ok_and(|size| size != guessed))
    }

    /// It was right.
    pub(super) fn forget_guess(&self, nodeid: u64) {
        self.inodes().guessed.remove(&nodeid);
    }

    /// See [`Inodes::unmarked_size`].
    pub(super) fn unmarked_size(&self, nodeid: u64, changed: Time) -> Option<u64> {
        self.inodes().unmarked_size(nodeid, changed)
    }

    /// See [`Inodes::give_up`].
    pub(super) fn give_up(&self, nodeid: u64, contents: &Contents<FileMedium>) {
        let unmarked = || {
            let stat = fs::fstat(contents.medium().descriptor()).ok()?;
            Some(Shorter { size: contents.size().ok()?, changed: changed(&stat) })
        };
        let unmarked = if contents.is_writable() { None } else { unmarked() };
        // The kernel may have forgotten it meanwhile: nobody uses it then.
        let _ = self.inodes().give_up(nodeid, unmarked);
    }

    /// How many inodes the kernel knows.
    pub(crate) fn known_inodes(&self) -> usize {
        self.inodes().nodes.len()
    }

    /// Every file in use, with its node.
    pub(crate) fn files(&self) -> Vec<(u64, Arc<File>)> {
        let inodes = self.inodes();
        let with_file = |(index, node): (usize, &Inode)| {
            Some((index as u64 + 1, Arc::clone(node.file.as_ref()?)))
        };
        inodes.nodes.iter().filter_map(with_file).collect()
    }
}

/// Whether this is a regular file, whose contents are ours to store.
pub(crate) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}
