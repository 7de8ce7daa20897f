//! The contents of a regular file that somebody uses, and how much of them is in memory only.

use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_lock::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::store::contents::Contents;
use crate::store::medium::FileMedium;

/// What is None until loaded, and again when nobody uses it any more.
type Loaded = Option<Contents<FileMedium>>;

/// A file in use. Any shard works on its contents, one at a time, or several that only read.
pub(crate) struct File {
    contents: RwLock<Loaded>,
    /// The descriptor of the contents, while they are loaded: system calls on the inode need not
    /// wait for them.
    descriptor: Mutex<Option<Arc<OwnedFd>>>,
    /// Open handles of the kernel, and operations of ours. Changed under the lock of the inodes,
    /// which orders it.
    pub(super) users: AtomicU64,
    /// Bytes in memory only. Changed under the lock of the contents, which orders it.
    dirty: AtomicU64,
    /// Those of all files of the mount.
    all_dirty: Arc<AtomicU64>,
}

impl File {
    pub(super) fn new(all_dirty: Arc<AtomicU64>) -> Self {
        Self {
            contents: RwLock::default(),
            descriptor: Mutex::default(),
            users: AtomicU64::new(0),
            dirty: AtomicU64::new(0),
            all_dirty,
        }
    }

    pub(super) async fn read(&self) -> RwLockReadGuard<'_, Loaded> {
        self.contents.read().await
    }

    pub(super) async fn write(&self) -> Changing<'_> {
        Changing { contents: self.contents.write().await, file: self }
    }

    pub(super) fn descriptor(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.descriptor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts loaded contents in their place, unless somebody has meanwhile.
    pub(super) fn fill(&self, place: &mut Loaded, contents: Contents<FileMedium>) {
        if place.is_none() {
            *self.descriptor() = Some(Arc::clone(contents.medium().descriptor()));
            *place = Some(contents);
        }
    }
}

/// Contents that may be changed. What that leaves in memory is counted when it is dropped.
pub(super) struct Changing<'a> {
    contents: RwLockWriteGuard<'a, Loaded>,
    file: &'a File,
}

impl Deref for Changing<'_> {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.contents
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut Loaded {
        &mut self.contents
    }
}

impl Changing<'_> {
    /// Bytes of all files of the mount that are in memory only.
    pub(super) fn count(&self) -> u64 {
        let File { dirty, all_dirty, .. } = self.file;
        let now = self.contents.as_ref().map_or(0, Contents::dirty_len);
        let before = dirty.swap(now, Ordering::Relaxed);
        // Relaxed: a sum, which tells nothing of what it counts. It wraps around on the way down.
        let change = now.wrapping_sub(before);
        all_dirty.fetch_add(change, Ordering::Relaxed).wrapping_add(change)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.count();
    }
}
