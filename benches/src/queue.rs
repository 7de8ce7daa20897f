//! What does the queue itself cost?
//!
//! *Driver*: a request for a device is written as a descriptor, rung, and its completion taken. The
//! device is the model, stepped on the same thread outside of the timed spans.
//!
//! *No-op*: no work at all goes to software and back; beside it, the ways in which a server hands
//! work to another thread. One core is enough for ours; rivals use two.

use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use warpcore_offload::{Call, Codec, Compress, CustomKernel, Devices, Model, ModelKind, Op, Queue};

use crate::harness::{Bench, OURS, System, Unit};
#[cfg(feature = "rivals")]
use crate::{hosts, rivals};

const ROUNDS: usize = 30;
/// Operations in a sample.
const OPERATIONS: usize = 4096;

pub(crate) fn run(bench: &mut Bench) -> Result<(), String> {
    for depth in [1, 8, 64] {
        let mut driver = Driver::new(depth)?;
        let system = System::new(OURS, move || driver.sample());
        let case = format!("driver depth {depth}");
        bench.measure(&case, Unit::Ns, ROUNDS, vec![system]);
        bench.point("driver", &case, depth);
    }
    for depth in [1, 64] {
        let queue = Queue::new(depth);
        #[allow(unused_mut, reason = "with rivals it is")]
        let mut systems = vec![System::new(OURS, move || noop(&queue, depth))];
        #[cfg(feature = "rivals")]
        {
            systems.extend(hosts::adapters(depth)?);
            systems.extend(rivals::hand_over(depth)?);
        }
        let case = format!("noop depth {depth}");
        bench.measure(&case, Unit::Ns, ROUNDS, systems);
        bench.point("noop", &case, depth);
    }
    if cfg!(not(feature = "rivals")) {
        bench.note("without rivals: build with `--features rivals` to measure them too");
    }
    bench.note("driver: submit and reap, of a device modelled outside of the timed spans");
    Ok(())
}

/// Operations in a sample, in batches of `depth`.
pub(crate) fn batches(depth: usize) -> usize {
    OPERATIONS / depth
}

/// A sample's time for each operation.
pub(crate) fn per_operation(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e9 / OPERATIONS as f64
}

type Request = Compress<&'static [u8], Vec<u8>>;

/// A queue on the model.
struct Driver {
    model: Model,
    queue: Queue,
    depth: usize,
    ops: Vec<Op<Request>>,
    targets: Vec<Vec<u8>>,
}

impl Driver {
    fn new(depth: usize) -> Result<Self, String> {
        let model = Model::new(ModelKind::Zip);
        let queue = Queue::with_devices(depth, &Devices::models([&model]))
            .map_err(|error| format!("no queue: {error}"))?;
        let targets = vec![vec![0; 256]; depth];
        Ok(Self { model, queue, depth, ops: Vec::with_capacity(depth), targets })
    }

    fn sample(&mut self) -> f64 {
        let mut elapsed = Duration::ZERO;
        for _ in 0..batches(self.depth) {
            let started = Instant::now();
            for target in self.targets.drain(..) {
                let source = &b"a few bytes"[..];
                let request = Compress { codec: Codec::Zlib, level: 1, source, target };
                self.ops.push(self.queue.submit(request));
            }
            self.queue.turn(started, Duration::ZERO);
            elapsed += started.elapsed();
            while self.model.step() {}
            let started = Instant::now();
            self.queue.turn(started, Duration::ZERO);
            for mut op in self.ops.drain(..) {
                let done = poll(&mut op).expect("the device has finished");
                self.targets.push(done.target);
            }
            elapsed += started.elapsed();
        }
        per_operation(elapsed)
    }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// A kernel that does nothing.
pub(crate) struct Noop;

impl CustomKernel for Noop {
    type Item = u64;

    fn name(&self) -> &'static str {
        "noop"
    }

    fn width(&self) -> usize {
        64
    }

    fn run(&self, items: &mut [&mut u64]) {
        items.iter_mut().for_each(|item| **item = black_box(**item));
    }
}

/// Nothing, through software.
fn noop(queue: &Queue, depth: usize) -> f64 {
    let mut ops = Vec::with_capacity(depth);
    let started = Instant::now();
    for _ in 0..batches(depth) {
        for _ in 0..depth {
            ops.push(queue.submit(Call { kernel: &Noop, item: 1 }));
        }
        queue.run(async {
            for op in ops.drain(..) {
                black_box(op.await.result).expect("it does not panic");
            }
        });
    }
    per_operation(started.elapsed())
}
