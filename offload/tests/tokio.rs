//! The same requests on each kind of tokio host.
#![cfg(feature = "tokio")]

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};
use warpcore_offload::host::Local;
use warpcore_offload::host::tokio::{Handle, drive};
use warpcore_offload::{
    Codec, Compress, Decompress, Devices, Kernel, KeyExchange, Model, ModelKind, PrivateKey, Queue,
    Scheme, Sign, Stats,
};

fn key() -> Arc<PrivateKey> {
    let der = include_bytes!("../src/backend/conformance_key.der").as_slice();
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der).into();
    Arc::new(PrivateKey::from_der(&der).expect("a good key"))
}

/// What a task of a server asks for: `$then` is what its host's answers need.
macro_rules! serve {
    ($host:expr, $key:expr, $number:expr $(, $then:ident)?) => {{
        let (host, key, number): (_, Arc<PrivateKey>, u8) = ($host, $key, $number);
        let plain = vec![number; 3000 + usize::from(number)];
        let codec = Codec::Gzip;
        let target = vec![0; codec.bound(plain.len())];
        let request = Compress { codec, level: 1, source: plain.clone(), target };
        let done = host.submit(request).await $(.$then("an engine"))?;
        let mut source = done.target;
        source.truncate(done.result.expect("the bound holds"));
        let request = Decompress { codec, source, target: vec![0; plain.len()] };
        let done = host.submit(request).await $(.$then("an engine"))?;
        assert_eq!((done.result, done.target), (Ok(plain.len()), plain));
        let request = Sign::new(Arc::clone(&key), Scheme::Pkcs1Sha256, vec![number]);
        let signed = host.submit(request).await $(.$then("an engine"))?;
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public().der())
            .verify(&[number], signed.result.expect("signs").as_ref())
            .expect("verifies");
        // With the base point as the peer's key, what is shared is our public key.
        let mut base = [0; 32];
        base[0] = 9;
        let exchanged = host.submit(KeyExchange::new(base)).await $(.$then("an engine"))?;
        let exchanged = exchanged.expect("a good key");
        assert_eq!(exchanged.shared.as_ref(), exchanged.public);
    }};
}

const TASKS: u8 = 40;

/// Many tasks and few slots on one thread.
fn on_one_thread(devices: &Devices) -> Stats {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (local, driver) = Local::new(Queue::with_devices(8, devices).expect("a queue"));
    LocalSet::new().block_on(&runtime, async move {
        let driven = spawn_local(drive(driver));
        let key = key();
        let tasks: Vec<_> = (0..TASKS)
            .map(|number| {
                let (local, key) = (local.clone(), Arc::clone(&key));
                spawn_local(async move { serve!(local, key, number) })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        let stats = local.queue().stats();
        assert!(!driven.is_finished(), "somebody has the queue");
        // One that is dropped in flight does not keep the driver.
        drop(local.submit(Sign::new(key, Scheme::PssSha256, vec![1])));
        drop(local);
        driven.await.expect("no panic").expect("ends in order");
        stats
    })
}

#[test]
fn on_a_local_set() {
    let stats = on_one_thread(&Devices::none());
    assert_eq!((stats.completed, stats.failed), (u64::from(TASKS) * 4, 0));
    assert!(stats.kernel(Kernel::Sign).batch_len_max > 1, "they gather");
}

#[test]
fn on_a_local_set_with_devices() {
    let models = [ModelKind::Zip, ModelKind::Hpre].map(|kind| Model::new(kind).start());
    let stats = on_one_thread(&Devices::models(&models));
    assert_eq!((stats.completed, stats.failed), (u64::from(TASKS) * 4, 0));
    for kernel in [Kernel::Compress, Kernel::Decompress, Kernel::Sign] {
        assert_eq!(stats.kernel(kernel).on_device, u64::from(TASKS), "{}", kernel.name());
    }
}

#[test]
fn from_many_threads() {
    let runtime = Builder::new_multi_thread().worker_threads(3).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let handle = Handle::start(2, 8, &Devices::none()).expect("engines");
        let key = key();
        let tasks: Vec<_> = (0..TASKS)
            .map(|number| {
                let (handle, key) = (handle.clone(), Arc::clone(&key));
                tokio::spawn(async move { serve!(handle, key, number, expect) })
            })
            .collect();
        // Some do not wait for the end.
        for number in 0..TASKS {
            let request = Sign::new(Arc::clone(&key), Scheme::PssSha256, vec![number]);
            let mut op = Box::pin(handle.submit(request));
            poll_fn(|cx| Poll::Ready(op.as_mut().poll(cx).is_ready())).await;
        }
        for task in tasks {
            task.await.expect("no panic");
        }
    });
}
