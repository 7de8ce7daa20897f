//! What every backend promises, run on each: every kind of request, its errors, and its buffers.

use std::sync::Arc;

use proptest::prelude::*;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

use crate::{Codec, Compress, Decompress, Error, PrivateKey, Queue, Scheme, Sign};

/// A throw-away key of 2048 bits, in PKCS#8 DER as OpenSSL wrote it.
const KEY: &[u8] = include_bytes!("conformance_key.der");

fn key() -> Arc<PrivateKey> {
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(KEY).into();
    Arc::new(PrivateKey::from_der(&der).expect("a good key"))
}

macro_rules! conformance {
    ($name:ident, $queue:expr) => {
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

                #[test]
                fn what_is_compressed_comes_back(
                    sources in prop::collection::vec(prop::collection::vec(0..4_u8, 0..5000), 1..8),
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
                }
                let request = Decompress {
                    codec: Codec::Zstd,
                    source: b"not a frame".to_vec(),
                    target: vec![0; 100],
                };
                let done = queue.run(queue.submit(request));
                assert!(matches!(done.result, Err(Error::Corrupt { codec: Codec::Zstd, .. })));
                assert_eq!(done.source, b"not a frame");
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
                    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key_der());
                for (op, message) in ops.into_iter().zip(messages) {
                    let signed = queue.run(op);
                    assert_eq!(signed.message, message);
                    let signature = signed.result.expect("signs");
                    public.verify(&message, signature.as_ref()).expect("verifies");
                }
            }
        }
    };
}

conformance!(software, Queue::new(4));
