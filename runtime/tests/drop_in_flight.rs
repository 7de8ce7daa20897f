//! Futures dropped with their operation in the kernel's hands: no buffer is freed early, none and no
//! descriptor is leaked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use warpcore_need::{Need, need};
use warpcore_runtime::net::{Listener, Stream};
use warpcore_runtime::{Builder, IoBufMut, sleep, spawn, timeout};

const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// The tests count the descriptors of the whole process: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

fn one() -> Builder {
    Builder::new().shards(1)
}

/// A buffer that tells when it is freed.
struct Watched(Vec<u8>, #[allow(dead_code, reason = "counted by its owner")] Arc<()>);

// SAFETY: the room is a Vec's.
unsafe impl IoBufMut for Watched {
    fn room(&mut self) -> (*mut u8, usize) {
        self.0.room()
    }

    unsafe fn filled(&mut self, len_bytes: usize) {
        // SAFETY: passed on.
        unsafe { self.0.filled(len_bytes) }
    }
}

#[test]
fn drop_in_flight_keeps_the_buffer_until_the_kernel_is_done() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let _alone = ALONE.lock();
    let before = descriptors();
    one()
        .run(|_| async {
            let mut listener = Listener::bind(SocketAddr::from(LOOPBACK)).expect("binds");
            let address = listener.local_addr().expect("bound");
            let client = Stream::connect(&address).await.expect("connects");
            let server = listener.accept().await.expect("accepts");
            let watch = Arc::new(());
            let buffer = Watched(Vec::with_capacity(100), Arc::clone(&watch));
            let receive = client.recv(buffer);
            assert!(timeout(Duration::from_millis(1), receive).await.is_err());
            assert_eq!(Arc::strong_count(&watch), 2, "freed before the kernel let go of it");
            while Arc::strong_count(&watch) > 1 {
                sleep(Duration::from_micros(100)).await;
            }
            // The socket works on: only the operation was cancelled.
            server.send_all(Bytes::from_static(b"still here")).await.0.expect("sends");
            let (received, bytes) = client.recv(Vec::with_capacity(100)).await;
            assert_eq!((received.expect("receives"), &bytes[..]), (10, &b"still here"[..]));
        })
        .expect("runs");
    assert_eq!(descriptors(), before);
}

#[test]
fn a_shard_that_ends_with_operations_in_flight_leaks_nothing() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let _alone = ALONE.lock();
    let before = descriptors();
    let watch = Arc::new(());
    one()
        .run(|_| {
            let watch = Arc::clone(&watch);
            async move {
                let mut listener = Listener::bind(SocketAddr::from(LOOPBACK)).expect("binds");
                let address = listener.local_addr().expect("bound");
                for _ in 0..50 {
                    let client = Stream::connect(&address).await.expect("connects");
                    let server = listener.accept().await.expect("accepts");
                    let buffer = Watched(Vec::with_capacity(1000), Arc::clone(&watch));
                    drop(spawn(async move {
                        let _server = server;
                        let _ = client.recv(buffer).await;
                    }));
                }
                // Connected, and never taken out of the accept.
                let waiting = Stream::connect(&address).await.expect("connects");
                // A turn, so that every task has started to receive.
                spawn(async {}).await.expect("no panic");
                drop(waiting);
            }
        })
        .expect("runs");
    assert_eq!(Arc::strong_count(&watch), 1);
    assert_eq!(descriptors(), before);
}

/// A buffer with operations of its own: its drop must find nothing borrowed, neither when the last
/// CQE drops it nor when its future does.
#[test]
fn a_buffer_may_own_operations_of_the_same_ring() {
    if !need(&[Need::IoUring]) {
        return;
    }
    struct Owner(Vec<u8>, #[allow(dead_code, reason = "only dropped")] Listener);
    // SAFETY: the room is a Vec's.
    unsafe impl IoBufMut for Owner {
        fn room(&mut self) -> (*mut u8, usize) {
            self.0.room()
        }
        unsafe fn filled(&mut self, len_bytes: usize) {
            // SAFETY: passed on.
            unsafe { self.0.filled(len_bytes) }
        }
    }
    async fn armed() -> Listener {
        let mut listener = Listener::bind(SocketAddr::from(LOOPBACK)).expect("binds");
        // Polled once: its accept is in flight.
        assert!(timeout(Duration::ZERO, listener.accept()).await.is_err());
        listener
    }
    let _alone = ALONE.lock();
    let before = descriptors();
    one()
        .run(|_| async {
            let mut listener = Listener::bind(SocketAddr::from(LOOPBACK)).expect("binds");
            let address = listener.local_addr().expect("bound");
            let client = Stream::connect(&address).await.expect("connects");
            let server = listener.accept().await.expect("accepts");
            // Dropped by the last CQE.
            let receive = client.recv(Owner(Vec::with_capacity(10), armed().await));
            assert!(timeout(Duration::from_millis(1), receive).await.is_err());
            sleep(Duration::from_millis(5)).await;
            // Dropped with its CQE there and not looked at.
            let mut receive = Box::pin(client.recv(Owner(Vec::with_capacity(10), armed().await)));
            assert!(timeout(Duration::ZERO, receive.as_mut()).await.is_err());
            server.send_all(Bytes::from_static(b"x")).await.0.expect("sends");
            sleep(Duration::from_millis(5)).await;
            drop(receive);
        })
        .expect("runs");
    assert_eq!(descriptors(), before);
}
