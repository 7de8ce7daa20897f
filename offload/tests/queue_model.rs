//! The queue against a small model: random submissions, turns, awaits and drops.
//!
//! The model knows only which requests were accepted and that each of them ends exactly once, in
//! any order, with its own buffers. Buffers count themselves, so that one that leaks or is freed
//! twice is seen.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use warpcore_offload::{Codec, Compress, Done, Error, Op, Park, Queue, Source, Target};

/// A buffer that is counted while it lives.
struct Counted {
    bytes: Vec<u8>,
    alive: Arc<AtomicIsize>,
}

impl Counted {
    fn new(bytes: Vec<u8>, alive: &Arc<AtomicIsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self { bytes, alive: Arc::clone(alive) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

// SAFETY: the bytes are a Vec's.
unsafe impl Source for Counted {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.bytes[..])
    }
}

// SAFETY: the bytes are a Vec's.
unsafe impl Target for Counted {
    fn parts(&mut self) -> impl Iterator<Item = &mut [u8]> {
        std::iter::once(&mut self.bytes[..])
    }

    fn lost() -> Self {
        Self::new(Vec::new(), &Arc::default())
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Poll the operation at this place, wherever it stands.
    Poll(prop::sample::Index),
    Drop(prop::sample::Index),
    Submit,
    TrySubmit,
    Turn,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => any::<prop::sample::Index>().prop_map(Step::Poll),
        1 => any::<prop::sample::Index>().prop_map(Step::Drop),
        2 => Just(Step::Submit),
        1 => Just(Step::TrySubmit),
        2 => Just(Step::Turn),
    ];
    prop::collection::vec(step, 0..120)
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

type Operation = Op<Compress<Counted, Counted>>;

fn request(number: u64, alive: &Arc<AtomicIsize>) -> Compress<Counted, Counted> {
    let source = number.to_le_bytes().to_vec();
    Compress {
        codec: Codec::Store,
        level: 0,
        target: Counted::new(vec![0; source.len()], alive),
        source: Counted::new(source, alive),
    }
}

fn check(number: u64, done: &Done<Counted, Counted>) {
    assert_eq!(done.result, Ok(8));
    assert_eq!(done.source.bytes, number.to_le_bytes());
    assert_eq!(done.target.bytes, number.to_le_bytes());
}

fn poll(op: &mut Operation, waker: &Waker) -> Poll<Done<Counted, Counted>> {
    Pin::new(op).poll(&mut Context::from_waker(waker))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256 * seeds(), ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_once_with_its_buffers(depth in 1..6_usize, steps in steps()) {
        let alive = Arc::new(AtomicIsize::new(0));
        let queue = Queue::new(depth);
        let mut ops: Vec<(u64, Operation)> = Vec::new();
        let mut number = 0;
        for step in steps {
            number += 1;
            match step {
                Step::Submit => ops.push((number, queue.submit(request(number, &alive)))),
                Step::TrySubmit => match queue.try_submit(request(number, &alive)) {
                    Ok(op) => ops.push((number, op)),
                    Err(full) => prop_assert_eq!(&full.0.source.bytes, &number.to_le_bytes()),
                },
                Step::Turn => { queue.turn(Instant::now(), Duration::ZERO); }
                Step::Drop(at) if !ops.is_empty() => drop(ops.swap_remove(at.index(ops.len()))),
                Step::Poll(at) if !ops.is_empty() => {
                    let at = at.index(ops.len());
                    if let Poll::Ready(done) = poll(&mut ops[at].1, Waker::noop()) {
                        check(ops[at].0, &done);
                        drop(ops.swap_remove(at));
                    }
                }
                Step::Drop(_) | Step::Poll(_) => {}
            }
            prop_assert!(queue.stats().in_flight() <= depth as u64);
        }
        // Whatever is left ends, those in line included.
        for _ in 0..2 * (ops.len() + 1) {
            ops.retain_mut(|(number, op)| match poll(op, Waker::noop()) {
                Poll::Ready(done) => { check(*number, &done); false }
                Poll::Pending => true,
            });
            while queue.turn(Instant::now(), Duration::MAX).busy {}
        }
        prop_assert!(ops.is_empty(), "{} operations never ended", ops.len());
        prop_assert_eq!(alive.load(Ordering::Relaxed), 0);
        prop_assert_eq!(queue.prepare_park(Instant::now()), Park::Sleep { deadline: None });
        prop_assert_eq!(queue.stats().in_flight(), 0);
    }
}

/// Cases are multiplied by `WARPCORE_SEEDS` in long campaigns.
fn seeds() -> u32 {
    std::env::var("WARPCORE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1)
}

#[test]
fn a_full_queue_hands_the_buffers_back() {
    let alive = Arc::default();
    let queue = Queue::new(1);
    let first = queue.try_submit(request(1, &alive)).expect("one slot");
    let full = queue.try_submit(request(2, &alive)).expect_err("no second slot");
    assert_eq!(full.0.source.bytes, 2_u64.to_le_bytes());
    assert_eq!(queue.stats().full, 1);
    check(1, &queue.run(first));
}

#[test]
fn those_who_wait_are_served_in_order_and_not_overtaken() {
    let alive = Arc::default();
    let queue = Queue::new(1);
    let first = queue.submit(request(1, &alive));
    let mut line: VecDeque<_> = (2..5).map(|n| (n, queue.submit(request(n, &alive)))).collect();
    let woken: Vec<_> = line.iter().map(|_| Arc::new(Woken::default())).collect();
    for ((_, op), woken) in line.iter_mut().zip(&woken) {
        assert!(poll(op, &Waker::from(Arc::clone(woken))).is_pending());
    }
    let counts = || woken.iter().map(|woken| woken.0.load(Ordering::Relaxed)).collect::<Vec<_>>();
    check(1, &queue.run(first));
    assert_eq!(counts(), [1, 0, 0], "only the first in line is woken");
    assert!(queue.try_submit(request(9, &alive)).is_err(), "the slot is spoken for");
    // The first in line gives up: its slot goes to the second.
    drop(line.pop_front());
    assert_eq!(counts(), [1, 1, 0]);
    for (number, op) in line {
        check(number, &queue.run(op));
    }
}

/// It has one slot kept, and no more.
#[test]
fn who_waits_and_does_not_come_holds_up_nobody() {
    let alive = Arc::default();
    let queue = Queue::new(2);
    let [first, second] = [1, 2].map(|n| queue.submit(request(n, &alive)));
    let [mut held, mut next] = [3, 4].map(|n| queue.submit(request(n, &alive)));
    assert!(poll(&mut held, Waker::noop()).is_pending());
    let woken = Arc::new(Woken::default());
    assert!(poll(&mut next, &Waker::from(Arc::clone(&woken))).is_pending());
    check(1, &queue.run(first));
    assert_eq!(woken.0.load(Ordering::Relaxed), 0, "it is not its turn");
    check(2, &queue.run(second));
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    check(4, &queue.run(next));
    let Ok(other) = queue.try_submit(request(5, &alive)) else { panic!("two are free") };
    assert!(queue.try_submit(request(6, &alive)).is_err(), "one is kept");
    check(5, &queue.run(other));
    check(3, &queue.run(held));
}

#[test]
fn drop_in_flight_frees_the_buffers_when_the_work_is_over() {
    let alive = Arc::default();
    let queue = Queue::new(2);
    drop(queue.submit(request(1, &alive)));
    assert_eq!(alive.load(Ordering::Relaxed), 2, "still in the slot");
    assert_eq!(queue.stats().dropped_in_flight, 1);
    queue.turn(Instant::now(), Duration::ZERO);
    assert_eq!(alive.load(Ordering::Relaxed), 0);

    // Done and never asked for.
    let op = queue.submit(request(2, &alive));
    queue.turn(Instant::now(), Duration::ZERO);
    drop(op);
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

#[test]
fn a_dropped_queue_ends_its_operations() {
    let alive = Arc::default();
    let queue = Queue::new(1);
    let mut in_flight = queue.submit(request(1, &alive));
    let mut in_line = queue.submit(request(2, &alive));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    assert!(poll(&mut in_flight, &waker).is_pending());
    assert!(poll(&mut in_line, &waker).is_pending());
    drop(queue);
    assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    for op in [&mut in_flight, &mut in_line] {
        let Poll::Ready(done) = poll(op, &waker) else { panic!("never ends") };
        assert_eq!(done.result, Err(Error::Closed));
        assert_eq!(done.source.bytes.len(), 8, "buffers come back");
    }
}

/// A buffer whose drop submits again: the queue must not be borrowed when foreign code runs.
struct Resubmits(Vec<u8>, std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Drop for Resubmits {
    fn drop(&mut self) {
        if let Some(action) = self.1.lock().expect("not poisoned").take() {
            action();
        }
    }
}

// SAFETY: the bytes are a Vec's.
unsafe impl Source for Resubmits {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.0[..])
    }
}

thread_local! {
    static QUEUE: Queue = Queue::new(2);
}

#[test]
fn foreign_code_may_use_the_queue_it_is_called_from() {
    fn submit(action: Option<Box<dyn FnOnce() + Send>>) {
        let source = Resubmits(vec![1], std::sync::Mutex::new(action));
        let request = Compress { codec: Codec::Store, level: 0, source, target: vec![0; 1] };
        QUEUE.with(|queue| drop(queue.submit(request)));
    }
    submit(Some(Box::new(|| submit(None))));
    QUEUE.with(|queue| {
        while queue.turn(Instant::now(), Duration::ZERO).busy {}
        assert_eq!((queue.stats().submitted, queue.stats().in_flight()), (2, 0));
    });
}
