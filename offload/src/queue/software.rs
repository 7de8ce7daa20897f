//! What software does: units of work, in turn.

use std::time::Instant;

use super::slots::{Slots, State};
use super::{Foreign, Shared};
use crate::backend::Job;
use crate::batch::{Gathering, Token};
use crate::error::Error;
use crate::request::Ending;
use crate::stats::{Kernel, KernelStats};
use crate::team::{Helped, Takes};

/// Units of signatures that are begun, for one of another kernel: together they take about as long as
/// one compression of 64 KiB, so that a signature is delayed by about as much as it takes itself.
const SIGNING_UNITS: u32 = 4;

/// Work for a turn.
pub(super) enum Unit {
    /// Items of this kernel of others.
    Custom(usize),
    /// Work of another queue's.
    Help(Helped),
    /// A request, from start to end.
    One(Token),
    /// Signatures that are begun.
    Signing,
    /// What was posted, and nobody has claimed.
    Posted(Box<Job>),
    /// Requests of this kernel, in lanes.
    Together(Kernel),
}

impl Shared {
    /// The next unit of work: of this queue's, which kernels take in turn; of what it has posted and
    /// nobody claims; of others'.
    pub(super) fn next_unit(&self, now: Instant) -> Option<Unit> {
        let Some(team) = &self.team else { return self.next_own(now, true) };
        if !self.is_signing()
            && team.is_overdue()
            && let Some(job) = team.take_back(Takes::Short)
        {
            return Some(Unit::Posted(job));
        }
        if let Some(own) = self.next_own(now, true) {
            team.settle();
            team.count_own_unit();
            return Some(own);
        }
        if let Some(job) = team.take_back(Takes::Short) {
            return Some(Unit::Posted(job));
        }
        team.claim().map(Unit::Help)
    }

    /// The next unit of what waits here; `begun`: signatures that are begun, too.
    pub(super) fn next_own(&self, now: Instant, begun: bool) -> Option<Unit> {
        let mut slots = self.slots.borrow_mut();
        let mut stats = self.stats.borrow_mut();
        let signing = self.is_signing();
        if signing && begun && slots.signing_units > 0 {
            slots.signing_units -= 1;
            return Some(Unit::Signing);
        }
        let (kernel, unit) = (0..Kernel::ALL.len()).find_map(|step| {
            let index = (slots.kernel_next + step) % Kernel::ALL.len();
            let kernel = Kernel::ALL[index];
            let unit = match (kernel, &slots.gatherings[index]) {
                (Kernel::Custom, _) => slots.next_custom(now).map(Unit::Custom),
                (Kernel::RsaPrivate, _) if signing && begun => Some(Unit::Signing),
                (_, Some(gathering)) => {
                    gathering.is_due(Some(now)).then_some(Unit::Together(kernel))
                }
                (_, None) => slots.batches[index].next(&mut stats.kernels[index]).map(Unit::One),
            };
            Some((index, unit?))
        })?;
        slots.kernel_next = (kernel + 1) % Kernel::ALL.len();
        slots.signing_units = SIGNING_UNITS;
        Some(unit)
    }

    /// Signatures are being made together.
    pub(super) fn is_signing(&self) -> bool {
        self.signing.borrow().is_some()
    }

    /// Works for a unit.
    pub(super) fn run(&self, unit: Unit) {
        let job = match unit {
            Unit::Help(helped) => return self.help(helped),
            Unit::Posted(job) => Some(job),
            Unit::Signing => self.signing.take(),
            unit => self.form(unit),
        };
        let Some(mut job) = job else { return };
        // SAFETY: the slots' requests own what the works name. They are Running, so the requests
        // stay in their slots and nobody else reads or writes those bytes.
        let ended = unsafe {
            match self.team {
                Some(_) => job.step_measured(&self.software),
                None => job.step(&self.software),
            }
        };
        if ended {
            if let Some(team) = &self.team {
                team.count_cost(job.kernel(), job.spent_ns());
            }
            let mut foreign = Foreign::default();
            self.end_job(job, &mut foreign);
            foreign.finish();
        } else if let Some(other) = self.signing.replace(Some(job)) {
            unreachable!("{} signatures were begun and left", other.len());
        }
    }

    /// Takes what a unit is of. Its slots are Running from here on; those that nobody waits for
    /// any more are ended.
    pub(super) fn form(&self, unit: Unit) -> Option<Box<Job>> {
        let mut taken = self.taken.take();
        let mut job = self.spare.borrow_mut().pop().unwrap_or_default();
        let mut slots = self.slots.borrow_mut();
        match unit {
            Unit::Custom(index) => {
                job.start(Kernel::Custom);
                slots.custom[index].gathering.take(&mut taken, |_| true);
            }
            Unit::One(token) => {
                job.start(slots.entries[token as usize].kernel);
                taken.push(token);
            }
            Unit::Together(kernel) => {
                job.start(kernel);
                let Slots { entries, gatherings, .. } = &mut *slots;
                let gathering = gatherings[kernel as usize].as_mut();
                let gathering = gathering.expect("such a unit is of what gathers");
                let mut size = None;
                gathering.take(&mut taken, |token| {
                    let slot = &entries[token as usize];
                    // Keys of one size go together; one that nobody waits for goes with any.
                    slot.orphan || kernel != Kernel::RsaPrivate || {
                        let len = self.describe(token, slot).modulus_len_bytes();
                        *size.get_or_insert(len) == len
                    }
                });
            }
            Unit::Help(_) | Unit::Posted(_) | Unit::Signing => unreachable!("those are formed"),
        }
        for token in taken.drain(..) {
            let slot = &mut slots.entries[token as usize];
            if slot.orphan {
                drop(slots);
                self.complete(token, Ending::Done(Err(Error::Closed)));
                slots = self.slots.borrow_mut();
                continue;
            }
            job.push(token, self.describe(token, slot));
            slot.state = State::Running;
        }
        let count = job.len() as u64;
        if let Unit::Custom(index) = unit {
            slots.custom[index].stats.count_batch(count);
        }
        // One was counted when its batch was dispatched.
        if !matches!(unit, Unit::One(_)) {
            self.count(|stats| stats.kernels[job.kernel() as usize].count_batch(count));
        }
        drop(slots);
        self.taken.replace(taken);
        if job.is_empty() {
            self.spare.borrow_mut().push(job);
            return None;
        }
        Some(job)
    }

    /// Ends the requests of a job that nobody works on any more.
    pub(super) fn end_job(&self, mut job: Box<Job>, foreign: &mut Foreign) {
        for (token, result) in job.drain() {
            foreign.run(|| self.complete(token, Ending::Done(result)));
        }
        self.spare.borrow_mut().push(job);
    }

    /// Ends what software had, and what it was to do.
    pub(super) fn close_software(&self, foreign: &mut Foreign) {
        if let Some(job) = self.signing.take() {
            self.end_job(job, foreign);
        }
        loop {
            let token = {
                let mut slots = self.slots.borrow_mut();
                let mut stats = KernelStats::default();
                let batched = slots.batches.iter_mut().find_map(|batch| batch.next(&mut stats));
                let gathered = batched.or_else(|| slots.gatherings_mut().find_map(Gathering::pop));
                gathered.or_else(|| slots.long.pop_front())
            };
            let Some(token) = token else { return };
            foreign.run(|| self.complete(token, Ending::Done(Err(Error::Closed))));
        }
    }
}
