//! What every codec promises, run on each.

use proptest::prelude::*;

use super::{Codec, Coders};
use crate::error::Error;

/// Bytes as files have them: runs of one byte, of noise, of repetition.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![
        (any::<u8>(), 1..3000_usize).prop_map(|(byte, len)| vec![byte; len]),
        prop::collection::vec(any::<u8>(), 1..3000),
        (prop::collection::vec(any::<u8>(), 1..20), 1..200_usize)
            .prop_map(|(word, times)| word.repeat(times)),
    ];
    prop::collection::vec(run, 0..8).prop_map(|runs| runs.concat())
}

fn compress(codec: Codec, plain: &[u8]) -> Vec<u8> {
    let mut stored = vec![0; codec.bound(plain.len())];
    let len = Coders::default().of(codec).compress(1, plain, &mut stored).expect("the bound holds");
    stored.truncate(len);
    stored
}

macro_rules! conformance {
    ($name:ident, $codec:expr) => {
        mod $name {
            use super::*;

            proptest! {
                #[test]
                fn round_trip(plain in contents()) {
                    let stored = compress($codec, &plain);
                    let mut target = vec![0; plain.len()];
                    let len = Coders::default().of($codec).decompress(&stored, &mut target);
                    prop_assert_eq!(len, Ok(plain.len()));
                    prop_assert_eq!(target, plain);
                }

                #[test]
                fn contexts_are_reusable_after_errors(first in contents(), second in contents()) {
                    let mut coders = Coders::default();
                    let coder = coders.of($codec);
                    let mut stored = vec![0; $codec.bound(first.len().max(second.len()))];
                    let _ = coder.compress(1, &first, &mut []);
                    let len = coder.compress(3, &first, &mut stored).expect("the bound holds");
                    let _ = coder.decompress(&stored[..len / 2], &mut vec![0; first.len()]);
                    let len = coder.compress(1, &second, &mut stored).expect("the bound holds");
                    let mut target = vec![0; second.len()];
                    prop_assert_eq!(coder.decompress(&stored[..len], &mut target), Ok(second.len()));
                    prop_assert_eq!(target, second);
                }

                #[test]
                fn output_is_bounded(plain in contents()) {
                    prop_assume!(!plain.is_empty());
                    let stored = compress($codec, &plain);
                    let mut target = vec![0; plain.len() - 1];
                    let len_bytes = target.len();
                    let result = Coders::default().of($codec).decompress(&stored, &mut target);
                    prop_assert_eq!(result, Err(Error::TargetTooSmall { len_bytes }));
                }

                #[test]
                fn a_small_target_is_an_error(plain in contents()) {
                    let stored = compress($codec, &plain);
                    prop_assume!(!stored.is_empty());
                    let mut target = vec![0; stored.len() - 1];
                    let len_bytes = target.len();
                    match Coders::default().of($codec).compress(1, &plain, &mut target) {
                        // A library may know a shorter form that it does not use where there is
                        // room (ISA-L).
                        Ok(len) => {
                            let mut back = vec![0; plain.len()];
                            let stored = &target[..len];
                            let result = Coders::default().of($codec).decompress(stored, &mut back);
                            prop_assert_eq!(result, Ok(plain.len()));
                            prop_assert_eq!(back, plain);
                        }
                        Err(error) => prop_assert_eq!(error, Error::TargetTooSmall { len_bytes }),
                    }
                }

                #[test]
                fn foreign_bytes_never_panic(noise in prop::collection::vec(any::<u8>(), 0..500)) {
                    let _ = Coders::default().of($codec).decompress(&noise, &mut [0; 1000]);
                }

                #[test]
                fn damage_never_panics(plain in contents(), at: prop::sample::Index, flip in 1..=255_u8) {
                    let mut stored = compress($codec, &plain);
                    prop_assume!(!stored.is_empty());
                    let at = at.index(stored.len());
                    stored[at] ^= flip;
                    let _ = Coders::default().of($codec).decompress(&stored, &mut vec![0; plain.len()]);
                }
            }

            #[test]
            fn number_and_name_are_unique() {
                assert_eq!(Codec::from_id($codec as u8), Some($codec));
                let same = Codec::ALL.iter().filter(|codec| codec.name() == $codec.name());
                assert_eq!(same.count(), 1);
            }
        }
    };
}

conformance!(store, Codec::Store);
conformance!(zstd, Codec::Zstd);
conformance!(deflate, Codec::Deflate);
conformance!(zlib, Codec::Zlib);
conformance!(gzip, Codec::Gzip);
conformance!(lz4, Codec::Lz4);

#[test]
fn a_level_that_zstd_lacks_is_refused() {
    for level in [i32::MIN, 0, 23, i32::MAX] {
        let result = Coders::default().of(Codec::Zstd).compress(level, b"x", &mut [0; 100]);
        assert_eq!(result, Err(Error::Level { codec: Codec::Zstd, level }));
    }
}

#[test]
fn a_level_that_deflate_lacks_is_refused() {
    for level in [i32::MIN, -1, 10, i32::MAX] {
        let result = Coders::default().of(Codec::Gzip).compress(level, b"x", &mut [0; 100]);
        assert_eq!(result, Err(Error::Level { codec: Codec::Gzip, level }));
    }
}

#[test]
fn the_numbers_on_disk_never_change() {
    assert_eq!((Codec::Store as u8, Codec::Zstd as u8), (0, 1));
    assert_eq!((Codec::Deflate as u8, Codec::Zlib as u8, Codec::Gzip as u8), (2, 3, 4));
    assert_eq!((Codec::Lz4 as u8, Codec::from_id(200)), (5, None));
}
