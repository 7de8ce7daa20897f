//! What stands around deflate data: nothing, zlib's two bytes and Adler-32 (RFC 1950), or gzip's
//! header, CRC-32 and length (RFC 1952).
//!
//! Apart from the compression itself, because a device takes a part of it off us: the driver
//! writes and skips the header, the device the trailer.

use super::Codec;
use crate::error::Error;

/// CMF: deflate, 32 KiB window; FLG: default level, check bits (RFC 1950, section 2.2).
const ZLIB_HEADER: [u8; 2] = [0x78, 0x9c];
/// Magic, deflate, no flags, no time, no extra flags, Unix (RFC 1952, section 2.3).
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// The header that we write.
pub(crate) fn header(codec: Codec) -> &'static [u8] {
    match codec {
        Codec::Gzip => &GZIP_HEADER,
        Codec::Zlib => &ZLIB_HEADER,
        _ => &[],
    }
}

/// Checksum of the plain bytes so far.
pub(crate) enum Checksum {
    /// None is kept.
    Deflate,
    /// CRC-32 and length modulo 2^32.
    Gzip(crc32fast::Hasher, u32),
    /// Adler-32.
    Zlib(simd_adler32::Adler32),
}

impl Checksum {
    pub(crate) fn new(codec: Codec) -> Self {
        match codec {
            Codec::Gzip => Self::Gzip(crc32fast::Hasher::new(), 0),
            Codec::Zlib => Self::Zlib(simd_adler32::Adler32::new()),
            _ => Self::Deflate,
        }
    }

    /// Goes on where another implementation stopped: its Adler-32 or CRC-32, and its count of
    /// bytes modulo 2^32.
    pub(crate) fn resume(codec: Codec, value: u32, len_bytes: u32) -> Self {
        match codec {
            Codec::Gzip => Self::Gzip(crc32fast::Hasher::new_with_initial(value), len_bytes),
            Codec::Zlib => Self::Zlib(simd_adler32::Adler32::from_checksum(value)),
            _ => Self::Deflate,
        }
    }

    pub(crate) fn update(&mut self, plain: &[u8]) {
        match self {
            Self::Deflate => {}
            Self::Gzip(crc, len_bytes) => {
                crc.update(plain);
                // Modulo 2^32 is what the format counts (ISIZE).
                #[allow(clippy::cast_possible_truncation, reason = "modulo 2^32 on purpose")]
                let more = plain.len() as u32;
                *len_bytes = len_bytes.wrapping_add(more);
            }
            Self::Zlib(adler) => adler.write(plain),
        }
    }

    /// The bytes that close the stream.
    pub(crate) fn trailer(&self) -> Short {
        let mut trailer = Short::default();
        match self {
            Self::Deflate => {}
            Self::Gzip(crc, len_bytes) => {
                trailer.extend(&crc.clone().finalize().to_le_bytes());
                trailer.extend(&len_bytes.to_le_bytes());
            }
            Self::Zlib(adler) => trailer.extend(&adler.finish().to_be_bytes()),
        }
        trailer
    }
}

/// A few bytes, in place.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Short {
    bytes: [u8; 16],
    len_bytes: usize,
}

impl Short {
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.bytes[self.len_bytes..][..bytes.len()].copy_from_slice(bytes);
        self.len_bytes += bytes.len();
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len_bytes]
    }
}

/// Reads a header that may come in pieces.
#[derive(Debug, Clone)]
pub(crate) struct HeaderReader {
    codec: Codec,
    state: Header,
}

#[derive(Debug, Clone)]
enum Header {
    Done,
    /// Bytes of the fixed part.
    Fixed(Short),
    /// What the gzip flags announce and has not been passed over.
    Optional {
        flags: u8,
        /// Low byte of XLEN, once it came.
        extra_len_low: Option<u8>,
        /// Bytes to pass over of the part that comes first.
        skip: u16,
    },
}

/// Flags of a gzip header (RFC 1952, section 2.3.1); FTEXT says nothing about the layout.
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

impl HeaderReader {
    pub(crate) fn new(codec: Codec) -> Self {
        let state =
            if header(codec).is_empty() { Header::Done } else { Header::Fixed(Short::default()) };
        Self { codec, state }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, Header::Done)
    }

    /// Takes what belongs to the header from the start of `source` and returns how much that was.
    pub(crate) fn read(&mut self, source: &[u8]) -> Result<usize, Error> {
        let mut taken = 0;
        while !self.is_done() {
            let Some(&byte) = source.get(taken) else { break };
            taken += 1;
            self.take(byte)?;
        }
        Ok(taken)
    }

    fn take(&mut self, byte: u8) -> Result<(), Error> {
        match &mut self.state {
            Header::Done => {}
            Header::Fixed(fixed) => {
                fixed.extend(&[byte]);
                let fixed = *fixed;
                if fixed.as_slice().len() == header(self.codec).len() {
                    self.fixed(fixed.as_slice())?;
                }
            }
            Header::Optional { flags, extra_len_low, skip } => {
                if *skip > 0 {
                    *skip -= 1;
                    if *skip == 0 {
                        *flags &= if *flags & FEXTRA != 0 { !FEXTRA } else { !FHCRC };
                    }
                } else if *flags & FEXTRA != 0 {
                    match *extra_len_low {
                        None => *extra_len_low = Some(byte),
                        Some(low) => {
                            *skip = u16::from_le_bytes([low, byte]);
                            if *skip == 0 {
                                *flags &= !FEXTRA;
                            }
                        }
                    }
                } else if byte == 0 {
                    // The end of a name, then of a comment.
                    *flags &= if *flags & FNAME != 0 { !FNAME } else { !FCOMMENT };
                }
                self.next_optional();
            }
        }
        Ok(())
    }

    fn fixed(&mut self, fixed: &[u8]) -> Result<(), Error> {
        let corrupt = |cause| Err(Error::Corrupt { codec: self.codec, cause });
        if self.codec == Codec::Zlib {
            let [cmf, flg] = [fixed[0], fixed[1]];
            if cmf & 0x0f != 8 || cmf >> 4 > 7 || u16::from_be_bytes([cmf, flg]) % 31 != 0 {
                return corrupt("not a zlib header");
            }
            if flg & 0x20 != 0 {
                return corrupt("the zlib header asks for a preset dictionary");
            }
            self.state = Header::Done;
            return Ok(());
        }
        if fixed[..3] != GZIP_HEADER[..3] {
            return corrupt("not a gzip header");
        }
        if fixed[3] & RESERVED != 0 {
            return corrupt("the gzip header has reserved flags");
        }
        let flags = fixed[3] & (FHCRC | FEXTRA | FNAME | FCOMMENT);
        self.state = Header::Optional { flags, extra_len_low: None, skip: 0 };
        self.next_optional();
        Ok(())
    }

    /// The checksum of the header comes last, two bytes that are passed over: what is damaged
    /// there does no harm, and zlib does not write it.
    fn next_optional(&mut self) {
        if let Header::Optional { flags, skip, .. } = &mut self.state {
            if *flags == 0 {
                self.state = Header::Done;
            } else if *flags == FHCRC && *skip == 0 {
                *skip = 2;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every combination of optional parts, in pieces of any length.
        #[test]
        fn gzip_headers_are_passed_over_in_any_pieces(
            extra in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            name in prop::option::of("[a-z]{0,20}"),
            comment in prop::option::of("[a-z]{0,20}"),
            checksum in any::<bool>(),
            piece in 1..40_usize,
        ) {
            let mut bytes = GZIP_HEADER.to_vec();
            if let Some(extra) = &extra {
                bytes[3] |= FEXTRA;
                bytes.extend(u16::try_from(extra.len()).expect("short").to_le_bytes());
                bytes.extend(extra);
            }
            for (text, flag) in [(&name, FNAME), (&comment, FCOMMENT)] {
                if let Some(text) = text {
                    bytes[3] |= flag;
                    bytes.extend(text.as_bytes());
                    bytes.push(0);
                }
            }
            if checksum {
                bytes[3] |= FHCRC;
                bytes.extend([1, 2]);
            }
            let header_len = bytes.len();
            bytes.extend([0, 0, 0]);
            let mut reader = HeaderReader::new(Codec::Gzip);
            let mut taken = 0;
            for piece in bytes.chunks(piece) {
                taken += reader.read(piece).expect("a good header");
            }
            prop_assert!(reader.is_done());
            prop_assert_eq!(taken, header_len);
        }
    }

    #[test]
    fn foreign_headers_are_refused() {
        for (codec, bytes) in [
            (Codec::Zlib, &[0x78, 0x9d][..]),
            (Codec::Zlib, &[0x78, 0xbb]),
            (Codec::Zlib, &[0x79, 0x9c]),
            (Codec::Gzip, &[0x1f, 0x8c, 8, 0, 0, 0, 0, 0, 0, 3]),
            (Codec::Gzip, &[0x1f, 0x8b, 8, 0x80, 0, 0, 0, 0, 0, 3]),
        ] {
            let result = HeaderReader::new(codec).read(bytes);
            assert!(matches!(result, Err(Error::Corrupt { .. })), "{codec} {bytes:x?}");
        }
    }
}
