//! Who else does it, as a user would use them.

mod crossbeam;
mod tokio;

use crate::harness::System;

/// Ways to hand nothing at all to another thread and wait for it, `depth` at a time.
pub(crate) fn hand_over(depth: usize) -> Result<Vec<System<'static>>, String> {
    let mut parking = crossbeam::Worker::start(crossbeam::Wait::Parking)?;
    let mut spinning = crossbeam::Worker::start(crossbeam::Wait::Spinning)?;
    let blocking = tokio::Blocking::new()?;
    Ok(vec![
        System::new("crossbeam + oneshot", move || parking.sample(depth)),
        System::new("crossbeam + oneshot, spin", move || spinning.sample(depth)),
        System::new("tokio spawn_blocking", move || blocking.sample(depth)),
    ])
}
