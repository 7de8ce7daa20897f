//! What a file has where, without changing it: data and holes, checks, reports.

use std::collections::BTreeSet;
use std::ops::Range;

use warpcore_offload::{Codec, Queue};

use super::{Body, Container, Contents, Medium};
use crate::error::Error;
use crate::store::format::{Form, Kind, Piece};
use crate::store::index;

/// What one codec has stored of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CodecShare {
    /// The codec; [`Codec::Store`] for bytes as they are.
    pub codec: Codec,
    /// Visible bytes of the file.
    pub len: u64,
    /// Stored bytes that they are decompressed from.
    pub stored: u64,
}

/// What [`Contents::report`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// In the format, or plain.
    pub kind: Kind,
    /// Length of the file.
    pub size: u64,
    /// Length of the backing file.
    pub physical: u64,
    /// Visible extents.
    pub extents: usize,
    /// Stored bytes that are visible, at least in part.
    pub stored: u64,
    /// As a zstd stream, the backing file is the contents.
    pub linear: bool,
    /// By whom it was stored.
    pub codecs: Vec<CodecShare>,
}

impl<M: Medium> Contents<M> {
    /// The first data (or, if `hole`, the first hole) at or behind `offset`. The end of the file is
    /// a hole. None: `offset` is behind the end, or no data follow.
    pub async fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, Error> {
        let size = self.size()?;
        if offset >= size {
            return Ok(None);
        }
        let Body::Container(container) = &self.body else {
            return Ok(Some(if hole { size } else { offset }));
        };
        let mut at = offset;
        // Of the leaf that `at` is in.
        let mut pieces = Vec::new().into_iter();
        let mut stored: Option<Range<u64>> = None;
        while at < size {
            while stored.as_ref().is_none_or(|stored| stored.end <= at) {
                if let Some((visible, _)) = pieces.next() {
                    stored = Some(visible);
                } else if let Some((more, _)) = self.leaf_from(at).await? {
                    pieces = more.into_iter();
                } else {
                    stored = None;
                    break;
                }
            }
            match container.data_from(at, stored.clone(), self.chunk_len()) {
                Some(data) if data.start < size => {
                    if !hole {
                        return Ok(Some(data.start.max(at)));
                    }
                    if data.start > at {
                        return Ok(Some(at));
                    }
                    at = data.end;
                }
                _ => return Ok(hole.then_some(at)),
            }
        }
        Ok(hole.then_some(size))
    }

    /// Reads every visible stored byte; the first that does not verify is the error.
    pub async fn check(&self, queue: &Queue) -> Result<(), Error> {
        let mut offset = 0;
        while let Some((pieces, end)) = self.leaf_from(offset).await? {
            for (_, extent) in pieces {
                self.decode(queue, std::iter::once(extent)).await?;
            }
            offset = end;
        }
        Ok(())
    }

    /// How the file is stored.
    pub async fn report(&self) -> Result<Report, Error> {
        let physical = self.medium.len()?;
        let Body::Container(container) = &self.body else {
            return Ok(Report {
                kind: Kind::Plain,
                size: physical,
                physical,
                extents: 1,
                stored: physical,
                linear: false,
                codecs: Vec::new(),
            });
        };
        let (mut extents, mut offset) = (0, 0);
        let mut codecs: Vec<CodecShare> = Vec::new();
        while let Some((pieces, end)) = self.leaf_from(offset).await? {
            extents += pieces.len();
            let mut seen = BTreeSet::new();
            for (visible, extent) in pieces {
                let Form::Codec(codec) = extent.form else { continue };
                let known = codecs.iter().position(|share| share.codec == codec);
                let at = known.unwrap_or_else(|| {
                    codecs.push(CodecShare { codec, len: 0, stored: 0 });
                    codecs.len() - 1
                });
                codecs[at].len += visible.end - visible.start;
                // An extent that is covered in its middle is visible twice.
                if seen.insert(extent.physical) {
                    codecs[at].stored += u64::from(extent.stored_len);
                }
            }
            offset = end;
        }
        Ok(Report {
            kind: Kind::Container,
            size: container.size,
            physical,
            extents,
            stored: codecs.iter().map(|share| share.stored).sum(),
            linear: container.linear,
            codecs,
        })
    }

    /// The visible parts of the first leaf of the index at or behind `offset` that has any, and
    /// where that ends.
    pub(super) async fn leaf_from(&self, offset: u64) -> Result<Option<(Vec<Piece>, u64)>, Error> {
        let Body::Container(Container { head: Some(head), index, .. }) = &self.body else {
            return Ok(None);
        };
        let leaf = index::leaf_from(&self.medium, head, index, offset).await?;
        self.evict_if_crowded(&mut index::lock(index));
        Ok(leaf)
    }
}
