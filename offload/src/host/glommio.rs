//! glommio: a task of the executor's turns the queue.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use glommio::timer::sleep;

use super::local::{Driver, Turned};

/// How often completions of devices and helpers are looked for while nothing else happens: the reactor has no
/// hook for a source of completions that is not its own.
const LOOK: Duration = Duration::from_micros(50);

/// Turns a queue until nobody has it any more: to be spawned by `spawn_local` on the executor of
/// those who use it.
pub async fn drive(mut driver: Driver) {
    let has_file = driver.queue().fd().is_some();
    loop {
        let ended = poll_fn(|cx| match driver.poll_turn(cx) {
            Turned::Ended => Poll::Ready(true),
            Turned::Parked { .. } if has_file => {
                driver.queue().stay_deaf();
                // Asleep for good only with nothing in flight: a submission wakes the task.
                match driver.queue().stats().in_flight() {
                    0 => Poll::Pending,
                    _ => Poll::Ready(false),
                }
            }
            Turned::Again | Turned::Parked { .. } => Poll::Pending,
        });
        if ended.await {
            return;
        }
        sleep(LOOK).await;
    }
}
