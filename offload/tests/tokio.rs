//! The same requests on each kind of tokio host.
#![cfg(feature = "tokio")]

#[path = "common/hosts.rs"]
mod hosts;

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};
use warpcore_offload::host::Local;
use warpcore_offload::host::tokio::{Handle, drive};
use warpcore_offload::{
    Codec, Compress, Devices, Kernel, KeyExchange, Model, ModelKind, Queue, Scheme, Sign, Source,
    Stats, together,
};

use hosts::{TASKS, key};

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
    // Where nothing is computed in lanes, nothing waits for company.
    assert!(
        together(Kernel::RsaPrivate).is_none()
            || stats.kernel(Kernel::RsaPrivate).batch_len_max > 1,
        "they gather"
    );
}

#[test]
fn on_a_local_set_with_devices() {
    let models = [ModelKind::Zip, ModelKind::Hpre].map(|kind| Model::new(kind).start());
    let stats = on_one_thread(&Devices::models(&models));
    assert_eq!((stats.completed, stats.failed), (u64::from(TASKS) * 4, 0));
    for kernel in [Kernel::Compress, Kernel::Decompress, Kernel::RsaPrivate] {
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

/// A source that must not be dropped.
struct Bomb(Vec<u8>);

// SAFETY: the bytes are a Vec's.
unsafe impl Source for Bomb {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.0[..])
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a caller's buffer panics");
    }
}

/// Or who submits would wait for ever.
#[test]
fn an_engine_that_has_panicked_takes_nothing() {
    let model = Model::new(ModelKind::Zip);
    let devices = Devices::models([&model]);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended = runtime.block_on(async {
        let handle = Handle::start(1, 8, &devices).expect("an engine");
        let codec = Codec::Gzip;
        let source = Bomb(vec![1; 100]);
        let request = Compress { codec, level: 1, source, target: vec![0; codec.bound(100)] };
        let mut op = Box::pin(handle.submit(request));
        assert!(poll_fn(|cx| Poll::Ready(op.as_mut().poll(cx))).await.is_pending());
        drop(op);
        let mut base = [0; 32];
        base[0] = 9;
        // Once this has come back, the engine has the other on the device, for nobody.
        handle.submit(KeyExchange::new(base)).await.expect("an engine").expect("a good key");
        while model.completed() == 0 {
            model.step();
        }
        let until_gone = async { while handle.submit(KeyExchange::new(base)).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(60), until_gone).await
    });
    assert!(ended.is_ok(), "the engine takes requests and does not answer");
}
