//! Handshakes in both versions and both ways of signing, many at a time, and cut off in the middle.

#[macro_use]
mod common;

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use common::{Identity, Running, client_config, connect, echo, exchange, upstream};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::SockRef;
use warpcore_need::{Need, need};
use warpcore_offload::{Devices, Fault, Faults, Kernel, Model, ModelKind, State, together};
use warpcore_tls::Signing;

const NEEDS: [Need; 2] = [Need::Tool("openssl", "openssl"), Need::IoUring];

both_ways! {
    both_versions_shake_hands_and_relay => shakes_hands_and_relays;
    two_hundred_at_a_time => two_hundred;
    a_client_that_vanishes_leaks_nothing => vanishing;
    a_client_that_talks_nonsense_is_refused => nonsense;
    a_client_that_stops_at_any_byte_leaks_nothing => stopping;
}

fn shakes_hands_and_relays(signing: Signing) {
    let identity = Identity::new();
    let proxy = Running::start(&identity.config(upstream(echo), signing), 1);
    for version in [&TLS12, &TLS13] {
        let config = client_config(&identity, version);
        let message = vec![7; 100_000];
        let mut stream = connect(&config, proxy.address);
        let mut writer = stream.sock.try_clone().expect("clones");
        // More than fits the buffers on the way: written by parts, as the echo is read.
        let mut answer = Vec::new();
        for part in message.chunks(10_000) {
            stream.write_all(part).expect("sends");
            let mut back = vec![0; part.len()];
            std::io::Read::read_exact(&mut stream, &mut back).expect("comes back");
            answer.extend(back);
        }
        assert_eq!(answer, message);
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
        stream.conn.send_close_notify();
        stream.conn.write_tls(&mut writer).expect("sends");
    }
    let stats = proxy.stop();
    assert_eq!((stats.accepted, stats.handshakes, stats.handshakes_failed), (2, 2, 0));
    let signed = stats.queue.kernel(Kernel::RsaPrivate).requests;
    assert_eq!(signed, if signing == Signing::Offloaded { 2 } else { 0 });
    // In TLS 1.2 our key goes out before the client's is there: in place, as where there are no lanes.
    let exchanged = stats.queue.kernel(Kernel::KeyExchange).requests;
    assert_eq!(exchanged, u64::from(exchanges(signing)));
}

/// Whether keys are exchanged on the queue.
fn exchanges(signing: Signing) -> bool {
    signing == Signing::Offloaded && together(Kernel::KeyExchange).is_some()
}

fn two_hundred(signing: Signing) {
    const CLIENTS: usize = 200;
    let identity = Identity::new();
    let proxy = Running::start(&identity.config(upstream(echo), signing), 1);
    let address = proxy.address;
    let barrier = Arc::new(Barrier::new(CLIENTS));
    let configs = [client_config(&identity, &TLS12), client_config(&identity, &TLS13)];
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let (config, barrier) = (Arc::clone(&configs[n % 2]), Arc::clone(&barrier));
            thread::spawn(move || {
                let message = format!("client {n}").into_bytes();
                barrier.wait();
                assert_eq!(exchange(&config, address, &message).expect("answered"), message);
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("no panic"));
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.handshakes_failed), (200, 0));
    let largest = stats.queue.kernel(Kernel::RsaPrivate).batch_len_max;
    // Where nothing is computed in lanes, nothing waits for company.
    let alone = signing == Signing::InPlace || together(Kernel::RsaPrivate).is_none();
    assert!(alone || largest > 1, "never more than one signature waited");
}

/// A client that has sent its ClientHello, and has not looked for an answer.
fn say_hello(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = connect(config, address);
    let mut hello = Vec::new();
    stream.conn.write_tls(&mut hello).expect("to memory");
    stream.sock.write_all(&hello).expect("sends");
    stream
}

/// Sends a ClientHello and hangs up before it is answered, over and over: when the proxy has ended,
/// every signature that was in flight is over, and every stack and slot is back.
fn vanishing(signing: Signing) {
    let identity = Identity::new();
    let proxy = Running::start(&identity.config(upstream(echo), signing), 1);
    let config = client_config(&identity, &TLS13);
    for _ in 0..100 {
        // A reset, so that the proxy cannot answer either.
        drop(say_hello(&config, proxy.address));
    }
    assert_eq!(exchange(&config, proxy.address, b"still there").expect("answered"), b"still there");
    let stats = proxy.stop();
    assert_eq!(stats.accepted, 101);
    assert_eq!(stats.handshakes + stats.handshakes_failed, 101);
    assert_eq!(stats.queue.in_flight(), 0);
}

#[derive(Debug, Clone, Copy)]
enum End {
    InOrder,
    Reset,
    Silence,
}

/// At each byte of what it says first, and of its answer to the server: in both versions, by an end in
/// order, by a reset, and by silence.
fn stopping(signing: Signing) {
    /// At a time: each is a descriptor on both sides.
    const SILENT_MAX: usize = 100;
    let identity = Identity::new();
    let mut config = identity.config(upstream(echo), signing);
    config.timeouts.handshake = Duration::from_secs(2);
    let proxy = Running::start(&config, 1);
    let mut connections = 0;
    let mut silent: Vec<TcpStream> = Vec::new();
    // Until they are out of time.
    let wait = |silent: &mut Vec<TcpStream>| {
        for mut stream in silent.drain(..) {
            let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        }
    };
    for version in [&TLS12, &TLS13] {
        let config = client_config(&identity, version);
        let ends = [End::InOrder, End::Reset, End::Silence];
        for (answers, end) in
            [false, true].into_iter().flat_map(|answers| ends.map(|end| (answers, end)))
        {
            let mut len = 0;
            loop {
                let mut stream = connect(&config, proxy.address);
                connections += 1;
                let mut said = Vec::new();
                stream.conn.write_tls(&mut said).expect("to memory");
                if answers {
                    stream.sock.write_all(&said).expect("sends");
                    said.clear();
                    while !stream.conn.wants_write() {
                        stream.conn.read_tls(&mut stream.sock).expect("answered");
                        stream.conn.process_new_packets().expect("good");
                    }
                    while stream.conn.wants_write() {
                        stream.conn.write_tls(&mut said).expect("to memory");
                    }
                }
                if len >= said.len() {
                    break;
                }
                stream.sock.write_all(&said[..len]).expect("sends");
                match end {
                    End::InOrder => stream.sock.shutdown(std::net::Shutdown::Write).expect("open"),
                    End::Reset => {
                        let socket = SockRef::from(&stream.sock);
                        socket.set_linger(Some(Duration::ZERO)).expect("an option");
                    }
                    End::Silence => silent.push(stream.sock),
                }
                if silent.len() == SILENT_MAX {
                    wait(&mut silent);
                }
                len += 1;
            }
            wait(&mut silent);
            assert!(len > 30, "{len} bytes");
        }
    }
    // And of what is relayed.
    for number in 0..10 {
        let config = client_config(&identity, [&TLS12, &TLS13][number % 2]);
        let mut stream = connect(&config, proxy.address);
        stream.write_all(b"half").expect("sends");
        std::io::Read::read_exact(&mut stream, &mut [0; 4]).expect("answered");
        if number < 5 {
            let socket = SockRef::from(&stream.sock);
            socket.set_linger(Some(Duration::ZERO)).expect("an option");
        }
    }
    for line in ["connections{", "handshakes_pending{", "upstream_connections{"] {
        let line = format!("warpcore_{line}");
        let is_zero = |text: &str| {
            let mut lines = text.lines().filter(|one| one.starts_with(&line)).peekable();
            assert!(lines.peek().is_some(), "{text}");
            lines.all(|one| one.ends_with(" 0"))
        };
        while !is_zero(&proxy.proxy.metrics()) {
            thread::yield_now();
        }
    }
    let stats = proxy.stop();
    assert_eq!(stats.accepted, connections + 10);
    assert_eq!((stats.handshakes, stats.handshakes_failed), (10, connections));
    assert_eq!(stats.queue.in_flight(), 0);
}

fn nonsense(signing: Signing) {
    let identity = Identity::new();
    let proxy = Running::start(&identity.config(upstream(echo), signing), 1);
    let mut stream = TcpStream::connect(proxy.address).expect("connects");
    // More than is read at once: what is not read must not take the alert away.
    let body = "x".repeat(100_000);
    let request =
        format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut answer).expect("is closed in order");
    assert_eq!(answer.first(), Some(&21), "an alert (RFC 8446, section 5.1)");
    drop(stream);
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.handshakes_failed), (0, 1));
}

/// The future of a connection is dropped at the end of the drain while its signature waits: the
/// coroutine is resumed with an error and nothing hangs.
#[test]
fn a_proxy_that_ends_with_signatures_in_flight_ends_cleanly() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let mut config = identity.config(upstream(echo), Signing::Offloaded);
    config.timeouts.handshake = Duration::from_millis(1);
    let proxy = Running::start(&config, 1);
    let client = client_config(&identity, &TLS13);
    let streams: Vec<_> = (0..50).map(|_| say_hello(&client, proxy.address)).collect();
    // Each is cut off by the timeout, most of them suspended.
    for mut stream in streams {
        let _ = std::io::Read::read_to_end(&mut stream.sock, &mut Vec::new());
    }
    let stats = proxy.stop();
    assert!(stats.queue.dropped_in_flight > 0, "none was suspended: {stats:?}");
    assert_eq!(stats.queue.in_flight(), 0);
}

/// An RSA engine is reset, and answers one request never and one wrongly, and is taken out of service,
/// each with signatures in flight: no client hears of it.
#[test]
fn a_device_that_dies_is_not_noticed() {
    if !need(&NEEDS) {
        return;
    }
    let well = || std::iter::repeat_n(None, 5);
    let one = |fault| well().chain([Some(fault)]);
    let faults = [Fault::Reset, Fault::Hang, Fault::Wrong, Fault::QueueError, Fault::Isolate];
    let faults = Faults::script(faults.into_iter().flat_map(one));
    let model = Model::new(ModelKind::Hpre).faults(faults).start();
    let devices = Devices::models([&model]).deadline(Duration::from_millis(100));
    let identity = Identity::new();
    let config = identity.config(upstream(echo), Signing::Offloaded);
    let proxy = Running::start_on(&config, 1, devices.clone());
    let (address, client) = (proxy.address, client_config(&identity, &TLS13));
    let asked = AtomicU64::new(0);
    thread::scope(|scope| {
        let ask = || {
            // It is tried again some time after each fault, and no more after the last.
            while matches!(devices.list()[0].state, State::Ready { .. }) {
                assert_eq!(exchange(&client, address, b"signed").expect("answered"), b"signed");
                asked.fetch_add(1, Ordering::Relaxed);
            }
        };
        (0..4).for_each(|_| drop(scope.spawn(ask)));
    });
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.handshakes_failed), (asked.into_inner(), 0));
    let signed = stats.queue.kernel(Kernel::RsaPrivate);
    assert!(signed.on_device >= 20 && signed.redone >= 5 && signed.spilled > 0, "{signed:?}");
    assert_eq!((stats.queue.in_flight(), model.open_queues()), (0, 0));
}

/// Of a client whose hybrid is AWS-LC's.
#[test]
fn browsers_first_choice_is_ours_too() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    for signing in [Signing::Offloaded, Signing::InPlace] {
        let proxy = Running::start(&identity.config(upstream(echo), signing), 1);
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
        let mut roots = rustls::RootCertStore::empty();
        roots.add(identity.root.clone()).expect("a good root");
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])
            .expect("supported")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let answer = exchange(&Arc::new(config), proxy.address, b"hybrid").expect("answered");
        assert_eq!(answer, b"hybrid");
        let exchanged = proxy.stop().queue.kernel(Kernel::KeyExchange).requests;
        assert_eq!(exchanged, u64::from(exchanges(signing)));
    }
}

/// Hundreds wait for a device that does not answer, in its queue and for a place in it, as the proxy is told
/// to end, and there is no time to drain.
#[test]
fn a_proxy_that_ends_at_once_with_hundreds_suspended_ends() {
    const CLIENTS: u64 = 500;
    /// Of a shard's queue.
    const PLACES: u64 = 256;
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let mut config = identity.config(upstream(echo), Signing::Offloaded);
    config.timeouts.drain = Duration::from_millis(1);
    config.timeouts.handshake = Duration::from_secs(3600);
    // It is never started.
    let model = Model::new(ModelKind::Hpre);
    let devices = Devices::models([&model]).deadline(Duration::from_secs(3600));
    let proxy = Running::start_on(&config, 1, devices);
    // The key exchange of this version is in place.
    let client = client_config(&identity, &TLS12);
    let streams: Vec<_> = (0..CLIENTS).map(|_| say_hello(&client, proxy.address)).collect();
    let in_flight = format!("warpcore_offload_in_flight {PLACES}\n");
    let full = format!("warpcore_offload_full_total {}\n", CLIENTS - PLACES);
    while ![&in_flight, &full].into_iter().all(|line| proxy.proxy.metrics().contains(line)) {
        thread::yield_now();
    }
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.cut_off), (0, CLIENTS));
    assert_eq!((stats.queue.dropped_in_flight, model.open_queues()), (PLACES, 0));
    for mut stream in streams {
        let answer = std::io::Read::read_to_end(&mut stream.sock, &mut Vec::new());
        let kind = answer.as_ref().map_err(|error| error.kind());
        assert!(matches!(kind, Ok(0) | Err(ErrorKind::ConnectionReset)), "{answer:?}");
    }
}
