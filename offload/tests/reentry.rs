//! A waker may use the queue that wakes it: turn it, submit to it, flush it. It may panic, as may a buffer that is
//! dropped.

use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use warpcore_offload::{Codec, Compress, Devices, Model, ModelKind, Op, Queue, Source};

thread_local! {
    static QUEUE: OnceCell<Queue> = const { OnceCell::new() };
}

/// Turns the queue of its thread.
struct Turner;

impl Wake for Turner {
    fn wake(self: Arc<Self>) {
        with_queue(|queue| {
            queue.flush();
            queue.turn(Instant::now(), Duration::ZERO);
            drop(queue.submit(compress(0)));
        });
    }
}

fn with_queue<T>(f: impl FnOnce(&Queue) -> T) -> T {
    QUEUE.with(|queue| f(queue.get().expect("set by the test")))
}

fn compress(byte: u8) -> Compress<Vec<u8>, Vec<u8>> {
    Compress { codec: Codec::Zlib, level: 1, source: vec![byte; 500], target: vec![0; 700] }
}

fn turn_from_wakers(queue: Queue) {
    QUEUE.with(|cell| cell.set(queue).expect("the first of this thread"));
    let waker = Waker::from(Arc::new(Turner));
    let mut context = Context::from_waker(&waker);
    let mut ops: Vec<Op<_>> =
        (1..=20).map(|byte| with_queue(|queue| queue.submit(compress(byte)))).collect();
    let mut done = Vec::new();
    while done.len() < 20 {
        ops.retain_mut(|op| match Pin::new(op).poll(&mut context) {
            Poll::Ready(output) => {
                output.result.expect("compresses");
                done.push(output.source[0]);
                false
            }
            Poll::Pending => true,
        });
        with_queue(|queue| queue.turn(Instant::now(), Duration::from_millis(1)));
    }
    done.sort_unstable();
    assert_eq!(done, (1..=20).collect::<Vec<u8>>());
}

#[test]
fn of_software() {
    turn_from_wakers(Queue::new(8));
}

#[test]
fn of_a_device() {
    let model = Model::new(ModelKind::Zip).start();
    turn_from_wakers(Queue::with_devices(8, &Devices::models([&model])).expect("a queue"));
}

/// Panics as it is dropped.
struct Bomb([u8; 500]);

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("of a buffer");
    }
}

// SAFETY: the bytes are its own, which it is boxed for.
unsafe impl Source for Box<Bomb> {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.0[..])
    }
}

/// Others end, and no slot is lost.
fn drop_bombs(queue: &Queue) {
    let bombs: Vec<_> = (0..2)
        .map(|_| {
            let source = Box::new(Bomb([7; 500]));
            queue.submit(Compress { codec: Codec::Zlib, level: 1, source, target: vec![0; 700] })
        })
        .collect();
    let mut op = queue.submit(compress(1));
    drop(bombs);
    let mut context = Context::from_waker(Waker::noop());
    let mut panics = 0;
    let output = loop {
        let turn = || queue.turn(Instant::now(), Duration::from_millis(1));
        panics += usize::from(catch_unwind(AssertUnwindSafe(turn)).is_err());
        if let Poll::Ready(output) = Pin::new(&mut op).poll(&mut context) {
            break output;
        }
    };
    output.result.expect("compresses");
    assert!(panics > 0 && queue.stats().in_flight() == 0, "{panics} panics");
    let ops: Vec<_> = (0..4).map(|byte| queue.try_submit(compress(byte))).collect();
    for op in ops {
        let Ok(op) = op else { panic!("a slot is lost") };
        queue.run(op).result.expect("compresses");
    }
}

#[test]
fn a_buffer_that_panics_takes_nothing_with_it() {
    drop_bombs(&Queue::new(4));
    let model = Model::new(ModelKind::Zip);
    let queue = Queue::with_devices(4, &Devices::models([&model])).expect("a queue");
    // All of it is finished when the queue looks.
    let model = model.start();
    drop_bombs(&queue);
    drop(model);
}

struct Panicker;

impl Wake for Panicker {
    fn wake(self: Arc<Self>) {
        panic!("of a waker");
    }
}

#[test]
fn a_waker_that_panics_takes_no_slot_with_it() {
    let queue = Queue::new(1);
    let mut context = Context::from_waker(Waker::noop());
    let mut first = queue.submit(compress(1));
    let mut second = queue.submit(compress(2));
    let waker = Waker::from(Arc::new(Panicker));
    assert!(Pin::new(&mut second).poll(&mut Context::from_waker(&waker)).is_pending());
    queue.turn(Instant::now(), Duration::ZERO);
    // The slot of the first becomes free, of which the second hears.
    let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut first).poll(&mut context)));
    assert!(polled.is_err(), "the waker has not run");
    assert!(Pin::new(&mut second).poll(&mut context).is_pending(), "in the slot by now");
    drop(first);
    queue.turn(Instant::now(), Duration::ZERO);
    let Poll::Ready(done) = Pin::new(&mut second).poll(&mut context) else {
        panic!("its slot was another's")
    };
    assert_eq!((done.result.is_ok(), done.source[0]), (true, 2));
}
