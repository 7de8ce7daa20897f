//! Both directions: half-close, back-pressure, ends that are not in order, upstreams that are down,
//! slow or reset.

mod common;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{Identity, LOOPBACK, Running, client_config, connect, echo, exchange, upstream};
use rustls::version::TLS13;
use warpcore_need::{Need, need};
use warpcore_tls::Signing;

const NEEDS: [Need; 2] = [Need::Tool("openssl", "openssl"), Need::IoUring];

#[test]
fn half_close_travels_and_the_answer_still_comes() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    // Answers only when the client has closed its side.
    let counts = upstream(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("the client ends in order");
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).expect("sends");
    });
    let proxy = Running::start(&identity.config(counts, Signing::Offloaded), 1);
    let config = client_config(&identity, &TLS13);
    let answer = exchange(&config, proxy.address, &vec![1; 1_000_000]).expect("answered");
    assert_eq!(answer, b"1000000 bytes");
    proxy.stop();
}

#[test]
fn a_client_that_does_not_read_stops_the_upstream() {
    if !need(&NEEDS) {
        return;
    }
    const LIMIT: usize = 64 << 20;
    let identity = Identity::new();
    let (send, sent) = mpsc::channel();
    // Writes as much as it can; a write that blocks for a second means that it is held back.
    let floods = upstream(move |mut stream| {
        stream.set_write_timeout(Some(Duration::from_secs(1))).expect("an option");
        let mut written = 0;
        while written < LIMIT && stream.write_all(&[0; 65536]).is_ok() {
            written += 65536;
        }
        let _ = send.send(written);
    });
    let proxy = Running::start(&identity.config(floods, Signing::Offloaded), 1);
    let config = client_config(&identity, &TLS13);
    let mut stream = connect(&config, proxy.address);
    stream.write_all(b"go").expect("sends");
    let written = sent.recv().expect("the upstream gave up");
    assert!(written < LIMIT, "{written} bytes went somewhere");
    drop(stream);
    proxy.stop();
}

/// The answer to a client that changes its keys goes before what the upstream sends, however much.
#[test]
fn keys_are_changed_in_the_middle() {
    if !need(&NEEDS) {
        return;
    }
    const LEN: usize = 8 << 20;
    let identity = Identity::new();
    let sends = upstream(|mut stream| {
        stream.read_exact(&mut [0; 2]).expect("the request");
        stream.write_all(&vec![7; LEN]).expect("sends");
    });
    let proxy = Running::start(&identity.config(sends, Signing::Offloaded), 1);
    let mut stream = connect(&client_config(&identity, &TLS13), proxy.address);
    stream.write_all(b"go").expect("sends");
    let (mut received, mut asked) = (0, 0);
    let mut part = vec![0; 64 << 10];
    loop {
        let len = stream.read(&mut part).expect("goes on");
        assert!(part[..len].iter().all(|byte| *byte == 7));
        received += len;
        if len == 0 {
            break;
        }
        // More than 32 without a word are too many.
        if received < (asked + 1) * LEN / 20 {
            continue;
        }
        asked += 1;
        stream.conn.refresh_traffic_keys().expect("of TLS 1.3");
        stream.flush().expect("sends");
    }
    assert_eq!(received, LEN);
    drop(stream);
    assert_eq!(proxy.stop().relay_failed, 0);
}

#[test]
fn an_upstream_that_does_not_read_stops_the_client() {
    if !need(&NEEDS) {
        return;
    }
    const LIMIT: usize = 64 << 20;
    let identity = Identity::new();
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    let slow = upstream(move |mut stream| {
        // Reads nothing until the client has given up, then everything.
        wait.lock().expect("not poisoned").recv().expect("the test says go");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let proxy = Running::start(&identity.config(slow, Signing::Offloaded), 1);
    let mut stream = connect(&client_config(&identity, &TLS13), proxy.address);
    // rustls reads too when it cannot write.
    stream.sock.set_write_timeout(Some(Duration::from_secs(1))).expect("an option");
    stream.sock.set_read_timeout(Some(Duration::from_secs(1))).expect("an option");
    let mut written = 0;
    while written < LIMIT && stream.write_all(&[0; 65536]).is_ok() {
        written += 65536;
    }
    assert!(written < LIMIT, "{written} bytes went somewhere");
    go.send(()).expect("the upstream waits");
    drop(stream);
    proxy.stop();
}

#[test]
fn a_client_that_is_cut_off_resets_the_upstream() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let (send, seen) = mpsc::channel();
    let watches = upstream(move |mut stream| {
        let result = stream.read_to_end(&mut Vec::new());
        let _ = send.send(result.map_err(|error| error.kind()));
    });
    let proxy = Running::start(&identity.config(watches, Signing::Offloaded), 1);
    let mut stream = connect(&client_config(&identity, &TLS13), proxy.address);
    stream.write_all(b"half a requ").expect("sends");
    // FIN without close_notify: a truncation (RFC 8446, section 6.1).
    stream.sock.shutdown(Shutdown::Both).expect("closes");
    assert_eq!(seen.recv().expect("seen"), Err(ErrorKind::ConnectionReset));
    proxy.stop();
}

#[test]
fn a_client_that_hangs_up_after_its_close_notify_is_no_failure() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let (send, has_ended) = mpsc::channel();
    let (hung_up, wait) = mpsc::channel::<()>();
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    let patient = upstream(move |mut stream| {
        stream.read_to_end(&mut Vec::new()).expect("the client ends in order");
        let _ = send.send(());
        // Ends its side when nobody listens any more.
        wait.lock().expect("not poisoned").recv().expect("the test hangs up");
    });
    let proxy = Running::start(&identity.config(patient, Signing::Offloaded), 1);
    let mut stream = connect(&client_config(&identity, &TLS13), proxy.address);
    stream.write_all(b"no answer is needed").expect("sends");
    stream.conn.send_close_notify();
    stream.flush().expect("sends");
    has_ended.recv().expect("the upstream has seen the end");
    drop(stream);
    hung_up.send(()).expect("the upstream waits");
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.relay_failed), (1, 0));
}

#[test]
fn a_client_that_hangs_up_when_told_the_end_is_no_failure() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let answers = upstream(|mut stream| stream.write_all(b"all there is").expect("sends"));
    let proxy = Running::start(&identity.config(answers, Signing::Offloaded), 1);
    let mut stream = connect(&client_config(&identity, &TLS13), proxy.address);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("ended by close_notify");
    assert_eq!(answer, b"all there is");
    // Without one of its own.
    drop(stream);
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.relay_failed), (1, 0));
}

/// The answer to an upload that the upstream does not read to the end, as one of a server that it is too much for.
#[test]
fn an_early_answer_comes_through() {
    if !need(&NEEDS) {
        return;
    }
    // What its kernel has sent when the reset goes.
    const ANSWER: [u8; 5_000] = [b'4'; 5_000];
    let identity = Identity::new();
    // Closes with unread bytes, which makes the kernel send a reset.
    let refuses = upstream(|mut stream| {
        stream.read_exact(&mut [0; 1000]).expect("the beginning");
        stream.write_all(&ANSWER).expect("sends");
    });
    let proxy = Running::start(&identity.config(refuses, Signing::Offloaded), 1);
    let config = client_config(&identity, &TLS13);
    let upload = vec![1; 4 << 20];
    for _ in 0..20 {
        let mut stream = connect(&config, proxy.address);
        // Nobody takes all of it, maybe.
        let _ = stream.write_all(&upload).and_then(|()| stream.flush());
        let mut answer = Vec::new();
        // What could not be sent does not matter.
        while stream.conn.read_tls(&mut stream.sock).is_ok_and(|len| len > 0) {
            stream.conn.process_new_packets().expect("good records");
            let ended = stream.conn.reader().read_to_end(&mut answer);
            // It may be all there was, or not: the upstream was reset.
            assert_eq!(ended.expect_err("no close_notify").kind(), ErrorKind::WouldBlock);
        }
        assert!(answer == ANSWER, "{} bytes", answer.len());
    }
    proxy.stop();
}

#[test]
fn an_upstream_that_is_down_cuts_the_client_off() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let gone = TcpListener::bind(("127.0.0.1", 0)).expect("binds").local_addr().expect("bound");
    let proxy = Running::start(&identity.config(gone, Signing::Offloaded), 1);
    let config = client_config(&identity, &TLS13);
    // Not an end in order: no close_notify.
    exchange(&config, proxy.address, b"x").expect_err("there is nobody to answer");
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.upstream_failed), (1, 1));
}

#[test]
fn an_upstream_that_resets_cuts_the_client_off() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    // Closes with unread bytes, which makes the kernel send a reset.
    let resets = upstream(|mut stream| {
        stream.read_exact(&mut [0]).expect("one byte");
    });
    let proxy = Running::start(&identity.config(resets, Signing::Offloaded), 1);
    let config = client_config(&identity, &TLS13);
    exchange(&config, proxy.address, &[1; 1000]).expect_err("cut off");
    proxy.stop();
}

#[test]
fn idle_connections_and_slow_handshakes_are_ended() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let silent = upstream(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut config = identity.config(silent, Signing::Offloaded);
    config.timeouts.handshake = Duration::from_millis(200);
    config.timeouts.idle = Duration::from_millis(200);
    let proxy = Running::start(&config, 1);

    // Connects and says nothing.
    let mut mute = TcpStream::connect(proxy.address).expect("connects");
    assert_eq!(mute.read(&mut [0]).unwrap_or(0), 0);
    // Says a byte of a long hello now and then.
    let mut drip = TcpStream::connect(proxy.address).expect("connects");
    let mut hello = [22, 3, 1, 64, 0, 1, 0, 63, 252].into_iter().chain(std::iter::repeat(3));
    while drip.write_all(&[hello.next().expect("endless")]).is_ok() {
        thread::sleep(Duration::from_millis(10));
    }

    let mut stream = connect(&client_config(&identity, &TLS13), proxy.address);
    stream.write_all(b"x").expect("sends");
    stream.read_exact(&mut [0]).expect_err("ended");
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.handshakes_failed), (1, 2));
}

/// 100 MB of it, as a hello, as one that is never whole, and behind a handshake.
#[test]
fn nonsense_without_end_is_refused() {
    if !need(&NEEDS) {
        return;
    }
    const RECORD: usize = 16384;
    let identity = Identity::new();
    let idle = upstream(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let proxy = Running::start(&identity.config(idle, Signing::Offloaded), 1);
    let is_refused = |stream: &mut TcpStream, record: &[u8]| {
        (0..100_000_000 / RECORD).any(|_| stream.write_all(record).is_err())
    };
    let hello = [&[22, 3, 1, 64, 0, 1, 255, 255, 255][..], &[0; RECORD - 4]].concat();
    for record in [&[0x5A; RECORD][..], &hello] {
        let mut stream = TcpStream::connect(proxy.address).expect("connects");
        assert!(is_refused(&mut stream, record), "taken");
    }
    let mut stream = connect(&client_config(&identity, &TLS13), proxy.address);
    stream.write_all(b"well begun").expect("sends");
    let sealed = [&[23, 3, 3, 64, 0][..], &[0; RECORD]].concat();
    assert!(is_refused(&mut stream.sock, &sealed), "taken");
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.handshakes_failed, stats.relay_failed), (1, 2, 1));
}

#[test]
fn stopping_lets_open_connections_finish() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let (send, go) = mpsc::channel::<()>();
    let go = std::sync::Arc::new(std::sync::Mutex::new(go));
    let (arrived_send, arrived) = mpsc::channel();
    let waits = upstream(move |mut stream| {
        stream.read_exact(&mut [0; 3]).expect("the request");
        arrived_send.send(()).expect("the test listens");
        go.lock().expect("not poisoned").recv().expect("the test says go");
        stream.write_all(b"answer").expect("sends");
    });
    let mut config = identity.config(waits, Signing::Offloaded);
    let metrics = TcpListener::bind(LOOPBACK).and_then(|one| one.local_addr()).expect("free");
    config.metrics = Some(metrics.into());
    let proxy = Running::start(&config, 1);
    let address = proxy.address;
    let config = client_config(&identity, &TLS13);
    let client = thread::spawn(move || exchange(&config, address, b"ask"));
    arrived.recv().expect("the request is through");
    let stopping = thread::spawn(move || proxy.stop());
    while TcpStream::connect(address).is_ok() {
        thread::yield_now();
    }
    // The next process may have it.
    while TcpStream::connect(metrics).is_ok() {
        thread::yield_now();
    }
    send.send(()).expect("the upstream waits");
    assert_eq!(client.join().expect("no panic").expect("answered"), b"answer");
    let stats = stopping.join().expect("no panic");
    assert_eq!(stats.handshakes, 1);
}

#[test]
fn a_connection_that_does_not_end_is_cut_off_after_the_drain() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let (send, seen) = mpsc::channel();
    let (arrived_send, arrived) = mpsc::channel();
    let watches = upstream(move |mut stream| {
        stream.read_exact(&mut [0; 4]).expect("the first half");
        arrived_send.send(()).expect("the test listens");
        let result = stream.read_to_end(&mut Vec::new());
        let _ = send.send(result.map_err(|error| error.kind()));
    });
    let mut config = identity.config(watches, Signing::Offloaded);
    config.timeouts.drain = Duration::from_millis(50);
    let log = identity.directory.path().join("access.json");
    config.access_log = Some(log.clone());
    let proxy = Running::start(&config, 1);
    let mut stream = connect(&client_config(&identity, &TLS13), proxy.address);
    stream.write_all(b"half").expect("sends");
    stream.flush().expect("sends");
    arrived.recv().expect("half of it is through");
    assert_eq!(proxy.stop().cut_off, 1);
    let log = std::fs::read_to_string(log).expect("written");
    let line: serde_json::Value = serde_json::from_str(log.trim_end()).expect("one line of JSON");
    assert_eq!(
        (&line["received"], &line["error"]),
        (&4.into(), &"cut off when the proxy ended".into())
    );
    stream.read_exact(&mut [0]).expect_err("cut off");
    // Half an upload must not look like a whole one.
    assert_eq!(seen.recv().expect("seen"), Err(ErrorKind::ConnectionReset));
}

/// Nobody waits for a log: neither connections nor the end.
#[test]
fn a_log_that_is_not_read_holds_nothing_up() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let log = identity.directory.path().join("log");
    assert!(Command::new("mkfifo").arg(&log).status().expect("starts").success());
    let mut options = File::options();
    let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let mut full = options.open(&log).expect("opens");
    while full.write(&[0; 4096]).is_ok() {}
    let mut config = identity.config(upstream(echo), Signing::Offloaded);
    config.access_log = Some(log);
    let proxy = Running::start(&config, 2);
    let client = client_config(&identity, &TLS13);
    // Of the first one the line is being written before the end.
    assert_eq!(exchange(&client, proxy.address, b"one").expect("answered"), b"one");
    while full.read(&mut [0; 4096]).is_ok() {}
    let mut line = Vec::new();
    while !line.contains(&b'\n') {
        let mut part = [0; 4096];
        match full.read(&mut part) {
            Ok(len) => line.extend_from_slice(&part[..len]),
            Err(_) => thread::yield_now(),
        }
    }
    while full.write(&[0; 4096]).is_ok() {}
    assert_eq!(exchange(&client, proxy.address, b"two").expect("answered"), b"two");
    assert_eq!(proxy.stop().handshakes, 2);
}
