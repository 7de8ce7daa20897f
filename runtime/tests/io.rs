//! Sockets and files: what is sent arrives, what is dropped in flight leaks nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use warpcore_need::{Need, need};
use warpcore_runtime::fs::File;
use warpcore_runtime::net::{self, Address, Listener, Stream};
use warpcore_runtime::{Builder, sleep, spawn, timeout, until_stopped};

const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn one() -> Builder {
    Builder::new().shards(1)
}

async fn serve_echo(mut listener: Listener) {
    while let Ok(stream) = listener.accept().await {
        drop(spawn(async move {
            let mut buffer = Vec::with_capacity(16 * 1024);
            loop {
                let (received, bytes) = stream.recv(buffer).await;
                if received.is_ok_and(|len| len > 0) {
                    let (sent, mut bytes) = stream.send_all(bytes).await;
                    sent.expect("the client reads");
                    bytes.clear();
                    buffer = bytes;
                } else {
                    return;
                }
            }
        }));
    }
}

#[test]
fn an_echo_comes_back_whole() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            let listener = Listener::bind(SocketAddr::from(LOOPBACK)).expect("binds");
            let address = listener.local_addr().expect("bound");
            let server = spawn(serve_echo(listener));
            let clients: Vec<_> = (0..20_u8)
                .map(|n| {
                    let address = address.clone();
                    spawn(async move {
                        let stream = Stream::connect(address).await.expect("connects");
                        let sent = Bytes::from(vec![n; 300_000]);
                        let writer = spawn({
                            let (stream, sent) = (stream.clone(), sent.clone());
                            async move {
                                stream.send_all(sent).await.0.expect("sends");
                                stream.shutdown(Shutdown::Write).expect("closes");
                            }
                        });
                        let mut received = BytesMut::new();
                        loop {
                            received.reserve(64 * 1024);
                            let (result, back) = stream.recv(received).await;
                            received = back;
                            if result.expect("receives") == 0 {
                                break;
                            }
                        }
                        writer.await.expect("no panic");
                        assert_eq!(received, sent);
                    })
                })
                .collect();
            for client in clients {
                client.await.expect("no panic");
            }
            server.cancel().await;
        })
        .expect("runs");
}

/// Who comes by IPv4 to a socket that others have made for both families has an address of IPv4.
#[test]
fn one_listener_takes_both_families() {
    if !need(&[Need::IoUring, Need::Ipv6]) {
        return;
    }
    one()
        .run(|_| async {
            let socket = std::net::TcpListener::bind("[::]:0").expect("binds");
            let port = socket.local_addr().expect("bound").port();
            let mut listener = Listener::from(OwnedFd::from(socket));
            let address = SocketAddr::from((LOOPBACK.0, port));
            let stream = Stream::connect(address).await.expect("connects");
            let accepted = listener.accept().await.expect("accepts");
            assert_eq!(accepted.peer_addr().ok(), stream.local_addr().ok());
            assert_eq!(accepted.local_addr().expect("connected"), Address::Tcp(address));
        })
        .expect("runs");
}

#[test]
fn every_shard_accepts_on_the_same_port() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let free = std::net::TcpListener::bind(SocketAddr::from(LOOPBACK)).expect("binds");
    let address = free.local_addr().expect("bound");
    drop(free);
    let clients = std::thread::spawn(move || {
        let mut answered = 0;
        while answered < 50 {
            let Ok(mut stream) = std::net::TcpStream::connect(address) else {
                continue;
            };
            stream.write_all(b"x").expect("sends");
            stream.read_exact(&mut [0]).expect("is echoed");
            answered += 1;
        }
    });
    let clients = std::sync::Mutex::new(Some(clients));
    Builder::new()
        .shards(2)
        .run(|index| {
            let clients = clients.lock().expect("not poisoned").take_if(|_| index == 0);
            async move {
                let listener = Listener::bind(address).expect("binds");
                let _server = spawn(serve_echo(listener));
                if let Some(clients) = clients {
                    while !clients.is_finished() {
                        sleep(Duration::from_millis(1)).await;
                    }
                    clients.join().expect("no panic");
                    warpcore_runtime::stop();
                }
                warpcore_runtime::stopping().await;
            }
        })
        .expect("runs");
}

#[test]
fn a_unix_socket_that_nobody_listens_on_is_replaced() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            let place = tempfile::tempdir().expect("a temporary directory");
            let address = Address::Unix(place.path().join("socket"));
            drop(
                std::os::unix::net::UnixListener::bind(place.path().join("socket")).expect("binds"),
            );
            let listener = Listener::bind(&address).expect("nobody listens any more");
            let taken = Listener::bind(&address).expect_err("somebody listens");
            assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
            let _server = spawn(serve_echo(listener));
            let stream = Stream::connect(&address).await.expect("connects");
            assert_eq!(stream.peer_addr().expect("known"), address);
            stream.send_all(Bytes::from_static(b"over a path")).await.0.expect("sends");
            let (received, buffer) = stream.recv(Vec::with_capacity(100)).await;
            assert_eq!((received.expect("is echoed"), &buffer[..]), (11, &b"over a path"[..]));
        })
        .expect("runs");
}

/// What lies at the path stays there, and nobody waits for a server that hangs.
#[test]
fn only_a_socket_is_replaced() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let file = place.path().join("key.pem");
    std::fs::write(&file, "precious").expect("written");
    let error = net::bind(&Address::Unix(file.clone()), false).expect_err("something is there");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
    let address = Address::Unix(place.path().join("socket"));
    let hung = net::bind(&address, false).expect("binds");
    socket2::SockRef::from(&hung).listen(0).expect("a backlog of one");
    let waits = std::os::unix::net::UnixStream::connect(place.path().join("socket"));
    let error = net::bind(&address, false).expect_err("somebody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(waits.expect("the backlog has room"));
}

#[test]
fn shards_that_share_a_socket_take_turns() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let socket = net::bind(&SocketAddr::from(LOOPBACK).into(), false).expect("binds");
    let address = net::local_addr(&socket).expect("bound");
    let served = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let (socket, served) = (Arc::new(socket), Arc::new(served));
    let waiting = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&served);
    Builder::new()
        .shards(2)
        .run(move |shard| {
            let socket = socket.try_clone().expect("clones");
            let (address, served) = (address.clone(), Arc::clone(&counts));
            let waiting = Arc::clone(&waiting);
            async move {
                let mut listener = Listener::shared(socket);
                // Both wait for connections before the first comes.
                let waits = timeout(Duration::from_millis(1), listener.accept()).await;
                assert!(waits.is_err(), "nobody connects");
                waiting.fetch_add(1, Ordering::Relaxed);
                while waiting.load(Ordering::Relaxed) < 2 {
                    sleep(Duration::from_millis(1)).await;
                }
                if shard == 0 {
                    drop(spawn(async move {
                        for _ in 0..20 {
                            let client = Stream::connect(&address).await.expect("connects");
                            // It has been accepted, and somebody waits for the next.
                            let (received, _) = client.recv(Vec::with_capacity(1)).await;
                            assert_eq!(received.expect("comes"), 1);
                        }
                        warpcore_runtime::stop();
                    }));
                }
                while let Some(stream) = until_stopped(listener.accept()).await {
                    served[shard].fetch_add(1, Ordering::Relaxed);
                    let stream = stream.expect("accepts");
                    stream.send_all(Bytes::from_static(b"1")).await.0.expect("sends");
                }
            }
        })
        .expect("runs");
    let [first, second] = [0, 1].map(|shard| served[shard].load(Ordering::Relaxed));
    assert!(first > 0 && second > 0 && first + second == 20, "{first} and {second}");
}

/// Who came in the turn in which it closed had woken it alone.
#[test]
fn a_listener_that_closes_takes_whom_it_was_woken_for() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            for shared in [false, true] {
                let socket = net::bind(&SocketAddr::from(LOOPBACK).into(), true).expect("binds");
                let address = net::local_addr(&socket).expect("bound").to_string();
                let mut listener =
                    if shared { Listener::shared(socket) } else { Listener::from(socket) };
                // The kernel waits for connections by now.
                let first = std::net::TcpStream::connect(&address).expect("connects");
                let _served = listener.accept().await.expect("accepts");
                let waits = timeout(Duration::from_millis(1), listener.accept()).await;
                assert!(waits.is_err(), "nobody connects");
                let clients: Vec<_> = (0..3)
                    .map(|_| std::net::TcpStream::connect(&address).expect("connects"))
                    .collect();
                assert_eq!(listener.close().await.len(), clients.len(), "shared: {shared}");
                drop(first);
            }
        })
        .expect("runs");
}

#[test]
fn a_listener_that_closes_leaves_nobody_behind() {
    const CLIENTS: usize = 50;
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            let socket = net::bind(&SocketAddr::from(LOOPBACK).into(), true).expect("binds");
            let address = net::local_addr(&socket).expect("bound");
            let other = Listener::from(socket.try_clone().expect("clones"));
            let mut listener = Listener::from(socket);
            let mut clients = Vec::new();
            for _ in 0..CLIENTS {
                clients.push(Stream::connect(&address).await.expect("connects"));
            }
            let first = listener.accept().await.expect("accepts");
            let mut served = listener.close().await;
            served.push(first);
            // Whom it had not accepted, who has the same socket does.
            let mut other = other;
            while served.len() < CLIENTS {
                served.push(other.accept().await.expect("accepts"));
            }
            for stream in &served {
                stream.send_all(Bytes::from_static(b"served")).await.0.expect("sends");
            }
            for client in clients {
                let (received, _) = client.recv(Vec::with_capacity(100)).await;
                assert_eq!(received.expect("comes"), 6);
            }
        })
        .expect("runs");
}

#[test]
fn a_refused_connection_is_an_error() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            let gone = std::net::TcpListener::bind(SocketAddr::from(LOOPBACK)).expect("binds");
            let address = gone.local_addr().expect("bound");
            drop(gone);
            let error = Stream::connect(address).await.expect_err("nobody listens");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        })
        .expect("runs");
}

#[test]
fn files_are_written_synced_and_read_back() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            let file = tempfile::tempfile().expect("a temporary file");
            let file = File::from(file);
            let contents: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
            let (result, contents) = file.write_all_at(contents, 4096).await;
            result.expect("writes");
            file.sync_data().await.expect("syncs");
            file.sync_all().await.expect("syncs");
            let (result, back) = file.read_at(Vec::with_capacity(500_000), 4096).await;
            assert_eq!(result.expect("reads"), contents.len());
            assert!(back == contents);
            let (result, hole) = file.read_at(Vec::with_capacity(4096), 0).await;
            assert_eq!((result.expect("reads"), hole), (4096, vec![0; 4096]));
            let end = 4096 + contents.len() as u64;
            assert_eq!(file.read_at(Vec::with_capacity(10), end).await.0.expect("reads"), 0);
        })
        .expect("runs");
}

#[test]
fn a_full_submission_queue_is_flushed_not_overrun() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .sq_entries(4)
        .run(|_| async {
            let file = tempfile::tempfile().expect("a temporary file");
            let file = File::from(file);
            let tasks: Vec<_> = (0..300_u64)
                .map(|n| {
                    let file = file.clone();
                    spawn(async move {
                        file.write_all_at(n.to_le_bytes().to_vec(), n * 8).await.0.expect("writes");
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
            let (result, back) = file.read_at(Vec::with_capacity(2400), 0).await;
            result.expect("reads");
            let expected: Vec<u8> = (0..300_u64).flat_map(u64::to_le_bytes).collect();
            assert_eq!(back, expected);
            assert!(file.as_raw_fd() > 0);
        })
        .expect("runs");
}
