//! Checksums, by the processor's own instructions where it has them.

use std::fmt;

/// Which checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Checksum {
    /// CRC-32C (Castagnoli; RFC 3720, appendix B.4), in the low 32 bits.
    Crc32c,
    /// XXH3 with 64 bits and no seed (the XXH3 of the xxHash project, version 0.8).
    Xxh3,
}

impl Checksum {
    /// Every checksum.
    pub const ALL: [Self; 2] = [Self::Crc32c, Self::Xxh3];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32c => "crc32c",
            Self::Xxh3 => "xxh3",
        }
    }

    pub(crate) fn of(self, bytes: &[u8]) -> u64 {
        match self {
            Self::Crc32c => crc32c::crc32c(bytes).into(),
            Self::Xxh3 => twox_hash::XxHash3_64::oneshot(bytes),
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_their_specifications() {
        // RFC 3720, appendix B.4; the check value of the catalogue of CRCs.
        assert_eq!(Checksum::Crc32c.of(&[0; 32]), 0x8a91_36aa);
        assert_eq!(Checksum::Crc32c.of(b"123456789"), 0xe306_9283);
        // xxHash: of nothing (`XXH3_64bits(NULL, 0)`).
        assert_eq!(Checksum::Xxh3.of(b""), 0x2d06_8005_38d3_94c2);
    }
}
