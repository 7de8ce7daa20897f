//! Commits, checkpoints, syncs with their zone, and the orderly close.

use std::collections::BTreeSet;

use warpcore_offload::Queue;

use super::append::{Append, padding};
use super::{BLOCK, Body, Contents, Medium, Options, set_attribute, to_index};
use crate::error::Error;
use crate::store::format::State;

/// Zeros that are written ahead at a time, and the largest commit that they are for.
const ZONE_LEN: u64 = 256 << 10;
const ZONE_COMMIT_MAX: u64 = 64 << 10;

/// Blocks that were replaced are given back when they are as much as this: doing so costs a change
/// of metadata, which the next sync pays.
const PUNCH_LEN: u64 = 1 << 20;

/// Bytes that were replaced since the last sync, before an open file is synced without being asked.
const UNSYNCED_MAX: u64 = 16 << 20;

impl<M: Medium> Contents<M> {
    /// Puts everything written so far in a commit. Not durable before [`Contents::sync`].
    pub async fn commit(&mut self, queue: &Queue) -> Result<(), Error> {
        self.commit_but(queue, |_| false).await
    }

    /// As [`Contents::commit`], but what has come before its turn may wait for the next one, and no
    /// longer: for those who commit without being asked, while a file is written front to back.
    pub async fn commit_in_order(&mut self, queue: &Queue) -> Result<(), Error> {
        let chunk_len = self.chunk_len();
        let Body::Container(container) = &mut self.body else { return Ok(()) };
        let mut ahead = container.ahead(chunk_len);
        let covered = std::mem::replace(&mut container.committed_in_order, container.covered);
        let nothing_came = container.dirty.keys().all(|chunk| ahead.contains(chunk));
        if nothing_came && covered == container.covered {
            // It may never come.
            ahead = 0..0;
        }
        let waited = std::mem::take(&mut container.waited);
        let wait = |chunk: &u64| ahead.contains(chunk) && !waited.contains(chunk);
        let waiting: BTreeSet<_> = container.dirty.keys().copied().filter(wait).collect();
        container.waited.clone_from(&waiting);
        self.commit_but(queue, |chunk| waiting.contains(&chunk)).await?;
        self.sync_if_much_is_replaced(queue, UNSYNCED_MAX).await
    }

    /// Of what is overwritten and never synced nothing could be given back.
    async fn sync_if_much_is_replaced(&mut self, queue: &Queue, max: u64) -> Result<(), Error> {
        match &self.body {
            Body::Container(container) if container.dead.doubtful_len() >= max => {
                self.sync(queue).await
            }
            _ => Ok(()),
        }
    }

    /// `keep`: which chunks stay dirty.
    async fn commit_but(&mut self, queue: &Queue, keep: impl Fn(u64) -> bool) -> Result<(), Error> {
        if !self.is_dirty() {
            return Ok(());
        }
        let container = self.container_mut();
        if container.size == 0 && container.head.is_none() {
            // An empty file is an empty backing file.
            container.changed = false;
            return Ok(());
        }
        self.store(queue, keep, true).await?;
        self.is_time_new = false;
        let Options { records_max, pieces_max, .. } = self.options;
        let container = self.container_mut();
        let records = container.chain.len();
        let crowded = container.index().len() > pieces_max && records > records_max / 8;
        if records > records_max || crowded {
            self.checkpoint_if_possible().await;
        }
        Ok(())
    }

    /// Commits, and stores the index as a tree, if that has grown by much; then drops it from memory.
    pub async fn store_index(&mut self, queue: &Queue) -> Result<(), Error> {
        if self.has_long_chain() {
            self.commit(queue).await?;
            self.checkpoint_if_possible().await;
        }
        self.evict();
        Ok(())
    }

    /// Whether opening the file would have to read more records than it should.
    fn has_long_chain(&self) -> bool {
        let Body::Container(container) = &self.body else { return false };
        container.attribute == Some(State::Dirty)
            && container.chain.len() > self.options.records_max / 8
    }

    /// Stores the index as a tree, so that the records before are not needed any more. The commit
    /// stands without it: an error is logged.
    async fn checkpoint_if_possible(&mut self) {
        if let Err(error) = self.checkpoint().await {
            tracing::debug!("no checkpoint: {error}");
        }
    }

    pub(super) async fn checkpoint(&mut self) -> Result<(), Error> {
        let modified = self.modified.unwrap_or((0, 0));
        let container = self.container_mut();
        let head = container.head.expect("a commit has been made");
        let mut append = Append::new(container);
        append.checkpoint(container.index(), &head);
        append.records(container, &head, modified);
        self.write_append(append).await
    }

    /// Commits, and makes it durable.
    pub async fn sync(&mut self, queue: &Queue) -> Result<(), Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        self.check_length()?;
        if let Body::Container(container) = &mut self.body {
            // After a crash the time is the record's, unless the file was closed.
            container.changed |= self.is_time_new && container.attribute == Some(State::Dirty);
        }
        self.commit(queue).await?;
        self.extend_zone().await?;
        let synced = self.medium.sync_data().await;
        self.poisoned_by(synced)?;
        if let Body::Container(container) = &mut self.body {
            container.durable_end = container.record_end;
            container.dead.replaced_durably();
            if container.dead.whole_blocks() >= PUNCH_LEN {
                self.punch_dead();
            }
        }
        Ok(())
    }

    /// As [`Contents::sync`], and makes mode, owner, times and names of the inode durable.
    pub async fn sync_inode(&mut self, queue: &Queue) -> Result<(), Error> {
        self.sync(queue).await?;
        let synced = self.medium.sync_inode().await;
        self.poisoned_by(synced)
    }

    /// The kernel reports a failed write-back once and drops the pages: asking again would succeed
    /// and mean nothing (fsync(2), the PostgreSQL report of 2018).
    pub(super) fn poisoned_by(&mut self, synced: std::io::Result<()>) -> Result<(), Error> {
        self.poisoned |= synced.is_err();
        Ok(synced?)
    }

    /// Writes zeros ahead if syncs come often and bring little: what overwrites them is durable
    /// without a commit of the lower filesystem's journal.
    async fn extend_zone(&mut self) -> Result<(), Error> {
        let Body::Container(container) = &mut self.body else { return Ok(()) };
        let written = container.record_end - container.durable_end;
        if written == 0 || container.attribute != Some(State::Dirty) {
            // Nothing was brought; or nothing would tell, after a crash, that zeros may follow.
            return Ok(());
        }
        let small = written <= ZONE_COMMIT_MAX;
        container.small_syncs = if small { container.small_syncs + 1 } else { 0 };
        let has_room = container.zone_end >= container.physical + 2 * BLOCK;
        if container.small_syncs < 2 || has_room || !self.medium.overwrites_in_place() {
            return Ok(());
        }
        let start = container.physical;
        let gap = to_index(start.next_multiple_of(BLOCK) - start);
        let mut bytes = padding(gap);
        let zone_start = start + bytes.len() as u64;
        bytes.resize(bytes.len() + to_index(ZONE_LEN), 0);
        match self.medium.write_at(bytes, start).await {
            Ok(()) => {
                let container = self.container_mut();
                container.physical = zone_start;
                container.zone_end = zone_start + ZONE_LEN;
            }
            Err(error) => {
                // It goes without: a full disk may still have room for what has to be written.
                tracing::debug!("no room is written ahead: {error}");
                let container = self.container_mut();
                (container.small_syncs, container.zone_end) = (0, 0);
                self.medium.set_len(start)?;
            }
        }
        Ok(())
    }

    /// Gives the blocks back that hold only what was durably replaced. Nothing depends on it: an
    /// error is logged.
    pub(super) fn punch_dead(&mut self) {
        let Body::Container(container) = &mut self.body else { return };
        for blocks in container.dead.take_whole_blocks() {
            if let Err(error) = self.medium.punch(blocks.clone()) {
                tracing::debug!("blocks {blocks:?} stay allocated: {error}");
            }
        }
    }

    /// Cuts what lies behind the newest record: the rest of a zone.
    pub(super) fn cut_zone(&mut self) -> Result<(), Error> {
        let container = self.container_mut();
        if container.physical > container.record_end || container.zone_end > container.physical {
            let end = container.record_end;
            (container.physical, container.zone_end) = (end, 0);
            self.medium.set_len(end)?;
        }
        Ok(())
    }

    /// Commits, and does what else changes bytes of the backing file before it is closed.
    pub async fn settle(&mut self, queue: &Queue) -> Result<(), Error> {
        self.commit(queue).await?;
        if self.writable
            && let Body::Container(container) = &self.body
            && container.attribute == Some(State::Dirty)
        {
            self.sync_if_much_is_replaced(queue, PUNCH_LEN).await?;
            if self.has_long_chain() {
                self.checkpoint_if_possible().await;
            }
            self.cut_zone()?;
            self.punch_dead();
        }
        Ok(())
    }

    /// Commits, and marks the backing file as closed in order.
    pub async fn close(&mut self, queue: &Queue) -> Result<(), Error> {
        self.settle(queue).await?;
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        if let Body::Container(container) = &mut self.body
            && self.writable
            && container.attribute == Some(State::Dirty)
        {
            let attribute = container.attribute(State::Clean, self.medium.epoch());
            container.attribute = set_attribute(&self.medium, attribute)?;
        }
        if let Some(modified) = self.modified.filter(|_| self.writable) {
            match self.medium.set_modified(modified) {
                // Only its owner may, others who may write may not.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
                set => set?,
            }
        }
        Ok(())
    }
}
