//! What do the kernels take by themselves? Each fills all lanes: four RSA exponentiations, four key
//! exchanges, eight signatures of P-256.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use warpcore_offload::{EcdsaKey, PrivateKey, kernels};

/// A throw-away key of 2048 bits.
const KEY: &[u8] = include_bytes!("../../offload/src/backend/conformance_key.der");

fn bench(c: &mut Criterion) {
    let key = PrivateKey::from_der(&PrivatePkcs8KeyDer::from(KEY).into()).expect("a good key");
    let mut group = c.benchmark_group("kernels");
    group.throughput(Throughput::Elements(4));
    if let Some(mut power) = kernels::RsaPower::new(&Arc::new(key)) {
        group.bench_function("rsa-2048", |b| b.iter(|| power.run()));
    }
    if let Some(mut exchanges) = kernels::Exchanges::new() {
        let mut peer = [0; 32];
        peer[0] = 9;
        group.bench_function("x25519", |b| b.iter(|| exchanges.run(black_box(&[peer; 4]))));
    }
    group.throughput(Throughput::Elements(8));
    if let Some(mut signatures) = kernels::EcdsaSignatures::new() {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .expect("random numbers");
        let der = PrivatePkcs8KeyDer::from(der.as_ref()).into();
        let key = EcdsaKey::from_der(&der).expect("a good key");
        group.bench_function("p256", |b| b.iter(|| signatures.run(&key, black_box(&[[7; 32]; 8]))));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
