//! tokio: on its thread by [`drive`], from many threads by a [`Handle`].

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until};

use super::local::{Driver, Local, Turned};
use crate::backend::Devices;
use crate::queue::Queue;
use crate::request::Request;
use crate::team::Team;

/// Turns a queue until nobody has it any more: to be spawned by `spawn_local`, on the runtime
/// (with I/O and time enabled, if the queue has devices or a team) of those who use it.
///
/// # Errors
///
/// If completions of devices cannot be waited for.
pub async fn drive(driver: Driver) -> io::Result<()> {
    let completions = completions_of(&driver)?;
    drive_by(driver, completions).await
}

/// What to wait with for devices and a team, if the queue has any.
fn completions_of(driver: &Driver) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    let Some(fd) = driver.queue().fd() else { return Ok(None) };
    let fd = fd.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is owned, and stays open until the `AsyncFd` drops it.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(Some(fd?))
}

async fn drive_by(mut driver: Driver, completions: Option<AsyncFd<OwnedFd>>) -> io::Result<()> {
    // Far off as long as there is nothing to wait for.
    let far = Duration::from_secs(3600);
    let mut timer = completions.is_some().then(|| Box::pin(sleep_until(Instant::now() + far)));
    poll_fn(|cx| {
        loop {
            let deadline = match driver.poll_turn(cx) {
                Turned::Again => return Poll::Pending,
                Turned::Ended => return Poll::Ready(Ok(())),
                Turned::Parked { deadline } => deadline,
            };
            let (Some(completions), Some(timer)) = (&completions, &mut timer) else {
                return Poll::Pending;
            };
            if let Poll::Ready(ready) = completions.poll_read_ready(cx) {
                ready?.clear_ready();
                continue;
            }
            let deadline = deadline.map_or_else(|| Instant::now() + far, Instant::from_std);
            timer.as_mut().reset(deadline);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Queues on engine threads of their own, for the tasks of a multi-threaded runtime. They are a
/// [`Team`]. Clones are the same queues. When the last is gone, the threads finish what was submitted and end.
///
/// A request goes to a thread by mailbox, and its result comes back by another: two wake-ups that a
/// [`Local`] does not have.
#[derive(Clone)]
pub struct Handle {
    engines: Arc<[mpsc::Sender<Job>]>,
    /// Whose turn it is.
    next: Arc<AtomicUsize>,
}

/// The engine threads are gone: one has panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

type Job = Box<dyn FnOnce(&Local) + Send>;

impl Handle {
    /// Starts `threads` engine threads, each with a queue of `depth` slots on `devices`.
    ///
    /// # Errors
    ///
    /// If a thread, or what it waits with, cannot be made.
    ///
    /// # Panics
    ///
    /// If `threads` or `depth` is 0.
    pub fn start(threads: usize, depth: usize, devices: &Devices) -> io::Result<Self> {
        assert!(threads > 0, "work needs a thread");
        let team = Team::new();
        let engines =
            (0..threads).map(|number| start_engine(number, depth, devices.clone(), team.clone()));
        let engines = engines.collect::<io::Result<Vec<_>>>()?.into();
        Ok(Self { engines, next: Arc::default() })
    }

    /// Submits `request` to one of the queues, in whose line it waits for a slot. Dropping the future gives up
    /// the result, as with an operation.
    ///
    /// # Errors
    ///
    /// If the engine is gone.
    pub async fn submit<R: Request>(&self, request: R) -> Result<R::Output, Gone>
    where
        R::Output: Send,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |local: &Local| {
            let op = local.submit(request);
            drop(spawn_local(answer_with(op, answer)));
        });
        // Relaxed: only that they take turns, more or less.
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.engines.len();
        self.engines[next].send(job).await.map_err(|_| Gone)?;
        answered.await.map_err(|_| Gone)
    }
}

/// Awaits `op` until nobody waits for the answer.
async fn answer_with<F: Future>(op: F, mut answer: oneshot::Sender<F::Output>) {
    let mut op = pin!(op);
    let output = poll_fn(|cx| {
        if let Poll::Ready(output) = op.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        answer.poll_closed(cx).map(|()| None)
    })
    .await;
    if let Some(output) = output {
        // Whoever waited may have left just now.
        let _ = answer.send(output);
    }
}

fn start_engine(
    number: usize,
    depth: usize,
    devices: Devices,
    team: Team,
) -> io::Result<mpsc::Sender<Job>> {
    let (sender, mut jobs) = mpsc::channel::<Job>(depth);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (ready, started) = std::sync::mpsc::channel();
    let engine = move || {
        // The queue is the thread's: it is made here.
        let queue = match Queue::in_team(depth, &devices, &team) {
            Ok(queue) => queue,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let (local, driver) = Local::new(queue);
        LocalSet::new().block_on(&runtime, async move {
            let completions = match completions_of(&driver) {
                Ok(completions) => completions,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            let mut driven = spawn_local(drive_by(driver, completions));
            // Where nobody turns the queue any more nothing is taken: who submits hears that it is gone.
            let ended_early = loop {
                let next = poll_fn(|cx| match Pin::new(&mut driven).poll(cx) {
                    Poll::Ready(ended) => Poll::Ready(Err(ended)),
                    Poll::Pending => jobs.poll_recv(cx).map(Ok),
                });
                match next.await {
                    Ok(Some(job)) => job(&local),
                    Ok(None) => break None,
                    Err(ended) => break Some(ended),
                }
            };
            drop(local);
            let ended = match ended_early {
                Some(ended) => ended,
                None => driven.await,
            };
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("an engine's devices are gone: {error}"),
                Err(panic) => tracing::error!("an engine has panicked: {panic}"),
            }
        });
    };
    thread::Builder::new().name(format!("engine-{number}")).spawn(engine)?;
    match started.recv() {
        Ok(ready) => ready.map(|()| sender),
        Err(_) => Err(io::Error::other("an engine thread ended before it began")),
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({} engines)", self.engines.len())
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the engine thread of the queue has ended")
    }
}

impl std::error::Error for Gone {}

/// A future that can be sent: checked here rather than at the caller's.
const _: fn() = || {
    fn is_send<T: Send>(_: T) {}
    fn check(handle: &Handle, request: crate::KeyExchange) {
        is_send(handle.submit(request));
    }
    let _ = check;
};
