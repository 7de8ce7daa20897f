//! Queues in a team: others do what waits, each request once, and nothing is let go of before they
//! are finished with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use warpcore_offload::{
    Call, Codec, Compress, CustomKernel, Decompress, Devices, Error, Kernel, Queue, Team,
};

/// Does what each item says.
struct Obey;

enum Order {
    /// Keep the core busy for a while, so that units of this kernel are worth waking somebody for.
    Burn,
    /// Wait until somebody else is there too: it ends on two threads at once, or never.
    Meet(Arc<Barrier>),
    /// Say that it has begun, wait to be let go, and say that it has ended.
    Block { begun: mpsc::SyncSender<()>, go: Arc<Barrier>, ended: Arc<AtomicBool> },
    /// Go wrong.
    Panic,
}

impl CustomKernel for Obey {
    type Item = Box<Order>;

    fn name(&self) -> &'static str {
        "obey"
    }

    fn run(&self, items: &mut [&mut Box<Order>]) {
        match &***items.first().expect("one at least") {
            Order::Burn => {
                let started = Instant::now();
                while started.elapsed() < Duration::from_millis(2) {
                    std::hint::spin_loop();
                }
            }
            Order::Meet(barrier) => drop(barrier.wait()),
            Order::Block { begun, go, ended } => {
                begun.send(()).expect("somebody waits for it");
                go.wait();
                ended.store(true, Ordering::Release);
            }
            Order::Panic => panic!("as it was told to"),
        }
    }
}

fn obey(order: Order) -> Call<Obey> {
    Call { kernel: &Obey, item: Box::new(order) }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// A queue with an engine thread, for which units of `Obey` are known to be worth it.
fn with_engine() -> (Team, Queue) {
    let team = Team::with_engine_threads(1);
    let queue = Queue::in_team(64, &Devices::none(), &team).expect("a queue");
    queue.run(queue.submit(obey(Order::Burn))).result.expect("it obeys");
    (team, queue)
}

fn helped(queue: &Queue, kernel: Kernel) -> u64 {
    queue.stats().kernel(kernel).helped
}

#[test]
fn an_engine_thread_works_beside_the_owner() {
    let (team, queue) = with_engine();
    assert_eq!(team.engine_threads(), 0, "one unit is the owner's own");
    let barrier = Arc::new(Barrier::new(2));
    let ops: Vec<_> =
        (0..2).map(|_| queue.submit(obey(Order::Meet(Arc::clone(&barrier))))).collect();
    for op in ops {
        queue.run(op).result.expect("they meet");
    }
    assert_eq!((team.engine_threads(), helped(&queue, Kernel::Custom)), (1, 1));
}

#[test]
fn an_idle_queue_works_for_a_busy_one() {
    let team = Team::new();
    let busy = Queue::in_team(64, &Devices::none(), &team).expect("a queue");
    let over = AtomicBool::new(false);
    let (idle, is_idle) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let queue = Queue::in_team(64, &Devices::none(), &team).expect("a queue");
            let mut units = 0;
            while !over.load(Ordering::Acquire) {
                units += queue.turn(Instant::now(), Duration::ZERO).units;
                queue.flush();
                let _ = idle.send(());
            }
            assert!(units > 0, "it has helped");
        });
        is_idle.recv().expect("it turns");
        let barrier = Arc::new(Barrier::new(2));
        let ops: Vec<_> =
            (0..2).map(|_| busy.submit(obey(Order::Meet(Arc::clone(&barrier))))).collect();
        for op in ops {
            busy.run(op).result.expect("they meet");
        }
        over.store(true, Ordering::Release);
    });
    assert_eq!(helped(&busy, Kernel::Custom), 1);
    assert_eq!(team.engine_threads(), 0);
}

/// A thread that sleeps in `run` of its own queue hears the bell of another's work.
#[test]
fn a_sleeping_queue_is_woken_to_help() {
    let team = Team::new();
    let busy = Queue::in_team(64, &Devices::none(), &team).expect("a queue");
    busy.run(busy.submit(obey(Order::Burn))).result.expect("it obeys");
    let (stop, stopped) = (Mutex::new(None::<Waker>), AtomicBool::new(false));
    let (ready, is_ready) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let queue = Queue::in_team(64, &Devices::none(), &team).expect("a queue");
            queue.run(std::future::poll_fn(|cx| {
                *stop.lock().expect("not poisoned") = Some(cx.waker().clone());
                let _ = ready.send(());
                if stopped.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
            }));
        });
        is_ready.recv().expect("it runs");
        // Until the other looks or sleeps, this one does both.
        while helped(&busy, Kernel::Custom) < 10 {
            let ops: Vec<_> = (0..2).map(|_| busy.submit(obey(Order::Burn))).collect();
            for op in ops {
                busy.run(op).result.expect("it obeys");
            }
        }
        stopped.store(true, Ordering::Release);
        stop.lock().expect("not poisoned").take().expect("it has polled").wake();
    });
}

#[test]
fn long_work_is_done_by_engine_threads_only() {
    let team = Team::new();
    let queue = Queue::in_team(64, &Devices::none(), &team).expect("a queue");
    let sources: Vec<Vec<u8>> = (0..40_u32)
        .map(|n| (0..65_536_u32).map(|at| ((at * at) >> (n % 13)).to_le_bytes()[0]).collect())
        .collect();
    let compress = |source: &Vec<u8>| Compress {
        codec: Codec::Zstd,
        level: 19,
        source: source.clone(),
        target: vec![0; Codec::Zstd.bound(source.len())],
    };
    let ops: Vec<_> = sources.iter().map(|source| queue.submit(compress(source))).collect();
    for (op, source) in ops.into_iter().zip(&sources) {
        let done = queue.run(op);
        let stored = done.target[..done.result.expect("the bound holds")].to_vec();
        let target = vec![0; source.len()];
        let request = Decompress { codec: Codec::Zstd, source: stored, target };
        assert_eq!(&queue.run(queue.submit(request)).target, source);
    }
    assert_eq!(helped(&queue, Kernel::Compress), 40);
    assert!(team.engine_threads() > 0);
    // Without a team the owner does it.
    let alone = Queue::new(4);
    alone.run(alone.submit(compress(&sources[0]))).result.expect("the bound holds");
}

/// The order to block, and what it tells and waits for.
struct Blocked {
    begun: mpsc::Receiver<()>,
    go: Arc<Barrier>,
    ended: Arc<AtomicBool>,
}

fn block() -> (Order, Blocked) {
    let (tell, begun) = mpsc::sync_channel(1);
    let (go, ended) = (Arc::new(Barrier::new(2)), Arc::default());
    let order = Order::Block { begun: tell, go: Arc::clone(&go), ended: Arc::clone(&ended) };
    (order, Blocked { begun, go, ended })
}

/// Has the engine begin on an order to block: the owner keeps the one that burns.
fn begin(queue: &Queue) -> (warpcore_offload::Op<Call<Obey>>, Blocked) {
    let (order, blocked) = block();
    let op = queue.submit(obey(order));
    let mut own = queue.submit(obey(Order::Burn));
    // The oldest is posted, and the other is this core's own.
    queue.turn(Instant::now(), Duration::ZERO);
    blocked.begun.recv().expect("the engine begins");
    assert!(poll(&mut own).is_ready());
    (op, blocked)
}

#[test]
fn a_queue_is_not_gone_before_its_helpers_are_finished() {
    let (_team, queue) = with_engine();
    let (mut op, blocked) = begin(&queue);
    let ended = Arc::clone(&blocked.ended);
    thread::scope(|scope| {
        scope.spawn(|| blocked.go.wait());
        drop(queue);
        assert!(ended.load(Ordering::Acquire), "the drop has waited");
    });
    let Poll::Ready(called) = poll(&mut op) else { panic!("it has ended") };
    assert!(matches!(called.result, Ok(()) | Err(Error::Closed)));
}

#[test]
fn an_operation_dropped_in_flight_keeps_its_item_until_the_helper_is_finished() {
    let (_team, queue) = with_engine();
    let (op, blocked) = begin(&queue);
    drop(op);
    assert_eq!((queue.orphans(), Arc::strong_count(&blocked.ended)), (1, 2));
    blocked.go.wait();
    while queue.orphans() > 0 {
        queue.turn(Instant::now(), Duration::ZERO);
    }
    assert_eq!(Arc::strong_count(&blocked.ended), 1);
    assert!(blocked.ended.load(Ordering::Acquire));
}

#[test]
fn a_panic_on_another_thread_is_an_error_here() {
    let (team, queue) = with_engine();
    let ops: Vec<_> = (0..10).map(|_| queue.submit(obey(Order::Panic))).collect();
    for op in ops {
        assert_eq!(queue.run(op).result, Err(Error::Panicked));
    }
    // Nobody has come to harm.
    assert!(team.engine_threads() <= 1);
    queue.run(queue.submit(obey(Order::Burn))).result.expect("it obeys");
    let barrier = Arc::new(Barrier::new(2));
    let ops: Vec<_> =
        (0..2).map(|_| queue.submit(obey(Order::Meet(Arc::clone(&barrier))))).collect();
    for op in ops {
        queue.run(op).result.expect("they meet");
    }
}

/// Many small requests of all lengths on queues that come and go, all helped by all.
#[test]
fn queues_come_and_go() {
    let team = Team::with_engine_threads(2);
    thread::scope(|scope| {
        for thread in 0..3_u8 {
            let team = &team;
            scope.spawn(move || {
                for round in 0..8 {
                    let queue = Queue::in_team(16, &Devices::none(), team).expect("a queue");
                    let sources: Vec<Vec<u8>> =
                        (0..16).map(|n| vec![thread; 3000 * (round + n)]).collect();
                    let ops: Vec<_> = sources
                        .iter()
                        .map(|source| {
                            queue.submit(Compress {
                                codec: Codec::Zstd,
                                level: 3,
                                source: source.clone(),
                                target: vec![0; Codec::Zstd.bound(source.len())],
                            })
                        })
                        .collect();
                    // The last ones are left behind in flight.
                    for (op, source) in ops.into_iter().zip(&sources).take(10 + round % 4) {
                        let done = queue.run(op);
                        let stored = &done.target[..done.result.expect("the bound holds")];
                        let request = Decompress {
                            codec: Codec::Zstd,
                            source: stored.to_vec(),
                            target: vec![0; source.len()],
                        };
                        assert_eq!(&queue.run(queue.submit(request)).target, source);
                    }
                }
            });
        }
    });
}
