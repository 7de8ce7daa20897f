//! Zstandard, by the reference library.

use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

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
        if level == 0 || !(zstd_safe::min_c_level()..=zstd_safe::max_c_level()).contains(&level) {
            return Err(Error::Level { codec: Codec::Zstd, level });
        }
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

fn error(code: usize, len_bytes: usize) -> Error {
    match zstd_safe::get_error_name(code) {
        // The library's name for `ZSTD_error_dstSize_tooSmall`, and the only one for it.
        "Destination buffer is too small" => Error::TargetTooSmall { len_bytes },
        cause => Error::Corrupt { codec: Codec::Zstd, cause },
    }
}
