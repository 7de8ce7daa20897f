//! LZ4 blocks (the block format of the LZ4 project, `lz4_Block_format.md`), by lz4_flex: bare, without
//! length or checksum, which whoever stores them keeps anyway.

use lz4_flex::block::{
    CompressTable, DecompressError, compress_into_with_table, decompress_into,
    get_maximum_output_size,
};

use super::{Codec, Coder};
use crate::error::Error;

/// The table is made at first use.
#[derive(Default)]
pub(crate) struct Lz4 {
    table: Option<CompressTable>,
    /// The library compresses only where the worst case fits.
    room: Vec<u8>,
}

pub(crate) fn bound(len_bytes: usize) -> usize {
    get_maximum_output_size(len_bytes)
}

impl Coder for Lz4 {
    fn compress(&mut self, level: i32, source: &[u8], target: &mut [u8]) -> Result<usize, Error> {
        if !(0..=12).contains(&level) {
            return Err(Error::Level { codec: Codec::Lz4, level });
        }
        let len_bytes = target.len();
        let too_small = Error::TargetTooSmall { len_bytes };
        let table = self.table.get_or_insert_with(CompressTable::large);
        let bound = bound(source.len());
        if len_bytes >= bound {
            return compress_into_with_table(source, target, table).map_err(|_| too_small);
        }
        if self.room.len() < bound {
            self.room.resize(bound, 0);
        }
        let len = compress_into_with_table(source, &mut self.room, table)
            .map_err(|_| Error::TargetTooSmall { len_bytes })?;
        let place = target.get_mut(..len).ok_or(too_small)?;
        place.copy_from_slice(&self.room[..len]);
        Ok(len)
    }

    fn decompress(&mut self, source: &[u8], target: &mut [u8]) -> Result<usize, Error> {
        let len_bytes = target.len();
        decompress_into(source, target).map_err(|error| match error {
            DecompressError::OutputTooSmall { .. } => Error::TargetTooSmall { len_bytes },
            DecompressError::OffsetOutOfBounds => corrupt("a match begins before the data"),
            DecompressError::ExpectedAnotherByte | DecompressError::LiteralOutOfBounds => {
                corrupt("the block is cut short")
            }
            _ => corrupt("not an LZ4 block"),
        })
    }
}

fn corrupt(cause: &'static str) -> Error {
    Error::Corrupt { codec: Codec::Lz4, cause }
}
