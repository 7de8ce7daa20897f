//! Inodes that the kernel knows: by number, until it forgets them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::fs::{self, FileType, Stat};
use rustix::io::Errno;
use slab::Slab;
use warpcore_runtime::queue;
use zerocopy::FromBytes;

use super::file_in_use::File;
use super::lower::{Address, Found, Lower};
use super::{Answer, Fs, Reply, reply};
use crate::fuse::abi::*;
use crate::fuse::request::Request;

/// Every inode that the kernel may name.
pub(crate) struct Inodes {
    /// `nodeid` is the index + 1; the root is first.
    nodes: Slab<Inode>,
    /// By number of the lower inode. Only the newest of those that had it.
    by_number: HashMap<u64, usize>,
    /// Directories that were worked in lately: a name in them is found without opening them.
    directories: HashMap<u64, Arc<OwnedFd>>,
    /// Counts reuses of node ids.
    generation: u64,
}

struct Inode {
    address: Address,
    number: u64,
    generation: u64,
    /// Times that the kernel was told of it.
    lookups: u64,
    /// The contents, while somebody uses them.
    file: Option<Arc<File>>,
}

/// Descriptors of directories that are kept open.
const DIRECTORIES_MAX: usize = 256;

impl Inodes {
    pub(crate) fn new(lower: &Lower) -> Result<Self, Errno> {
        let Found { number, address, .. } = lower.find(lower.root(), OsStr::new("."))?;
        let mut nodes = Slab::new();
        let root = Inode {
            address,
            number,
            generation: 0,
            // The kernel knows it by itself and never forgets it.
            lookups: 1,
            file: None,
        };
        let index = nodes.insert(root);
        debug_assert_eq!(index as u64 + 1, FUSE_ROOT_ID);
        Ok(Self {
            nodes,
            by_number: HashMap::from([(number, index)]),
            directories: HashMap::new(),
            generation: 0,
        })
    }

    fn get(&self, nodeid: u64) -> Result<&Inode, Errno> {
        // ESTALE makes the kernel look the name up again.
        self.nodes.get(index_of(nodeid)?).ok_or(Errno::STALE)
    }

    /// The node of an inode that was just found, new or known.
    fn remember(&mut self, found: &Found) -> (u64, u64) {
        let Found { number, address, .. } = found;
        if let Some(&index) = self.by_number.get(number)
            && let Some(node) = self.nodes.get_mut(index)
            && node.address == *address
        {
            node.lookups += 1;
            return (index as u64 + 1, node.generation);
        }
        // New, or the number of an inode that is gone was used again.
        self.generation += 1;
        let generation = self.generation;
        let (number, address) = (*number, address.clone());
        let index =
            self.nodes.insert(Inode { address, number, generation, lookups: 1, file: None });
        self.by_number.insert(number, index);
        (index as u64 + 1, generation)
    }

    fn forget(&mut self, nodeid: u64, lookups: u64) {
        let Ok(index) = index_of(nodeid) else { return };
        if nodeid == FUSE_ROOT_ID {
            return;
        }
        let Some(node) = self.nodes.get_mut(index) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            let number = node.number;
            self.nodes.remove(index);
            self.directories.remove(&nodeid);
            if self.by_number.get(&number) == Some(&index) {
                self.by_number.remove(&number);
            }
        }
    }
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
    pub(crate) async fn entry(&self, parent: &OwnedFd, name: &OsStr) -> Answer {
        reply::with(&self.entry_out(parent, name).await?)
    }

    pub(crate) async fn entry_out(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> Result<fuse_entry_out, Errno> {
        let found = self.lower.find(parent.as_fd(), name)?;
        self.told(&found).await
    }

    /// As [`Fs::entry_out`], of an inode that has no name.
    pub(crate) async fn entry_of(&self, fd: &Arc<OwnedFd>) -> Result<fuse_entry_out, Errno> {
        let found = self.lower.identify(fd)?;
        self.told(&found).await
    }

    async fn told(&self, found: &Found) -> Result<fuse_entry_out, Errno> {
        let (nodeid, generation) = self.inodes().remember(found);
        match self.attributes(nodeid, &found.fd).await {
            Ok(attr) => Ok(fuse_entry_out {
                nodeid,
                generation,
                entry_valid: self.cache.valid_s(),
                attr_valid: self.cache.valid_s(),
                attr,
                ..Default::default()
            }),
            Err(errno) => {
                self.inodes().forget(nodeid, 1);
                Err(errno)
            }
        }
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
        let (address, file) = {
            let inodes = self.inodes();
            let node = inodes.get(nodeid)?;
            (node.address.clone(), node.file.clone())
        };
        match file.and_then(|file| file.descriptor().clone()) {
            Some(fd) => Ok(fd),
            None => self.lower.path_fd(&address),
        }
    }

    /// An `O_PATH` descriptor of a directory, kept open for the next who asks.
    pub(crate) fn directory_fd(&self, nodeid: u64) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = self.inodes().directories.get(&nodeid) {
            return Ok(Arc::clone(fd));
        }
        let fd = self.path_fd(nodeid)?;
        let mut inodes = self.inodes();
        let crowded = inodes.directories.len() >= DIRECTORIES_MAX;
        let old = crowded.then(|| std::mem::take(&mut inodes.directories));
        inodes.directories.insert(nodeid, Arc::clone(&fd));
        drop(inodes);
        // Closing them takes time.
        drop(old);
        Ok(fd)
    }

    /// Before a name is taken away: a descriptor of its inode, if the kernel knows that.
    pub(crate) fn hold(&self, parent: &OwnedFd, name: &OsStr) -> Option<(u64, Arc<OwnedFd>)> {
        let found = self.lower.find(parent.as_fd(), name).ok()?;
        let inodes = self.inodes();
        let index = *inodes.by_number.get(&found.number)?;
        // The number alone may have been another inode's before.
        let is_it = inodes.nodes.get(index)?.address == found.address;
        is_it.then_some((index as u64 + 1, found.fd))
    }

    /// After it: an inode without a name is found by the descriptor that was held, as long as the
    /// kernel knows it (it may be a working directory, or a FIFO that is open).
    pub(crate) fn keep_nameless(&self, held: Option<(u64, Arc<OwnedFd>)>) -> Result<(), Errno> {
        let Some((nodeid, fd)) = held else { return Ok(()) };
        let stat = fs::fstat(&fd)?;
        if stat.st_nlink == 0 {
            let address = Address::pinned(&fd)?;
            let mut inodes = self.inodes();
            if let Some(node) = inodes.nodes.get_mut(index_of(nodeid)?)
                && node.number == stat.st_ino
            {
                node.address = address;
            }
        }
        Ok(())
    }

    pub(crate) fn address(&self, nodeid: u64) -> Result<Address, Errno> {
        Ok(self.inodes().get(nodeid)?.address.clone())
    }

    /// The node of an inode, if the kernel knows it, without telling it again.
    pub(crate) fn known(&self, stat: &Stat) -> Option<u64> {
        let index = *self.inodes().by_number.get(&stat.st_ino)?;
        Some(index as u64 + 1)
    }

    /// The contents of a node, in use until [`Fs::put_file`]. Not loaded yet, maybe.
    pub(crate) fn take_file(&self, nodeid: u64) -> Result<Arc<File>, Errno> {
        let mut inodes = self.inodes();
        let node = inodes.nodes.get_mut(index_of(nodeid)?).ok_or(Errno::STALE)?;
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
        *file.descriptor() = None;
        *contents = None;
        drop(contents);
        let mut inodes = self.inodes();
        if let Ok(index) = index_of(nodeid)
            && let Some(node) = inodes.nodes.get_mut(index)
            && node.file.as_ref().is_some_and(|other| Arc::ptr_eq(other, file))
            && file.users.load(Ordering::Relaxed) == 0
        {
            node.file = None;
        }
        drop(inodes);
        closed.map_err(|error| self.errno(nodeid, "close", &error))
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

/// Where a lower inode can be reached.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Fd(&'a OwnedFd),
    Name(&'a OwnedFd, &'a OsStr),
}

/// Whether this is a regular file, whose contents are ours to store.
pub(crate) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn index_of(nodeid: u64) -> Result<usize, Errno> {
    nodeid.checked_sub(1).and_then(|index| usize::try_from(index).ok()).ok_or(Errno::INVAL)
}
