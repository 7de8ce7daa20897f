//! The owner's submit and reap allocate nothing and make no system call: counted, not timed. The
//! device is the model, stepped on the same thread between the two.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use warpcore_need::{Need, need};
use warpcore_offload::{
    Codec, Compress, Decompress, Devices, Model, ModelKind, PrivateKey, Queue, Request, RsaPublic,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more, and no interest in one.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: passed on from the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: passed on from the caller.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const DEPTH: usize = 64;

/// Runs `rounds` of `DEPTH` requests, and returns the allocations that the queue made.
fn allocations<R: Request>(
    queue: &Queue,
    model: &Model,
    rounds: usize,
    mut request: impl FnMut() -> R,
    check: impl Fn(&R::Output),
) -> u64 {
    let mut cx = Context::from_waker(Waker::noop());
    let mut sum = 0;
    let mut requests = Vec::with_capacity(DEPTH);
    let mut ops = Vec::with_capacity(DEPTH);
    let mut outputs = Vec::with_capacity(DEPTH);
    for _ in 0..rounds {
        requests.extend((0..DEPTH).map(|_| request()));
        let before = ALLOCATIONS.get();
        for request in requests.drain(..) {
            ops.push(queue.submit(request));
        }
        queue.turn(Instant::now(), Duration::ZERO);
        sum += ALLOCATIONS.get() - before;
        while model.step() {}
        let before = ALLOCATIONS.get();
        while queue.turn(Instant::now(), Duration::ZERO).busy {}
        for mut op in ops.drain(..) {
            let Poll::Ready(output) = Pin::new(&mut op).poll(&mut cx) else {
                panic!("the device has finished")
            };
            outputs.push(output);
        }
        sum += ALLOCATIONS.get() - before;
        outputs.drain(..).for_each(|output| check(&output));
    }
    sum
}

fn queue(kind: ModelKind) -> (Queue, Model) {
    let model = Model::new(kind);
    let queue = Queue::with_devices(DEPTH, &Devices::models([&model])).expect("a queue");
    (queue, model)
}

fn compress() -> Compress<&'static [u8], Vec<u8>> {
    Compress { codec: Codec::Zlib, level: 1, source: b"a few bytes", target: vec![0; 100] }
}

/// The second time around: first, queues are opened and room is made.
macro_rules! assert_none {
    ($allocations:expr) => {
        let run = || $allocations;
        run();
        assert_eq!(run(), 0);
    };
}

#[test]
fn submit_and_reap_allocate_nothing() {
    let (zip, model) = queue(ModelKind::Zip);
    assert_none!(allocations(&zip, &model, 20, compress, |done| assert!(done.result.is_ok())));
    let stored = &[120, 156, 75, 84, 72, 75, 45, 87, 72, 170, 44, 73, 45, 6, 0, 22, 156, 4, 11];
    let decompress =
        || Decompress { codec: Codec::Zlib, source: &stored[..], target: vec![0; 100] };
    assert_none!(allocations(&zip, &model, 20, decompress, |done| assert_eq!(done.result, Ok(11))));
    let (hpre, model) = queue(ModelKind::Hpre);
    let der = include_bytes!("../src/backend/conformance_key.der").as_slice();
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der).into();
    let key = PrivateKey::from_der(&der).expect("a good key");
    let key = Arc::new(key.public().clone());
    let public =
        || RsaPublic { key: Arc::clone(&key), source: &[1_u8; 256][..], target: vec![0; 256] };
    let good = |done: &<RsaPublic<&'static [u8], Vec<u8>> as Request>::Output| {
        assert_eq!(done.result, Ok(256));
    };
    assert_none!(allocations(&hpre, &model, 2, public, good));
}

#[test]
fn software_allocates_nothing() {
    // No device is asked; the model only fills the place.
    let (model, queue) = (Model::new(ModelKind::Zip), Queue::new(DEPTH));
    for codec in [Codec::Store, Codec::Zlib] {
        let request = || Compress { codec, ..compress() };
        assert_none!(allocations(&queue, &model, 20, request, |done| assert!(done.result.is_ok())));
    }
}

/// What [`submit_and_reap_make_no_system_call`] looks at from outside.
#[test]
fn a_loop_to_look_at() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1);
    let (zip, model) = queue(ModelKind::Zip);
    allocations(&zip, &model, rounds, compress, |done| assert!(done.result.is_ok()));
}

#[test]
fn submit_and_reap_make_no_system_call() {
    if !need(&[Need::Tool("strace", "strace")]) {
        return;
    }
    let calls = |rounds: &str| -> u64 {
        let table = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-o"]).arg(table.path());
        strace.arg(std::env::current_exe().expect("a test has a path"));
        strace.args(["--exact", "a_loop_to_look_at"]).env("ROUNDS", rounds);
        let output = strace.output().expect("checked by need");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let table = std::fs::read_to_string(table.path()).expect("written");
        // The last line: 100.00 seconds usecs/call calls errors total.
        let total = table.lines().last().expect("a table");
        let mut numbers = total.split_whitespace().skip(3);
        numbers.next().and_then(|calls| calls.parse().ok()).unwrap_or_else(|| panic!("{table}"))
    };
    let (few, many) = (calls("10"), calls("510"));
    let requests = 500 * DEPTH as u64;
    assert!(many < few + 50, "{} system calls for {requests} requests", many - few);
}
