//! Kernels that others bring: they get what was submitted together, and nothing of it is lost.

use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use warpcore_offload::{Call, CustomKernel, Devices, Error, Kernel, Model, ModelKind, Queue};

/// Doubles numbers, four at a time; remembers how many came together.
struct Double {
    batches: Mutex<Vec<usize>>,
    patience: Duration,
}

impl Double {
    fn leaked(patience: Duration) -> &'static Self {
        Box::leak(Box::new(Self { batches: Mutex::default(), patience }))
    }
}

impl CustomKernel for Double {
    type Item = u64;

    fn name(&self) -> &'static str {
        "double"
    }

    fn width(&self) -> usize {
        4
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn run(&self, items: &mut [&mut u64]) {
        self.batches.lock().expect("not poisoned").push(items.len());
        items.iter_mut().for_each(|item| **item *= 2);
    }
}

/// Two kernels without fields: they may have one address.
struct Shout;
struct Whisper;

macro_rules! without_fields {
    ($type:ident, $case:ident) => {
        impl CustomKernel for $type {
            type Item = String;

            fn name(&self) -> &'static str {
                "voice"
            }

            fn run(&self, items: &mut [&mut String]) {
                assert_eq!(items.len(), 1, "its width is 1");
                assert!(items[0] != "panic", "as it was asked to");
                *items[0] = items[0].$case();
            }
        }
    };
}

without_fields!(Shout, to_uppercase);
without_fields!(Whisper, to_lowercase);

#[test]
fn items_come_back_worked_on_and_come_together() {
    let kernel = Double::leaked(Duration::ZERO);
    // With devices too: none of them is asked.
    let model = Model::new(ModelKind::Zip).start();
    for queue in
        [Queue::new(16), Queue::with_devices(16, &Devices::models([&model])).expect("a queue")]
    {
        kernel.batches.lock().expect("not poisoned").clear();
        let ops: Vec<_> = (0..10).map(|item| queue.submit(Call { kernel, item })).collect();
        for (item, op) in (0..10).zip(ops) {
            let called = queue.run(op);
            assert_eq!((called.result, called.item), (Ok(()), item * 2));
        }
        assert_eq!(*kernel.batches.lock().expect("not poisoned"), [4, 4, 2]);
        let stats = *queue.stats().kernel(Kernel::Custom);
        assert_eq!((stats.batches, stats.requests, stats.batch_len_max), (3, 10, 4));
        assert_eq!(queue.custom_stats(), [("double", stats)]);
    }
}

#[test]
fn a_patient_kernel_waits_for_company_on_a_busy_core_only() {
    let kernel = Double::leaked(Duration::from_millis(5));
    let queue = Queue::new(8);
    let started = Instant::now();
    let mut op = queue.submit(Call { kernel, item: 1 });
    assert_eq!(queue.turn(started, Duration::ZERO).units, 0);
    assert_eq!(queue.turn(started + Duration::from_millis(4), Duration::ZERO).units, 0);
    assert_eq!(queue.turn(started + Duration::from_millis(5), Duration::ZERO).units, 1);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(Pin::new(&mut op).poll(&mut cx), Poll::Ready(called) if called.item == 2));
    // Nothing else to do: at once.
    assert_eq!(queue.run(queue.submit(Call { kernel, item: 4 })).item, 8);
}

#[test]
fn a_panic_ends_its_own_operations_only() {
    let queue = Queue::new(8);
    let text = |text: &str| text.to_owned();
    let ops = ["One", "panic", "Two"].map(|item| {
        (
            queue.submit(Call { kernel: &Shout, item: text(item) }),
            queue.submit(Call { kernel: &Whisper, item: text(item) }),
        )
    });
    let [first, second, third] = ops.map(|(loud, quiet)| (queue.run(loud), queue.run(quiet)));
    assert_eq!((first.0.item, first.1.item), (text("ONE"), text("one")));
    assert_eq!(second.0.result, Err(Error::Panicked));
    assert_eq!((second.0.item, second.1.result), (text("panic"), Err(Error::Panicked)));
    assert_eq!((third.0.item, third.1.item), (text("TWO"), text("two")));
    assert_eq!(queue.custom_stats().len(), 2, "two kernels, whatever their addresses");
}

#[test]
fn what_is_dropped_is_not_worked_on_and_what_is_closed_comes_back() {
    struct Counted(&'static AtomicUsize);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    struct Never;
    impl CustomKernel for Never {
        type Item = Counted;

        fn name(&self) -> &'static str {
            "never"
        }

        fn run(&self, _: &mut [&mut Counted]) {
            unreachable!("nobody waits for it");
        }
    }
    static ALIVE: AtomicUsize = AtomicUsize::new(2);
    let queue = Queue::new(4);
    let dropped = queue.submit(Call { kernel: &Never, item: Counted(&ALIVE) });
    let kept = queue.submit(Call { kernel: &Never, item: Counted(&ALIVE) });
    drop(dropped);
    assert_eq!((ALIVE.load(Ordering::Relaxed), queue.stats().in_flight()), (1, 1));
    drop(queue);
    let called = Queue::new(1).run(kept);
    assert_eq!(called.result, Err(Error::Closed));
    drop(called.item);
    assert_eq!(ALIVE.load(Ordering::Relaxed), 0);
}

/// Does not know how many it wants.
struct Undecided(AtomicUsize);

impl CustomKernel for Undecided {
    type Item = u64;

    fn name(&self) -> &'static str {
        "undecided"
    }

    fn width(&self) -> usize {
        assert!(self.0.fetch_add(1, Ordering::Relaxed) >= 3, "not yet");
        1
    }

    fn run(&self, items: &mut [&mut u64]) {
        *items[0] += 1;
    }
}

#[test]
fn a_kernel_that_panics_when_it_is_asked_takes_no_slot_with_it() {
    static UNDECIDED: Undecided = Undecided(AtomicUsize::new(0));
    let queue = Queue::new(1);
    let submit = || queue.submit(Call { kernel: &UNDECIDED, item: 1 });
    for _ in 0..3 {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(submit)).is_err());
    }
    let called = queue.run(submit());
    assert_eq!((called.result, called.item), (Ok(()), 2));
    assert_eq!((queue.stats().in_flight(), queue.stats().submitted), (0, 1));
}
