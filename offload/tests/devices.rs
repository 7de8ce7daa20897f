//! Life with devices: nothing leaks, every queue is of use, children keep away, and results are
//! those of others.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use num_bigint::BigUint;
use rustix::event::{PollFd, PollFlags, Timespec};
use warpcore_need::{Need, need};
use warpcore_offload::{
    Codec, Compress, Decompress, Devices, Error, Feed, Kernel, Model, ModelKind, Park, PrivateKey,
    Queue, RsaPrivate, RsaPublic, Scheme, Sign, Stream, Team,
};

/// Counting open files is the whole process' business: tests that do it, or open some, take turns.
static FILES: Mutex<()> = Mutex::new(());

fn compress(byte: u8) -> Compress<Vec<u8>, Vec<u8>> {
    let codec = Codec::Zlib;
    Compress { codec, level: 1, source: vec![byte; 5000], target: vec![0; codec.bound(5000)] }
}

fn files_and_mappings() -> (usize, usize) {
    let files = std::fs::read_dir("/proc/self/fd").expect("listed").count();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("read");
    (files, maps.lines().filter(|line| line.contains("warpcore-model")).count())
}

#[test]
fn a_thousand_queues_leak_neither_files_nor_mappings() {
    let _turn = FILES.lock();
    let model = Model::new(ModelKind::Zip).depth(4).start();
    let devices = Devices::models([&model]);
    let mut before = None;
    for round in 0..1000 {
        let queue = Queue::with_devices(2, &devices).expect("a queue");
        queue.run(queue.submit(compress(1))).result.expect("compresses");
        assert_eq!(queue.stats().kernel(Kernel::Compress).on_device, 1);
        drop(queue);
        let now = files_and_mappings();
        if round == 10 {
            before = Some(now);
        }
        assert!(before.is_none_or(|before| before == now), "round {round}: {before:?} {now:?}");
    }
    assert_eq!(model.open_queues(), 0);
}

#[test]
fn every_queue_of_a_device_works_at_once() {
    let _turn = FILES.lock();
    let model = Model::new(ModelKind::Zip).depth(8).instances(32).start();
    let devices = Devices::models([&model]);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let devices = &devices;
            scope.spawn(move || {
                // Two directions of four queues each.
                let queues: Vec<_> =
                    (0..4).map(|_| Queue::with_devices(4, devices).expect("a queue")).collect();
                for round in 0..50 {
                    let byte = thread.wrapping_mul(50).wrapping_add(round);
                    let ops: Vec<_> =
                        queues.iter().map(|queue| queue.submit(compress(byte))).collect();
                    for (queue, op) in queues.iter().zip(ops) {
                        let done = queue.run(op);
                        let mut stored = done.target;
                        stored.truncate(done.result.expect("compresses"));
                        let target = vec![0; 5000];
                        let request = Decompress { codec: Codec::Zlib, source: stored, target };
                        let done = queue.run(queue.submit(request));
                        assert_eq!((done.result, done.target), (Ok(5000), vec![byte; 5000]));
                    }
                }
                for queue in queues {
                    let stats = queue.stats();
                    assert_eq!(stats.kernel(Kernel::Compress).on_device, 50);
                    assert_eq!(stats.kernel(Kernel::Decompress).on_device, 50);
                }
            });
        }
    });
    assert_eq!((model.open_queues(), model.completed()), (0, 4 * 4 * 50 * 2));
}

#[test]
fn an_old_kernel_gives_no_sizes_and_no_second_start() {
    let _turn = FILES.lock();
    let model = Model::new(ModelKind::Zip).version(1).old_kernel().start();
    let queue = Queue::with_devices(2, &Devices::models([&model])).expect("a queue");
    for byte in 0..20 {
        queue.run(queue.submit(compress(byte))).result.expect("compresses");
    }
    assert_eq!(queue.stats().kernel(Kernel::Compress).on_device, 20);
}

/// The kernel follows completions only when it is polled, and takes those of the next round for old.
#[test]
fn a_full_round_of_completions_still_wakes() {
    let _turn = FILES.lock();
    let model = Model::new(ModelKind::Zip).depth(8);
    let queue = Queue::with_devices(16, &Devices::models([&model])).expect("a queue");
    let turn = || {
        queue.turn(Instant::now(), Duration::ZERO);
    };
    for number in 0..100 {
        for batch in [3, 7] {
            let ops: Vec<_> = (0..batch).map(|byte| queue.submit(compress(byte))).collect();
            turn();
            while model.step() {}
            turn();
            for op in ops {
                queue.run(op).result.expect("compresses");
            }
        }
        let op = queue.submit(compress(1));
        turn();
        assert!(matches!(queue.prepare_park(Instant::now()), Park::Sleep { .. }));
        model.step();
        let fd = queue.fd().expect("of devices");
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let woken = rustix::event::poll(&mut fds, Some(&Timespec::default())).expect("polls");
        assert_eq!(woken, 1, "in round {number}");
        queue.run(op).result.expect("compresses");
    }
}

/// The header was the device's to write, and went with it: nobody knows what the next feed would follow.
#[test]
fn a_feed_that_was_cut_off_ends_its_stream() {
    let _turn = FILES.lock();
    let model = Model::new(ModelKind::Zip);
    let queue = Queue::with_devices(4, &Devices::models([&model])).expect("a queue");
    let feed = |stream| Feed { stream, source: vec![1; 100], target: vec![0; 200], end: true };
    let op = queue.submit(feed(Stream::compress(Codec::Gzip, 1).expect("a stream")));
    queue.turn(Instant::now(), Duration::ZERO);
    model.reset();
    drop(queue);
    let software = Queue::new(1);
    let cut = software.run(op);
    assert_eq!(cut.result.map(drop), Err(Error::DeviceLost));
    let again = software.run(software.submit(feed(cut.stream)));
    assert_eq!(again.result.map(drop), Err(Error::DeviceLost));
}

#[test]
fn a_child_gets_errors_and_the_parents_work_goes_on() {
    let _turn = FILES.lock();
    let model = Model::new(ModelKind::Zip);
    let devices = Devices::models([&model]);
    let queue = Queue::with_devices(4, &devices).expect("a queue");
    let software = Queue::new(4);
    let mut op = queue.submit(compress(3));
    let software_op = software.submit(compress(4));
    let team = Team::with_engine_threads(1);
    let helped = Queue::in_team(4, &Devices::none(), &team).expect("a queue");
    let helped_op = helped.submit(compress(6));
    let stream = Stream::compress(Codec::Gzip, 1).expect("a stream");
    queue.turn(Instant::now(), Duration::ZERO);

    // SAFETY: the child only runs the code below, which takes no lock that another thread may
    // hold, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "forks");
    if child == 0 {
        let mut failed = 0;
        let mut check = |good: bool, bit: i32| failed |= if good { 0 } else { bit };
        let waker = std::task::Waker::noop();
        let mut cx = std::task::Context::from_waker(waker);
        let in_flight = match std::pin::Pin::new(&mut op).poll(&mut cx) {
            std::task::Poll::Ready(done) => done.result == Err(Error::Forked),
            std::task::Poll::Pending => false,
        };
        check(in_flight, 1);
        check(software.run(software_op).result == Err(Error::Forked), 2);
        check(helped.run(helped_op).result == Err(Error::Forked), 128);
        check(queue.try_submit(compress(1)).is_err(), 4);
        check(queue.run(queue.submit(compress(1))).result == Err(Error::Forked), 8);
        let request = Feed { stream, source: vec![1], target: vec![0; 100], end: true };
        check(queue.run(queue.submit(request)).result == Err(Error::Forked), 16);
        let turn = queue.turn(Instant::now(), Duration::ZERO);
        check(!turn.busy && turn.units == 0, 32);
        // A queue of the child's own works.
        let own = Queue::new(2);
        check(own.run(own.submit(compress(5))).result.is_ok(), 64);
        let orphaned = Queue::in_team(2, &Devices::none(), &team);
        check(orphaned.is_err(), 256);
        drop((queue, software, helped, team, own));
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(failed) };
    }
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "bits of what failed, times 256; or a signal");

    // The parent's queue still is what it was.
    while model.step() {}
    let done = queue.run(op);
    let target = vec![0; 5000];
    let mut stored = done.target;
    stored.truncate(done.result.expect("compresses"));
    let back = software.submit(Decompress { codec: Codec::Zlib, source: stored, target });
    assert_eq!(software.run(back).target, vec![3; 5000]);
    software.run(software_op).result.expect("compresses");
    helped.run(helped_op).result.expect("compresses");
    assert_eq!(queue.stats().kernel(Kernel::Compress).on_device, 1);
}

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().expect("checked by need");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// PKCS#1 v1.5 has no randomness: the device's signatures, and software's, are OpenSSL's bit for
/// bit, of every size, by the primes and without them.
#[test]
fn signatures_equal_openssls() {
    if !need(&[Need::Tool("openssl", "openssl")]) {
        return;
    }
    let _turn = FILES.lock();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let model = Model::new(ModelKind::Hpre).start();
    let queue = Queue::with_devices(4, &Devices::models([&model])).expect("a queue");
    let software = Queue::new(4);
    let message = b"what is signed".to_vec();
    std::fs::write(path("message"), &message).expect("written");
    for bits in ["1024", "2048", "3072", "4096"] {
        let option = format!("rsa_keygen_bits:{bits}");
        let pem = openssl(&["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", &option]);
        std::fs::write(path("key"), &pem).expect("written");
        let expected = openssl(&["dgst", "-sha256", "-sign", &path("key"), &path("message")]);
        let key = Arc::new(PrivateKey::from_pem(&pem).expect("a good key"));
        let public = pkcs1::RsaPublicKeyRef::try_from(key.public().der()).expect("DER");
        let (modulus, exponent) = (public.modulus.as_bytes(), public.public_exponent.as_bytes());
        let der = openssl(&["rsa", "-in", &path("key"), "-traditional", "-outform", "DER"]);
        let private = pkcs1::RsaPrivateKeyRef::try_from(der.as_slice()).expect("DER");
        let d = private.private_exponent.as_bytes();
        let plain = Arc::new(PrivateKey::without_primes(modulus, exponent, d).expect("a key"));
        for key in [&key, &plain] {
            let sign = Sign::new(Arc::clone(key), Scheme::Pkcs1Sha256, message.clone());
            let signature = queue.run(queue.submit(sign)).result.expect("signs");
            assert_eq!(signature.as_ref(), expected, "RSA-{bits}");
            // Software's too, where it has the primes.
            let sign = Sign::new(Arc::clone(key), Scheme::Pkcs1Sha256, message.clone());
            match software.run(software.submit(sign)).result {
                Ok(signature) => assert_eq!(signature.as_ref(), expected, "RSA-{bits}"),
                Err(error) => assert_eq!(error, Error::NoDevice),
            }
        }
        // Raw, against num-bigint.
        let k = key.modulus_len_bytes();
        let source = [&[0][..], &vec![0xa7; k - 1]].concat();
        let number = BigUint::from_bytes_be(&source);
        let power = |exponent: &[u8]| {
            let exponent = BigUint::from_bytes_be(exponent);
            number.modpow(&exponent, &BigUint::from_bytes_be(modulus))
        };
        let target = vec![0; k];
        let request =
            RsaPublic { key: Arc::new(key.public().clone()), source: source.clone(), target };
        let done = queue.run(queue.submit(request));
        assert_eq!(done.result, Ok(k));
        assert_eq!(BigUint::from_bytes_be(&done.target), power(exponent), "RSA-{bits}");
        let request = RsaPrivate { key: Arc::clone(&key), source, target: vec![0; k] };
        let done = queue.run(queue.submit(request));
        assert_eq!(BigUint::from_bytes_be(&done.target), power(d), "RSA-{bits}");
        // The short key has no padding long enough for this one.
        if bits == "1024" {
            let sign = Sign::new(key, Scheme::PssSha512, message.clone());
            let result = queue.run(queue.submit(sign)).result.map(drop);
            assert_eq!(result, Err(Error::KeyTooShort { modulus_bits: 1024 }));
        }
    }
    let stats = queue.stats();
    assert_eq!(stats.kernel(Kernel::RsaPrivate).redone + stats.kernel(Kernel::RsaPublic).redone, 0);
}

#[test]
fn devices_are_selected_by_name() {
    let names = |text: &str| {
        let devices = Devices::select(text).expect("known names");
        devices.list().into_iter().map(|device| device.name).collect::<Vec<_>>()
    };
    assert_eq!(names("software"), [""; 0]);
    assert_eq!(names("model:hpre, model:zip"), ["model:hpre", "model:zip"]);
    assert_eq!(names("model"), ["model:zip", "model:hpre"]);
    let error = Devices::select("hisi_zip-7").expect_err("not here").to_string();
    assert!(error.contains("'hisi_zip-7'") && error.contains("warpcore devices"), "{error}");
}
