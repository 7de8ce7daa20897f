//! The codec for what does not compress: a copy.

use super::Coder;
use crate::error::Error;

pub(crate) struct Store;

impl Coder for Store {
    fn compress(&mut self, _level: i32, source: &[u8], target: &mut [u8]) -> Result<usize, Error> {
        self.decompress(source, target)
    }

    fn decompress(&mut self, source: &[u8], target: &mut [u8]) -> Result<usize, Error> {
        let len_bytes = target.len();
        let target = target.get_mut(..source.len()).ok_or(Error::TargetTooSmall { len_bytes })?;
        target.copy_from_slice(source);
        Ok(source.len())
    }
}
