//! Timers of one shard: a sorted map, read by the reactor before it sleeps.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::shard::{Shard, current};

/// Deadlines and whom to wake, earliest first. The number tells timers of one instant apart.
#[derive(Default)]
pub(crate) struct Timers {
    armed: BTreeMap<(Instant, u64), Waker>,
    number_next: u64,
}

impl Timers {
    /// Takes out one timer that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        let entry = self.armed.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.armed.first_key_value().map(|((deadline, _), _)| *deadline)
    }
}

/// Ready at or after its deadline. Dropping it disarms it.
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    shard: Rc<Shard>,
    deadline: Instant,
    /// Number of the armed timer.
    number: Option<u64>,
}

/// Waits for `duration`.
pub fn sleep(duration: Duration) -> Sleep {
    // A century stands for "never": an instant has an end.
    const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);
    sleep_until(Instant::now() + duration.min(NEVER))
}

/// Waits until `deadline`.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { shard: current(), deadline, number: None }
}

impl Sleep {
    fn disarm(&mut self) {
        if let Some(number) = self.number.take() {
            let waker = self.shard.timers.borrow_mut().armed.remove(&(self.deadline, number));
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            self.disarm();
            return Poll::Ready(());
        }
        let this = &mut *self;
        let waker = cx.waker().clone();
        let mut timers = this.shard.timers.borrow_mut();
        let number = *this.number.get_or_insert_with(|| {
            timers.number_next += 1;
            timers.number_next
        });
        let old = timers.armed.insert((this.deadline, number), waker);
        drop((timers, old));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline).finish()
    }
}

/// The time of a [`timeout`] was over first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl std::error::Error for Elapsed {}

/// The output of `future`, unless it takes longer than `duration`; it is then dropped.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep(duration));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        sleep.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
