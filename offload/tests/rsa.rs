//! Signatures through the queue, verified by the public key, and keys that must be refused.

#[path = "common/openssl.rs"]
mod openssl;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::signature::{self, RsaParameters, UnparsedPublicKey};
use warpcore_need::need;
use warpcore_offload::{Error, Kernel, KeyError, PrivateKey, Queue, Scheme, Sign, together};

use openssl::{OPENSSL, openssl};

fn generate(bits: &str) -> Vec<u8> {
    openssl::generate("RSA", &format!("rsa_keygen_bits:{bits}"))
}

fn parameters(scheme: Scheme) -> &'static RsaParameters {
    match scheme {
        Scheme::Pkcs1Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Scheme::Pkcs1Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Scheme::Pkcs1Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Scheme::PssSha256 => &signature::RSA_PSS_2048_8192_SHA256,
        Scheme::PssSha384 => &signature::RSA_PSS_2048_8192_SHA384,
        Scheme::PssSha512 => &signature::RSA_PSS_2048_8192_SHA512,
        other => panic!("no verifier for {other:?}"),
    }
}

#[test]
fn every_size_and_scheme_verifies() {
    if !need(&OPENSSL) {
        return;
    }
    let queue = Queue::new(8);
    for bits in ["2048", "3072", "4096"] {
        let key = Arc::new(PrivateKey::from_pem(&generate(bits)).expect("a good key"));
        assert_eq!(key.modulus_len_bytes() * 8, bits.parse().expect("a number"));
        let ops = Scheme::ALL.map(|scheme| {
            let message = format!("{bits} {scheme:?}").into_bytes();
            (scheme, queue.submit(Sign::new(Arc::clone(&key), scheme, message)))
        });
        for (scheme, op) in ops {
            let signed = queue.run(op);
            let signature = signed.result.expect("signs");
            UnparsedPublicKey::new(parameters(scheme), key.public().der())
                .verify(&signed.message, signature.as_ref())
                .unwrap_or_else(|_| panic!("RSA-{bits} {scheme:?} does not verify"));
        }
    }
    // Six were submitted before the first ran: they go together where there are lanes.
    let largest = queue.stats().kernel(Kernel::RsaPrivate).batch_len_max;
    assert!(together(Kernel::RsaPrivate).is_none_or(|all| largest >= all as u64));
}

/// Only keys of one size go together; each signature is of its own key all the same.
#[test]
fn keys_of_all_sizes_at_once() {
    if !need(&OPENSSL) {
        return;
    }
    let keys: Vec<_> = ["2048", "3072", "2048", "4096", "2048"]
        .map(|bits| Arc::new(PrivateKey::from_pem(&generate(bits)).expect("a good key")))
        .into();
    let queue = Queue::new(64);
    for count in [1, 2, 3, 5, 64] {
        let scheme = Scheme::PssSha256;
        let ops: Vec<_> = (0..count)
            .map(|n| {
                let key = &keys[n * 7 % keys.len()];
                (key, queue.submit(Sign::new(Arc::clone(key), scheme, n.to_le_bytes().to_vec())))
            })
            .collect();
        for (n, (key, op)) in ops.into_iter().enumerate() {
            // Some are not waited for.
            if n % 6 == 5 {
                drop(op);
                continue;
            }
            let signed = queue.run(op);
            let signature = signed.result.expect("signs");
            UnparsedPublicKey::new(parameters(scheme), key.public().der())
                .verify(&signed.message, signature.as_ref())
                .expect("verifies");
        }
    }
    while queue.flush() {
        queue.turn(Instant::now(), Duration::ZERO);
    }
    assert_eq!(queue.stats().in_flight(), 0);
}

#[test]
fn a_queue_that_is_dropped_ends_the_signatures_in_hand() {
    if !need(&OPENSSL) {
        return;
    }
    let key = Arc::new(PrivateKey::from_pem(&generate("4096")).expect("a good key"));
    let queue = Queue::new(8);
    let sign = |n: u8| Sign::new(Arc::clone(&key), Scheme::Pkcs1Sha256, vec![n]);
    let ops: Vec<_> = (0..6).map(|n| queue.submit(sign(n))).collect();
    // Some have begun, others wait. Without lanes the first is finished: `ring` does one as a whole.
    assert!(queue.turn(Instant::now(), Duration::ZERO).busy);
    drop(queue);
    let other = Queue::new(1);
    let finished = usize::from(together(Kernel::RsaPrivate).is_none());
    for (number, op) in ops.into_iter().enumerate() {
        let expected = if number < finished { Ok(()) } else { Err(Error::Closed) };
        assert_eq!(other.run(op).result.map(drop), expected);
    }
}

#[test]
fn keys_are_read_in_every_form() {
    if !need(&OPENSSL) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let pkcs8 = path("pkcs8.pem");
    std::fs::write(&pkcs8, generate("2048")).expect("written");
    let public = PrivateKey::from_pem(&std::fs::read(&pkcs8).expect("read"))
        .expect("PKCS#8 PEM")
        .public()
        .der()
        .to_vec();

    let pkcs1 = openssl(&["pkey", "-in", &pkcs8, "-traditional"]);
    assert!(pkcs1.starts_with(b"-----BEGIN RSA PRIVATE KEY"));
    let key = PrivateKey::from_pem(&pkcs1).expect("PKCS#1 PEM");
    assert_eq!(key.public().der(), public);

    let der = openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", &pkcs8, "-outform", "DER"]);
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der).into();
    assert_eq!(PrivateKey::from_der(&der).expect("PKCS#8 DER").public().der(), public);

    let der = openssl(&["rsa", "-in", &pkcs8, "-traditional", "-outform", "DER"]);
    let der = rustls_pki_types::PrivatePkcs1KeyDer::from(der).into();
    assert_eq!(PrivateKey::from_der(&der).expect("PKCS#1 DER").public().der(), public);
}

#[test]
fn a_broken_key_says_what_is_wrong_with_it() {
    if !need(&OPENSSL) {
        return;
    }
    let error = |pem: &[u8]| PrivateKey::from_pem(pem).expect_err("refused");
    assert_eq!(error(b""), KeyError::NoKey);
    assert_eq!(error(b"no key here"), KeyError::NoKey);

    let good = generate("2048");
    assert!(matches!(error(&good[..good.len() / 2]), KeyError::Encoding(_) | KeyError::NoKey));
    let encrypted = openssl(&[
        "genpkey",
        "-quiet",
        "-algorithm",
        "RSA",
        "-aes-128-cbc",
        "-pass",
        "pass:secret",
    ]);
    assert_eq!(error(&encrypted), KeyError::Encrypted);
    let curve =
        openssl(&["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    assert_eq!(error(&curve), KeyError::NotRsa("elliptic curves"));
    assert_eq!(error(&openssl(&["genpkey", "-algorithm", "ED25519"])), KeyError::NotRsa("Ed25519"));
    assert_eq!(error(&generate("512")), KeyError::Size { modulus_bits: 512 });
    assert_eq!(error(&generate("2560")), KeyError::Size { modulus_bits: 2560 });

    // One byte changed, in the private exponent modulo one prime: that number no longer fits the
    // others. Keys of 1024 bits nobody else looks at.
    use rustls_pki_types::pem::PemObject;
    for (pem, from_end) in [(good, 300), (generate("1024"), 170)] {
        let der = rustls_pki_types::PrivateKeyDer::from_pem_slice(&pem).expect("a good key");
        let mut der = der.secret_der().to_vec();
        let place = der.len() - from_end;
        der[place] ^= 1;
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der).into();
        match PrivateKey::from_der(&der) {
            Err(KeyError::Inconsistent(_)) => {}
            // Without lanes only a device would work with such a key.
            Ok(_) if from_end == 170 && together(Kernel::RsaPrivate).is_none() => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_key_is_never_printed() {
    if !need(&OPENSSL) {
        return;
    }
    let key = PrivateKey::from_pem(&generate("2048")).expect("a good key");
    assert_eq!(format!("{key:?}"), "PrivateKey(RSA-2048)");
}
