//! Signatures of P-256 through the queue, verified by OpenSSL, and keys that must be refused.

#[path = "common/openssl.rs"]
mod openssl;

use std::sync::Arc;

use warpcore_need::need;
use warpcore_offload::{EcdsaKey, EcdsaSign, Kernel, KeyError, Queue};

use openssl::{OPENSSL, openssl};

fn generate(curve: &str) -> Vec<u8> {
    openssl::generate("EC", &format!("ec_paramgen_curve:{curve}"))
}

#[test]
fn openssl_verifies_what_every_number_of_waiting_ones_makes() {
    if !need(&OPENSSL) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (private, public) = (path("key.pem"), path("public.pem"));
    let pem = generate("P-256");
    std::fs::write(&private, &pem).expect("written");
    openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
    let key = Arc::new(EcdsaKey::from_pem(&pem).expect("a good key"));
    let queue = Queue::new(16);
    for count in 1..=9_u8 {
        let message = |at: u8| vec![at; usize::from(count)];
        let ops: Vec<_> = (0..count)
            .map(|at| queue.submit(EcdsaSign::new(Arc::clone(&key), message(at))))
            .collect();
        for (op, at) in ops.into_iter().zip(0..) {
            let signed = queue.run(op);
            std::fs::write(path("message"), message(at)).expect("written");
            let signature = signed.result.expect("a good key signs");
            std::fs::write(path("signature"), signature.as_ref()).expect("written");
            openssl(&[
                "dgst",
                "-sha256",
                "-verify",
                &public,
                "-signature",
                &path("signature"),
                &path("message"),
            ]);
        }
    }
    assert_eq!(queue.stats().kernel(Kernel::Ecdsa).requests, 45);
}

#[test]
fn keys_are_read_in_every_form_and_refused_with_the_reason() {
    if !need(&OPENSSL) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("pkcs8.pem").to_str().expect("UTF-8").to_owned();
    let pem = generate("P-256");
    std::fs::write(&path, &pem).expect("written");
    let key = EcdsaKey::from_pem(&pem).expect("PKCS#8 PEM");
    let sec1 = openssl(&["pkey", "-in", &path, "-traditional"]);
    assert!(sec1.starts_with(b"-----BEGIN EC PRIVATE KEY"));
    assert_eq!(EcdsaKey::from_pem(&sec1).expect("SEC 1 PEM").public(), key.public());
    assert_eq!(format!("{key:?}"), "EcdsaKey(P-256)");

    let error = |pem: &[u8]| EcdsaKey::from_pem(pem).expect_err("refused");
    assert_eq!(error(b"no key here"), KeyError::NoKey);
    assert_eq!(error(&generate("P-384")), KeyError::NotP256("another curve"));
    let rsa = openssl(&["genpkey", "-quiet", "-algorithm", "RSA"]);
    assert_eq!(error(&rsa), KeyError::NotP256("another algorithm"));
    let der = openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", &path, "-outform", "DER"]);
    // The last byte is the public key's.
    let mut other = der.clone();
    *other.last_mut().expect("not empty") ^= 1;
    // The secret begins 36 bytes into the key (RFC 5915, within RFC 5208).
    let mut zero = der.clone();
    zero[36..68].fill(0);
    let mut cut = der;
    cut.truncate(60);
    for (der, inconsistent) in [(other, true), (zero, true), (cut, false)] {
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der).into();
        let error = EcdsaKey::from_der(&der).expect_err("refused");
        assert_eq!(matches!(error, KeyError::Inconsistent(_)), inconsistent, "{error:?}");
    }
}
