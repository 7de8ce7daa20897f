//! Copying between files by what is stored.

use warpcore_offload::Queue;

use super::append::Stored;
use super::{Body, Container, Contents, Medium, errno, to_index};
use crate::error::Error;
use crate::store::format::OFFSET_MAX;

impl<M: Medium> Contents<M> {
    /// Puts `len` bytes at `from` of `source` in place of those at `to`, and says how many: fewer
    /// only at the end of `source`. Whole chunks go as they are stored, if both files have the same
    /// ones.
    pub async fn copy_from(
        &mut self,
        queue: &Queue,
        source: &mut Self,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        let len = len.min(source.size()?.saturating_sub(from));
        let end = to.checked_add(len).filter(|end| *end <= OFFSET_MAX);
        end.ok_or_else(|| errno(libc::EFBIG))?;
        source.commit(queue).await?;
        let (mut from, mut to, mut left) = (from, to, len);
        while left > 0 {
            let mut copied = self.copy_stored(queue, source, from, to, left).await?;
            if copied == 0 {
                // Byte by byte, up to the next border of a chunk here.
                let chunk_len = self.chunk_len();
                copied = left.min(chunk_len - to % chunk_len);
                let mut bytes = vec![0; to_index(copied)];
                // All are there: `len` was bounded by the length of a file that is held.
                source.read(queue, from, &mut bytes).await?;
                self.write(queue, to, &bytes).await?;
            }
            (from, to, left) = (from + copied, to + copied, left - copied);
        }
        Ok(len)
    }

    /// As [`Contents::copy_from`], from another place of the same file.
    pub async fn copy_within(
        &mut self,
        queue: &Queue,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        const PART: usize = 1 << 20;
        let mut part = vec![0; PART];
        let mut done = 0;
        while done < len {
            let room = to_index((len - done).min(PART as u64));
            let read = self.read(queue, from + done, &mut part[..room]).await?;
            if read == 0 {
                break;
            }
            self.write(queue, to + done, &part[..read]).await?;
            done += read as u64;
        }
        Ok(done)
    }

    /// Copies what is stored of the next whole chunks, up to a record's worth. 0: there are none, or
    /// they are stored otherwise.
    async fn copy_stored(
        &mut self,
        queue: &Queue,
        source: &Self,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, Error> {
        const CHUNKS_MAX: u64 = 16;
        self.check_writable()?;
        let Body::Container(Container { head: Some(head), .. }) = &source.body else {
            return Ok(0);
        };
        let chunk_len = 1 << head.chunk_len_log2;
        let len = len.min(CHUNKS_MAX * chunk_len) / chunk_len * chunk_len;
        let fits = from.is_multiple_of(chunk_len) && to.is_multiple_of(chunk_len) && len > 0;
        let Body::Container(own) = &mut self.body else { return Ok(0) };
        // A file that has nothing yet takes the chunks of what it gets.
        let same = match own.head {
            Some(own) => own.chunk_len_log2 == head.chunk_len_log2,
            None => own.dirty.is_empty() || self.options.chunk_len_log2 == head.chunk_len_log2,
        };
        if !fits || !same {
            return Ok(0);
        }
        let mut stored = Vec::new();
        for (visible, extent) in source.pieces(from..from + len).await? {
            if visible != (extent.logical..extent.end()) {
                return Ok(0);
            }
            let span = source.stored(&extent).await?;
            stored.push(Stored { logical: extent.logical - from + to, ..span });
        }
        self.options.chunk_len_log2 = head.chunk_len_log2;
        self.begin_change().await?;
        // Before a record may be written: it tells the time.
        self.touch();
        // What was written here before comes first, and what is copied lies over it.
        self.store(queue, |_| false, false).await?;
        let ends = stored.iter().map(|span| span.logical + span.len);
        let starts = stored.iter().map(|span| span.logical).chain([to + len]);
        let gaps: Vec<_> = [to].into_iter().chain(ends).zip(starts).collect();
        self.append(stored, false).await?;
        self.know(to..to + len).await?;
        let container = self.container_mut();
        for (start, end) in gaps {
            // Where nothing was stored a hole is a hole.
            if container.index().within(start..end).next().is_some() {
                container.take_out(start..end, chunk_len);
            }
        }
        container.size = container.size.max(to + len);
        container.changed = true;
        Ok(len)
    }
}
