//! What every backend promises, run on each: every kind of request, its errors, and its buffers.

use std::sync::Arc;

use proptest::prelude::*;
use ring::agreement::{
    EphemeralPrivateKey, UnparsedPublicKey as UnparsedKey, X25519, agree_ephemeral,
};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
};

use super::model::{Model, ModelKind};
use crate::{
    Check, Checksum, Codec, Compress, Decompress, Devices, EcdsaKey, EcdsaSign, Error, Feed,
    Kernel, KeyExchange, Parts, PrivateKey, Progress, Queue, RsaPrivate, RsaPublic, Scheme, Sign,
    Stream, Team,
};

/// A throw-away key of 2048 bits, in PKCS#8 DER as OpenSSL wrote it.
const KEY: &[u8] = include_bytes!("conformance_key.der");

const STREAMS: [Codec; 4] = [Codec::Deflate, Codec::Gzip, Codec::Zlib, Codec::Zstd];

fn key() -> Arc<PrivateKey> {
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(KEY).into();
    Arc::new(PrivateKey::from_der(&der).expect("a good key"))
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![
        (any::<u8>(), 1..3000_usize).prop_map(|(byte, len)| vec![byte; len]),
        prop::collection::vec(any::<u8>(), 1..3000),
        (prop::collection::vec(any::<u8>(), 1..20), 1..200_usize)
            .prop_map(|(word, times)| word.repeat(times)),
    ];
    prop::collection::vec(run, 0..8).prop_map(|runs| runs.concat())
}

/// Feeds `bytes` in pieces of `source_len` through targets of `target_len`, until the stream ends.
fn feed(
    queue: &Queue,
    mut stream: Stream,
    bytes: &[u8],
    source_len: usize,
    target_len: usize,
) -> Result<Vec<u8>, Error> {
    let (mut output, mut start) = (Vec::new(), 0);
    loop {
        let piece = &bytes[start..(start + source_len).min(bytes.len())];
        let fed = queue.run(queue.submit(Feed {
            stream,
            source: piece.to_vec(),
            target: vec![0; target_len],
            end: start + piece.len() == bytes.len(),
        }));
        assert_eq!(fed.source, piece);
        stream = fed.stream;
        let Progress { consumed, produced, ended } = fed.result?;
        output.extend_from_slice(&fed.target[..produced]);
        start += consumed;
        if ended {
            assert_eq!(start, bytes.len());
            return Ok(output);
        }
        assert!(consumed + produced > 0, "the stream stands still");
    }
}

/// A queue on software alone.
fn software() -> Queue {
    Queue::new(4)
}

/// A queue on software, with an engine thread that helps.
fn team() -> Queue {
    let team = Team::with_engine_threads(1);
    Queue::in_team(16, &Devices::none(), &team).expect("a queue")
}

/// A queue on models of both engines, of this version.
fn models(version: u8) -> Queue {
    let zip = Model::new(ModelKind::Zip).version(version).start();
    let hpre = Model::new(ModelKind::Hpre).version(version).start();
    Queue::with_devices(4, &Devices::models([&zip, &hpre])).expect("a queue")
}

/// Everything that a device could do, it did.
fn all_on_device(queue: &Queue) -> bool {
    Kernel::ALL.iter().all(|kernel| {
        let stats = queue.stats();
        let stats = stats.kernel(*kernel);
        stats.redone == 0 && stats.spilled == 0
    })
}

macro_rules! conformance {
    ($name:ident, $queue:expr) => {
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

                #[test]
                fn what_is_compressed_comes_back(
                    sources in prop::collection::vec(contents(), 1..8),
                ) {
                    let queue = $queue;
                    for codec in Codec::ALL {
                        let ops: Vec<_> = sources
                            .iter()
                            .map(|source| queue.submit(Compress {
                                codec,
                                level: 1,
                                source: source.clone(),
                                target: vec![0; codec.bound(source.len())],
                            }))
                            .collect();
                        for (op, source) in ops.into_iter().zip(&sources) {
                            let done = queue.run(op);
                            prop_assert_eq!(&done.source, source);
                            let mut stored = done.target;
                            stored.truncate(done.result.expect("the bound holds"));
                            let target = vec![0; source.len()];
                            let request = Decompress { codec, source: stored, target };
                            let done = queue.run(queue.submit(request));
                            prop_assert_eq!(done.result, Ok(source.len()));
                            prop_assert_eq!(&done.target, source);
                        }
                    }
                    prop_assert!(all_on_device(&queue));
                }

                #[test]
                fn scattered_buffers_are_as_good_as_one(
                    plain in contents(),
                    cut in 1..2000_usize,
                    room in 1..2000_usize,
                ) {
                    let queue = $queue;
                    for codec in Codec::ALL {
                        let bound = codec.bound(plain.len());
                        let room = |at| vec![0; room.min(bound - at)];
                        let done = queue.run(queue.submit(Compress {
                            codec,
                            level: 1,
                            source: Parts(plain.chunks(cut).map(<[u8]>::to_vec).collect()),
                            target: Parts((0..bound).step_by(room(0).len().max(1)).map(room).collect()),
                        }));
                        let mut stored = done.target.0.concat();
                        stored.truncate(done.result.expect("the bound holds"));
                        let done = queue.run(queue.submit(Decompress {
                            codec,
                            source: Parts(stored.chunks(cut).map(<[u8]>::to_vec).collect()),
                            target: Parts(plain.chunks(cut).map(|part| vec![0; part.len()]).collect()),
                        }));
                        prop_assert_eq!(done.result, Ok(plain.len()));
                        prop_assert_eq!(done.target.0.concat(), plain.clone());
                    }
                    prop_assert!(all_on_device(&queue));
                }

                #[test]
                fn streams_in_any_pieces(
                    plain in contents(),
                    source_len in 1..5000_usize,
                    target_len in prop_oneof![1..300_usize, 1..5000_usize],
                ) {
                    let queue = $queue;
                    for codec in STREAMS {
                        let stream = Stream::compress(codec, 6).expect("a stream");
                        let stored = feed(&queue, stream, &plain, source_len, target_len)
                            .expect("compresses");
                        // As one piece, by whoever: it is the same format.
                        let target = vec![0; plain.len()];
                        let request = Decompress { codec, source: stored.clone(), target };
                        let done = queue.run(queue.submit(request));
                        prop_assert_eq!(done.result, Ok(plain.len()));
                        prop_assert_eq!(&done.target, &plain);
                        let stream = Stream::decompress(codec).expect("a stream");
                        let back = feed(&queue, stream, &stored, target_len, source_len)
                            .expect("reads");
                        prop_assert_eq!(&back, &plain);
                    }
                    prop_assert!(all_on_device(&queue));
                }

                #[test]
                fn what_is_cut_or_damaged_is_refused(
                    plain in contents(),
                    at: prop::sample::Index,
                    flip in 1..=255_u8,
                ) {
                    let queue = $queue;
                    let stream = Stream::compress(Codec::Gzip, 6).expect("a stream");
                    let stored = feed(&queue, stream, &plain, 4096, 4096).expect("compresses");
                    let at = at.index(stored.len());
                    let stream = Stream::decompress(Codec::Gzip).expect("a stream");
                    let cut = feed(&queue, stream, &stored[..at], 1000, 1000);
                    assert!(matches!(cut, Err(Error::Corrupt { .. })), "cut at {at}: {cut:?}");
                    let mut damaged = stored.clone();
                    damaged[at] ^= flip;
                    let whole = queue.run(queue.submit(Decompress {
                        codec: Codec::Gzip,
                        source: damaged.clone(),
                        target: vec![0; plain.len()],
                    }));
                    let stream = Stream::decompress(Codec::Gzip).expect("a stream");
                    match (feed(&queue, stream, &damaged, 1000, 1000), whole.result) {
                        // The header has bytes that say nothing about the data, and the last byte
                        // of the data bits that fill it up (RFC 1951, section 3.2.3).
                        (Ok(back), whole) => {
                            assert!(back == plain && whole == Ok(plain.len()), "flip at {at}");
                        }
                        (Err(Error::Corrupt { .. }), Err(whole)) => assert!(matches!(
                            whole, Error::Corrupt { .. } | Error::TargetTooSmall { .. }
                        )),
                        other => panic!("flip at {at}: {other:?}"),
                    }
                }
            }

            #[test]
            fn errors_give_the_buffers_back() {
                let queue = $queue;
                for codec in Codec::ALL {
                    let request =
                        Compress { codec, level: 1, source: vec![7; 500], target: vec![0; 1] };
                    let done = queue.run(queue.submit(request));
                    assert_eq!(done.result, Err(Error::TargetTooSmall { len_bytes: 1 }));
                    assert_eq!((done.source.len(), done.target.len()), (500, 1));
                    if codec == Codec::Store {
                        continue;
                    }
                    let source = b"not a frame at all".to_vec();
                    let request = Decompress { codec, source, target: vec![0; 100] };
                    let done = queue.run(queue.submit(request));
                    assert!(
                        matches!(done.result, Err(Error::Corrupt { codec: in_it, .. }) if in_it == codec),
                        "{codec}: {:?}", done.result
                    );
                    assert_eq!(done.source, b"not a frame at all");
                    let noise: Vec<u8> = (0..1000_u32).map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()[1]).collect();
                    let request =
                        Compress { codec, level: 1, source: noise, target: vec![0; 500] };
                    let done = queue.run(queue.submit(request));
                    assert_eq!(done.result, Err(Error::TargetTooSmall { len_bytes: 500 }));
                    let request =
                        Compress { codec, level: 77, source: vec![1; 10], target: vec![0; 500] };
                    let done = queue.run(queue.submit(request));
                    assert_eq!(done.result, Err(Error::Level { codec, level: 77 }));
                }
            }

            /// zlib-rs 0.6.8 keeps the place of bytes that did not fit over a reset: each such
            /// request took room from the next ones, until one panicked.
            #[test]
            fn targets_too_small_cost_later_requests_nothing() {
                let queue = $queue;
                let mut state = 1_u32;
                let noise: Vec<u8> = std::iter::repeat_with(|| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state.to_be_bytes()[0] & 0x3f
                })
                .take(60_000)
                .collect();
                for codec in Codec::ALL {
                    for len in (100..20_000).step_by(997) {
                        let source = noise.clone();
                        let request = Compress { codec, level: 4, source, target: vec![0; len] };
                        let done = queue.run(queue.submit(request));
                        assert_eq!(done.result, Err(Error::TargetTooSmall { len_bytes: len }));
                    }
                    let target = vec![0; codec.bound(noise.len())];
                    let request = Compress { codec, level: 4, source: noise.clone(), target };
                    let done = queue.run(queue.submit(request));
                    let mut source = done.target;
                    source.truncate(done.result.expect("the bound holds"));
                    let request = Decompress { codec, source, target: vec![0; noise.len()] };
                    assert_eq!(queue.run(queue.submit(request)).target, noise, "{codec}");
                }
            }

            #[test]
            fn signatures_verify_and_messages_come_back() {
                let queue = $queue;
                let key = key();
                let messages: Vec<Vec<u8>> = (0..12).map(|n| vec![n; usize::from(n)]).collect();
                let ops: Vec<_> = messages
                    .iter()
                    .map(|message| {
                        let scheme = Scheme::Pkcs1Sha256;
                        queue.submit(Sign::new(Arc::clone(&key), scheme, message.clone()))
                    })
                    .collect();
                let public =
                    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public().der());
                for (op, message) in ops.into_iter().zip(messages) {
                    let signed = queue.run(op);
                    assert_eq!(signed.message, message);
                    let signature = signed.result.expect("signs");
                    public.verify(&message, signature.as_ref()).expect("verifies");
                }
                assert!(all_on_device(&queue));
            }

            #[test]
            fn checksums_are_given_with_their_sources() {
                let queue = $queue;
                let source = b"123456789".to_vec();
                let op = queue.submit(Check::new(Checksum::Crc32c, source.clone()));
                let checked = queue.run(op);
                assert_eq!((checked.result, checked.source), (Ok(0xe306_9283), source));
                let parts = Parts(vec![b"1234".to_vec(), b"56789".to_vec()]);
                let whole = queue.run(queue.submit(Check::new(Checksum::Xxh3, &b"123456789"[..])));
                let scattered = queue.run(queue.submit(Check::new(Checksum::Xxh3, parts)));
                assert_eq!(scattered.result, whole.result);
            }

            #[test]
            fn p256_signatures_verify_and_messages_come_back() {
                let queue = $queue;
                let random = SystemRandom::new();
                let keys: Vec<_> = (0..2)
                    .map(|_| {
                        let der =
                            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
                                .expect("random numbers");
                        let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der.as_ref()).into();
                        Arc::new(EcdsaKey::from_der(&der).expect("a good key"))
                    })
                    .collect();
                let messages: Vec<Vec<u8>> = (0..21).map(|n| vec![n; usize::from(n)]).collect();
                let ops: Vec<_> = messages
                    .iter()
                    .zip(keys.iter().cycle())
                    .map(|(message, key)| {
                        queue.submit(EcdsaSign::new(Arc::clone(key), message.clone()))
                    })
                    .collect();
                for ((op, message), key) in ops.into_iter().zip(messages).zip(keys.iter().cycle()) {
                    let signed = queue.run(op);
                    assert_eq!(signed.message, message);
                    let signature = signed.result.expect("signs");
                    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public())
                        .verify(&message, signature.as_ref())
                        .expect("verifies");
                }
            }

            #[test]
            fn keys_are_exchanged_with_others() {
                let queue = $queue;
                let random = SystemRandom::new();
                let keys: Vec<_> = (0..9)
                    .map(|_| EphemeralPrivateKey::generate(&X25519, &random).expect("a key"))
                    .collect();
                let ops: Vec<_> = keys
                    .iter()
                    .map(|key| {
                        let public = key.compute_public_key().expect("a public key");
                        let peer = public.as_ref().try_into().expect("32 bytes");
                        queue.submit(KeyExchange::new(peer))
                    })
                    .collect();
                for (op, key) in ops.into_iter().zip(keys) {
                    let exchanged = queue.run(op).expect("a good key");
                    let ours = UnparsedKey::new(&X25519, exchanged.public);
                    let agreed = agree_ephemeral(key, &ours, |secret| secret.to_vec());
                    assert_eq!(agreed.expect("a good key"), exchanged.shared.as_ref());
                }
                let refused = queue.run(queue.submit(KeyExchange::new([0; 32])));
                assert_eq!(refused.map(drop), Err(Error::PeerKey));
            }

            #[test]
            fn raw_rsa_is_its_own_inverse() {
                let queue = $queue;
                let key = key();
                let mut source = vec![0x5a; 256];
                source[0] = 0;
                let target = vec![0; 256];
                let private = RsaPrivate { key: Arc::clone(&key), source: source.clone(), target };
                let done = queue.run(queue.submit(private));
                if done.result == Err(Error::NoDevice) && key.lanes().is_none() {
                    // Without lanes, software does not do it.
                    return;
                }
                assert_eq!(done.result, Ok(256));
                let public = Arc::new(key.public().clone());
                let request = RsaPublic { key: public, source: done.target, target: vec![0; 256] };
                let done = queue.run(queue.submit(request));
                assert_eq!((done.result, &done.target), (Ok(256), &source));

                for source in [vec![0xff; 256], vec![1; 255]] {
                    let target = vec![0; 256];
                    let request = RsaPrivate { key: Arc::clone(&key), source, target };
                    let done = queue.run(queue.submit(request));
                    assert_eq!(done.result, Err(Error::NotInRange));
                }
            }
        }
    };
}

conformance!(on_software, software());
conformance!(in_a_team, team());
conformance!(on_model_v1, models(1));
conformance!(on_model_v2, models(2));
conformance!(on_model_v3, models(3));
