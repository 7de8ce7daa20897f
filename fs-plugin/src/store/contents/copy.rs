//! Copying between files by what is stored.

use warpcore_offload::Queue;

use super::append::Stored;
use super::{Body, Container, Contents, Medium, Records, errno, to_index};
use crate::error::Error;
use crate::store::format::OFFSET_MAX;

impl<M: Medium> Contents<M> {
    /// Puts `len` bytes at `from` of `source` in place of those at `to`, and says how many: fewer
    /// only at the end of `source`, or if more failed. Whole chunks go as they are stored, if both files have the same
    /// ones.
    pub async fn copy_from(
        &mut self,
        queue: &Queue,
        source: &mut Self,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        source.check_length()?;
        let len = len.min(source.size()?.saturating_sub(from));
        let end = to.checked_add(len).filter(|end| *end <= OFFSET_MAX);
        end.ok_or_else(|| errno(libc::EFBIG))?;
        source.commit(queue).await?;
        self.copy(queue, Some(source), from, to, len).await
    }

    /// As [`Contents::copy_from`], from another place of the same file, which does not overlap.
    pub async fn copy_within(
        &mut self,
        queue: &Queue,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        self.check_length()?;
        let len = len.min(self.size()?.saturating_sub(from));
        let end = to.checked_add(len).filter(|end| *end <= OFFSET_MAX);
        end.ok_or_else(|| errno(libc::EFBIG))?;
        self.commit(queue).await?;
        self.copy(queue, None, from, to, len).await
    }

    /// `source`: which has been committed; None if it is this file.
    async fn copy(
        &mut self,
        queue: &Queue,
        source: Option<&Self>,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        let mut done = 0;
        while done < len {
            match self.copy_part(queue, source, from + done, to + done, len - done).await {
                Ok(copied) => done += copied,
                Err(error) if done == 0 => return Err(error),
                // Who copies the rest hears of it.
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Some whole chunks, or up to the next border of one.
    async fn copy_part(
        &mut self,
        queue: &Queue,
        source: Option<&Self>,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        let chunks = match source {
            Some(source) if !self.takes_chunks_of(source) => None,
            source => source.unwrap_or(self).chunks_at(from, to, len).await?,
        };
        if let Some(chunks) = chunks {
            return self.put_chunks(queue, to, chunks).await;
        }
        let chunk_len = self.chunk_len();
        let copied = len.min(chunk_len - to % chunk_len);
        let mut bytes = vec![0; to_index(copied)];
        // All are there: `len` was bounded by the length of a file that is held.
        source.unwrap_or(self).read(queue, from, &mut bytes).await?;
        self.write(queue, to, &bytes).await?;
        Ok(copied)
    }

    /// What is stored of the next whole chunks, up to a record's worth, for another place. None: there are
    /// none, or they are not stored as wholes.
    async fn chunks_at(&self, from: u64, to: u64, len: u64) -> Result<Option<Chunks>, Error> {
        const CHUNKS_MAX: u64 = 16;
        let Body::Container(Container { head: Some(head), .. }) = &self.body else {
            return Ok(None);
        };
        let chunk_len = 1 << head.chunk_len_log2;
        let len = len.min(CHUNKS_MAX * chunk_len) / chunk_len * chunk_len;
        if !from.is_multiple_of(chunk_len) || !to.is_multiple_of(chunk_len) || len == 0 {
            return Ok(None);
        }
        let mut stored = Vec::new();
        for (visible, extent) in self.pieces(from..from + len).await? {
            if visible != (extent.logical..extent.end()) {
                return Ok(None);
            }
            let span = self.stored(&extent).await?;
            stored.push(Stored { logical: extent.logical - from + to, ..span });
        }
        Ok(Some(Chunks { stored, len, chunk_len_log2: head.chunk_len_log2 }))
    }

    /// Whether both have chunks of one length. A file that has nothing yet takes those that it gets.
    fn takes_chunks_of(&self, source: &Self) -> bool {
        let (Body::Container(own), Body::Container(Container { head: Some(head), .. })) =
            (&self.body, &source.body)
        else {
            return false;
        };
        match own.head {
            Some(own) => own.chunk_len_log2 == head.chunk_len_log2,
            None => own.dirty.is_empty() || self.options.chunk_len_log2 == head.chunk_len_log2,
        }
    }

    /// Puts chunks at `to`, and says how many bytes of the file that is.
    async fn put_chunks(&mut self, queue: &Queue, to: u64, chunks: Chunks) -> Result<u64, Error> {
        let Chunks { stored, len, chunk_len_log2 } = chunks;
        self.check_writable()?;
        self.options.chunk_len_log2 = chunk_len_log2;
        self.begin_change().await?;
        // Before a record may be written: it tells the time.
        self.touch();
        // What was written here before comes first, and what is copied lies over it.
        self.store(queue, |_| false, false).await?;
        let ends = stored.iter().map(|span| span.logical + span.len);
        let starts = stored.iter().map(|span| span.logical).chain([to + len]);
        let gaps: Vec<_> = [to].into_iter().chain(ends).zip(starts).collect();
        // Twice: what cannot be read is told before anything is changed, and to append may forget it.
        self.know(to..to + len).await?;
        // No record tells of what lies behind the size that it tells.
        let container = self.container_mut();
        let before = container.size;
        container.size = before.max(to + len);
        container.changed = true;
        if let Err(error) = self.append(stored, Records::IfCrowded).await {
            self.container_mut().size = before;
            return Err(error);
        }
        self.know(to..to + len).await?;
        let container = self.container_mut();
        for (start, end) in gaps {
            // Where nothing was stored a hole is a hole.
            if container.index().within(start..end).next().is_some() {
                container.take_out(start..end, 1 << chunk_len_log2);
            }
        }
        Ok(len)
    }
}

/// Whole chunks as they are stored, for their new place.
struct Chunks {
    stored: Vec<Stored>,
    /// Bytes of the file, holes included.
    len: u64,
    chunk_len_log2: u8,
}
