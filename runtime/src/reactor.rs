//! One turn after the other, until the shard's main future is done; then an orderly end.
//!
//! A turn looks at every source once. When none had anything, each is asked whether it agrees to
//! sleep (Seastar's poller contract), and the shard sleeps in `io_uring_enter`, woken by a CQE, a
//! timer or the bell.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use warpcore_offload::Park;

use crate::fs;
use crate::op;
use crate::ring::Cqe;
use crate::shard::{Message, Shard, guarded};
use crate::time::sleep;

/// Runs the shard until `done`.
pub(crate) fn run(shard: &Rc<Shard>, done: impl Fn() -> bool) {
    let mut cqes = Vec::with_capacity(256);
    loop {
        shard.turns.set(shard.turns.get() + 1);
        shard.executor.run();
        if done() {
            return;
        }
        take_messages(shard);
        // One unit a turn: completions of I/O never wait for more than that.
        let offload = shard.queue.turn(Instant::now(), Duration::ZERO);
        fire_timers(shard);
        if !offload.busy && is_idle(shard) && !shard.queue.flush() {
            if !spin(shard)
                && let Park::Sleep { deadline } = shard.queue.prepare_park(Instant::now())
                && shard.remote.mailbox.prepare_park()
            {
                park(shard, deadline);
            }
        } else {
            let flushed = shard.ring.borrow_mut().flush();
            flushed.unwrap_or_else(|error| panic!("io_uring_enter failed on a live ring: {error}"));
        }
        reap(shard, &mut cqes);
    }
}

/// Ends the shard: cancels what is left, then waits until the kernel has let go of all memory.
pub(crate) fn shut_down(shard: &Rc<Shard>) {
    /// Reads of files and sockets end at once when cancelled; what a kernel thread does (fsync)
    /// is waited for so long.
    const DRAIN: Duration = Duration::from_secs(10);

    shard.executor.cancel_all();
    // Wake-ups that came from elsewhere: their tasks are among the cancelled, or are dropped here.
    for message in shard.remote.mailbox.close() {
        guarded(move || drop(message));
    }
    shard.executor.cancel_all();
    let deadline = Instant::now() + DRAIN;
    let mut cqes = Vec::new();
    while shard.operations.borrow().in_flight > 0 && Instant::now() < deadline {
        let waited = shard.ring.borrow_mut().wait(Some(Duration::from_millis(100)));
        if waited.is_err() {
            break;
        }
        reap(shard, &mut cqes);
    }
    let in_flight = shard.operations.borrow().in_flight;
    if in_flight > 0 {
        // The kernel may still write: the memory is given up rather than freed.
        tracing::error!(shard = shard.index, in_flight, "operations did not end; leaking them");
        std::mem::forget(std::mem::take(&mut *shard.operations.borrow_mut()));
    }
}

/// Keeps a read of the bell in flight, so that ringing it ends a park.
pub(crate) async fn hear_bell(bell: std::fs::File) {
    let bell = fs::File::from(bell);
    let mut counter = Vec::with_capacity(8);
    loop {
        let (result, back) = bell.read_stream(counter).await;
        counter = back;
        counter.clear();
        if let Err(error) = result {
            // Out of memory, or worse. The timer keeps the shard looking into its mailbox.
            tracing::error!("the shard's bell cannot be read: {error}; looking every 10 ms");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Keeps a poll of the offload queue's file in flight, so that what devices or other shards have
/// finished, or want help with, ends a park. The next turn sees to it, before the next poll is
/// submitted.
pub(crate) async fn watch_queue(completions: Arc<OwnedFd>) {
    loop {
        if let Err(error) = op::readable(&completions).await {
            tracing::error!("completions cannot be waited for: {error}; looking every millisecond");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

fn take_messages(shard: &Shard) {
    for message in shard.remote.mailbox.take() {
        match message {
            Message::Run(action) => guarded(action),
            Message::Wake(runnable) => shard.executor.push(runnable),
        }
    }
}

fn fire_timers(shard: &Shard) {
    if shard.timers.borrow().next().is_none() {
        return;
    }
    let now = Instant::now();
    while let Some(waker) = { shard.timers.borrow_mut().pop_due(now) } {
        waker.wake();
    }
}

fn is_idle(shard: &Shard) -> bool {
    shard.executor.is_idle() && shard.remote.mailbox.is_empty() && shard.reaped.borrow().is_empty()
}

/// Hands what is queued to the kernel and looks for news for a while before sleeping: a wake-up
/// costs more than most answers take to come. True: there is news.
fn spin(shard: &Shard) -> bool {
    if shard.spin.is_zero() {
        return false;
    }
    let mut ring = shard.ring.borrow_mut();
    ring.flush().unwrap_or_else(|error| panic!("io_uring_enter failed on a live ring: {error}"));
    let started = Instant::now();
    let mut limit = shard.spin;
    if let Some(deadline) = shard.timers.borrow().next() {
        limit = limit.min(deadline.saturating_duration_since(started));
    }
    loop {
        if ring.has_news() || shard.queue.has_news() || !shard.remote.mailbox.is_empty() {
            // What was deferred is posted now.
            let flushed = ring.flush();
            flushed.unwrap_or_else(|error| panic!("io_uring_enter failed on a live ring: {error}"));
            return true;
        }
        if started.elapsed() >= limit {
            return false;
        }
        std::hint::spin_loop();
    }
}

fn park(shard: &Shard, device_deadline: Option<Instant>) {
    let timer = shard.timers.borrow().next();
    let deadline = [timer, device_deadline].into_iter().flatten().min();
    let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    shard.parks.set(shard.parks.get() + 1);
    let waited = shard.ring.borrow_mut().wait(timeout);
    shard.remote.mailbox.unpark();
    waited.unwrap_or_else(|error| panic!("io_uring_enter failed on a live ring: {error}"));
}

fn reap(shard: &Shard, cqes: &mut Vec<Cqe>) {
    cqes.append(&mut shard.reaped.borrow_mut());
    shard.ring.borrow_mut().reap(cqes);
    for cqe in cqes.drain(..) {
        let (waker, over) = shard.operations.borrow_mut().complete(cqe);
        // Whatever these do, the rest of the batch is filed.
        guarded(move || drop(over));
        guarded(move || waker.into_iter().for_each(Waker::wake));
    }
}
