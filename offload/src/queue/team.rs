//! What others do for this queue, and it for them.

use std::time::Instant;

use super::slots::Slots;
use super::software::Unit;
use super::{Foreign, Shared};
use crate::stats::Kernel;
use crate::team::{Helped, Membership, Takes};
use crate::wipe::burn_stack;

impl Shared {
    /// Puts up for others what this core will not come to soon: as much as there are idle ones.
    pub(super) fn share(&self, team: &Membership, now: Instant) {
        while team.has_room() {
            let Some(token) = ({ self.slots.borrow_mut().long.pop_front() }) else { break };
            let Some(job) = self.form(Unit::One(token)) else { continue };
            self.count(|stats| stats.kernels[job.kernel() as usize].count_batch(1));
            team.post(job, true);
            if !team.call(true)
                && let Some(job) = team.take_back(Takes::Long)
            {
                // There will be nobody for the others either.
                let mut slots = self.slots.borrow_mut();
                let Slots { long, batches, .. } = &mut *slots;
                long.drain(..).for_each(|token| batches[Kernel::Compress as usize].gather(token));
                drop(slots);
                self.run(Unit::Posted(job));
            }
        }
        if self.slots.borrow().waiting() == 0 {
            return;
        }
        // Or it would take itself for somebody who looks.
        team.settle();
        for _ in 0..team.wanted(|| self.slots.borrow().waiting_ns(team)) {
            // One is this core's own.
            if !team.has_room() || self.slots.borrow().waiting() < 2 {
                break;
            }
            let Some(unit) = self.next_own(now, false) else { break };
            let Some(job) = self.form(unit) else { continue };
            team.post(job, false);
        }
        if team.has_posted() {
            team.call(false);
        }
    }

    /// Works for a unit on what another queue has posted.
    pub(super) fn help(&self, mut helped: Helped) {
        let ended = helped.step(&self.software);
        if !ended && helped.kernel() == Kernel::RsaPrivate {
            // The end of a job does this, on the core that comes to it.
            burn_stack();
        }
        helped.give_back(ended);
    }

    /// Takes what others have finished. Returns how much that was.
    pub(super) fn take_home(&self, team: &Membership) -> usize {
        let mut units = 0;
        let mut foreign = Foreign::default();
        while let Some(job) = team.reap() {
            units += 1;
            let kernel = job.kernel();
            team.count_cost(kernel, job.spent_ns());
            self.count(|stats| stats.kernels[kernel as usize].helped += job.len() as u64);
            self.end_job(job, &mut foreign);
        }
        foreign.finish();
        units
    }

    /// Ends what others have of this queue's.
    pub(super) fn leave_team(&self, foreign: &mut Foreign) {
        let Some(team) = &self.team else { return };
        // All of it first: nobody is to work on a slot once wakers run.
        let jobs: Vec<_> = std::iter::from_fn(|| team.withdraw()).collect();
        team.leave();
        jobs.into_iter().for_each(|job| self.end_job(job, foreign));
    }
}
