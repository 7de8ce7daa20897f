//! Whether a power cut took something: it leaves zeros where bytes never reached the disk, and a bad bit
//! does not.
//!
//! A file only grows, frame by frame, below a length that may be durable before its bytes. So a sector on
//! the disk holds what it held at some time: all of its frames, or those before one of them and zeros
//! behind.

use std::ops::Range;

use zstd::zstd_safe::find_frame_compressed_size;

use super::format::{CHUNK_LEN_LOG2_MAX, skippable_len};
use super::medium::Medium;
use crate::error::Error;

/// What a disk writes at once.
const SECTOR: u64 = 512;

/// Read at a time; more than the longest zstd frame, which holds a chunk.
const WINDOW: u64 = 2 << CHUNK_LEN_LOG2_MAX;

/// Whether some of the frames in `range`, up to the end of the file, never reached the disk. No if what
/// is wrong there are bytes that were written, and changed since.
pub async fn took_frames<M: Medium>(medium: &M, range: Range<u64>) -> Result<bool, Error> {
    let mut start = range.start;
    while start < range.end {
        let bytes = medium.read_at(start, within(WINDOW.min(range.end - start))).await?;
        // Read in part from a sector that was taken it is wrong, and still reaches into that sector.
        let len =
            skippable_len(&bytes).or_else(|| Some(find_frame_compressed_size(&bytes).ok()? as u64));
        let end = range.end.min(start + len.unwrap_or(bytes.len() as u64));
        if took_sectors(medium, start..end, range.end).await? {
            return Ok(true);
        }
        if len.is_none() || end == start {
            return Ok(false);
        }
        start = end;
    }
    Ok(false)
}

/// Whether a sector in which bytes of `range` lie, a frame or within one, is zeros from there on to its
/// end, or to that of the file, at `file_end`.
pub async fn took_sectors<M: Medium>(
    medium: &M,
    range: Range<u64>,
    file_end: u64,
) -> Result<bool, Error> {
    let range_end = file_end.min(range.end.next_multiple_of(SECTOR));
    let mut start = range.start;
    while start < range_end {
        let end = range_end.min((start / WINDOW + 1) * WINDOW);
        let bytes = medium.read_at(start, within(end - start)).await?;
        let first = bytes.len().min(within(SECTOR - start % SECTOR));
        let (first, others) = bytes.split_at(first);
        let mut sectors = std::iter::once(first).chain(others.chunks(within(SECTOR)));
        if sectors.any(|sector| !sector.is_empty() && sector.iter().all(|byte| *byte == 0)) {
            return Ok(true);
        }
        start = end;
    }
    Ok(false)
}

fn within(len: u64) -> usize {
    usize::try_from(len).expect("at most a window")
}
