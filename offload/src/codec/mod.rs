//! Codecs: one file each, and one row here with the permanent number that stands in stored data.

pub(crate) mod flate;
pub(crate) mod framing;
#[cfg(feature = "isal")]
mod isal;
mod lz4;
mod probe;
mod store;
pub(crate) mod zstd;

#[cfg(test)]
mod conformance;

use std::fmt;

use crate::error::Error;
use flate::Flate;
use lz4::Lz4;
pub(crate) use probe::looks_random;
use store::Store;
use zstd::Zstd;

/// How bytes are stored. The numbers are permanent: they stand on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Codec {
    /// The bytes as they are.
    Store = 0,
    /// Zstandard frames (RFC 8878). Levels as the zstd library has them, but for 0.
    Zstd = 1,
    /// Bare deflate (RFC 1951). Levels 0 to 9.
    Deflate = 2,
    /// Deflate within zlib's header and Adler-32 (RFC 1950). Levels 0 to 9.
    Zlib = 3,
    /// Deflate within gzip's header and CRC-32 (RFC 1952), one member. Levels 0 to 9.
    Gzip = 4,
    /// Bare LZ4 blocks. Levels 0 to 12 are one: the fast one.
    Lz4 = 5,
}

impl Codec {
    /// Every codec of this build.
    pub const ALL: [Self; 6] =
        [Self::Store, Self::Zstd, Self::Deflate, Self::Zlib, Self::Gzip, Self::Lz4];

    /// Name for people and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Zstd => "zstd",
            Self::Deflate => "deflate",
            Self::Zlib => "zlib",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
        }
    }

    /// The codec of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }

    /// The codec with this permanent number.
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| *codec as u8 == id)
    }

    /// A target of this many bytes holds any `len_bytes` compressed bytes.
    pub fn bound(self, len_bytes: usize) -> usize {
        match self {
            Self::Store => len_bytes,
            Self::Zstd => zstd::bound(len_bytes),
            Self::Deflate | Self::Zlib | Self::Gzip => flate::bound(len_bytes),
            Self::Lz4 => lz4::bound(len_bytes),
        }
    }

    /// About what software takes to compress so much, in nanoseconds: to tell units that hold up
    /// a core from those that do not. Means over chunks of 64 KiB of two ELF files, on a Zen 4 core;
    /// the slowest chunk takes up to twice as long.
    pub(crate) fn cost_ns(self, level: i32, len_bytes: usize) -> u64 {
        let per_byte = match (self, level) {
            (Self::Store, _) => 0,
            (Self::Lz4, _) => 2,
            (Self::Zstd, ..=2) => 3,
            (Self::Zstd, 3..=4) => 5,
            (Self::Zstd, 5..=6) => 11,
            (Self::Zstd, 7..=9) => 18,
            (Self::Zstd, 10..=12) => 30,
            (Self::Zstd, 13..=15) => 75,
            (Self::Zstd, _) => 190,
            (Self::Deflate | Self::Zlib | Self::Gzip, ..=1) => 6,
            (Self::Deflate | Self::Zlib | Self::Gzip, 2..=6) => 15,
            (Self::Deflate | Self::Zlib | Self::Gzip, _) => 40,
        };
        len_bytes as u64 * per_byte
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a codec can do. The contexts are its own and are reused.
pub(crate) trait Coder {
    /// Writes `source` to the start of `target` as one frame; returns the frame's length.
    fn compress(&mut self, level: i32, source: &[u8], target: &mut [u8]) -> Result<usize, Error>;

    /// Writes what `source` stands for to the start of `target`; returns its length. Never writes
    /// past `target`, whatever `source` claims.
    fn decompress(&mut self, source: &[u8], target: &mut [u8]) -> Result<usize, Error>;
}

/// One coder of each kind.
pub(crate) struct Coders {
    deflate: Flate,
    gzip: Flate,
    lz4: Lz4,
    store: Store,
    zlib: Flate,
    zstd: Zstd,
}

impl Default for Coders {
    fn default() -> Self {
        Self {
            deflate: Flate::new(Codec::Deflate),
            gzip: Flate::new(Codec::Gzip),
            lz4: Lz4::default(),
            store: Store,
            zlib: Flate::new(Codec::Zlib),
            zstd: Zstd::default(),
        }
    }
}

impl Coders {
    pub(crate) fn of(&mut self, codec: Codec) -> &mut dyn Coder {
        match codec {
            Codec::Store => &mut self.store,
            Codec::Zstd => &mut self.zstd,
            Codec::Deflate => &mut self.deflate,
            Codec::Zlib => &mut self.zlib,
            Codec::Gzip => &mut self.gzip,
            Codec::Lz4 => &mut self.lz4,
        }
    }
}
