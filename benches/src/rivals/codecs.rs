//! Other libraries for the same formats: zstd's own interface, miniz_oxide (which is flate2's
//! default), and, loaded at run time, zlib, libdeflate, ISA-L and lz4.

use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::hint::black_box;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use libloading::Library;
use warpcore_offload::Codec;

use crate::codec::megabytes;
use crate::corpus::{CHUNK, Corpus};
use crate::harness::System;

/// Works on one chunk, into room enough; returns the length of the result.
type Work = Box<dyn FnMut(&[u8], &mut [u8]) -> usize>;

pub(crate) fn compress(codec: Codec, level: i32, corpus: &Corpus) -> Vec<System<'_>> {
    let works: Vec<(&str, Result<Work, String>)> = match codec {
        Codec::Zstd => vec![("zstd, plain loop", zstd_compress(level))],
        Codec::Gzip => vec![
            ("miniz_oxide", Ok(miniz_compress(level))),
            ("zlib", zlib_compress(level)),
            ("libdeflate", libdeflate_compress(level)),
            ("isa-l", if level == 1 { isal_compress() } else { Err(String::new()) }),
        ],
        Codec::Lz4 => vec![("lz4", lz4_compress())],
        _ => Vec::new(),
    };
    works
        .into_iter()
        .filter_map(|(name, work)| {
            let mut work = work.ok()?;
            let mut target = vec![0; 2 * CHUNK];
            Some(System::new(name, move || {
                megabytes(corpus, || {
                    for chunk in &corpus.chunks {
                        assert!(work(chunk, &mut target) > 0);
                        black_box(&target);
                    }
                })
            }))
        })
        .collect()
}

pub(crate) fn decompress<'a>(
    codec: Codec,
    corpus: &'a Corpus,
    stored: &[Vec<u8>],
) -> Vec<System<'a>> {
    let works: Vec<(&str, Result<Work, String>)> = match codec {
        Codec::Zstd => vec![("zstd, plain loop", zstd_decompress())],
        Codec::Gzip => vec![
            ("miniz_oxide", Ok(miniz_decompress())),
            ("libdeflate", libdeflate_decompress()),
            ("isa-l", isal_decompress()),
        ],
        Codec::Lz4 => vec![("lz4", lz4_decompress())],
        _ => Vec::new(),
    };
    works
        .into_iter()
        .filter_map(|(name, work)| {
            let mut work = work.ok()?;
            let mut target = vec![0; CHUNK];
            let stored = stored.to_vec();
            Some(System::new(name, move || {
                megabytes(corpus, || {
                    for source in &stored {
                        assert_eq!(work(source, &mut target), CHUNK);
                        black_box(&target);
                    }
                })
            }))
        })
        .collect()
}

/// Why those that are not here are not.
pub(crate) fn missing() -> Vec<String> {
    LIBRARIES
        .iter()
        .filter_map(|(name, package)| {
            let error = library(name).err()?;
            Some(format!("without {name}: {error}; `apt-get install {package}`"))
        })
        .collect()
}

const LIBRARIES: [(&str, &str); 4] = [
    ("libz.so.1", "zlib1g"),
    ("libdeflate.so.0", "libdeflate0"),
    ("libisal.so.2", "libisal2"),
    ("liblz4.so.1", "liblz4-1"),
];

/// Loaded once, and for good: what is taken from it is used until the end.
fn library(name: &'static str) -> Result<&'static Library, String> {
    static LOADED: [OnceLock<Result<Library, String>>; 4] = [const { OnceLock::new() }; 4];
    let index = LIBRARIES.iter().position(|(known, _)| *known == name).ok_or("unknown")?;
    LOADED[index]
        // SAFETY: libraries of functions; their initialisers are their own.
        .get_or_init(|| unsafe { Library::new(name) }.map_err(|error| error.to_string()))
        .as_ref()
        .map_err(Clone::clone)
}

fn zstd_compress(level: i32) -> Result<Work, String> {
    let mut context = zstd::bulk::Compressor::new(level).map_err(|error| error.to_string())?;
    Ok(Box::new(move |source, target| {
        context.compress_to_buffer(source, target).expect("room enough")
    }))
}

fn zstd_decompress() -> Result<Work, String> {
    let mut context = zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?;
    Ok(Box::new(move |source, target| {
        context.decompress_to_buffer(source, target).expect("our own frame")
    }))
}

fn miniz_compress(level: i32) -> Work {
    use miniz_oxide::deflate::core::{CompressorOxide, TDEFLFlush, compress};
    let flags = miniz_oxide::deflate::core::create_comp_flags_from_zip_params(level, 0, 0);
    let mut context = Box::new(CompressorOxide::new(flags));
    Box::new(move |source, target| {
        context.reset();
        compress(&mut context, source, target, TDEFLFlush::Finish).2
    })
}

fn miniz_decompress() -> Work {
    use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
    let mut context = Box::new(DecompressorOxide::new());
    Box::new(move |source, target| {
        context.init();
        let body = &source[GZIP_HEADER..];
        decompress(&mut context, body, target, 0, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF).2
    })
}

/// Ours has no name, and no other field of any length.
const GZIP_HEADER: usize = 10;

/// `z_stream` of `zlib.h`, version 1.
#[repr(C)]
struct ZStream {
    next_in: *const u8,
    avail_in: u32,
    total_in: c_ulong,
    next_out: *mut u8,
    avail_out: u32,
    total_out: c_ulong,
    rest: [usize; 8],
}

fn zlib_compress(level: i32) -> Result<Work, String> {
    let library = library("libz.so.1")?;
    let init = function!(
        library,
        b"deflateInit2_",
        fn(*mut ZStream, c_int, c_int, c_int, c_int, c_int, *const c_char, c_int) -> c_int
    );
    let reset = function!(library, b"deflateReset", fn(*mut ZStream) -> c_int);
    let deflate = function!(library, b"deflate", fn(*mut ZStream, c_int) -> c_int);
    // On the heap: the library keeps its address. Never freed.
    let stream: *mut ZStream = Box::into_raw(Box::new(ZStream {
        next_in: null(),
        avail_in: 0,
        total_in: 0,
        next_out: null_mut(),
        avail_out: 0,
        total_out: 0,
        rest: [0; 8],
    }));
    let size = c_int::try_from(size_of::<ZStream>()).map_err(|error| error.to_string())?;
    // SAFETY: as the library's header says: deflate (8) with gzip's header (15 + 16), memory level 8,
    // no strategy.
    if unsafe { init(stream, level, 8, 31, 8, 0, c"1".as_ptr(), size) } != 0 {
        return Err("zlib refuses".to_owned());
    }
    Ok(Box::new(move |source, target| {
        // SAFETY: the stream is ours alone; spans are those of live slices. 4: Z_FINISH.
        unsafe {
            reset(stream);
            (*stream).next_in = source.as_ptr();
            (*stream).avail_in = u32::try_from(source.len()).expect("a chunk");
            (*stream).next_out = target.as_mut_ptr();
            (*stream).avail_out = u32::try_from(target.len()).expect("two chunks");
            assert_eq!(deflate(stream, 4), 1, "it ends");
            usize::try_from((*stream).total_out).expect("it fits")
        }
    }))
}

type Pointer = *mut c_void;

fn libdeflate_compress(level: i32) -> Result<Work, String> {
    let library = library("libdeflate.so.0")?;
    let alloc = function!(library, b"libdeflate_alloc_compressor", fn(c_int) -> Pointer);
    let compress = function!(
        library,
        b"libdeflate_gzip_compress",
        fn(Pointer, *const u8, usize, *mut u8, usize) -> usize
    );
    // SAFETY: never freed.
    let context = unsafe { alloc(level) };
    Ok(Box::new(move |source, target| {
        // SAFETY: spans are those of live slices.
        unsafe {
            compress(context, source.as_ptr(), source.len(), target.as_mut_ptr(), target.len())
        }
    }))
}

fn libdeflate_decompress() -> Result<Work, String> {
    let library = library("libdeflate.so.0")?;
    let alloc = function!(library, b"libdeflate_alloc_decompressor", fn() -> Pointer);
    let decompress = function!(
        library,
        b"libdeflate_gzip_decompress",
        fn(Pointer, *const u8, usize, *mut u8, usize, *mut usize) -> c_int
    );
    // SAFETY: never freed.
    let context = unsafe { alloc() };
    Ok(Box::new(move |source, target| {
        let mut len = 0;
        // SAFETY: spans are those of live slices.
        let code = unsafe {
            decompress(
                context,
                source.as_ptr(),
                source.len(),
                target.as_mut_ptr(),
                target.len(),
                &raw mut len,
            )
        };
        assert_eq!(code, 0, "our own member");
        len
    }))
}

/// The start of `struct isal_zstream` (`igzip_lib.h` of ISA-L 2.30).
#[repr(C)]
struct IsalStream {
    next_in: *const u8,
    avail_in: u32,
    total_in: u32,
    next_out: *mut u8,
    avail_out: u32,
    total_out: u32,
    tables: *mut c_void,
    level: u32,
    level_buf_size: u32,
    level_buf: *mut u8,
    end_of_stream: u16,
    flush: u16,
    gzip_flag: u16,
    hist_bits: u16,
}

/// The start of `struct inflate_state`.
#[repr(C)]
struct IsalState {
    next_out: *mut u8,
    avail_out: u32,
    total_out: u32,
    next_in: *const u8,
    read_in: u64,
    avail_in: u32,
}

/// More than either structure as a whole has, in words.
const ISAL_WORDS: usize = 32_768;

fn isal_compress() -> Result<Work, String> {
    let library = library("libisal.so.2")?;
    let init = function!(library, b"isal_deflate_stateless_init", fn(*mut IsalStream) -> ());
    let deflate = function!(library, b"isal_deflate_stateless", fn(*mut IsalStream) -> c_int);
    let mut words = vec![0_u64; ISAL_WORDS];
    // `ISAL_DEF_LVL1_DEFAULT`, and more.
    let mut room = vec![0_u8; 300_000];
    Ok(Box::new(move |source, target| {
        let stream = words.as_mut_ptr().cast::<IsalStream>();
        // SAFETY: the words have room for the structure; spans are those of live slices.
        unsafe {
            init(stream);
            (*stream).level = 1;
            (*stream).level_buf = room.as_mut_ptr();
            (*stream).level_buf_size = 300_000;
            (*stream).end_of_stream = 1;
            // With gzip's header and trailer.
            (*stream).gzip_flag = 1;
            (*stream).next_in = source.as_ptr();
            (*stream).avail_in = u32::try_from(source.len()).expect("a chunk");
            (*stream).next_out = target.as_mut_ptr();
            (*stream).avail_out = u32::try_from(target.len()).expect("two chunks");
            assert_eq!(deflate(stream), 0, "room enough");
            (*stream).total_out as usize
        }
    }))
}

fn isal_decompress() -> Result<Work, String> {
    let library = library("libisal.so.2")?;
    let init = function!(library, b"isal_inflate_init", fn(*mut IsalState) -> ());
    let inflate = function!(library, b"isal_inflate_stateless", fn(*mut IsalState) -> c_int);
    let mut words = vec![0_u64; ISAL_WORDS];
    Ok(Box::new(move |source, target| {
        let state = words.as_mut_ptr().cast::<IsalState>();
        let body = &source[GZIP_HEADER..];
        // SAFETY: as above.
        unsafe {
            init(state);
            (*state).next_in = body.as_ptr();
            (*state).avail_in = u32::try_from(body.len()).expect("less than a chunk");
            (*state).next_out = target.as_mut_ptr();
            (*state).avail_out = u32::try_from(target.len()).expect("a chunk");
            assert_eq!(inflate(state), 0, "our own member");
            (*state).total_out as usize
        }
    }))
}

fn lz4_compress() -> Result<Work, String> {
    let library = library("liblz4.so.1")?;
    let compress =
        function!(library, b"LZ4_compress_default", fn(*const u8, *mut u8, c_int, c_int) -> c_int);
    Ok(Box::new(move |source, target| {
        let (from, to) = (source.len().try_into(), target.len().try_into());
        let (from, to) = (from.expect("a chunk"), to.expect("two chunks"));
        // SAFETY: spans are those of live slices.
        let len = unsafe { compress(source.as_ptr(), target.as_mut_ptr(), from, to) };
        usize::try_from(len).expect("room enough")
    }))
}

fn lz4_decompress() -> Result<Work, String> {
    let library = library("liblz4.so.1")?;
    let decompress =
        function!(library, b"LZ4_decompress_safe", fn(*const u8, *mut u8, c_int, c_int) -> c_int);
    Ok(Box::new(move |source, target| {
        let (from, to) = (source.len().try_into(), target.len().try_into());
        let (from, to) = (from.expect("a chunk"), to.expect("a chunk"));
        // SAFETY: spans are those of live slices.
        let len = unsafe { decompress(source.as_ptr(), target.as_mut_ptr(), from, to) };
        usize::try_from(len).expect("our own block")
    }))
}
