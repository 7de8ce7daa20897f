//! What is offered to the devices, and what comes back from them.

use std::time::Instant;

use super::{Foreign, Shared};
use crate::backend::{Ended, Software, Submitted};
use crate::batch::Token;
use crate::error::Error;
use crate::request::{Ending, Work};
use crate::stats::Kernel;

/// What became of a request that was offered to the devices.
enum Offered {
    Done(Result<usize, Error>),
    /// It has to wait for a device to have room.
    Full,
    /// Software is to do it; `spilled`: a device could have, but not now.
    Software {
        spilled: bool,
    },
    Taken,
}

impl Shared {
    /// Offers what has arrived to the devices, and rings each once. Returns how much ended at once.
    pub(super) fn offer(&self, now: Instant) -> usize {
        let mut taken = [0_u64; Kernel::ALL.len()];
        let mut units = 0;
        let mut foreign = Foreign::default();
        let mut slots = self.slots.borrow_mut();
        for _ in 0..slots.arrived.len() {
            let Some((token, _)) = slots.arrived.pop_front() else { break };
            let slot = &slots.entries[token as usize];
            let kernel = slot.kernel as usize;
            let offered = match slot.orphan {
                true => Offered::Done(Err(Error::Closed)),
                false => self.offer_one(token, &self.describe(token, slot), now),
            };
            match offered {
                Offered::Done(result) => {
                    drop(slots);
                    units += 1;
                    foreign.run(|| self.complete(token, Ending::Done(result)));
                    slots = self.slots.borrow_mut();
                }
                Offered::Full => slots.arrived.push_back((token, true)),
                Offered::Software { spilled } => {
                    self.gather(&mut slots, token);
                    self.count(|stats| stats.kernels[kernel].spilled += u64::from(spilled));
                }
                Offered::Taken => taken[kernel] += 1,
            }
        }
        drop(slots);
        if taken.iter().any(|count| *count > 0) {
            self.backends.borrow_mut().iter_mut().for_each(|backend| backend.ring());
            self.count(|stats| {
                for (kernel, count) in stats.kernels.iter_mut().zip(taken) {
                    kernel.count_batch(count);
                }
            });
        }
        foreign.finish();
        units
    }

    fn offer_one(&self, token: Token, work: &Work, now: Instant) -> Offered {
        let (mut absent, mut full) = (false, false);
        for backend in self.backends.borrow_mut().iter_mut() {
            // SAFETY: the slot's request owns what `work` names. If it is taken, the request stays
            // in its slot until the backend has named the token.
            match unsafe { backend.submit(token, work, now) } {
                Submitted::Done(result) => return Offered::Done(result),
                Submitted::Full => full = true,
                Submitted::InFlight => return Offered::Taken,
                Submitted::Unavailable => absent = true,
                Submitted::Unfit => {}
            }
        }
        if Software::takes(work) {
            Offered::Software { spilled: absent || full }
        } else if full {
            Offered::Full
        } else if absent {
            Offered::Done(Err(Error::DeviceLost))
        } else {
            Offered::Done(Err(Error::NoDevice))
        }
    }

    /// Takes what the devices have finished. Returns how much that was.
    pub(super) fn reap(&self, now: Instant) -> usize {
        let mut ended = self.ended.take();
        for backend in self.backends.borrow_mut().iter_mut() {
            backend.reap(now, &mut ended);
        }
        let units = ended.len();
        let mut foreign = Foreign::default();
        for (token, ended) in ended.drain(..) {
            foreign.run(|| self.end(token, ended));
        }
        self.ended.replace(ended);
        foreign.finish();
        units
    }

    fn end(&self, token: Token, ended: Ended) {
        let mut slots = self.slots.borrow_mut();
        let closed = slots.closed;
        let slot = &slots.entries[token as usize];
        let kernel = slot.kernel as usize;
        let over = closed || slot.orphan;
        let ending = match ended {
            Ended::Done(result) => {
                self.count(|stats| stats.kernels[kernel].on_device += 1);
                Ending::Done(result)
            }
            Ended::Redo if over => Ending::Done(Err(Error::Closed)),
            Ended::Redo if Software::takes(&self.describe(token, slot)) => {
                self.gather(&mut slots, token);
                return self.count(|stats| stats.kernels[kernel].redone += 1);
            }
            Ended::Redo => Ending::Done(Err(Error::DeviceLost)),
            Ended::Stranded => {
                self.count(|stats| stats.stranded += 1);
                if !over && self.replace_target(token, slot) {
                    self.gather(&mut slots, token);
                    return self.count(|stats| stats.kernels[kernel].redone += 1);
                }
                Ending::Stranded
            }
        };
        drop(slots);
        self.complete(token, ending);
    }

    /// Stops the devices and ends what they had, and what was to be offered to them.
    pub(super) fn close_devices(&self, foreign: &mut Foreign) {
        let mut ended = Vec::new();
        // Taken out: what is woken by the end of its operation may look at the queue.
        for mut backend in self.backends.take() {
            backend.close(&mut ended);
        }
        for (token, ended) in ended {
            foreign.run(|| self.end(token, ended));
        }
        while let Some((token, _)) = { self.slots.borrow_mut().arrived.pop_front() } {
            foreign.run(|| self.complete(token, Ending::Done(Err(Error::Closed))));
        }
    }
}
