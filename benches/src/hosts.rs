//! The queue on the executors of others, by their adapters.

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;
use warpcore_offload::host::{Local, glommio as glommio_host, tokio as tokio_host};
use warpcore_offload::{Call, Devices, Queue};

use crate::harness::{OURS, System};
use crate::queue::{Noop, batches, per_operation};

/// Each adapter with nothing to do, `depth` at a time.
pub(crate) fn adapters(depth: usize) -> Result<Vec<System<'static>>, String> {
    let text = |error: &dyn std::fmt::Display| format!("no host: {error}");
    let current = Builder::new_current_thread().enable_all().build().map_err(|e| text(&e))?;
    let many = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let many = many.map_err(|e| text(&e))?;
    let handle =
        tokio_host::Handle::start(1, depth, &Devices::none()).map_err(|error| text(&error))?;
    let glommio = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .make()
        .map_err(|error| text(&error))?;
    Ok(vec![
        System::new(format!("{OURS} on tokio's LocalSet"), move || tokio_local(&current, depth)),
        System::new(format!("{OURS}, tokio Handle"), move || {
            many.block_on(async {
                let started = Instant::now();
                for _ in 0..batches(depth) {
                    let ops = (0..depth).map(|_| handle.submit(Call { kernel: &Noop, item: 1 }));
                    black_box(join_all(ops).await);
                }
                per_operation(started.elapsed())
            })
        }),
        System::new(format!("{OURS} on glommio"), move || {
            glommio.run(async {
                let (local, driver) = Local::new(Queue::new(depth));
                let driven = glommio::spawn_local(glommio_host::drive(driver));
                let elapsed = on(local, depth).await;
                driven.await;
                per_operation(elapsed)
            })
        }),
    ])
}

fn tokio_local(runtime: &Runtime, depth: usize) -> f64 {
    let elapsed = Rc::new(Cell::new(Duration::ZERO));
    LocalSet::new().block_on(runtime, async {
        let (local, driver) = Local::new(Queue::new(depth));
        let driven = tokio::task::spawn_local(tokio_host::drive(driver));
        elapsed.set(on(local, depth).await);
        drop(driven.await);
    });
    per_operation(elapsed.get())
}

async fn on(local: Local, depth: usize) -> Duration {
    let mut ops = Vec::with_capacity(depth);
    let started = Instant::now();
    for _ in 0..batches(depth) {
        for _ in 0..depth {
            ops.push(local.submit(Call { kernel: &Noop, item: 1 }));
        }
        for op in ops.drain(..) {
            black_box(op.await.result).expect("it does not panic");
        }
    }
    started.elapsed()
}
