//! All that one core owns, and the functions that work on it from inside a task.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_task::Runnable;
use slab::Slab;
use warpcore_offload::Queue;

use crate::error::Error;
use crate::executor::{Executor, JoinHandle};
use crate::mailbox::{Closed, Mailbox, Sent};
use crate::op::slab::{Operations, Polled};
use crate::ring::{Cqe, Ring, Sqe};
use crate::sys;
use crate::time::Timers;

/// One core's share of the machine. Not `Send`: every field is its thread's, but for `remote`.
pub(crate) struct Shard {
    pub(crate) index: usize,
    pub(crate) executor: Executor,
    /// Closing it does not wait for the kernel; `reactor::shut_down` has, before this is dropped.
    pub(crate) ring: RefCell<Ring>,
    pub(crate) operations: RefCell<Operations>,
    pub(crate) queue: Rc<Queue>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) remote: Arc<Remote>,
    /// Every shard's remote side, by index.
    pub(crate) machine: Arc<[Arc<Remote>]>,
    pub(crate) stopping: Cell<bool>,
    pub(crate) stop_waiters: RefCell<Slab<Waker>>,
    /// CQEs that were reaped out of turn.
    pub(crate) reaped: RefCell<Vec<Cqe>>,
    /// How long to look for news before sleeping.
    pub(crate) spin: Duration,
    pub(crate) turns: Cell<u64>,
    pub(crate) parks: Cell<u64>,
}

/// The side of a shard that other threads may touch.
pub(crate) struct Remote {
    /// The core that the shard is pinned to.
    pub(crate) core: Option<usize>,
    pub(crate) mailbox: Mailbox<Message>,
    /// Wakes the shard out of its ring; the shard always has a read of it in flight.
    pub(crate) bell: File,
}

/// What other threads send to a shard.
pub(crate) enum Message {
    Run(Box<dyn FnOnce() + Send>),
    Wake(Runnable),
}

impl Remote {
    pub(crate) fn new(core: Option<usize>) -> Result<Self, Error> {
        let bell =
            sys::eventfd().map_err(|source| Error::Setup { what: "the shard's bell", source })?;
        Ok(Self { core, mailbox: Mailbox::new(), bell })
    }

    pub(crate) fn send(&self, message: Message) -> Result<(), Closed<Message>> {
        if self.mailbox.push(message)? == Sent::RingBell {
            // It would wait only if the counter were full, after 2^64 - 2 rings unheard.
            let _ = (&self.bell).write_all(&1_u64.to_ne_bytes());
        }
        Ok(())
    }
}

/// Where a task goes when it is woken.
#[derive(Clone)]
pub(crate) struct Schedule(pub(crate) Arc<Remote>);

impl Schedule {
    pub(crate) fn schedule(&self, runnable: Runnable) {
        // Clone: a task may be woken while `CURRENT` is being changed, at the shard's end.
        let home = CURRENT.with(|current| {
            let current = current.try_borrow().ok()?;
            current.as_ref().filter(|shard| Arc::ptr_eq(&shard.remote, &self.0)).cloned()
        });
        if let Some(shard) = home {
            shard.executor.push(runnable);
        } else if let Err(Closed(message)) = self.0.send(Message::Wake(runnable)) {
            // The shard has ended and dropped every future. What is left of the task is its
            // memory; freeing it here would run the drop of a foreign thread's task.
            std::mem::forget(message);
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Shard>>> = const { RefCell::new(None) };
}

pub(crate) fn set_current(shard: Option<Rc<Shard>>) {
    let old = CURRENT.with(|current| current.replace(shard));
    drop(old);
}

/// Whether this thread is a shard's.
pub(crate) fn is_shard() -> bool {
    CURRENT.with(|current| current.borrow().is_some())
}

/// The shard of this thread.
///
/// # Panics
///
/// On a thread that is not a shard's.
pub(crate) fn current() -> Rc<Shard> {
    CURRENT.with(|current| {
        current.borrow().clone().expect("called from a task of the runtime (see Builder::run)")
    })
}

impl Shard {
    /// Queues an SQE and returns its token.
    ///
    /// # Safety
    ///
    /// What the SQE names stays valid until the token's last CQE; the caller keeps it, or passes
    /// it to [`Shard::abandon_op`].
    pub(crate) unsafe fn submit(&self, sqe: Sqe, reclaim: fn(i32)) -> usize {
        assert!(self.ring.borrow().fits(&sqe), "the ring was not built with sqe128");
        let token = self.operations.borrow_mut().insert(reclaim);
        // SAFETY: passed on from the caller.
        unsafe { self.push(with_user_data(sqe, token as u64)) };
        token
    }

    /// # Safety
    ///
    /// As [`Shard::submit`].
    unsafe fn push(&self, sqe: Sqe) {
        let mut ring = self.ring.borrow_mut();
        // SAFETY: passed on from the caller.
        while !unsafe { ring.push(&sqe) } {
            // Full: hand what is queued to the kernel. It may want the CQ reaped first; what is
            // reaped here waits for the turn, since waking is not for the middle of a submission.
            if let Err(error) = ring.flush() {
                panic!("io_uring_enter failed on a ring that worked before: {error}");
            }
            ring.reap(&mut self.reaped.borrow_mut());
        }
    }

    pub(crate) fn poll_op(&self, token: usize, waker: &Waker) -> Polled {
        let polled = self.operations.borrow_mut().poll(token, waker);
        if let Polled::Pending { known: false } = polled {
            let waker = waker.clone();
            let old = self.operations.borrow_mut().set_waker(token, waker);
            drop(old);
        }
        polled
    }

    /// Asks the kernel to end an operation, which then ends as any does.
    pub(crate) fn cancel_op(&self, token: usize) {
        let cancel = io_uring::opcode::AsyncCancel::new(token as u64).build();
        // SAFETY: names no memory.
        unsafe { self.push(with_user_data(Sqe::Normal(cancel), NOBODY)) };
    }

    /// Forgets an operation. If the kernel still has it, cancels it and takes `keep`, what the
    /// kernel may touch, into care until the last CQE.
    ///
    /// Keeps and wakers are dropped while nothing is borrowed: their drops may submit.
    pub(crate) fn abandon_op<K: 'static>(&self, token: usize, keep: K) {
        if self.operations.borrow().is_open(token) {
            let keep = Box::new(keep);
            let waker = self.operations.borrow_mut().orphan(token, keep);
            drop(waker);
            self.cancel_op(token);
        } else {
            let entry = self.operations.borrow_mut().remove(token);
            drop((entry, keep));
        }
    }
}

/// User data of an SQE whose result nobody wants.
const NOBODY: u64 = u64::MAX;

fn with_user_data(sqe: Sqe, user_data: u64) -> Sqe {
    match sqe {
        Sqe::Normal(sqe) => Sqe::Normal(sqe.user_data(user_data)),
        Sqe::Wide(sqe) => Sqe::Wide(sqe.user_data(user_data)),
    }
}

/// Runs `future` as a task of this shard.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let shard = current();
    shard.executor.spawn(future, Schedule(Arc::clone(&shard.remote)))
}

/// The offload queue of this shard. Its requests are run by the shard's own turns.
pub fn queue() -> Rc<Queue> {
    Rc::clone(&current().queue)
}

/// Index of this shard, from 0.
pub fn shard() -> usize {
    current().index
}

/// Number of shards.
pub fn shards() -> usize {
    current().machine.len()
}

/// The shard that is pinned to a core of this number, if one is.
pub fn shard_on(core: usize) -> Option<usize> {
    current().machine.iter().position(|remote| remote.core == Some(core))
}

/// Runs `action` on another shard (or this one) in one of its next turns; a panic of it is reported
/// and ends there. False: that shard has ended, and the action was dropped.
///
/// # Panics
///
/// If there is no such shard.
pub fn send(shard: usize, action: impl FnOnce() + Send + 'static) -> bool {
    current().machine[shard].send(Message::Run(Box::new(action))).is_ok()
}

/// Asks every shard to stop: [`stopping`] becomes ready on each.
pub fn stop() {
    stop_all(&current().machine);
}

/// Stops the machine from any thread, also after it has ended.
#[derive(Clone)]
pub struct Stopper(Arc<[Arc<Remote>]>);

/// The stopper of this machine.
pub fn stopper() -> Stopper {
    Stopper(Arc::clone(&current().machine))
}

impl Stopper {
    /// As [`stop`].
    pub fn stop(&self) {
        stop_all(&self.0);
    }
}

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stopper")
    }
}

pub(crate) fn stop_all(machine: &[Arc<Remote>]) {
    for remote in machine {
        // A shard that has ended has stopped.
        let _ = remote.send(Message::Run(Box::new(|| {
            let shard = current();
            shard.stopping.set(true);
            // They stay until their futures are dropped.
            let waiters: Vec<_> =
                shard.stop_waiters.borrow().iter().map(|(_, waker)| waker.clone()).collect();
            waiters.into_iter().for_each(Waker::wake);
        })));
    }
}

/// Becomes ready when the machine is asked to stop: by [`stop`], or by a signal if the builder
/// listens for them.
pub fn stopping() -> Stopping {
    Stopping { shard: current(), key: None }
}

/// The output of `future`, unless the machine is asked to stop first.
pub async fn until_stopped<F: Future>(future: F) -> Option<F::Output> {
    let (mut stop, mut future) = (pin!(stopping()), pin!(future));
    poll_fn(|cx| match stop.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => future.as_mut().poll(cx).map(Some),
    })
    .await
}

/// See [`stopping`].
#[must_use = "futures do nothing unless awaited"]
pub struct Stopping {
    shard: Rc<Shard>,
    /// Of its waker among the shard's.
    key: Option<usize>,
}

impl Future for Stopping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.shard.stopping.get() {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let mut waiters = self.shard.stop_waiters.borrow_mut();
        let old = match self.key.and_then(|key| waiters.get_mut(key)) {
            Some(known) => {
                let old = std::mem::replace(known, waker);
                drop(waiters);
                Some(old)
            }
            None => {
                let key = waiters.insert(waker);
                drop(waiters);
                self.key = Some(key);
                None
            }
        };
        drop(old);
        Poll::Pending
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.shard.stop_waiters.borrow_mut().try_remove(key);
            drop(waker);
        }
    }
}

impl std::fmt::Debug for Stopping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stopping")
    }
}

/// Counters of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Turns of the reactor.
    pub turns: u64,
    /// Times that it slept.
    pub parks: u64,
    /// Tasks that have not ended.
    pub tasks: usize,
    /// Tasks that panicked.
    pub panics: u64,
}

/// The counters of this shard.
pub fn stats() -> Stats {
    let shard = current();
    Stats {
        turns: shard.turns.get(),
        parks: shard.parks.get(),
        tasks: shard.executor.live(),
        panics: shard.executor.panics(),
    }
}

/// Runs foreign code whose panic must not stop the reactor: it is reported.
pub(crate) fn guarded(foreign: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(foreign)) {
        report_panic(&*payload);
        std::mem::forget(payload);
    }
}

/// Says that a task panicked, and returns with what message. The panic's own hook has printed where.
pub(crate) fn report_panic(payload: &(dyn Any + Send)) -> String {
    let shard = current();
    shard.executor.count_panic();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)");
    tracing::error!(shard = shard.index, "a task panicked: {message}");
    message.to_owned()
}
