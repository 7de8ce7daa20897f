//! Plain text both ways, with back-pressure.
//!
//! Each direction is a loop: receive, convert, send, and only then receive again, so that a slow
//! reader stops the writer at the other end. Either side may close its half: the end travels on
//! (close_notify on the TLS side, FIN on the other) while the other direction goes on.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_lock::Mutex;
use bytes::{Buf, BytesMut};
use rustls::ServerConnection;
use warpcore_runtime::net::Stream;
use warpcore_runtime::sleep_until;

use crate::connection::{Cause, Failure, RECEIVE_LEN_BYTES, Traffic};

/// Room for one read of an upstream that fills what it is given.
const BULK_LEN_BYTES: usize = 64 * 1024;

/// What the two directions share.
struct Relay<'a> {
    /// Never borrowed across an await.
    tls: RefCell<Box<ServerConnection>>,
    client: Stream,
    upstream: Stream,
    /// Held from taking records out of `tls` until they are sent: records leave in order.
    sending: Mutex<()>,
    active_at: Cell<Instant>,
    /// The upstream has been told that no more will come: what it got is all there was.
    upstream_ended: Cell<bool>,
    /// The client has been told so.
    client_ended: Cell<bool>,
    /// The client is being told so, and may hang up before we know that it has been.
    client_ends: Cell<bool>,
    traffic: &'a Traffic,
}

/// However the relay ends (an error, the end of a drain, a panic): a side that was not told of an
/// end in order must not take what it got for all there was. A reset says so.
impl Drop for Relay<'_> {
    fn drop(&mut self) {
        for (stream, ended) in
            [(&self.upstream, &self.upstream_ended), (&self.client, &self.client_ended)]
        {
            if !ended.get() {
                let _ = stream.socket().set_linger(Some(Duration::ZERO));
            }
        }
    }
}

/// Relays, `received` first, until both directions have ended, one fails, or nothing has moved for `idle`.
pub(crate) async fn relay(
    mut tls: Box<ServerConnection>,
    received: BytesMut,
    client: Stream,
    upstream: Stream,
    idle: Duration,
    traffic: &Traffic,
) -> Result<(), Failure> {
    // One read is all that it ever holds, but for what it has to say itself: a key update that is due goes
    // before that read, and must not take room from it.
    tls.set_buffer_limit(None);
    let relay = Relay {
        tls: RefCell::new(tls),
        client,
        upstream,
        sending: Mutex::default(),
        active_at: Cell::new(Instant::now()),
        upstream_ended: Cell::new(false),
        client_ended: Cell::new(false),
        client_ends: Cell::new(false),
        traffic,
    };
    let to_upstream = async { relay.to_upstream(received).await.map_err(Failure::Relay) };
    let to_client = async { relay.to_client().await.map_err(Failure::Relay) };
    both(to_upstream, to_client, relay.until_idle(idle)).await
}

impl Relay<'_> {
    async fn to_upstream(&self, mut received: BytesMut) -> Result<(), Cause> {
        loop {
            // First what came with the end of the handshake.
            let (plain, closed) = self.take_plain()?;
            if !plain.is_empty() {
                self.traffic.received.set(self.traffic.received.get() + plain.len() as u64);
                self.upstream.send_all(plain).await.0?;
                self.active();
            }
            if closed {
                let told = self.upstream.shutdown(Shutdown::Write);
                return end(told, &self.upstream_ended, &self.client_ended);
            }
            if received.is_empty() {
                received.reserve(RECEIVE_LEN_BYTES);
                let (result, bytes) = self.client.recv(received).await;
                received = bytes;
                match result {
                    // It was told that no more will come, and does not care to say so too.
                    Ok(0) | Err(_) if self.client_ends.get() => return Ok(()),
                    Ok(0) => return Err("the client hung up without close_notify".into()),
                    Ok(_) => self.active(),
                    Err(error) => return Err(error.into()),
                }
            }
            let processed = {
                let mut tls = self.tls.borrow_mut();
                let mut unread: &[u8] = &received;
                let taken = tls.read_tls(&mut unread)?;
                received.advance(taken);
                tls.process_new_packets().map(drop)
            };
            // Answers of the protocol itself: key updates, alerts.
            self.send_records().await?;
            processed?;
        }
    }

    async fn to_client(&self) -> Result<(), Cause> {
        let mut plain = Vec::with_capacity(RECEIVE_LEN_BYTES);
        let mut room = RECEIVE_LEN_BYTES;
        loop {
            if plain.capacity() != room {
                plain = Vec::with_capacity(room);
            }
            plain.clear();
            let (result, bytes) = self.upstream.recv(plain).await;
            plain = bytes;
            let len = result?;
            // Who sends much sends more: fewer turns for each byte.
            room = if len == room { BULK_LEN_BYTES } else { RECEIVE_LEN_BYTES };
            let ended = len == 0;
            self.active();
            if ended {
                self.tls.borrow_mut().send_close_notify();
                self.client_ends.set(true);
                let told = self.send_records().await;
                // That is the end; who has seen it may be gone by now.
                let _ = self.client.shutdown(Shutdown::Write);
                return end(told, &self.client_ended, &self.upstream_ended);
            }
            self.tls.borrow_mut().writer().write_all(&plain)?;
            self.traffic.sent.set(self.traffic.sent.get() + plain.len() as u64);
            self.send_records().await?;
            self.active();
        }
    }

    /// Plain text that rustls holds, and whether the client has said that no more will come.
    fn take_plain(&self) -> io::Result<(Vec<u8>, bool)> {
        let mut plain = Vec::new();
        let mut tls = self.tls.borrow_mut();
        match tls.reader().read_to_end(&mut plain) {
            Ok(_) => Ok((plain, true)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok((plain, false)),
            Err(error) => Err(error),
        }
    }

    async fn send_records(&self) -> io::Result<()> {
        if !self.tls.borrow().wants_write() {
            return Ok(());
        }
        let _held = self.sending.lock().await;
        let mut records = Vec::new();
        {
            let mut tls = self.tls.borrow_mut();
            while tls.wants_write() {
                tls.write_tls(&mut records)?;
            }
        }
        self.client.send_all(records).await.0
    }

    fn active(&self) {
        self.active_at.set(Instant::now());
    }

    async fn until_idle(&self, idle: Duration) -> Failure {
        loop {
            let deadline = self.active_at.get() + idle;
            if Instant::now() >= deadline {
                return Failure::Idle(idle);
            }
            sleep_until(deadline).await;
        }
    }
}

/// One side was `told` that no more will come. That it has hung up is no failure if the other side was
/// told before: it had said itself that it has no more to say, and nothing but the end was left.
fn end(told: io::Result<()>, ended: &Cell<bool>, other_ended: &Cell<bool>) -> Result<(), Cause> {
    if !other_ended.get() {
        told?;
    }
    ended.set(true);
    Ok(())
}

/// Runs both directions until both have ended well, or until one or the watch has not.
async fn both(
    first: impl Future<Output = Result<(), Failure>>,
    second: impl Future<Output = Result<(), Failure>>,
    watch: impl Future<Output = Failure>,
) -> Result<(), Failure> {
    let (mut first, mut second, mut watch) = (pin!(first), pin!(second), pin!(watch));
    let (mut first_ended, mut second_ended) = (false, false);
    std::future::poll_fn(|cx| {
        if !first_ended && let Poll::Ready(result) = first.as_mut().poll(cx) {
            result?;
            first_ended = true;
        }
        if !second_ended && let Poll::Ready(result) = second.as_mut().poll(cx) {
            result?;
            second_ended = true;
        }
        if first_ended && second_ended {
            return Poll::Ready(Ok(()));
        }
        watch.as_mut().poll(cx).map(Err)
    })
    .await
}
