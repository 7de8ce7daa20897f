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
    Compress { context: CCtx<'static>, level: i32 },
    Decompress(DCtx<'static>),
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
        Ok(Self::Decompress(context))
    }

    /// Compression writes all that it consumed, as far as there is room.
    pub(crate) fn run(
        &mut self,
        source: &[u8],
        target: &mut [u8],
        end: bool,
    ) -> Result<Piece, Error> {
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
            Self::Decompress(context) => context.decompress_stream(&mut output, &mut input),
        };
        let left = left.map_err(corrupt)?;
        let ended = left == 0 && (end || matches!(self, Self::Decompress(_)));
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
