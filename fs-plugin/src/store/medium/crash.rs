//! A file in memory that forgets, at a power cut, what was not synced.
//!
//! Every change is recorded. [`CrashMedium::crashed`] gives the file as it may be after a power cut
//! at some point: all that was synced by then is there; of later writes any may be missing (zeros
//! stand there) or torn; later changes of metadata (length, attribute) survive in their order up to
//! some point, as a journal keeps them, and a write that makes the file longer changes metadata. A
//! truncation that is lost may have zeroed the end of its last block all the same
//! (`ext4_block_truncate_page` in ordered mode).
//!
//! What it never does: change bytes that nobody wrote, or keep a change of metadata while losing an
//! earlier one.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use super::Medium;

/// A file in memory, with its history.
#[derive(Debug, Default)]
pub struct CrashMedium {
    now: RefCell<Image>,
    history: RefCell<Vec<Change>>,
    /// Fail the write that would make the file longer than this, as a full disk does.
    capacity: std::cell::Cell<Option<u64>>,
    /// Power cuts that it has seen.
    epoch: u32,
    /// Fail this many syncs.
    failing_syncs: std::cell::Cell<u32>,
    /// Changes whose sync has failed: lengths are on the disk, bytes in the cache only.
    lost: RefCell<Vec<Range<usize>>>,
    /// There can be no attribute.
    has_no_attributes: std::cell::Cell<bool>,
    /// Fail, with this error, the change that comes after so many.
    failing_change: std::cell::Cell<Option<(usize, i32)>>,
    /// Fail the read that comes after so many.
    failing_read: std::cell::Cell<Option<usize>>,
}

#[derive(Debug, Clone, Default)]
struct Image {
    bytes: Vec<u8>,
    attribute: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
enum Change {
    SetAttribute(Vec<u8>),
    SetLen(u64),
    Punch(Range<u64>),
    Sync,
    Write { bytes: Vec<u8>, offset: u64 },
}

/// Where the power is cut, and what survives of the changes that were not synced.
#[derive(Debug, Clone, Copy)]
pub struct CrashPoint {
    /// Number of changes that had been made.
    pub changes: usize,
    /// Decides which writes survive and how far metadata does.
    pub seed: u64,
}

/// What a disk writes at once.
const SECTOR: usize = 512;

/// What the filesystem allocates at once.
const BLOCK: usize = 4096;

impl CrashMedium {
    /// Number of changes so far.
    pub fn changes(&self) -> usize {
        self.history.borrow().len()
    }

    /// The disk is full at this length.
    pub fn fill_up_at(&self, capacity: Option<u64>) {
        self.capacity.set(capacity);
    }

    /// The next `count` syncs fail.
    pub fn fail_syncs(&self, count: u32) {
        self.failing_syncs.set(count);
    }

    /// As on a filesystem that has no attributes.
    pub fn have_no_attributes(&self) {
        self.has_no_attributes.set(true);
    }

    /// The change after `count` more fails with `errno`, of a write after half of it.
    pub fn fail_change_after(&self, count: usize, errno: i32) {
        self.failing_change.set(Some((count, errno)));
    }

    /// Whether [`CrashMedium::fail_change_after`] has not come to it yet.
    pub fn is_failing(&self) -> bool {
        self.failing_change.get().is_some()
    }

    /// The read after `count` more fails (EIO).
    pub fn fail_read_after(&self, count: usize) {
        self.failing_read.set(Some(count));
    }

    /// Whether [`CrashMedium::fail_read_after`] has not come to it yet; it does not any more.
    pub fn stop_failing_reads(&self) -> bool {
        self.failing_read.take().is_some()
    }

    /// The bytes as they are now.
    pub fn bytes(&self) -> Vec<u8> {
        self.now.borrow().bytes.clone()
    }

    /// Changes the bytes behind everybody's back.
    pub fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.now.borrow_mut().bytes);
    }

    /// Takes the attribute away, as a copy by a tool that does not know them would.
    pub fn lose_attribute(&self) {
        self.now.borrow_mut().attribute = None;
    }

    /// The file as it may be found after a power cut.
    pub fn crashed(&self, point: CrashPoint) -> Self {
        let history = self.history.borrow();
        let made = &history[..point.changes];
        let synced = made.iter().rposition(|change| matches!(change, Change::Sync));
        let synced = synced.map_or(0, |at| at + 1);
        let mut image = self.image(&made[..synced]);
        let mut random = Random(point.seed);
        let unsynced = &made[synced..];
        let metadata = random.below(unsynced.len() + 1);
        // Bytes written after a truncation go to new blocks: without it they are nowhere.
        let truncation = unsynced[metadata..]
            .iter()
            .position(|change| matches!(change, Change::SetLen(_)))
            .map_or(unsynced.len(), |at| metadata + at);
        // What the page cache held.
        let mut cached = image.clone();
        for (i, change) in unsynced[..truncation].iter().enumerate() {
            cached.apply(change);
            match change {
                Change::Write { bytes, offset } => {
                    let survives = random.below(4);
                    let end = offset + bytes.len() as u64;
                    if i < metadata {
                        image.extend_to(end);
                    }
                    let first = to_index(*offset) / SECTOR * SECTOR;
                    for sector in (first..to_index(end)).step_by(SECTOR) {
                        // All of it, some sectors of it, nothing; what was written to a sector before
                        // comes with it.
                        if survives > 1 || survives == 1 && random.below(2) == 0 {
                            let end = cached.bytes.len().min(sector + SECTOR);
                            image.write_within(&cached.bytes[sector..end], sector as u64);
                        }
                    }
                }
                change if i < metadata => image.apply(change),
                _ => {}
            }
        }
        if let Some(Change::SetLen(len)) = unsynced.get(truncation) {
            image.lose_truncation(*len, &unsynced[truncation + 1..], &mut random);
        }
        self.restarted(image)
    }

    /// What a disk has after these changes, all of which were synced, if not all with success.
    fn image(&self, changes: &[Change]) -> Image {
        let lost = self.lost.borrow();
        let mut image = Image::default();
        for (at, change) in changes.iter().enumerate() {
            match change {
                Change::Write { bytes, offset } if lost.iter().any(|lost| lost.contains(&at)) => {
                    image.extend_to(offset + bytes.len() as u64);
                }
                change => image.apply(change),
            }
        }
        image
    }

    /// As after a restart before which everything came to the disk.
    pub fn rebooted(&self) -> Self {
        self.restarted(self.now.borrow().clone())
    }

    /// `image` after the power came back.
    fn restarted(&self, image: Image) -> Self {
        let restarted = Self { epoch: self.epoch + 1, ..Self::default() };
        // What is found then is on the disk: the base of what is synced later.
        *restarted.history.borrow_mut() =
            vec![Change::Write { bytes: image.bytes.clone(), offset: 0 }, Change::Sync];
        if let Some(attribute) = &image.attribute {
            restarted.history.borrow_mut().insert(0, Change::SetAttribute(attribute.clone()));
        }
        *restarted.now.borrow_mut() = image;
        restarted
    }

    fn change(&self, change: Change) -> io::Result<()> {
        match self.failing_change.get() {
            Some((0, errno)) => {
                self.failing_change.set(None);
                if let Change::Write { bytes, offset } = change {
                    let half = bytes[..bytes.len() / 2].to_vec();
                    self.make(Change::Write { bytes: half, offset });
                }
                return Err(io::Error::from_raw_os_error(errno));
            }
            Some((left, errno)) => self.failing_change.set(Some((left - 1, errno))),
            None => {}
        }
        self.make(change);
        Ok(())
    }

    fn make(&self, change: Change) {
        self.now.borrow_mut().apply(&change);
        self.history.borrow_mut().push(change);
    }
}

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::SetAttribute(value) => self.attribute = Some(value.clone()),
            Change::SetLen(len) => self.bytes.resize(to_index(*len), 0),
            Change::Punch(range) => {
                let end = to_index(range.end).min(self.bytes.len());
                self.bytes[to_index(range.start).min(end)..end].fill(0);
            }
            Change::Sync => {}
            Change::Write { bytes, offset } => self.write(bytes, *offset),
        }
    }

    /// The length is not durable. The block that it would have ended in stays the file's: its end
    /// may be zeros already, and hold what was written there since.
    fn lose_truncation(&mut self, len: u64, later: &[Change], random: &mut Random) {
        let end_of_block = |len: u64| len.next_multiple_of(BLOCK as u64);
        let mut end = end_of_block(len).min(self.bytes.len() as u64);
        if len >= end || random.below(2) == 0 {
            return;
        }
        self.bytes[to_index(len)..to_index(end)].fill(0);
        for change in later {
            match change {
                // Those blocks go too.
                Change::SetLen(len) => end = end.min(end_of_block(*len)),
                Change::Write { bytes, offset } if *offset < end && random.below(2) == 0 => {
                    let part = bytes.len().min(to_index(end - offset));
                    self.write_within(&bytes[..part], *offset);
                }
                _ => {}
            }
        }
    }

    fn write(&mut self, bytes: &[u8], offset: u64) {
        self.extend_to(offset + bytes.len() as u64);
        self.write_within(bytes, offset);
    }

    fn extend_to(&mut self, len: u64) {
        if self.bytes.len() < to_index(len) {
            self.bytes.resize(to_index(len), 0);
        }
    }

    /// Writes what lies within the file's length.
    fn write_within(&mut self, bytes: &[u8], offset: u64) {
        let start = to_index(offset).min(self.bytes.len());
        let end = (start + bytes.len()).min(self.bytes.len());
        self.bytes[start..end].copy_from_slice(&bytes[..end - start]);
    }
}

impl Medium for CrashMedium {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let left = self.failing_read.get();
        self.failing_read.set(left.and_then(|left| left.checked_sub(1)));
        if left == Some(0) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let now = self.now.borrow();
        let start = to_index(offset).min(now.bytes.len());
        let end = (start + len).min(now.bytes.len());
        Ok(now.bytes[start..end].to_vec())
    }

    async fn write_at(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        if let Some(capacity) = self.capacity.get()
            && end > capacity
        {
            // As much as fits is written, as the system call does.
            let fits = to_index(capacity.saturating_sub(offset));
            self.change(Change::Write { bytes: bytes[..fits].to_vec(), offset })?;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.change(Change::Write { bytes, offset })
    }

    async fn sync_data(&self) -> io::Result<()> {
        if self.failing_syncs.get() > 0 {
            self.failing_syncs.set(self.failing_syncs.get() - 1);
            let history = self.history.borrow();
            let synced = history.iter().rposition(|change| matches!(change, Change::Sync));
            self.lost.borrow_mut().push(synced.map_or(0, |at| at + 1)..history.len());
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.change(Change::Sync)
    }

    async fn sync_inode(&self) -> io::Result<()> {
        self.sync_data().await
    }

    async fn forget(&self) {
        if !self.lost.borrow().is_empty() {
            *self.now.borrow_mut() = self.image(&self.history.borrow());
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.now.borrow().bytes.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len))
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.change(Change::Punch(range))
    }

    fn attribute(&self) -> io::Result<Option<Vec<u8>>> {
        if self.has_no_attributes.get() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(self.now.borrow().attribute.clone())
    }

    fn set_attribute(&self, value: &[u8]) -> io::Result<()> {
        if self.has_no_attributes.get() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        self.change(Change::SetAttribute(value.to_vec()))
    }

    fn overwrites_in_place(&self) -> bool {
        true
    }

    fn epoch(&self) -> u32 {
        self.epoch
    }

    fn set_modified(&self, _: (i64, u32)) -> io::Result<()> {
        Ok(())
    }
}

fn to_index(offset: u64) -> usize {
    usize::try_from(offset).expect("files in memory fit it")
}

/// xorshift64*: repeatable, good enough to pick what survives.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        let mut x = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        to_index((x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound as u64)
    }
}
