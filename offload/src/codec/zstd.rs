//! Zstandard, by the reference library.

use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer};

use super::{Codec, Coder};
use crate::error::Error;

/// Contexts are made at first use: a queue that only signs needs none. A compression context is
/// about 1 MB at low levels.
#[derive(Default)]
pub(crate) struct Zstd {
    compress: Option<CCtx<'static>>,
    decompress: Option<DCtx<'static>>,
    /// The level that `compress` is set to.
    level: Option<i32>,
}

pub(crate) fn bound(len_bytes: usize) -> usize {
    zstd_safe::compress_bound(len_bytes)
}

impl Coder for Zstd {
    fn compress(&mut self, level: i32, source: &[u8], target: &mut [u8]) -> Result<usize, Error> {
        check_level(level)?;
        let context = self.compress.get_or_insert_with(CCtx::create);
        if self.level != Some(level) {
            context
                .set_parameter(CParameter::CompressionLevel(level))
                .map_err(|_| Error::Level { codec: Codec::Zstd, level })?;
            self.level = Some(level);
        }
        let len_bytes = target.len();
        context.compress2(target, source).map_err(|code| error(code, len_bytes))
    }

    fn decompress(&mut self, source: &[u8], target: &mut [u8]) -> Result<usize, Error> {
        // The library takes none, and several, for one.
        let frame_len = zstd_safe::find_frame_compressed_size(source).map_err(corrupt)?;
        if frame_len < source.len() {
            return Err(Error::Corrupt { codec: Codec::Zstd, cause: "bytes follow the end" });
        }
        let context = self.decompress.get_or_insert_with(DCtx::create);
        let len_bytes = target.len();
        context.decompress(target, source).map_err(|code| error(code, len_bytes))
    }
}

fn check_level(level: i32) -> Result<(), Error> {
    if level == 0 || !(zstd_safe::min_c_level()..=zstd_safe::max_c_level()).contains(&level) {
        return Err(Error::Level { codec: Codec::Zstd, level });
    }
    Ok(())
}

/// The largest window that a stream from outside may ask memory for: 8 MiB, as RFC 8878, section
/// 3.1.1.1.2, recommends.
const WINDOW_LOG_MAX: u32 = 23;

/// One frame, piece by piece.
pub(crate) enum ZstdStream {
    Compress {
        context: CCtx<'static>,
        level: i32,
    },
    /// `has_more`: the last call filled its target.
    Decompress {
        context: DCtx<'static>,
        has_more: bool,
    },
}

/// What a piece came to.
pub(crate) struct Piece {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
    /// The frame has ended.
    pub(crate) ended: bool,
}

impl ZstdStream {
    pub(crate) fn compress(level: i32) -> Result<Self, Error> {
        check_level(level)?;
        let mut context = CCtx::create();
        context
            .set_parameter(CParameter::CompressionLevel(level))
            .map_err(|_| Error::Level { codec: Codec::Zstd, level })?;
        // As gzip has one: nobody else keeps the length and sum of a stream.
        context.set_parameter(CParameter::ChecksumFlag(true)).map_err(corrupt)?;
        Ok(Self::Compress { context, level })
    }

    pub(crate) fn decompress() -> Result<Self, Error> {
        let mut context = DCtx::create();
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(corrupt)?;
        Ok(Self::Decompress { context, has_more: false })
    }

    /// Compression writes all that it consumed, as far as there is room.
    pub(crate) fn run(
        &mut self,
        source: &[u8],
        target: &mut [u8],
        end: bool,
    ) -> Result<Piece, Error> {
        let len_bytes = target.len();
        let mut input = InBuffer::around(source);
        let mut output = OutBuffer::around(target);
        let left = match self {
            Self::Compress { context, .. } => {
                let directive = match end {
                    true => ZSTD_EndDirective::ZSTD_e_end,
                    false => ZSTD_EndDirective::ZSTD_e_flush,
                };
                context.compress_stream2(&mut output, &mut input, directive)
            }
            // The library counts calls that can do nothing, and refuses to go on after some.
            Self::Decompress { has_more: false, .. } if source.is_empty() => {
                return Ok(Piece { consumed: 0, produced: 0, ended: false });
            }
            Self::Decompress { context, has_more } => {
                let left = context.decompress_stream(&mut output, &mut input);
                *has_more = output.pos() == len_bytes;
                left
            }
        };
        let left = left.map_err(corrupt)?;
        let ended = left == 0 && (end || matches!(self, Self::Decompress { .. }));
        Ok(Piece { consumed: input.pos(), produced: output.pos(), ended })
    }
}

fn corrupt(code: usize) -> Error {
    Error::Corrupt { codec: Codec::Zstd, cause: zstd_safe::get_error_name(code) }
}

fn error(code: usize, len_bytes: usize) -> Error {
    match zstd_safe::get_error_name(code) {
        // The library's name for `ZSTD_error_dstSize_tooSmall`, and the only one for it.
        "Destination buffer is too small" => Error::TargetTooSmall { len_bytes },
        _ => corrupt(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frame_is_read_and_nothing_else() {
        let mut zstd = Zstd::default();
        let mut frame = vec![0; bound(5)];
        let len = zstd.compress(1, b"plain", &mut frame).expect("fits");
        frame.truncate(len);
        let mut target = [0; 20];
        assert_eq!(zstd.decompress(&frame, &mut target), Ok(5));
        for damaged in [vec![], frame[..len - 1].to_vec(), [&frame[..], &frame[..]].concat()] {
            let read = zstd.decompress(&damaged, &mut target);
            assert!(matches!(read, Err(Error::Corrupt { .. })), "{read:?}");
        }
    }

    #[test]
    fn a_stream_outlives_calls_that_can_do_nothing() {
        let mut frame = vec![0; bound(5)];
        let len = Zstd::default().compress(1, b"plain", &mut frame).expect("fits");
        let mut stream = ZstdStream::decompress().expect("a stream");
        let mut target = [0; 20];
        assert_eq!(stream.run(&frame[..6], &mut target, false).expect("a part").consumed, 6);
        for _ in 0..100 {
            let nothing = stream.run(&[], &mut target, false).expect("goes on");
            assert_eq!((nothing.consumed, nothing.produced, nothing.ended), (0, 0, false));
        }
        let rest = stream.run(&frame[6..len], &mut target, true).expect("the rest");
        assert_eq!((rest.consumed, rest.produced, rest.ended), (len - 6, 5, true));
    }
}
