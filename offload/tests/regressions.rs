//! Faults that a review found, each with its story.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use warpcore_offload::{
    Codec, Compress, Decompress, Devices, Error, Fault, Faults, Feed, Kernel, Model, ModelKind,
    Park, Parts, Queue, Stream,
};

fn queue(model: &Model) -> Queue {
    Queue::with_devices(8, &Devices::models([model])).expect("a queue")
}

fn compress(byte: u8) -> Compress<Vec<u8>, Vec<u8>> {
    Compress { codec: Codec::Zlib, level: 1, source: vec![byte; 500], target: vec![0; 700] }
}

/// The header was written to the target before the device failed; software copied its room, zeros
/// and all, over it.
#[test]
fn a_scattered_target_keeps_what_was_written_before_a_redo() {
    let model = Model::new(ModelKind::Zip).faults(Faults::script([Some(Fault::Status(0x55))]));
    let queue = queue(&model.start());
    let stream = Stream::compress(Codec::Gzip, 1).expect("a stream");
    let target = Parts(vec![vec![0xaa; 300], vec![0xaa; 300]]);
    let fed = queue.run(queue.submit(Feed { stream, source: vec![7; 1000], target, end: true }));
    assert_eq!(queue.stats().kernel(Kernel::Compress).redone, 1);
    let mut source = fed.target.0.concat();
    source.truncate(fed.result.expect("compresses").produced);
    let software = Queue::new(1);
    let request = Decompress { codec: Codec::Gzip, source, target: vec![0; 1000] };
    assert_eq!(software.run(software.submit(request)).target, vec![7; 1000]);
}

/// Every slot was taken when the oldest finished: head and tail were the same, and the youngest,
/// which hangs, was nobody's oldest.
#[test]
fn the_last_slot_of_a_full_queue_has_a_deadline() {
    let faults = Faults::script([Some(Fault::Slow(4)), None, None, Some(Fault::Hang)]);
    let model = Model::new(ModelKind::Zip).depth(4).faults(faults);
    let queue = queue(&model);
    let started = Instant::now();
    let turn = |now| queue.turn(now, Duration::ZERO);
    let first = [1, 2, 3].map(|byte| queue.submit(compress(byte)));
    turn(started);
    (0..3).for_each(|_| assert!(model.step()));
    turn(started);
    let last = queue.submit(compress(4));
    turn(started);
    while model.step() {}
    turn(started);
    let Park::Sleep { deadline: Some(deadline) } = queue.prepare_park(started) else {
        panic!("it has a deadline");
    };
    assert!(deadline > started);
    turn(deadline);
    queue.run(last).result.expect("software did it");
    for op in first {
        queue.run(op).result.expect("the device did it");
    }
}

/// One descriptor takes 8 MiB; the device finds that too small where the caller's target is not.
#[test]
fn a_target_of_more_than_a_descriptor_takes_is_not_too_small() {
    let queue = queue(&Model::new(ModelKind::Zip).start());
    let plain = vec![0; 10 << 20];
    let target = vec![0; Codec::Gzip.bound(plain.len())];
    let request = Compress { codec: Codec::Gzip, level: 1, source: plain, target };
    let done = queue.run(queue.submit(request));
    let mut stored = done.target;
    stored.truncate(done.result.expect("the bound holds"));
    let request = Decompress { codec: Codec::Gzip, source: stored, target: vec![1; 10 << 20] };
    let done = queue.run(queue.submit(request));
    assert!(done.result == Ok(10 << 20) && done.target.iter().all(|byte| *byte == 0));
}

/// The third feed found neither "begun" nor an engine, and started over.
#[test]
fn an_error_is_repeated_for_ever() {
    let queue = Queue::new(1);
    let mut stream = Stream::decompress(Codec::Deflate).expect("a stream");
    let mut source = vec![0xff; 10];
    for round in 0..5 {
        let fed = queue.run(queue.submit(Feed { stream, source, target: vec![0; 9], end: false }));
        assert!(matches!(fed.result, Err(Error::Corrupt { .. })), "{round}: {:?}", fed.result);
        // An empty block that is the last: it would be taken.
        (stream, source) = (fed.stream, vec![1, 0, 0, 0xff, 0xff]);
    }
}

/// A pair that died with nothing in flight was looked at by nobody, and its event woke for ever.
#[test]
fn a_reset_of_an_idle_device_wakes_once_and_is_noticed() {
    let model = Model::new(ModelKind::Zip).start();
    let queue = queue(&model);
    queue.run(queue.submit(compress(1))).result.expect("compresses");
    model.reset();
    let now = Instant::now();
    queue.turn(now, Duration::ZERO);
    assert_eq!(queue.prepare_park(now), Park::Sleep { deadline: None });
    let fd = queue.fd().expect("with a device");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())), Ok(0), "nothing to wake for");
    assert_eq!(model.open_queues(), 0);
}

/// After a reset a request waited for its deadline before software did it.
#[test]
fn a_request_on_a_dead_queue_does_not_wait() {
    let model = Model::new(ModelKind::Zip);
    let queue = queue(&model);
    let now = Instant::now();
    let first = queue.submit(compress(1));
    queue.turn(now, Duration::ZERO);
    while model.step() {}
    queue.run(first).result.expect("compresses");
    let second = queue.submit(compress(2));
    model.reset();
    queue.turn(now, Duration::ZERO);
    let parked = queue.prepare_park(now);
    assert!(queue.stats().in_flight() == 0 || parked == Park::Busy, "{parked:?}");
    queue.run(second).result.expect("software did it");
}

#[test]
fn a_deadline_that_never_comes_is_one() {
    let model = Model::new(ModelKind::Zip);
    let devices = Devices::models([&model]).deadline(Duration::MAX);
    let queue = Queue::with_devices(4, &devices).expect("a queue");
    let op = queue.submit(compress(1));
    queue.turn(Instant::now(), Duration::ZERO);
    assert_eq!(queue.prepare_park(Instant::now()), Park::Sleep { deadline: None });
    while model.step() {}
    queue.run(op).result.expect("compresses");
}

/// The kernel has a head of its own, and moves it when it is polled: a queue that was busy for more
/// than its length without ever sleeping was not woken by the next completion.
#[test]
fn a_queue_that_was_busy_for_long_is_still_woken() {
    let model = Model::new(ModelKind::Zip).depth(4);
    let queue = queue(&model);
    let now = Instant::now();
    for round in 0..21_u8 {
        let op = queue.submit(compress(round));
        queue.turn(now, Duration::ZERO);
        while model.step() {}
        queue.turn(now, Duration::ZERO);
        queue.run(op).result.expect("compresses");
    }
    let op = queue.submit(compress(99));
    queue.turn(now, Duration::ZERO);
    let parked = queue.prepare_park(now);
    assert!(matches!(parked, Park::Sleep { deadline: Some(_) }), "{parked:?} {:?}", queue.stats());
    while model.step() {}
    let fd = queue.fd().expect("with a device");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())), Ok(1), "it is woken");
    queue.run(op).result.expect("compresses");
}
