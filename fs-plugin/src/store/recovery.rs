//! Finds the newest commit that holds: at the end of a file that was closed in order, behind it
//! after a crash.
//!
//! Nothing is replayed. A commit holds when its record and all before it verify, back to the newest
//! checkpoint, and with them whatever of the tree and of the contents was not known to be durable
//! when the record was written. What lies behind it is cut. Contents never mislead the search: a
//! record's checksum covers the id of this life of the file and its own offset, so a copy of it
//! elsewhere is not a record.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;

use super::format::{Extent, Form, Head, OFFSET_MAX, Record};
use super::index::{Index, known, lock, read_all, read_node};
use super::loss;
use super::medium::Medium;
use crate::error::Error;

/// A commit that holds.
#[derive(Debug)]
pub struct Found {
    /// Every extent up to it, laid over each other.
    pub index: Mutex<Index>,
    /// Its last record.
    pub record: Record,
    /// Where that ends: the end of the file, once cut.
    pub end: u64,
    /// Where the records since the checkpoint lie, from the oldest to this one.
    pub chain: Vec<Range<u64>>,
}

/// What a commit has to show besides its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Nothing: the file was closed in order.
    Records,
    /// What was not known to be durable of the tree: it leads to what was.
    Nodes,
    /// What was not known to be durable, whole: a crash may have taken any of it.
    Unsynced,
    /// The same, but bytes that are there and wrong are not what a crash leaves: whoever reads them is
    /// told, and nothing is cut for it.
    NotLost,
}

/// The commit whose record ends at `end`, if it holds.
pub async fn commit_at<M: Medium>(
    medium: &M,
    head: &Head,
    end: u64,
    verify: Verify,
) -> Result<Option<Found>, Error> {
    let Some((offset, record)) = record_ending_at(medium, head, end).await? else {
        return Ok(None);
    };
    if !record.last {
        return Ok(None);
    }
    // Newest first.
    let mut records = vec![record];
    let mut chain: Vec<_> = std::iter::once(offset..end).collect();
    for _ in 1..records[0].since {
        let newest = records.last().expect("never empty");
        let Some((before, end)) = record_starting_at(medium, head, newest.previous).await? else {
            return Ok(None);
        };
        let follows = before.seq + 1 == newest.seq
            && before.since == newest.since - 1
            && before.checkpoint == newest.checkpoint;
        if !follows {
            return Ok(None);
        }
        chain.push(newest.previous..end);
        records.push(before);
    }
    chain.reverse();
    let index = match index_of(medium, head, &records, end, verify).await {
        Ok(Some(index)) => index,
        Ok(None) | Err(Error::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(Found { index, record: records.swap_remove(0), end, chain }))
}

/// The index that these records make, newest first, in a file that ends with them. None: something of it
/// does not show what `verify` wants.
async fn index_of<M: Medium>(
    medium: &M,
    head: &Head,
    records: &[Record],
    end: u64,
    verify: Verify,
) -> Result<Option<Mutex<Index>>, Error> {
    let chunk_len = 1 << head.chunk_len_log2;
    let index = match records[0].checkpoint {
        None => Index::new(chunk_len),
        Some(pointer) => {
            let root = read_node(medium, head, pointer).await?;
            if root.number != 0 {
                return Ok(None);
            }
            Index::of_tree(chunk_len, pointer, root)
        }
    };
    let index = Mutex::new(index);
    for extent in records.iter().rev().flat_map(|record| &record.extents) {
        let mut index = known(medium, head, &index, extent.logical..extent.end(), 0).await?;
        drop(index.lay_over(*extent));
    }
    let durable_end = records[0].durable_end;
    if verify == Verify::Nodes {
        read_all(medium, head, &index, durable_end).await?;
    }
    if matches!(verify, Verify::Unsynced | Verify::NotLost) {
        drop(known(medium, head, &index, 0..OFFSET_MAX, durable_end).await?);
        // What later extents cover altogether is not contents any more.
        let doubtful: Vec<_> = lock(&index)
            .within(0..OFFSET_MAX)
            .map(|(_, extent)| extent)
            .filter(|extent| extent.stored_end() > durable_end)
            .collect();
        let mut verified = BTreeSet::new();
        for extent in doubtful {
            if !verified.insert(extent.physical) || verifies(medium, &extent).await? {
                continue;
            }
            let stored = extent.physical..extent.stored_end();
            if verify == Verify::Unsynced || loss::took_sectors(medium, stored, end).await? {
                return Ok(None);
            }
        }
    }
    Ok(Some(index))
}

/// The newest commit that holds and ends at or before `end`.
///
/// A crash takes only what was not durable. When a record tells that more was durable than the
/// commit that was found, something else has damaged the file: that is an error, and nothing is to
/// be cut.
pub async fn newest<M: Medium>(medium: &M, head: &Head, end: u64) -> Result<Option<Found>, Error> {
    /// Read at a time while searching.
    const WINDOW: u64 = 1 << 20;

    let trailer = Record::TRAILER_LEN as u64;
    let mut durable_end = 0;
    let mut end = end / Record::ALIGN * Record::ALIGN;
    while end >= Head::LEN as u64 + trailer {
        let start = end.saturating_sub(WINDOW).max(Head::LEN as u64);
        let start = start / Record::ALIGN * Record::ALIGN;
        let len = usize::try_from(end - start).expect("a window");
        let window = medium.read_at(start, len).await?;
        let mut at = window.len() / 8 * 8;
        while at >= Record::TRAILER_LEN {
            let trailer = window[at - Record::TRAILER_LEN..at].try_into().expect("its length");
            let end = start + at as u64;
            if Record::len_by_trailer(trailer).is_some()
                && let Some((offset, record)) = record_ending_at(medium, head, end).await?
            {
                durable_end = durable_end.max(record.durable_end);
                if let Some(found) = commit_at(medium, head, end, Verify::Unsynced).await? {
                    let lost = Error::Damaged { what: "commit that was durable, behind", offset };
                    return if found.end < durable_end { Err(lost) } else { Ok(Some(found)) };
                }
            }
            at -= 8;
        }
        if start == Head::LEN as u64 {
            break;
        }
        // A trailer may lie across the border of two windows.
        end = start + trailer - Record::ALIGN;
    }
    if durable_end > 0 {
        return Err(Error::Damaged { what: "commit that was durable, before", offset: end });
    }
    Ok(None)
}

async fn record_ending_at<M: Medium>(
    medium: &M,
    head: &Head,
    end: u64,
) -> Result<Option<(u64, Record)>, Error> {
    let Some(start) = end.checked_sub(Record::TRAILER_LEN as u64) else {
        return Ok(None);
    };
    let trailer = medium.read_at(start, Record::TRAILER_LEN).await?;
    let Some(len) = trailer.first_chunk().and_then(Record::len_by_trailer) else {
        return Ok(None);
    };
    let Some(offset) = end.checked_sub(len as u64) else {
        return Ok(None);
    };
    let bytes = medium.read_at(offset, len).await?;
    Ok(Record::parse(&bytes, head, offset).map(|record| (offset, record)))
}

async fn record_starting_at<M: Medium>(
    medium: &M,
    head: &Head,
    offset: u64,
) -> Result<Option<(Record, u64)>, Error> {
    // The longest there is; its own length stands at its start.
    let mut bytes = medium.read_at(offset, Record::LEN_MAX).await?;
    let Some(len) = Record::len_by_head(&bytes) else {
        return Ok(None);
    };
    bytes.truncate(len);
    Ok(Record::parse(&bytes, head, offset).map(|record| (record, offset + len as u64)))
}

/// Whether the stored bytes of an extent are what was written.
pub async fn verifies<M: Medium>(medium: &M, extent: &Extent) -> Result<bool, Error> {
    if extent.form == Form::Zeros {
        return Ok(true);
    }
    Ok(extent.verifies(&medium.read_at(extent.physical, extent.stored_len as usize).await?))
}
