//! Where connections go, what upstreams are told, how many may come, and what is told of it all.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, mpsc};
use std::time::{Duration, Instant};

use common::{Identity, LOOPBACK, Running, client_config, connect, echo, exchange, talk, upstream};
use rustls::version::{TLS12, TLS13};
use socket2::SockRef;
use warpcore_need::{Need, need};
use warpcore_offload::Devices;
use warpcore_runtime::net::Address;
use warpcore_tls::{Balance, Config, Limits, Proxy, ProxyProtocol, Signing};

const NEEDS: [Need; 2] = [Need::Tool("openssl", "openssl"), Need::IoUring];

/// An upstream that answers with its name.
fn named(name: &'static str) -> SocketAddr {
    upstream(move |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = stream.write_all(name.as_bytes());
    })
}

fn config(identity: &Identity, upstreams: &[String]) -> Config {
    let mut config = identity.config(LOOPBACK, Signing::Offloaded);
    let pool = config.pools.get_mut("upstream").expect("of a single one");
    pool.upstreams = upstreams.to_vec();
    config
}

/// A port that nobody listens on.
fn nobody() -> String {
    TcpListener::bind(LOOPBACK)
        .and_then(|listener| listener.local_addr())
        .expect("bound")
        .to_string()
}

#[test]
fn every_upstream_has_its_turn_and_a_dead_one_none() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let upstreams = [named("one").to_string(), nobody(), named("two").to_string()];
    let proxy = Running::start(&config(&identity, &upstreams), 1);
    let client = client_config(&identity, &TLS13);
    let answers: Vec<_> = (0..12)
        .map(|_| String::from_utf8(exchange(&client, proxy.address, b"who").expect("answered")))
        .collect::<Result<_, _>>()
        .expect("names");
    for name in ["one", "two"] {
        assert!(answers.iter().filter(|answer| *answer == name).count() >= 4, "{answers:?}");
    }
    let dead =
        format!("warpcore_upstream_up{{pool=\"upstream\",upstream=\"{}\"}} 0\n", upstreams[1]);
    assert!(proxy.proxy.metrics().contains(&dead), "{}", proxy.proxy.metrics());
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.upstream_failed), (12, 0));
}

#[test]
fn checks_find_who_is_down_and_who_is_up_again() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let listener = TcpListener::bind(LOOPBACK).expect("binds");
    let address = listener.local_addr().expect("bound");
    // One whose queue is full, so that it says nothing: the others are checked meanwhile.
    let silent = TcpListener::bind(LOOPBACK).expect("binds");
    SockRef::from(&silent).listen(0).expect("listens");
    let nobody_comes = silent.local_addr().expect("bound");
    let _waits = TcpStream::connect(nobody_comes).expect("there is room for one");
    let mut config = config(&identity, &[nobody_comes.to_string(), address.to_string()]);
    config.timeouts.connect = Duration::from_secs(600);
    let pool = config.pools.get_mut("upstream").expect("there");
    pool.check = Some(Duration::from_millis(10));
    let proxy = Running::start(&config, 1);
    let until = |up: u8| {
        let line = format!("upstream_up{{pool=\"upstream\",upstream=\"{address}\"}} {up}\n");
        let started = Instant::now();
        while !proxy.proxy.metrics().contains(&line) {
            assert!(started.elapsed() < Duration::from_secs(20), "{}", proxy.proxy.metrics());
            std::thread::yield_now();
        }
    };
    until(1);
    drop(listener);
    until(0);
    let _again = TcpListener::bind(address).expect("free");
    until(1);
    proxy.stop();
}

#[test]
fn the_least_busy_upstream_is_next_and_protocols_have_their_own() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let mut config = config(&identity, &[named("one").to_string(), named("two").to_string()]);
    config.pools.get_mut("upstream").expect("there").balance = Balance::LeastConnections;
    let mut other = config.pools["upstream"].clone();
    other.upstreams = vec![named("h2").to_string()];
    config.pools.insert("other".to_owned(), other);
    let site = &mut config.listeners[0].sites[0];
    site.alpn = ["h2", "http/1.1"].map(str::to_owned).to_vec();
    site.pool_by_alpn.insert("h2".to_owned(), "other".to_owned());
    let proxy = Running::start(&config, 1);
    let client = client_config(&identity, &TLS13);
    // One of them is busy.
    let mut busy = connect(&client, proxy.address);
    busy.write_all(b"wait").expect("sends");
    busy.flush().expect("sends");
    let line = "upstream_connections{pool=\"upstream\"";
    let open = |count: &str| {
        let text = proxy.proxy.metrics();
        text.lines().filter(|one| one.contains(line) && one.ends_with(count)).count()
    };
    // A client has its whole answer a moment before the proxy is done with it.
    let until_only_that_is_open = || {
        while (open(" 1"), open(" 0")) != (1, 1) {
            std::thread::yield_now();
        }
    };
    until_only_that_is_open();
    let first = exchange(&client, proxy.address, b"who").expect("answered");
    until_only_that_is_open();
    assert_eq!(exchange(&client, proxy.address, b"who").expect("answered"), first);
    assert_ne!(talk(busy, b"now").expect("answered"), first);

    let mut h2 = (*client).clone();
    h2.alpn_protocols = vec![b"h2".to_vec()];
    let answer = exchange(&Arc::new(h2), proxy.address, b"who").expect("answered");
    assert_eq!(answer, b"h2");
    proxy.stop();
}

#[test]
fn upstreams_are_told_who_the_client_is() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    for (version, tls, begins, suite) in [
        (ProxyProtocol::V1, &TLS13, &b"PROXY TCP4 127.0.0.1 127.0.0.1 "[..], &b"\r\n"[..]),
        (
            ProxyProtocol::V2,
            &TLS13,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11",
            b"\0\x16TLS_AES_256_GCM_SHA384",
        ),
        (ProxyProtocol::V2, &TLS12, b"\r\n\r\n\0\r\nQUIT\n\x21\x11", b"TLS_ECDHE_RSA_WITH_AES"),
    ] {
        let mut config = config(&identity, &[upstream(echo).to_string()]);
        config.pools.get_mut("upstream").expect("there").proxy_protocol = version;
        let proxy = Running::start(&config, 1);
        let client = client_config(&identity, tls);
        let answer = exchange(&client, proxy.address, b"GET").expect("answered");
        assert!(answer.starts_with(begins) && answer.ends_with(b"GET"), "{answer:?}");
        assert!(answer.windows(suite.len()).any(|part| part == suite), "{answer:?}");
        proxy.stop();
    }
}

#[test]
fn a_balancer_in_front_says_who_the_client_is() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let mut config = config(&identity, &[upstream(echo).to_string()]);
    config.listeners[0].proxy_protocol = true;
    config.pools.get_mut("upstream").expect("there").proxy_protocol = ProxyProtocol::V1;
    let proxy = Running::start(&config, 1);
    let client = client_config(&identity, &TLS13);
    let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 1234 443\r\n";
    // The same in binary (section 2.2 of proxy-protocol.txt), with an addition that says nothing (NOOP).
    let [from, to] = [1, 2].map(|last| {
        let mut address = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        address[15] = last;
        address
    });
    let ports = [1234_u16.to_be_bytes(), 443_u16.to_be_bytes()].concat();
    let addresses = [&from[..], &to, &ports, &[4, 0, 1, 7]].concat();
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let binary = [&signature[..], &[0x21, 0x21, 0, 40], &addresses].concat();
    // A check of the balancer's own: it is the client.
    let local = [&signature[..], &[0x20, 0, 0, 0]].concat();
    for header in [&line[..], &binary, &local] {
        let mut stream = connect(&client, proxy.address);
        let own = stream.sock.local_addr().expect("connected");
        // In two pieces, the second with the ClientHello behind it.
        stream.sock.write_all(&header[..14]).expect("sends");
        let mut rest = header[14..].to_vec();
        stream.conn.write_tls(&mut rest).expect("to memory");
        stream.sock.write_all(&rest).expect("sends");
        let answer = talk(stream, b"x").expect("answered");
        let direct = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} ", own.port());
        let told = if header == local { direct.as_bytes() } else { line };
        assert!(answer.starts_with(told) && answer.ends_with(b"\r\nx"), "{header:?}: {answer:?}");
    }
    // Without one nobody comes in.
    exchange(&client, proxy.address, b"x").expect_err("refused");
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.handshakes_failed), (3, 1));
}

#[test]
fn both_families_on_both_sides() {
    if !(need(&NEEDS) && need(&[Need::Ipv6])) {
        return;
    }
    let identity = Identity::new();
    let back = TcpListener::bind("[::1]:0").expect("binds");
    let mut config = config(&identity, &[back.local_addr().expect("bound").to_string()]);
    let mut second = config.listeners[0].clone();
    second.address = Address::Tcp("[::1]:0".parse().expect("an address"));
    config.listeners.push(second);
    std::thread::spawn(move || {
        for stream in back.incoming().map_while(Result::ok) {
            echo(stream);
        }
    });
    let proxy = Running::start(&config, 2);
    let client = client_config(&identity, &TLS13);
    for address in proxy.proxy.addresses() {
        let Address::Tcp(address) = address else { panic!("{address}") };
        assert_eq!(exchange(&client, address, b"x").expect("answered"), b"x", "{address}");
    }
    assert_eq!(proxy.stop().handshakes, 2);
}

/// One of two is gone for a while: nobody notices, and it is asked again once it is back.
#[test]
fn an_upstream_that_dies_under_load_fails_nobody() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    // Connections that it has when it dies end well.
    let serve = |listener: TcpListener, stop: Arc<AtomicBool>| {
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || {
                    let _ = stream.read_to_end(&mut Vec::new());
                    let _ = stream.write_all(b"mortal");
                });
            }
        })
    };
    let listener = TcpListener::bind(LOOPBACK).expect("binds");
    let address = listener.local_addr().expect("bound");
    let mut config = config(&identity, &[address.to_string(), named("immortal").to_string()]);
    config.pools.get_mut("upstream").expect("there").check = Some(Duration::from_millis(20));
    let proxy = Running::start(&config, 2);
    let client = client_config(&identity, &TLS13);
    let (over, mortal, immortal) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    // Who is in its backlog when it dies would be reset: nobody is, just then.
    let gate = RwLock::new(());
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let _connecting = gate.read();
                        let answer = exchange(&client, proxy.address, b"who").expect("answered");
                        let count = if answer == b"mortal" { &mortal } else { &immortal };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let until_more_of = |count: &AtomicU64| {
            let enough = count.load(Ordering::Relaxed) + 20;
            while count.load(Ordering::Relaxed) < enough {
                assert!(clients.iter().all(|client| !client.is_finished()), "a client failed");
                std::thread::yield_now();
            }
        };
        let mut listener = listener;
        for _ in 0..3 {
            let stop = Arc::new(AtomicBool::new(false));
            let again = listener.try_clone().expect("clones");
            let serving = serve(again, Arc::clone(&stop));
            until_more_of(&mortal);
            {
                let _nobody = gate.write();
                stop.store(true, Ordering::Relaxed);
                // Wakes it up.
                drop(TcpStream::connect(address));
                serving.join().expect("no panic");
                drop(listener);
            }
            until_more_of(&immortal);
            listener = TcpListener::bind(address).expect("free again");
        }
        over.store(true, Ordering::Relaxed);
    });
    let stats = proxy.stop();
    assert_eq!((stats.handshakes_failed, stats.upstream_failed, stats.relay_failed), (0, 0, 0));
}

#[test]
fn unix_sockets_on_both_sides() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let [front, back] = ["front", "back"].map(|name| identity.directory.path().join(name));
    let listener = std::os::unix::net::UnixListener::bind(&back).expect("binds");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("reads");
        stream.write_all(&all).expect("writes");
    });
    let mut config = config(&identity, &[format!("unix:{}", back.display())]);
    config.listeners[0].address = Address::Unix(front.clone());
    let proxy = Running::start(&config, 2);
    let client = client_config(&identity, &TLS13);
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a good name");
    let tls = rustls::ClientConnection::new(client, name).expect("a good config");
    let stream = std::os::unix::net::UnixStream::connect(&front).expect("connects");
    let mut stream = rustls::StreamOwned::new(tls, stream);
    stream.write_all(b"through files").expect("sends");
    stream.conn.send_close_notify();
    stream.flush().expect("sends");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    assert_eq!(answer, b"through files");
    assert_eq!(proxy.stop().handshakes, 1);
}

#[test]
fn too_many_are_refused_and_counted() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let few = Limits { connections: 3, connections_per_client: 2, handshakes: 3 };
    let pending = Limits { connections: 3, connections_per_client: 3, handshakes: 2 };
    let all = Limits { connections: 2, connections_per_client: 2, handshakes: 2 };
    for (limits, reason) in [(few, "client"), (pending, "handshakes"), (all, "connections")] {
        let mut config = config(&identity, &[upstream(echo).to_string()]);
        config.listeners[0].limits = limits;
        let proxy = Running::start(&config, 2);
        // Who says nothing has a place all the same.
        let silent: Vec<_> =
            (0..2).map(|_| TcpStream::connect(proxy.address).expect("connects")).collect();
        while !proxy.proxy.metrics().contains("_accepted_total 2\n") {
            std::thread::yield_now();
        }
        let client = client_config(&identity, &TLS13);
        exchange(&client, proxy.address, b"x").expect_err("refused");
        let line = format!("warpcore_connections_refused_total{{reason=\"{reason}\"}} 1\n");
        while !proxy.proxy.metrics().contains(&line) {
            std::thread::yield_now();
        }
        drop(silent);
        // Once they are gone there is room.
        while exchange(&client, proxy.address, b"x").is_err() {}
        let stats = proxy.stop();
        assert_eq!(stats.handshakes, 1);
    }
}

#[test]
fn what_happens_is_told() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let log = identity.directory.path().join("access.json");
    let mut config = config(&identity, &[upstream(echo).to_string()]);
    let metrics: SocketAddr = nobody().parse().expect("an address");
    config.metrics = Some(metrics.into());
    config.access_log = Some(log.clone());
    let proxy = Running::start(&config, 1);
    let client = client_config(&identity, &TLS13);
    exchange(&client, proxy.address, b"hello").expect("answered");
    TcpStream::connect(proxy.address)
        .expect("connects")
        .write_all(b"GET /\r\n\r\n")
        .expect("sends");
    let (send, seen) = mpsc::channel();
    let rest_of = |mut stream: TcpStream, request: &[u8]| {
        stream.write_all(request).expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("reads");
        answer
    };
    let connect = move || TcpStream::connect(metrics).expect("connects");
    let scrape = move || rest_of(connect(), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    std::thread::spawn(move || {
        loop {
            let answer = scrape();
            if answer.contains("handshakes_failed_total{cause=\"protocol\"} 1\n") {
                let _ = send.send(answer);
                return;
            }
        }
    });
    let answer = seen.recv_timeout(Duration::from_secs(20)).expect("is counted");
    // A request that comes in two segments, with another's in between.
    let mut slow = connect();
    slow.write_all(b"GET /met").expect("sends");
    scrape();
    let answered = rest_of(slow, b"rics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
    for line in [
        "HTTP/1.1 200 OK\r\n",
        "# TYPE warpcore_handshakes_total counter\n",
        "warpcore_handshakes_total{version=\"1.3\",resumed=\"no\"} 1\n",
        "warpcore_handshakes_by_suite_total{suite=\"TLS_AES_256_GCM_SHA384\"} 1\n",
        "warpcore_handshake_seconds_count 1\n",
        "warpcore_offload_seconds_bucket{kernel=\"rsa\",le=\"+Inf\"} 1\n",
        "warpcore_relayed_bytes_total{from=\"client\"} 5\n",
        "warpcore_offload_full_total 0\n",
        "warpcore_certificate_expires_seconds{chain=\"",
        "warpcore_accept_pauses_total 0\n",
        "warpcore_panics_total 0\n",
    ] {
        assert!(answer.contains(line), "{line} is not in {answer}");
    }
    // Each family is in one place: parsers refuse another.
    let of = |line: &str| {
        let name = line.split([' ', '{']).next().expect("one at least");
        let ends = ["_bucket", "_count", "_sum"];
        let end = ends.iter().find_map(|end| name.strip_suffix(end));
        end.unwrap_or(name).to_owned()
    };
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let mut families: Vec<_> = body.lines().filter(|line| !line.starts_with('#')).map(of).collect();
    families.dedup();
    let types: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let types: Vec<_> = types.iter().map(|line| of(line)).collect();
    assert_eq!(families.iter().find(|one| !types.contains(one)), None);
    for all in [&families, &types] {
        let mut sorted = all.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), all.len(), "{all:?}");
    }
    proxy.stop();
    let log = std::fs::read_to_string(log).expect("written");
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    let good = lines.iter().find(|line| line["error"].is_null()).expect("one of them");
    assert_eq!((&good["received"], &good["sent"]), (&5.into(), &5.into()), "{good}");
    assert_eq!(good["server_name"], "localhost", "{good}");
    assert_eq!(good["version"], "TLSv1.3", "{good}");
    let bad = lines.iter().find(|line| !line["error"].is_null()).expect("the other");
    assert!(bad["error"].as_str().expect("text").starts_with("handshake: "), "{bad}");
}

/// A process that was given the sockets, and ends, leaves them as they were.
#[test]
fn sockets_come_back_as_they_were() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let mut config = config(&identity, &[upstream(echo).to_string()]);
    let first = Running::start(&config, 1);
    let client = client_config(&identity, &TLS13);
    config.listeners[0].address = first.address.into();
    let sockets = first.proxy.sockets().expect("cloned");
    let next = Proxy::with_sockets(&config, sockets).expect("good");
    Running::run(next, 1, Devices::none()).stop();
    first.proxy.take_back();
    let patience = Duration::from_secs(10);
    drop(TcpStream::connect_timeout(&first.address, patience).expect("is heard"));
    assert_eq!(exchange(&client, first.address, b"hello").expect("answered"), b"hello");
    first.stop();
}
