//! Inodes that the kernel knows: by number, until it forgets them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use slab::Slab;

use super::file_in_use::File;
use super::lower::{Address, Found, Lower};
use crate::fuse::abi::FUSE_ROOT_ID;
use crate::store::contents::Time;

/// Every inode that the kernel may name.
pub(crate) struct Inodes {
    /// `nodeid` is the index + 1; the root is first.
    pub(super) nodes: Slab<Inode>,
    /// By number of the lower inode. Only the newest of those that had it.
    pub(super) by_number: HashMap<u64, usize>,
    /// Directories that were worked in lately: a name in them is found without opening them.
    pub(super) directories: HashMap<u64, Arc<OwnedFd>>,
    pub(super) directories_max: usize,
    /// Lengths that the kernel was told, by node, of inodes that could not be read then.
    pub(super) guessed: HashMap<u64, u64>,
    /// Inodes, by number, that are shorter than their mark says, which cannot be changed.
    shorter: HashMap<u64, Shorter>,
    /// Counts reuses of node ids.
    generation: u64,
}

pub(super) struct Inode {
    pub(super) whereabouts: Whereabouts,
    pub(super) number: u64,
    generation: u64,
    /// Times that the kernel was told of it, and inodes that are found by a name in it.
    lookups: u64,
    /// The contents, while somebody uses them.
    pub(super) file: Option<Arc<File>>,
}

/// The length of an inode whose mark tells another.
pub(super) struct Shorter {
    pub(super) size: u64,
    /// Its ctime then. Whatever makes this wrong moves that: a new mark, new contents, or the number is another
    /// inode's by now.
    pub(super) changed: Time,
}

/// How an inode is found again.
pub(super) enum Whereabouts {
    /// Whatever becomes of its names.
    At(Address),
    /// Without handles: by one of its names, in the directory with this index. It is another inode if its
    /// number is another.
    Named { parent: u32, name: Box<OsStr> },
    /// Not any more: see [`Inodes::give_up`].
    Nowhere,
}

impl Whereabouts {
    pub(super) fn is(&self, parent: u64, name: &OsStr) -> bool {
        matches!(self, Self::Named { parent: index, name: own }
            if u64::from(*index) + 1 == parent && **own == *name)
    }
}

/// A directory that is worked in.
pub(crate) struct Directory {
    pub(super) nodeid: u64,
    /// Open for nothing maybe.
    fd: Arc<OwnedFd>,
}

impl Directory {
    pub(crate) fn new(nodeid: u64, fd: Arc<OwnedFd>) -> Self {
        Self { nodeid, fd }
    }
}

impl Deref for Directory {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.fd
    }
}

/// Descriptors of directories that are kept open, but never more than a quarter of what there are.
const DIRECTORIES_MAX: usize = 256;

/// Directories within each other, twice what a path can name (PATH_MAX).
const DEPTH_MAX: usize = 4096;

impl Inodes {
    pub(crate) fn new(lower: &Lower) -> Result<Self, Errno> {
        let Found { number, handle, fd } = lower.find(lower.root(), OsStr::new("."))?;
        let address = handle.map_or_else(|| Address::pinned(&fd), Ok)?;
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let mut nodes = Slab::new();
        let root = Inode {
            whereabouts: Whereabouts::At(address),
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
            directories_max: DIRECTORIES_MAX.min(usize::try_from(descriptors / 4).unwrap_or(0)),
            guessed: HashMap::new(),
            shorter: HashMap::new(),
            generation: 0,
        })
    }

    pub(super) fn get(&self, nodeid: u64) -> Result<&Inode, Errno> {
        // ESTALE makes the kernel look the name up again.
        self.nodes.get(index_of(nodeid)?).ok_or(Errno::STALE)
    }

    pub(super) fn get_mut(&mut self, nodeid: u64) -> Result<&mut Inode, Errno> {
        self.nodes.get_mut(index_of(nodeid)?).ok_or(Errno::STALE)
    }

    /// The node of an inode, if the kernel knows it.
    pub(super) fn node_of(&self, found: &Found) -> Option<u64> {
        let index = *self.by_number.get(&found.number)?;
        let is_it = match (&self.nodes.get(index)?.whereabouts, &found.handle) {
            (Whereabouts::At(address), Some(handle)) => address == handle,
            // A number is all there is. A file that is open or has no name pins its own.
            _ => true,
        };
        is_it.then_some(index as u64 + 1)
    }

    /// The node of an inode that was just found, new or known, in `directory` under this name unless it
    /// has none.
    pub(super) fn remember(
        &mut self,
        found: &Found,
        name: Option<(&Directory, &OsStr)>,
    ) -> Result<(u64, u64), Errno> {
        if let Some(nodeid) = self.node_of(found) {
            if found.handle.is_none()
                && let Some((directory, name)) = name
            {
                self.name(nodeid, directory, name)?;
            }
            let node = self.get_mut(nodeid)?;
            node.lookups += 1;
            return Ok((nodeid, node.generation));
        }
        let whereabouts = match (&found.handle, name) {
            (Some(handle), _) => Whereabouts::At(handle.clone()),
            (None, Some((directory, name))) => self.named(directory, name)?,
            (None, None) => Whereabouts::At(Address::pinned(&found.fd)?),
        };
        // New, or the number of an inode that is gone was used again.
        self.generation += 1;
        let (number, generation) = (found.number, self.generation);
        let inode = Inode { whereabouts, number, generation, lookups: 1, file: None };
        let index = self.nodes.insert(inode);
        self.by_number.insert(number, index);
        Ok((index as u64 + 1, generation))
    }

    /// A name in `directory`, which is remembered as long as that.
    fn named(&mut self, directory: &Directory, name: &OsStr) -> Result<Whereabouts, Errno> {
        let parent = u32::try_from(index_of(directory.nodeid)?).map_err(|_| Errno::NFILE)?;
        self.get_mut(directory.nodeid)?.lookups += 1;
        Ok(Whereabouts::Named { parent, name: name.into() })
    }

    /// From now on a node without a handle is found under this name.
    pub(super) fn name(
        &mut self,
        nodeid: u64,
        directory: &Directory,
        name: &OsStr,
    ) -> Result<(), Errno> {
        let whereabouts = &self.get(nodeid)?.whereabouts;
        let is_given_up = matches!(whereabouts, Whereabouts::Nowhere);
        if nodeid == FUSE_ROOT_ID || is_given_up || whereabouts.is(directory.nodeid, name) {
            return Ok(());
        }
        let named = self.named(directory, name)?;
        self.move_to(nodeid, named)
    }

    pub(super) fn move_to(&mut self, nodeid: u64, whereabouts: Whereabouts) -> Result<(), Errno> {
        let before = std::mem::replace(&mut self.get_mut(nodeid)?.whereabouts, whereabouts);
        if let Whereabouts::Named { parent, .. } = before {
            self.forget(u64::from(parent) + 1, 1);
        }
        Ok(())
    }

    /// A node that nobody uses has another length than the kernel was told, which it would not believe: with its
    /// write-back cache a length is its own (`fuse_get_cache_mask`). Every use of the node is ESTALE from here on,
    /// at which the kernel looks the name up again, and is told of a new node. `unmarked`: if the mark cannot
    /// tell its length.
    pub(super) fn give_up(&mut self, nodeid: u64, unmarked: Option<Shorter>) -> Result<(), Errno> {
        let (index, number) = (index_of(nodeid)?, self.get(nodeid)?.number);
        match unmarked {
            Some(shorter) => self.shorter.insert(number, shorter),
            None => self.shorter.remove(&number),
        };
        if self.by_number.get(&number) == Some(&index) {
            self.by_number.remove(&number);
        }
        self.move_to(nodeid, Whereabouts::Nowhere)
    }

    /// The length of an inode whose mark is known to be wrong. `changed`: its ctime now.
    pub(super) fn unmarked_size(&mut self, nodeid: u64, changed: Time) -> Option<u64> {
        let number = self.get(nodeid).ok()?.number;
        let shorter = self.shorter.get(&number)?;
        if shorter.changed == changed {
            return Some(shorter.size);
        }
        self.shorter.remove(&number);
        None
    }

    /// The way to a node without a handle.
    pub(super) fn way_to(&self, nodeid: u64) -> Result<Way, Errno> {
        let mut names = Vec::new();
        let mut nodeid = nodeid;
        loop {
            if let Some(fd) = self.directories.get(&nodeid) {
                return Ok(Way { base: Base::Open(Arc::clone(fd)), names });
            }
            let node = self.get(nodeid)?;
            match &node.whereabouts {
                Whereabouts::At(address) => {
                    return Ok(Way { base: Base::At(address.clone()), names });
                }
                Whereabouts::Nowhere => return Err(Errno::STALE),
                Whereabouts::Named { .. } if names.len() == DEPTH_MAX => return Err(Errno::STALE),
                Whereabouts::Named { parent, name } => {
                    names.push((name.clone(), node.number));
                    nodeid = u64::from(*parent) + 1;
                }
            }
        }
    }

    pub(super) fn forget(&mut self, nodeid: u64, lookups: u64) {
        let (mut nodeid, mut lookups) = (nodeid, lookups);
        while nodeid != FUSE_ROOT_ID
            && let Ok(index) = index_of(nodeid)
            && let Some(node) = self.nodes.get_mut(index)
        {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups > 0 {
                return;
            }
            let Inode { number, whereabouts, .. } = self.nodes.remove(index);
            self.directories.remove(&nodeid);
            self.guessed.remove(&nodeid);
            if self.by_number.get(&number) == Some(&index) {
                self.by_number.remove(&number);
            }
            // Nothing is found by a name in it any more.
            let Whereabouts::Named { parent, .. } = whereabouts else { return };
            (nodeid, lookups) = (u64::from(parent) + 1, 1);
        }
    }
}

/// From an inode that is at hand, names with the numbers of the inodes that have to have them, the last
/// first.
pub(super) struct Way {
    pub(super) base: Base,
    pub(super) names: Vec<(Box<OsStr>, u64)>,
}

pub(super) enum Base {
    Open(Arc<OwnedFd>),
    At(Address),
}

fn index_of(nodeid: u64) -> Result<usize, Errno> {
    nodeid.checked_sub(1).and_then(|index| usize::try_from(index).ok()).ok_or(Errno::INVAL)
}
