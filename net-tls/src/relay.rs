//! Plain text both ways, with back-pressure.
//!
//! Each direction is a loop: receive, convert, send, and only then receive again, so that a slow
//! reader stops the writer at the other end. Either side may close its half: the end travels on
//! (close_notify on the TLS side, FIN on the other) while the other direction goes on. So it does if one side takes
//! no more: what it has said before, as an answer to half of an upload, still gets to the other.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_lock::Mutex;
use bytes::{Buf, BytesMut};
use rustls::{ServerConnection, SupportedCipherSuite};
use warpcore_runtime::net::Stream;
use warpcore_runtime::sleep_until;

use crate::connection::{Cause, Failure, RECEIVE_LEN_BYTES, Traffic, discard};

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
    /// The upstream takes no more: that it ends tells nothing of whether all has come.
    upstream_refuses: Cell<bool>,
    /// Records that may still be sent.
    records_left: Cell<u64>,
    /// The client has been told so.
    client_ended: Cell<bool>,
    /// The client is being told so, and may hang up before we know that it has been.
    client_ends: Cell<bool>,
    traffic: &'a Traffic,
}

/// Why a direction has ended early.
enum Broken {
    /// By where it comes from.
    Source(Cause),
    /// By where it goes to.
    Sink(Cause),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Source(error.into())
    }
}

impl From<rustls::Error> for Broken {
    fn from(error: rustls::Error) -> Self {
        Self::Source(error.into())
    }
}

impl From<&'static str> for Broken {
    fn from(cause: &'static str) -> Self {
        Self::Source(cause.into())
    }
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
    let records_left = Cell::new(records_max(&tls));
    let relay = Relay {
        tls: RefCell::new(tls),
        client,
        upstream,
        sending: Mutex::default(),
        active_at: Cell::new(Instant::now()),
        upstream_ended: Cell::new(false),
        upstream_refuses: Cell::new(false),
        records_left,
        client_ended: Cell::new(false),
        client_ends: Cell::new(false),
        traffic,
    };
    let ended = both(relay.to_upstream(received), relay.to_client(), relay.until_idle(idle)).await;
    if relay.upstream_refuses.get() {
        relay.let_client_read().await;
    }
    ended
}

/// Records that the keys of a connection are good for. TLS 1.3 changes them; before it, rustls would end the
/// connection in order when they are used up, and drop what it is given from then on.
fn records_max(tls: &ServerConnection) -> u64 {
    /// For what is not sent by us: the handshake, alerts.
    const OTHERS: u64 = 1000;
    match tls.negotiated_cipher_suite() {
        Some(SupportedCipherSuite::Tls12(suite)) => suite.common.confidentiality_limit - OTHERS,
        _ => u64::MAX,
    }
}

impl Relay<'_> {
    async fn to_upstream(&self, mut received: BytesMut) -> Result<(), Broken> {
        loop {
            // First what came with the end of the handshake.
            let (plain, closed) = self.take_plain()?;
            if !plain.is_empty() {
                self.traffic.received.set(self.traffic.received.get() + plain.len() as u64);
                let sent = self.upstream.send_all(plain).await.0;
                sent.map_err(|error| self.refused(error))?;
                self.active();
            }
            if closed {
                let told = self.upstream.shutdown(Shutdown::Write);
                let ended = end(told, &self.upstream_ended, &self.client_ended);
                return ended.map_err(|error| self.refused(error));
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

    /// The upstream takes no more.
    fn refused(&self, error: io::Error) -> Broken {
        self.upstream_refuses.set(true);
        Broken::Sink(error.into())
    }

    /// What the client has not read yet would be lost by a reset, which the kernel sends too if a socket is closed
    /// before all that came is read.
    async fn let_client_read(&self) {
        let _ = self.client.shutdown(Shutdown::Write);
        discard(&self.client, usize::MAX).await;
        // It has all that there was, and a close_notify only if that was the end in order.
        self.client_ended.set(true);
    }

    async fn to_client(&self) -> Result<(), Broken> {
        let mut plain = Vec::with_capacity(RECEIVE_LEN_BYTES);
        let mut room = RECEIVE_LEN_BYTES;
        loop {
            if plain.capacity() != room {
                plain = Vec::with_capacity(room);
            }
            plain.clear();
            let (result, bytes) = self.upstream.recv(plain).await;
            plain = bytes;
            let len = match result {
                // How it ends has been told to who sent.
                Ok(0) | Err(_) if self.upstream_refuses.get() => {
                    return Err("the upstream took no more, and ended".into());
                }
                result => result?,
            };
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
                let ended = end(told, &self.client_ended, &self.upstream_ended);
                return ended.map_err(|error| Broken::Sink(error.into()));
            }
            self.take_records(plain.len())?;
            self.tls.borrow_mut().writer().write_all(&plain)?;
            self.traffic.sent.set(self.traffic.sent.get() + plain.len() as u64);
            self.send_records().await.map_err(|error| Broken::Sink(error.into()))?;
            self.active();
        }
    }

    /// Counts what so many bytes of plain text take.
    fn take_records(&self, len: usize) -> Result<(), Broken> {
        /// Of plain text in a record (RFC 8446, section 5.1).
        const RECORD_LEN_MAX: usize = 1 << 14;
        let left = self.records_left.get().checked_sub(len.div_ceil(RECORD_LEN_MAX) as u64);
        let left = left.ok_or("the keys of this TLS 1.2 connection are used up")?;
        self.records_left.set(left);
        Ok(())
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
fn end(told: io::Result<()>, ended: &Cell<bool>, other_ended: &Cell<bool>) -> io::Result<()> {
    if !other_ended.get() {
        told?;
    }
    ended.set(true);
    Ok(())
}

/// Runs both directions until both have ended, or until one has nothing to take from, or the watch ends. Of what
/// went wrong the first is told.
async fn both(
    first: impl Future<Output = Result<(), Broken>>,
    second: impl Future<Output = Result<(), Broken>>,
    watch: impl Future<Output = Failure>,
) -> Result<(), Failure> {
    let (mut first, mut second, mut watch) = (pin!(first), pin!(second), pin!(watch));
    let (mut first_ended, mut second_ended) = (false, false);
    let mut broken = None;
    std::future::poll_fn(|cx| {
        let mut ends = |result| match result {
            Ok(()) => false,
            Err(Broken::Sink(cause)) => {
                broken.get_or_insert(cause);
                false
            }
            Err(Broken::Source(cause)) => {
                broken.get_or_insert(cause);
                true
            }
        };
        let mut is_over = false;
        if !first_ended && let Poll::Ready(result) = first.as_mut().poll(cx) {
            first_ended = true;
            is_over |= ends(result);
        }
        if !second_ended && let Poll::Ready(result) = second.as_mut().poll(cx) {
            second_ended = true;
            is_over |= ends(result);
        }
        if is_over || first_ended && second_ended {
            return Poll::Ready(broken.take().map_or(Ok(()), |cause| Err(Failure::Relay(cause))));
        }
        watch.as_mut().poll(cx).map(Err)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use super::*;

    fn poll(relaying: Pin<&mut impl Future<Output = Result<(), Failure>>>) -> Option<String> {
        match relaying.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Some(String::new()),
            Poll::Ready(Err(failure)) => Some(failure.to_string()),
            Poll::Pending => None,
        }
    }

    /// As of a client that has said all, and does not wait for the answer.
    #[test]
    fn a_side_that_takes_no_more_stops_one_direction_only() {
        let goes_on = Cell::new(true);
        let other = std::future::poll_fn(|_| match goes_on.get() {
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        });
        let refused = ready(Err(Broken::Sink("refused".into())));
        let mut relaying = pin!(both(refused, other, pending()));
        assert_eq!(poll(relaying.as_mut()), None);
        goes_on.set(false);
        assert_eq!(poll(relaying.as_mut()).as_deref(), Some("refused"));
    }

    #[test]
    fn a_side_that_is_gone_stops_both() {
        let gone = ready(Err(Broken::Source("gone".into())));
        let relaying = pin!(both(pending(), gone, pending()));
        assert_eq!(poll(relaying).as_deref(), Some("gone"));
    }
}
