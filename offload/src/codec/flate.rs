//! Deflate (RFC 1951), bare or inside zlib or gzip, by zlib-rs; with the feature `isal` by ISA-L where
//! that has it: levels 1 to 3, and decompression.

use flate2::{Compression, FlushCompress, Status};

use super::framing::{self, Checksum, HeaderReader};
use super::{Codec, Coder};
use crate::error::Error;

/// A target of this many bytes holds the result of any implementation: nothing in deflate grows a
/// byte by more than one bit (the literals from 144 on in a fixed block, RFC 1951, section 3.2.6),
/// and headers, ends of blocks and trailer fit the constant.
pub(crate) fn bound(len_bytes: usize) -> usize {
    len_bytes + len_bytes.div_ceil(8) + 64
}

/// The most that the libraries take at a time: they count in 32 bits.
pub(crate) const PART_MAX: usize = u32::MAX as usize;

/// The library's form of a level.
pub(crate) fn compression(codec: Codec, level: i32) -> Result<Compression, Error> {
    match u32::try_from(level) {
        Ok(number @ 0..=9) => Ok(Compression::new(number)),
        _ => Err(Error::Level { codec, level }),
    }
}

/// Contexts are made at first use, one per direction.
pub(crate) struct Flate {
    codec: Codec,
    compress: Option<(Compression, flate2::Compress)>,
    #[cfg(not(feature = "isal"))]
    decompress: Option<flate2::Decompress>,
    #[cfg(feature = "isal")]
    isal: super::isal::Isal,
}

/// How far the decompression of a body came.
pub(crate) struct Inflated {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
}

/// Or why it failed; none: the target is too small.
pub(crate) type Inflation = Result<Inflated, Option<&'static str>>;

impl Flate {
    /// The coder of a codec of the deflate family.
    pub(crate) fn new(codec: Codec) -> Self {
        Self {
            codec,
            compress: None,
            #[cfg(not(feature = "isal"))]
            decompress: None,
            #[cfg(feature = "isal")]
            isal: super::isal::Isal::default(),
        }
    }

    /// Writes the body to the start of `target`; none if it does not fit.
    fn deflate(&mut self, level: Compression, source: &[u8], target: &mut [u8]) -> Option<usize> {
        #[cfg(feature = "isal")]
        if super::isal::LEVELS.contains(&level.level()) && source.len() <= PART_MAX {
            return self.isal.compress(level.level(), source, target);
        }
        self.deflate_in_parts(level, source, target, PART_MAX)
    }

    /// The library takes, and gives, parts of 32 bits of length only.
    fn deflate_in_parts(
        &mut self,
        level: Compression,
        source: &[u8],
        target: &mut [u8],
        part_max: usize,
    ) -> Option<usize> {
        let context = match &mut self.compress {
            Some((old, context)) if *old == level => context,
            other => &mut other.insert((level, flate2::Compress::new(level, false))).1,
        };
        context.reset();
        let (mut taken, mut given) = (0_usize, 0_usize);
        loop {
            let part = &source[taken..source.len().min(taken.saturating_add(part_max))];
            let is_last = taken + part.len() == source.len();
            let flush = if is_last { FlushCompress::Finish } else { FlushCompress::None };
            let status = context.compress(part, &mut target[given..], flush);
            let before = (taken, given);
            (taken, given) = (produced(context.total_in()), produced(context.total_out()));
            match status {
                Ok(Status::StreamEnd) => return Some(given),
                Ok(_) if (taken, given) != before => {}
                _ => break,
            }
        }
        // zlib-rs 0.6.8 `Pending::reset_keep` forgets the bytes that did not fit, but not where
        // they lay: a context that is reset after that loses room each time, until it panics.
        self.compress = None;
        None
    }

    #[cfg(feature = "isal")]
    fn inflate(&mut self, body: &[u8], target: &mut [u8]) -> Inflation {
        self.isal.decompress(body, target)
    }

    #[cfg(not(feature = "isal"))]
    fn inflate(&mut self, body: &[u8], target: &mut [u8]) -> Inflation {
        let context = self.decompress.get_or_insert_with(|| flate2::Decompress::new(false));
        context.reset(false);
        let (mut taken, mut given) = (0_usize, 0_usize);
        loop {
            let room = &mut target[given..];
            let status = context.decompress(&body[taken..], room, flate2::FlushDecompress::Finish);
            let before = (taken, given);
            (taken, given) = (produced(context.total_in()), produced(context.total_out()));
            match status {
                Ok(Status::StreamEnd) => {
                    return Ok(Inflated { consumed: taken, produced: given });
                }
                Ok(_) if given == target.len() => return Err(None),
                // Of more than 32 bits of length it has taken a part.
                Ok(_) if (taken, given) != before => {}
                Ok(_) => return Err(Some("the data is cut short")),
                Err(_) => return Err(Some("not deflate data")),
            }
        }
    }
}

impl Coder for Flate {
    fn compress(&mut self, level: i32, source: &[u8], target: &mut [u8]) -> Result<usize, Error> {
        let too_small = Error::TargetTooSmall { len_bytes: target.len() };
        let level = compression(self.codec, level)?;
        let header = framing::header(self.codec);
        let Some((start, rest)) = target.split_at_mut_checked(header.len()) else {
            return Err(too_small);
        };
        start.copy_from_slice(header);
        let Some(body_len) = self.deflate(level, source, rest) else { return Err(too_small) };
        let mut checksum = Checksum::new(self.codec);
        checksum.update(source);
        let trailer = checksum.trailer();
        let trailer = trailer.as_slice();
        let room = rest.get_mut(body_len..body_len + trailer.len()).ok_or(too_small)?;
        room.copy_from_slice(trailer);
        Ok(header.len() + body_len + trailer.len())
    }

    fn decompress(&mut self, source: &[u8], target: &mut [u8]) -> Result<usize, Error> {
        let codec = self.codec;
        let corrupt = |cause| Error::Corrupt { codec, cause };
        let mut reader = HeaderReader::new(self.codec);
        let header_len = reader.read(source)?;
        if !reader.is_done() {
            return Err(corrupt("the header is cut short"));
        }
        let body = &source[header_len..];
        let Inflated { consumed, produced: len_bytes } =
            self.inflate(body, target).map_err(|cause| match cause {
                Some(cause) => corrupt(cause),
                None => Error::TargetTooSmall { len_bytes: target.len() },
            })?;
        let mut checksum = Checksum::new(self.codec);
        checksum.update(&target[..len_bytes]);
        let given = &body[consumed..];
        let trailer = checksum.trailer();
        if given.len() < trailer.as_slice().len() {
            return Err(corrupt("the trailer is cut short"));
        }
        match given.strip_prefix(trailer.as_slice()) {
            Some([]) => Ok(len_bytes),
            Some(_) => Err(corrupt("bytes follow the end")),
            None => Err(corrupt("checksum or length do not fit the data")),
        }
    }
}

/// The library counts in 64 bits what lay in slices.
pub(crate) fn produced(total: u64) -> usize {
    usize::try_from(total).expect("a count within a slice fits a usize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_for_the_library_is_taken_in_parts() {
        let plain: Vec<u8> = (0..100_000_u32).flat_map(|n| (n / 3).to_be_bytes()).collect();
        let mut flate = Flate::new(Codec::Deflate);
        for part_max in [1, 1000, plain.len() - 1, plain.len(), PART_MAX] {
            let mut target = vec![0; bound(plain.len())];
            let level = Compression::new(4);
            let len = flate.deflate_in_parts(level, &plain, &mut target, part_max).expect("fits");
            let mut read = vec![0; plain.len()];
            let inflated =
                flate.inflate(&target[..len], &mut read).unwrap_or_else(|_| panic!("valid"));
            assert_eq!((inflated.consumed, inflated.produced), (len, plain.len()));
            assert!(read == plain, "{part_max}");
            assert_eq!(
                flate.deflate_in_parts(level, &plain, &mut target[..len - 1], part_max),
                None
            );
        }
    }
}
