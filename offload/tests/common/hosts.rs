//! What tasks of a server ask for, on whatever host.

use std::sync::Arc;

use warpcore_offload::PrivateKey;

/// Tasks of a test: more than its queue has slots.
pub(crate) const TASKS: u8 = 40;

pub(crate) fn key() -> Arc<PrivateKey> {
    let der = include_bytes!("../../src/backend/conformance_key.der").as_slice();
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der).into();
    Arc::new(PrivateKey::from_der(&der).expect("a good key"))
}

/// What a task of a server asks for: `$then` is what its host's answers need.
#[macro_export]
macro_rules! serve {
    ($host:expr, $key:expr, $number:expr $(, $then:ident)?) => {{
        let (host, key, number): (_, std::sync::Arc<warpcore_offload::PrivateKey>, u8) = ($host, $key, $number);
        let plain = vec![number; 3000 + usize::from(number)];
        let codec = warpcore_offload::Codec::Gzip;
        let target = vec![0; codec.bound(plain.len())];
        let request = warpcore_offload::Compress { codec, level: 1, source: plain.clone(), target };
        let done = host.submit(request).await $(.$then("an engine"))?;
        let mut source = done.target;
        source.truncate(done.result.expect("the bound holds"));
        let request = warpcore_offload::Decompress { codec, source, target: vec![0; plain.len()] };
        let done = host.submit(request).await $(.$then("an engine"))?;
        assert_eq!((done.result, done.target), (Ok(plain.len()), plain));
        let request = warpcore_offload::Sign::new(std::sync::Arc::clone(&key), warpcore_offload::Scheme::Pkcs1Sha256, vec![number]);
        let signed = host.submit(request).await $(.$then("an engine"))?;
        ring::signature::UnparsedPublicKey::new(&ring::signature::RSA_PKCS1_2048_8192_SHA256, key.public().der())
            .verify(&[number], signed.result.expect("signs").as_ref())
            .expect("verifies");
        // With the base point as the peer's key, what is shared is our public key.
        let mut base = [0; 32];
        base[0] = 9;
        let exchanged = host.submit(warpcore_offload::KeyExchange::new(base)).await $(.$then("an engine"))?;
        let exchanged = exchanged.expect("a good key");
        assert_eq!(exchanged.shared.as_ref(), exchanged.public);
    }};
}
