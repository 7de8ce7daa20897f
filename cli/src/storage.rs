//! How contents are to be stored, as a command line says it.

use warpcore_offload::Codec;

/// As in `64k`, as log2 of bytes.
pub(crate) fn chunk(value: &str) -> Result<u8, String> {
    let kib = value.to_ascii_lowercase().strip_suffix('k').map(str::parse::<u32>);
    match kib {
        Some(Ok(kib @ 4..=128)) if kib.is_power_of_two() => {
            Ok(u8::try_from(10 + kib.trailing_zeros()).expect("at most 17"))
        }
        _ => Err(format!("chunk={value}: 4k, 8k, 16k, 32k, 64k or 128k")),
    }
}

/// A codec that a file may be stored with.
pub(crate) fn codec(value: &str) -> Result<Codec, String> {
    match Codec::from_name(value) {
        Some(codec @ (Codec::Deflate | Codec::Zstd)) => Ok(codec),
        _ => Err(format!("codec={value}: zstd or deflate")),
    }
}

/// A level that some codec has.
pub(crate) fn level(value: &str) -> Result<i32, String> {
    match value.parse() {
        Ok(level @ -7..=19) => Ok(level),
        _ => Err(format!("level={value}: -7 to 19")),
    }
}

/// Refuses a level that this codec does not have.
pub(crate) fn check_level(codec: Codec, level: i32) -> Result<(), String> {
    let has = match codec {
        Codec::Deflate => (0..=9).contains(&level),
        _ => level != 0,
    };
    if has { Ok(()) } else { Err(format!("{codec} has no level {level}: see --help")) }
}
