//! A waker may use the queue that wakes it: turn it, submit to it, flush it.

use std::cell::OnceCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use warpcore_offload::{Codec, Compress, Devices, Model, ModelKind, Op, Queue};

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
