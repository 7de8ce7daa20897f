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
    Call, Codec, Compress, CustomKernel, Decompress, Devices, Error, Feed, Kernel, Park,
    PrivateKey, Queue, Scheme, Sign, Stream, Team,
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

/// Has two units to be done, again and again until another does one: whoever falls asleep as they are
/// put up is not woken, and the owner does both.
fn help_comes(queue: &Queue) {
    let before = helped(queue, Kernel::Custom);
    while helped(queue, Kernel::Custom) == before {
        let ops: Vec<_> = (0..2).map(|_| queue.submit(obey(Order::Burn))).collect();
        for op in ops {
            queue.run(op).result.expect("it obeys");
        }
    }
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
        for _ in 0..10 {
            help_comes(&busy);
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
    // Pieces of streams are no exception.
    let stream = Stream::compress(Codec::Zstd, 19).expect("a stream");
    let (source, target) = (sources[0].clone(), vec![0; 70_000]);
    let fed = queue.run(queue.submit(Feed { stream, source, target, end: true }));
    assert!(fed.result.expect("it fits").ended);
    assert_eq!(helped(&queue, Kernel::Compress), 41);
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
    help_comes(&queue);
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

/// Whether the queue's bell has been rung.
fn readable(queue: &Queue) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let file = queue.fd().expect("a team's queue has one");
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut files = [PollFd::from_borrowed_fd(file, PollFlags::IN)];
    poll(&mut files, Some(&now)).expect("polls") > 0
}

/// The story: the bell was only read when the flag told of a ring, which asking twice had hidden. It
/// stayed rung, and every sleep of the core ended at once.
#[test]
fn a_bell_that_was_heard_is_silent() {
    let team = Team::new();
    let [a, b] = [(); 2].map(|()| Queue::in_team(64, &Devices::none(), &team).expect("a queue"));
    a.run(a.submit(obey(Order::Burn))).result.expect("it obeys");
    b.turn(Instant::now(), Duration::ZERO);
    assert!(matches!(b.prepare_park(Instant::now()), Park::Sleep { .. }));
    let mut ops: Vec<_> = (0..4).map(|_| a.submit(obey(Order::Burn))).collect();
    a.turn(Instant::now(), Duration::ZERO);
    assert!(readable(&b), "it is asked to help");
    b.prepare_park(Instant::now());
    while !ops.is_empty() {
        a.turn(Instant::now(), Duration::ZERO);
        ops.retain_mut(|op| poll(op).is_pending());
    }
    for _ in 0..2 {
        b.turn(Instant::now(), Duration::ZERO);
        assert!(matches!(b.prepare_park(Instant::now()), Park::Sleep { .. }));
    }
    assert!(!readable(&b));
}

/// The story: signatures of another queue stayed in hand between turns, and two queues of one thread
/// waited for each other when the first was dropped.
#[test]
fn nobody_elses_work_is_kept_between_turns() {
    let der = include_bytes!("../src/backend/conformance_key.der").as_slice();
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der).into();
    let key = Arc::new(PrivateKey::from_der(&der).expect("a good key"));
    let team = Team::new();
    let [a, b] = [(); 2].map(|()| Queue::in_team(64, &Devices::none(), &team).expect("a queue"));
    // It looks for work.
    b.turn(Instant::now(), Duration::ZERO);
    assert!(!b.flush());
    let sign = |_| a.submit(Sign::new(Arc::clone(&key), Scheme::PssSha256, vec![1; 32]));
    let ops: Vec<_> = (0..16).map(sign).collect();
    a.turn(Instant::now(), Duration::ZERO);
    b.turn(Instant::now(), Duration::ZERO);
    drop((ops, a, b));
}

/// The story: what was posted for a helper that then had something else to do was never taken back while
/// newer work came in.
#[test]
fn what_was_posted_is_not_forgotten() {
    let team = Team::new();
    let [a, b] = [(); 2].map(|()| Queue::in_team(64, &Devices::none(), &team).expect("a queue"));
    assert!(!b.flush(), "it looks for work, and does not come back");
    a.run(a.submit(obey(Order::Burn))).result.expect("it obeys");
    let mut flight: Vec<(usize, _)> = Vec::new();
    let (mut ended, mut started) = (0, 0);
    while ended < 100 {
        while flight.len() < 8 {
            flight.push((started, a.submit(obey(Order::Burn))));
            started += 1;
        }
        a.turn(Instant::now(), Duration::ZERO);
        flight.retain_mut(|(_, op)| poll(op).is_pending());
        ended = started - flight.len();
        let oldest = flight.iter().map(|(number, _)| *number).min().unwrap_or(started);
        assert!(ended - oldest.min(ended) < 40, "{oldest} waits, {ended} have ended");
    }
}

/// The story: engine threads stayed on the one core of the shard that had started them.
#[test]
fn engine_threads_are_not_pinned_with_who_starts_them() {
    let free = rustix::thread::sched_getaffinity(None).expect("a mask");
    let Some(first) = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| free.is_set(*cpu)) else {
        panic!("no core to run on");
    };
    let team = Team::new();
    let place = thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            let mut one = rustix::thread::CpuSet::new();
            one.set(first);
            rustix::thread::sched_setaffinity(None, &one).expect("a core of ours");
            let queue = Queue::in_team(64, &Devices::none(), &team).expect("a queue");
            let place = Arc::new(Mutex::new(None));
            let source = vec![7; 65_536];
            let target = vec![0; Codec::Zstd.bound(source.len())];
            let request = Compress { codec: Codec::Zstd, level: 19, source, target };
            queue.run(queue.submit(request)).result.expect("the bound holds");
            for task in std::fs::read_dir("/proc/self/task").expect("Linux has it") {
                let path = task.expect("read").path();
                let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
                if name.starts_with("engine ") {
                    let id = path.file_name().and_then(|id| id.to_str()?.parse().ok());
                    let id = rustix::thread::Pid::from_raw(id.expect("a number"));
                    let mask = rustix::thread::sched_getaffinity(id);
                    *place.lock().expect("not poisoned") = mask.ok().map(|mask| mask.count());
                }
            }
            place
        });
        pinned.join().expect("no panic")
    });
    let place = place.lock().expect("not poisoned").take();
    // Another test's engine may have ended meanwhile; ours lasts as long as the team.
    assert_eq!(place, Some(free.count()));
}

/// Panics when it is woken.
struct Panics;

impl std::task::Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("as it was told to");
    }
}

/// The story: a waker that panicked in the queue's drop left a helper at work on memory that was freed.
#[test]
fn a_waker_that_panics_ends_nothing_else() {
    let (_team, queue) = with_engine();
    let (mut op, blocked) = begin(&queue);
    let mut others: Vec<_> = (0..3).map(|_| queue.submit(obey(Order::Burn))).collect();
    let waker = Waker::from(Arc::new(Panics));
    for op in &mut others {
        assert!(Pin::new(op).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    let ended = Arc::clone(&blocked.ended);
    let dropped = thread::scope(|scope| {
        scope.spawn(|| blocked.go.wait());
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(queue)))
    });
    assert!(dropped.is_err(), "it is passed on");
    assert!(ended.load(Ordering::Acquire), "after the helper was finished");
    assert!(poll(&mut op).is_ready() && others.iter_mut().all(|op| poll(op).is_ready()));
}

/// As a plain future a driver has nobody who hears the bell: it looks again and again.
#[test]
fn a_driver_as_a_future_sees_what_helpers_have_finished() {
    let team = Team::new();
    let queue = Queue::in_team(4, &Devices::none(), &team).expect("a queue");
    let (local, driver) = warpcore_offload::host::Local::new(queue);
    let source = vec![7; 65_536];
    let target = vec![0; Codec::Zstd.bound(source.len())];
    let mut op = local.submit(Compress { codec: Codec::Zstd, level: 19, source, target });
    let mut driver = Box::pin(driver);
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    while poll(&mut op).is_pending() {
        assert!(woken.0.swap(false, Ordering::AcqRel), "it would never be polled again");
        assert!(driver.as_mut().poll(&mut cx).is_pending());
    }
}

struct Woken(AtomicBool);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}
