//! Clients that say anything: names choose sites, records and messages are refused or answered, and
//! nothing panics.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use warpcore_tls::fuzzing::Handshake;
use warpcore_tls::{CertificateConfig, Config};

/// Two sites; ECDSA, which is fast.
static SITES: LazyLock<Handshake> = LazyLock::new(|| {
    let place = tempfile::tempdir().expect("a temporary directory");
    let [chain, key] = ["chain", "key"].map(|name| place.path().join(name));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("signs itself");
    std::fs::write(&chain, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let address = || "127.0.0.1:1".parse().expect("an address");
    let mut config = Config::single(address(), CertificateConfig { chain, key }, &address());
    let sites = &mut config.listeners[0].sites;
    let mut named = sites[0].clone();
    named.names = vec!["*.example".to_owned(), "localhost".to_owned()];
    named.alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
    sites.push(named);
    Handshake::new(&config).expect("a good configuration")
});

fuzz_target!(|bytes: &[u8]| SITES.feed(bytes));
