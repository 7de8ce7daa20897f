//! The contents of a regular file that somebody uses, and how much of them is in memory.

use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_lock::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::store::contents::Contents;
use crate::store::medium::FileMedium;

/// What is None until loaded, and again when nobody uses it any more.
type Loaded = Option<Contents<FileMedium>>;

/// What the files of a mount have in memory, all together, and how much that may be.
///
/// Relaxed throughout: the sums tell nothing of what they count.
pub(crate) struct InMemory {
    /// Bytes that are nowhere else.
    pub(super) dirty: AtomicU64,
    pub(super) dirty_max: u64,
    /// Bytes of what is known of where the contents lie.
    pub(super) index: AtomicU64,
    pub(super) index_max: u64,
}

impl InMemory {
    pub(super) fn is_dirty_full(&self) -> bool {
        self.dirty.load(Ordering::Relaxed) > self.dirty_max
    }

    pub(super) fn is_index_full(&self) -> bool {
        self.index.load(Ordering::Relaxed) > self.index_max
    }

    /// So many that who wants more soon has none.
    pub(super) fn is_index_crowded(&self) -> bool {
        self.index.load(Ordering::Relaxed) > self.index_max / 2
    }
}

/// Sets what one file has, and with it what all have.
fn count(one: &AtomicU64, all: &AtomicU64, now: u64) {
    let before = one.swap(now, Ordering::Relaxed);
    // It wraps around on the way down.
    all.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
}

/// A file in use. Any shard works on its contents, one at a time, or several that only read.
pub(crate) struct File {
    contents: RwLock<Loaded>,
    /// The descriptor of the contents, while they are loaded: system calls on the inode need not
    /// wait for them.
    descriptor: Mutex<Option<Arc<OwnedFd>>>,
    /// What `security.capability` was set to while somebody used the file. Bytes that the kernel had in its
    /// cache by then come later, and to write them takes it away.
    capability: Mutex<Option<Vec<u8>>>,
    /// A write of what the kernel had in its cache was refused: it may know a length that nothing has.
    pub(super) has_refused: AtomicBool,
    /// It has taken the name of another while it was open: what the kernel had in its cache then comes
    /// later, and is synced as it comes, or a power cut would leave neither.
    pub(super) replaces: AtomicBool,
    /// Open handles of the kernel, and operations of ours. Changed under the lock of the inodes,
    /// which orders it.
    pub(super) users: AtomicU64,
    /// This file's part of what all have.
    dirty: AtomicU64,
    index: AtomicU64,
    all: Arc<InMemory>,
}

impl File {
    pub(super) fn new(all: Arc<InMemory>) -> Self {
        Self {
            contents: RwLock::default(),
            descriptor: Mutex::default(),
            capability: Mutex::default(),
            has_refused: AtomicBool::new(false),
            replaces: AtomicBool::new(false),
            users: AtomicU64::new(0),
            dirty: AtomicU64::new(0),
            index: AtomicU64::new(0),
            all,
        }
    }

    pub(super) async fn read(&self) -> Reading<'_> {
        Reading { contents: self.contents.read().await, file: self }
    }

    pub(super) async fn write(&self) -> Changing<'_> {
        Changing { contents: self.contents.write().await, file: self }
    }

    pub(super) fn try_write(&self) -> Option<Changing<'_>> {
        Some(Changing { contents: self.contents.try_write()?, file: self })
    }

    pub(super) fn descriptor(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.descriptor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn capability(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.capability.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts loaded contents in their place, unless somebody has meanwhile.
    pub(super) fn fill(&self, place: &mut Loaded, contents: Contents<FileMedium>) {
        if place.is_none() {
            *self.descriptor() = Some(Arc::clone(contents.medium().descriptor()));
            *place = Some(contents);
        }
    }

    /// Counts what is known of where the contents lie. If all know too much, this file forgets what
    /// it can read again.
    fn count_index(&self, contents: &Loaded) {
        let count = |len| count(&self.index, &self.all.index, len);
        let Some(contents) = contents else { return count(0) };
        count(contents.index_len());
        if self.all.is_index_full() {
            contents.evict();
            count(contents.index_len());
        }
    }
}

/// Contents that are only read. What that has made known is counted when it is dropped.
pub(super) struct Reading<'a> {
    contents: RwLockReadGuard<'a, Loaded>,
    file: &'a File,
}

impl Deref for Reading<'_> {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.contents
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.file.count_index(&self.contents);
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
    /// Counts what is in memory now.
    pub(super) fn count(&self) {
        let dirty = self.contents.as_ref().map_or(0, Contents::dirty_len);
        count(&self.file.dirty, &self.file.all.dirty, dirty);
        self.file.count_index(&self.contents);
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.count();
    }
}
