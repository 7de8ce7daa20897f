//! Deflate by ISA-L (Intel's Intelligent Storage Acceleration Library): hand-written vector code,
//! about twice as fast as any other. Bare deflate, from start to end.

use std::mem::MaybeUninit;

use isal_sys::igzip_lib as sys;

use crate::codec::flate::{Inflated, Inflation};

/// The library's levels 1 to 3, which are ours; beyond them it has none.
pub(crate) const LEVELS: std::ops::RangeInclusive<u32> = 1..=3;

/// Room for the highest of them.
const LEVEL_ROOM: u32 = sys::ISAL_DEF_LVL3_DEFAULT;

/// States are made at first use, one per direction: 80 KB and 90 KB, and 340 KB of tables.
#[derive(Default)]
pub(crate) struct Isal {
    compress: Option<Deflate>,
    decompress: Option<Box<MaybeUninit<sys::inflate_state>>>,
}

struct Deflate {
    stream: Box<MaybeUninit<sys::isal_zstream>>,
    room: Box<[u8]>,
}

// SAFETY: the states point into themselves, their room on the heap, and buffers of one call.
unsafe impl Send for Isal {}

impl Isal {
    /// Bytes written to `target`; none if they did not fit, or the source is above 4 GiB.
    pub(crate) fn compress(
        &mut self,
        level: u32,
        source: &[u8],
        target: &mut [u8],
    ) -> Option<usize> {
        let Deflate { stream, room } = self.compress.get_or_insert_with(|| Deflate {
            stream: Box::new_uninit(),
            room: vec![0; LEVEL_ROOM as usize].into(),
        });
        let avail_in = u32::try_from(source.len()).ok()?;
        let avail_out = u32::try_from(target.len()).unwrap_or(u32::MAX);
        let stream = stream.as_mut_ptr();
        // SAFETY: `isal_deflate_stateless_init` initialises what the other call reads
        // (`igzip_lib.h`); spans are those of live slices, and the room is as large as the level's
        // constant says.
        unsafe {
            sys::isal_deflate_stateless_init(stream);
            (*stream).level = level;
            (*stream).level_buf = room.as_mut_ptr();
            (*stream).level_buf_size = LEVEL_ROOM;
            (*stream).end_of_stream = 1;
            // `NO_FLUSH`, and no wrapper (`IGZIP_DEFLATE`).
            (*stream).flush = 0;
            (*stream).gzip_flag = 0;
            (*stream).next_in = source.as_ptr().cast_mut();
            (*stream).avail_in = avail_in;
            (*stream).next_out = target.as_mut_ptr();
            (*stream).avail_out = avail_out;
            let code = sys::isal_deflate_stateless(stream);
            (u32::try_from(code) == Ok(sys::COMP_OK)).then(|| (*stream).total_out as usize)
        }
    }

    /// What a body inflates to.
    pub(crate) fn decompress(&mut self, body: &[u8], target: &mut [u8]) -> Inflation {
        let state = self.decompress.get_or_insert_with(Box::new_uninit).as_mut_ptr();
        // Lengths are of 32 bits: what lies beyond is not looked at.
        let avail_in = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let avail_out = u32::try_from(target.len()).unwrap_or(u32::MAX);
        // SAFETY: `isal_inflate_init` initialises what the other call reads; spans are those of
        // live slices.
        let (code, left, produced) = unsafe {
            sys::isal_inflate_init(state);
            (*state).crc_flag = sys::ISAL_DEFLATE;
            (*state).next_in = body.as_ptr().cast_mut();
            (*state).avail_in = avail_in;
            (*state).next_out = target.as_mut_ptr();
            (*state).avail_out = avail_out;
            let code = sys::isal_inflate_stateless(state);
            (code, (*state).avail_in, (*state).total_out)
        };
        match u32::try_from(code) {
            Ok(sys::ISAL_DECOMP_OK) => {
                // Only now: after an error the library may have counted back too far.
                let consumed = (avail_in - left) as usize;
                Ok(Inflated { consumed, produced: produced as usize })
            }
            Ok(sys::ISAL_OUT_OVERFLOW) => Err(None),
            Ok(sys::ISAL_END_INPUT) => Err(Some("the data is cut short")),
            _ => Err(Some("not deflate data")),
        }
    }
}
