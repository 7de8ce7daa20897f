//! The same requests on glommio.
#![cfg(feature = "glommio")]

#[path = "common/hosts.rs"]
mod hosts;

use std::sync::Arc;

use glommio::{LocalExecutorBuilder, Placement, spawn_local};
use warpcore_need::{Need, need};
use warpcore_offload::host::Local;
use warpcore_offload::host::glommio::drive;
use warpcore_offload::{Devices, Kernel, Model, ModelKind, Queue, Stats, together};

use hosts::{TASKS, key};

/// Many tasks and few slots on one executor.
fn on_an_executor(devices: &Devices) -> Stats {
    let devices = devices.clone();
    let builder = LocalExecutorBuilder::new(Placement::Unbound);
    let executor = builder.spawn(|| async move {
        let (local, driver) = Local::new(Queue::with_devices(8, &devices).expect("a queue"));
        let driven = spawn_local(drive(driver));
        let key = key();
        let tasks: Vec<_> = (0..TASKS)
            .map(|number| {
                let (local, key) = (local.clone(), Arc::clone(&key));
                spawn_local(async move { serve!(local, key, number) })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        let stats = local.queue().stats();
        drop(local);
        driven.await;
        stats
    });
    executor.expect("an executor").join().expect("no panic")
}

#[test]
fn on_software() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let stats = on_an_executor(&Devices::none());
    assert_eq!((stats.completed, stats.failed), (u64::from(TASKS) * 4, 0));
    // Where nothing is computed in lanes, nothing waits for company.
    assert!(
        together(Kernel::RsaPrivate).is_none()
            || stats.kernel(Kernel::RsaPrivate).batch_len_max > 1,
        "they gather"
    );
}

#[test]
fn on_devices() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let models = [ModelKind::Zip, ModelKind::Hpre].map(|kind| Model::new(kind).start());
    let stats = on_an_executor(&Devices::models(&models));
    assert_eq!((stats.completed, stats.failed), (u64::from(TASKS) * 4, 0));
    for kernel in [Kernel::Compress, Kernel::Decompress, Kernel::RsaPrivate] {
        assert_eq!(stats.kernel(kernel).on_device, u64::from(TASKS), "{}", kernel.name());
    }
}
