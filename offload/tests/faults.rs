//! Devices that fail in every way there is: each request ends once and right, and no buffer is let
//! go of while a device may write to it.
//!
//! The campaign draws operations and faults from a seed, steps the models itself and holds the
//! clock, so that a seed that fails does so again: `WARPCORE_SEED=n` runs just that one.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use warpcore_offload::{
    Codec, Compress, Decompress, Devices, Error, Fault, Faults, Feed, Kernel, Model, ModelKind, Op,
    Park, PrivateKey, Queue, RsaPrivate, RsaPublic, Scheme, Sign, Source, Stats, Stream, Target,
};

const DEADLINE: Duration = Duration::from_secs(5);
const CODECS: [Codec; 3] = [Codec::Deflate, Codec::Gzip, Codec::Zlib];

thread_local! {
    /// The devices that may write to this thread's buffers.
    static MODELS: RefCell<Vec<Model>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that checks, when it is freed or handed back, that no device may write to it.
struct Guarded(Vec<u8>);

impl Guarded {
    fn check(&self) {
        let held = MODELS.with_borrow(|models| models.iter().any(|model| model.may_write(&self.0)));
        assert!(!held, "a device may still write to this buffer");
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}

// SAFETY: the bytes are a Vec's.
unsafe impl Source for Guarded {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.0[..])
    }
}

// SAFETY: the bytes are a Vec's.
unsafe impl Target for Guarded {
    fn parts(&mut self) -> impl Iterator<Item = &mut [u8]> {
        std::iter::once(&mut self.0[..])
    }

    fn lost() -> Self {
        Self(Vec::new())
    }

    /// Half of them have one.
    fn another(&self) -> Option<Self> {
        self.0.len().is_multiple_of(2).then(|| Self(vec![0; self.0.len()]))
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }

    fn size(&mut self, limit: u64) -> usize {
        usize::try_from(self.below(limit)).expect("a small number")
    }

    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.below(5) {
            let len = self.size(3000) + 1;
            let word: Vec<u8> =
                (0..=self.below(30)).map(|_| self.below(256).to_le_bytes()[0]).collect();
            bytes.extend(word.iter().cycle().take(len));
        }
        bytes
    }
}

fn decode(codec: Codec, stored: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match codec {
        Codec::Deflate => flate2::read::DeflateDecoder::new(stored).read_to_end(&mut plain),
        Codec::Gzip => flate2::read::GzDecoder::new(stored).read_to_end(&mut plain),
        _ => flate2::read::ZlibDecoder::new(stored).read_to_end(&mut plain),
    }
    .expect("the reference reads it");
    plain
}

fn encode(codec: Codec, plain: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::new(6);
    let mut stored = Vec::new();
    match codec {
        Codec::Deflate => flate2::read::DeflateEncoder::new(plain, level).read_to_end(&mut stored),
        Codec::Gzip => flate2::read::GzEncoder::new(plain, level).read_to_end(&mut stored),
        _ => flate2::read::ZlibEncoder::new(plain, level).read_to_end(&mut stored),
    }
    .expect("memory does not fail");
    stored
}

fn key() -> Arc<PrivateKey> {
    thread_local! {
        static KEY: Arc<PrivateKey> = {
            let der = include_bytes!("../src/backend/conformance_key.der").as_slice();
            let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der).into();
            Arc::new(PrivateKey::from_der(&der).expect("a good key"))
        };
    }
    KEY.with(Arc::clone)
}

/// Something in flight, and what it must come to.
enum Flight {
    Compress(Op<Compress<Guarded, Guarded>>, Codec),
    Decompress(Op<Decompress<Guarded, Guarded>>, Vec<u8>),
    /// A stream that is fed to its end: what is left of the input, what came out, and the plain.
    Feed(Option<Op<Feed<Guarded, Guarded>>>, Box<Fed>),
    Private(Op<RsaPrivate<Guarded, Guarded>>),
    Public(Op<RsaPublic<Guarded, Guarded>>),
    Sign(Box<Op<Sign<Guarded>>>),
}

struct Fed {
    codec: Codec,
    compression: bool,
    input: Vec<u8>,
    at: usize,
    output: Vec<u8>,
    piece: usize,
    room: usize,
    plain: Vec<u8>,
}

impl Fed {
    fn next(&self, queue: &Queue, stream: Stream) -> Op<Feed<Guarded, Guarded>> {
        let end = (self.at + self.piece).min(self.input.len());
        queue.submit(Feed {
            stream,
            source: Guarded(self.input[self.at..end].to_vec()),
            target: Guarded(vec![0; self.room]),
            end: end == self.input.len(),
        })
    }
}

fn poll<F: Future + Unpin>(op: &mut F) -> Option<F::Output> {
    match Pin::new(op).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

impl Flight {
    fn submit(random: &mut Random, queue: &Queue) -> Self {
        let codec = CODECS[random.size(3)];
        let plain = random.bytes();
        match random.below(8) {
            0 | 1 => {
                let target = Guarded(vec![0; codec.bound(plain.len())]);
                let source = Guarded(plain);
                Self::Compress(queue.submit(Compress { codec, level: 1, source, target }), codec)
            }
            2 => {
                let source = Guarded(encode(codec, &plain));
                let target = Guarded(vec![0; plain.len()]);
                Self::Decompress(queue.submit(Decompress { codec, source, target }), plain)
            }
            3..6 => {
                let compression = random.below(2) == 0;
                let input = if compression { plain.clone() } else { encode(codec, &plain) };
                let stream = if compression {
                    Stream::compress(codec, 1)
                } else {
                    Stream::decompress(codec)
                };
                let (piece, room) = (random.size(2000) + 1, random.size(2000) + 1);
                let output = Vec::new();
                let fed = Fed { codec, compression, input, at: 0, output, piece, room, plain };
                Self::Feed(Some(fed.next(queue, stream.expect("a stream"))), Box::new(fed))
            }
            6 => {
                let sign = Sign::new(key(), Scheme::Pkcs1Sha256, Guarded(plain));
                Self::Sign(Box::new(queue.submit(sign)))
            }
            _ => {
                let mut number = vec![0x31; 256];
                number[0] = 0;
                let (source, target) = (Guarded(number), Guarded(vec![0; 256]));
                if random.below(2) == 0 {
                    Self::Private(queue.submit(RsaPrivate { key: key(), source, target }))
                } else {
                    let key = Arc::new(key().public().clone());
                    Self::Public(queue.submit(RsaPublic { key, source, target }))
                }
            }
        }
    }

    /// True when it is over, and right.
    fn poll(&mut self, queue: &Queue, lost: &mut u64) -> bool {
        match self {
            Self::Compress(op, codec) => {
                let Some(done) = poll(op) else { return false };
                done.source.check();
                done.target.check();
                match done.result {
                    Ok(len) => assert_eq!(decode(*codec, &done.target.0[..len]), done.source.0),
                    Err(Error::DeviceLost) if done.target.0.is_empty() => *lost += 1,
                    Err(error) => panic!("compress {codec}: {error}"),
                }
            }
            Self::Decompress(op, plain) => {
                let Some(done) = poll(op) else { return false };
                done.target.check();
                match done.result {
                    Ok(len) => assert_eq!(done.target.0[..len], *plain),
                    Err(Error::DeviceLost) if done.target.0.is_empty() => *lost += 1,
                    Err(error) => panic!("decompress: {error}"),
                }
            }
            Self::Feed(op, fed) => {
                let Some(done) = poll(op.as_mut().expect("in flight")) else { return false };
                done.target.check();
                match done.result {
                    Ok(progress) => {
                        fed.at += progress.consumed;
                        fed.output.extend_from_slice(&done.target.0[..progress.produced]);
                        if !progress.ended {
                            *op = Some(fed.next(queue, done.stream));
                            return false;
                        }
                        let output = match fed.compression {
                            true => decode(fed.codec, &fed.output),
                            false => std::mem::take(&mut fed.output),
                        };
                        assert_eq!(output, fed.plain);
                    }
                    Err(Error::DeviceLost) => *lost += 1,
                    Err(error) => panic!("feed: {error}"),
                }
            }
            Self::Sign(op) => {
                let Some(signed) = poll(op) else { return false };
                match signed.result {
                    Ok(signature) => {
                        let key = key();
                        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public().der())
                            .verify(&signed.message.0, signature.as_ref())
                            .expect("verifies");
                    }
                    Err(Error::DeviceLost) => *lost += 1,
                    Err(error) => panic!("sign: {error}"),
                }
            }
            // Software has neither: a device that fails takes them with it.
            Self::Private(op) => {
                let Some(done) = poll(op) else { return false };
                done.target.check();
                match done.result {
                    Ok(256) => {}
                    Err(Error::DeviceLost) => *lost += 1,
                    other => panic!("private: {other:?}"),
                }
            }
            Self::Public(op) => {
                let Some(done) = poll(op) else { return false };
                match done.result {
                    Ok(256) => {}
                    Err(Error::DeviceLost) => *lost += 1,
                    other => panic!("public: {other:?}"),
                }
            }
        }
        true
    }
}

/// Runs one seed. Returns what the queue counted and how many operations were lost.
fn campaign(seed: u64) -> (Stats, u64) {
    let mut random = Random(seed);
    let per_mille = [0, 20, 100, 400][random.size(4)];
    let depth = 2 + random.size(12);
    let model = |kind, seed| {
        Model::new(kind)
            .version(u8::try_from(1 + seed % 3).expect("small"))
            .depth(u16::try_from(depth).expect("small"))
            .faults(Faults::seed(seed, per_mille))
    };
    let models =
        [model(ModelKind::Zip, seed.wrapping_mul(3)), model(ModelKind::Hpre, seed.wrapping_mul(5))];
    MODELS.set(models.to_vec());
    let devices = Devices::models(&models).deadline(DEADLINE);
    let queue = Queue::with_devices(1 + random.size(16), &devices).expect("a queue");
    let mut now = Instant::now();
    let (mut lost, mut submitted) = (0, 0);
    let mut flights: VecDeque<Flight> = VecDeque::new();
    let operations = 10 + random.size(40);
    let mut idle = 0;
    // What was dropped in flight ends too.
    while submitted < operations || !flights.is_empty() || queue.stats().in_flight() > 0 {
        match random.below(6) {
            0 | 1 if submitted < operations => {
                submitted += 1;
                flights.push_back(Flight::submit(&mut random, &queue));
            }
            2 if random.below(20) == 0 && !flights.is_empty() => {
                let at = random.size(flights.len() as u64);
                drop(flights.swap_remove_back(at));
            }
            3 => {
                models[random.size(2)].step();
            }
            4 if random.below(200) == 0 => models[random.size(2)].reset(),
            _ => {
                queue.turn(now, Duration::ZERO);
            }
        }
        now += Duration::from_millis(random.below(20));
        let before = (flights.len(), queue.stats().completed);
        flights.retain_mut(|flight| !flight.poll(&queue, &mut lost));
        // Nothing that stands still may do so for ever: the deadline is the limit.
        idle = if (flights.len(), queue.stats().completed) != before { 0 } else { idle + 1 };
        if idle > 200 {
            while models.iter().fold(false, |any, model| model.step() | any) {
                queue.turn(now, Duration::ZERO);
            }
            if let Park::Sleep { deadline: Some(deadline) } = queue.prepare_park(now) {
                now = now.max(deadline);
            }
            models.iter().for_each(|model| model.isolate(false));
        }
        assert!(idle < 20_000, "{:?} never end", queue.stats());
    }
    let stats = queue.stats();
    assert_eq!(stats.in_flight(), 0);
    drop(queue);
    assert_eq!(models.iter().map(Model::open_queues).sum::<usize>(), 0, "queues are left open");
    MODELS.take();
    (stats, lost)
}

#[test]
fn every_request_ends_once_and_right() {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let seeds = match number("WARPCORE_SEED") {
        Some(seed) => seed..seed + 1,
        // 50,000 in the long campaigns.
        None => 0..2000 * number("WARPCORE_SEEDS").unwrap_or(1),
    };
    let mut sum = Stats::default();
    let mut lost = 0;
    for seed in seeds.clone() {
        let result = std::panic::catch_unwind(|| campaign(seed));
        let (stats, lost_here) = result.unwrap_or_else(|_| {
            panic!("seed {seed} fails; WARPCORE_SEED={seed} replays it");
        });
        sum.add(&stats);
        lost += lost_here;
    }
    if seeds.end - seeds.start > 1 {
        // The faults do reach the queue, and the work does reach the devices.
        let compress = sum.kernel(Kernel::Compress);
        assert!(compress.on_device > 0 && compress.redone > 0 && compress.spilled > 0, "{sum:?}");
        assert!(sum.stranded > lost && lost > 0, "{sum:?}, {lost} lost");
    }
}

fn queue(model: &Model) -> Queue {
    let devices = Devices::models([model]).deadline(DEADLINE);
    Queue::with_devices(8, &devices).expect("a queue")
}

fn compress(byte: u8) -> Compress<Vec<u8>, Vec<u8>> {
    let codec = Codec::Gzip;
    Compress { codec, level: 1, source: vec![byte; 5000], target: vec![0; codec.bound(5000)] }
}

#[test]
fn a_missed_deadline_stops_the_queue_and_redoes_in_software() {
    let model = Model::new(ModelKind::Zip).faults(Faults::script([Some(Fault::Hang)]));
    let queue = queue(&model);
    let start = Instant::now();
    let mut op = queue.submit(compress(1));
    queue.turn(start, Duration::ZERO);
    while model.step() {}
    let just_before = start + DEADLINE - Duration::from_millis(1);
    queue.turn(just_before, Duration::ZERO);
    assert!(poll(&mut op).is_none());
    assert_eq!(queue.prepare_park(just_before), Park::Sleep { deadline: Some(start + DEADLINE) });
    queue.turn(start + DEADLINE, Duration::ZERO);
    assert_eq!(model.open_queues(), 0, "stopped and closed");
    let done = poll(&mut op).expect("done by software");
    assert_eq!(decode(Codec::Gzip, &done.target[..done.result.expect("compresses")]), done.source);
    assert_eq!(queue.stats().kernel(Kernel::Compress).redone, 1);
}

#[test]
fn what_is_written_late_is_not_redone() {
    let model = Model::new(ModelKind::Zip).faults(Faults::script([Some(Fault::Late)]));
    let queue = queue(&model);
    let start = Instant::now();
    let mut op = queue.submit(compress(1));
    queue.turn(start, Duration::ZERO);
    while model.step() {}
    queue.turn(start + DEADLINE, Duration::ZERO);
    let done = poll(&mut op).expect("done by the device while it was stopped");
    assert_eq!(decode(Codec::Gzip, &done.target[..done.result.expect("compresses")]), done.source);
    let stats = queue.stats();
    assert_eq!(
        (stats.kernel(Kernel::Compress).redone, stats.kernel(Kernel::Compress).on_device),
        (0, 1)
    );
}

/// A target that there is only one of, such as a registered buffer.
struct Only(Vec<u8>);

// SAFETY: the bytes are a Vec's.
unsafe impl Target for Only {
    fn parts(&mut self) -> impl Iterator<Item = &mut [u8]> {
        std::iter::once(&mut self.0[..])
    }

    fn lost() -> Self {
        Self(Vec::new())
    }
}

#[test]
fn a_device_that_does_not_stop_keeps_the_target() {
    let model = Model::new(ModelKind::Zip).faults(Faults::script([Some(Fault::Runaway); 2]));
    let queue = queue(&model);
    let start = Instant::now();
    let Compress { codec, level, source, target } = compress(7);
    let first = target.as_ptr();
    let mut op = queue.submit(Compress { codec, level, source: source.clone(), target });
    let target = Only(vec![0; codec.bound(5000)]);
    let mut only = queue.submit(Compress { codec, level, source: source.clone(), target });
    queue.turn(start, Duration::ZERO);
    while model.step() {}
    queue.turn(start + DEADLINE, Duration::ZERO);
    assert_eq!((queue.stats().stranded, model.open_queues()), (2, 0));
    // It goes on writing; to nobody's memory.
    for _ in 0..10 {
        model.step();
    }
    let done = poll(&mut op).expect("done by software, elsewhere");
    assert!(done.target.as_ptr() != first && !model.may_write(&done.target));
    assert_eq!(decode(codec, &done.target[..done.result.expect("compresses")]), source);
    assert_eq!(queue.stats().kernel(Kernel::Compress).redone, 1);
    let lost = poll(&mut only).expect("ended");
    assert_eq!((lost.result, lost.source), (Err(Error::DeviceLost), source));
    assert!(lost.target.0.is_empty(), "the target does not come back");
}

#[test]
fn a_device_that_does_not_stop_takes_no_signature_with_it() {
    let model = Model::new(ModelKind::Hpre).faults(Faults::script([Some(Fault::Runaway)]));
    let queue = queue(&model);
    let start = Instant::now();
    let mut sign = queue.submit(Sign::new(key(), Scheme::Pkcs1Sha256, b"message".to_vec()));
    queue.turn(start, Duration::ZERO);
    while model.step() {}
    queue.turn(start + DEADLINE, Duration::ZERO);
    while queue.flush() {
        model.step();
        queue.turn(start + DEADLINE, Duration::ZERO);
    }
    let signature = poll(&mut sign).expect("done").result.expect("redone by software");
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key().public().der())
        .verify(b"message", signature.as_ref())
        .expect("verifies");
    assert_eq!(queue.stats().stranded, 0, "the device had none of the caller's memory");
}

#[test]
fn a_failed_device_is_tried_again_with_back_off() {
    let model = Model::new(ModelKind::Zip).faults(Faults::script([Some(Fault::QueueError)]));
    let queue = queue(&model);
    let mut now = Instant::now();
    let run = |now, byte| {
        let mut op = queue.submit(compress(byte));
        queue.turn(now, Duration::ZERO);
        while model.step() {}
        queue.turn(now, Duration::ZERO);
        poll(&mut op).expect("done").result.expect("compresses");
        *queue.stats().kernel(Kernel::Compress)
    };
    let stats = run(now, 1);
    assert_eq!((stats.redone, stats.on_device, stats.spilled), (1, 0, 0));
    // At once: software, without asking.
    now += Duration::from_millis(99);
    let stats = run(now, 2);
    assert_eq!((stats.redone, stats.on_device, stats.spilled), (1, 0, 1));
    now += Duration::from_millis(1);
    let stats = run(now, 3);
    assert_eq!((stats.redone, stats.on_device, stats.spilled), (1, 1, 1));
}

#[test]
fn no_free_queue_and_isolation_mean_software() {
    let model = Model::new(ModelKind::Zip).instances(1);
    let (first, second) = (queue(&model), queue(&model));
    let now = Instant::now();
    let run = |queue: &Queue| {
        let mut op = queue.submit(compress(1));
        queue.turn(now, Duration::ZERO);
        while model.step() {}
        queue.turn(now, Duration::ZERO);
        poll(&mut op).expect("done").result.expect("compresses");
        *queue.stats().kernel(Kernel::Compress)
    };
    assert_eq!(run(&first).on_device, 1);
    assert_eq!((run(&second).on_device, run(&second).spilled), (0, 2));
    model.isolate(true);
    assert!(Devices::models([&model]).list()[0].state.to_string().contains("isolated"));
    let stats = run(&first);
    assert_eq!((stats.on_device, stats.redone + stats.spilled), (1, 1));
}

#[test]
fn a_stream_moves_to_software_and_goes_on() {
    for codec in CODECS {
        for compression in [true, false] {
            // At first there is a header before what the device wrote.
            for lost_at in [0, 2] {
                move_a_stream(codec, compression, lost_at, Fault::Reset);
                move_a_stream(codec, compression, lost_at, Fault::Runaway);
            }
        }
    }
}

/// The device loses this piece.
fn move_a_stream(codec: Codec, compression: bool, lost_at: u64, fault: Fault) {
    let well = (0..lost_at).map(|_| None);
    let model = Model::new(ModelKind::Zip).faults(Faults::script(well.chain([Some(fault)])));
    let queue = queue(&model);
    let plain: Vec<u8> = (0..100_000_u32).flat_map(|n| (n / 5).to_be_bytes()).collect();
    let input = if compression { plain.clone() } else { encode(codec, &plain) };
    let stream = if compression { Stream::compress(codec, 1) } else { Stream::decompress(codec) };
    let output = Vec::new();
    let mut fed =
        Fed { codec, compression, input, at: 0, output, piece: 10_000, room: 50_000, plain };
    let now = Instant::now();
    let mut op = fed.next(&queue, stream.expect("a stream"));
    loop {
        queue.turn(now, Duration::ZERO);
        while model.step() {}
        queue.turn(now + DEADLINE, Duration::ZERO);
        model.step();
        let done = poll(&mut op).expect("done");
        done.target.check();
        let progress = done.result.expect("goes on");
        fed.at += progress.consumed;
        fed.output.extend_from_slice(&done.target.0[..progress.produced]);
        if progress.ended {
            break;
        }
        op = fed.next(&queue, done.stream);
    }
    let output = if compression { decode(codec, &fed.output) } else { fed.output };
    assert!(output == fed.plain, "{codec}, {fault:?}");
    let kernel = if compression { Kernel::Compress } else { Kernel::Decompress };
    let stats = *queue.stats().kernel(kernel);
    assert_eq!((stats.on_device, stats.redone), (lost_at, 1), "{codec}, {fault:?}");
}

#[test]
fn wrong_signatures_never_leave() {
    let model = Model::new(ModelKind::Hpre).faults(Faults::script([Some(Fault::Wrong); 2]));
    let queue = queue(&model);
    let now = Instant::now();
    let mut sign = queue.submit(Sign::new(key(), Scheme::PssSha256, b"message".to_vec()));
    let source = [&[0][..], &[1; 255]].concat();
    let request = RsaPrivate { key: key(), source, target: vec![0; 256] };
    let mut raw = queue.submit(request);
    queue.turn(now, Duration::ZERO);
    while model.step() {}
    queue.turn(now, Duration::ZERO);
    while queue.flush() {
        queue.turn(now, Duration::ZERO);
    }
    let signature = poll(&mut sign).expect("done").result.expect("redone by software");
    UnparsedPublicKey::new(&ring::signature::RSA_PSS_2048_8192_SHA256, key().public().der())
        .verify(b"message", signature.as_ref())
        .expect("verifies");
    let raw = poll(&mut raw).expect("done");
    match raw.result {
        // In lanes, where there are some: it is right.
        Ok(256) => {
            let source = raw.target;
            let key = Arc::new(key().public().clone());
            let request = RsaPublic { key, source, target: vec![0; 256] };
            let software = Queue::new(1);
            assert_eq!(software.run(software.submit(request)).target, raw.source);
        }
        other => assert_eq!((other, raw.target), (Err(Error::DeviceLost), vec![0; 256])),
    }
}
