//! The slots: who holds one, what waits, and how an operation gets its result.

use std::cell::RefMut;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::{Foreign, Shared};
use crate::batch::{Batch, Gathering, Token};
use crate::custom::AnyKernel;
use crate::error::Error;
use crate::keep::Keep;
use crate::request::{Ending, Request, Work};
use crate::stats::{Kernel, KernelStats};
use crate::team::Membership;

/// The longest that a signature, and a key exchange, waits for others while its core is busy: about
/// what it would cost alone, and for signatures not more than anybody notices.
const SIGN_AGE: Duration = Duration::from_micros(100);
const EXCHANGE_AGE: Duration = Duration::from_micros(35);
const ECDSA_AGE: Duration = Duration::from_micros(20);

pub(super) struct Slots {
    pub(super) entries: Box<[Slot]>,
    pub(super) free: Vec<Token>,
    /// To be offered to the devices, in order of arrival; true: no device had room for it yet,
    /// and software cannot do it.
    pub(super) arrived: VecDeque<(Token, bool)>,
    /// One per kernel, in the order of [`Kernel::ALL`].
    pub(super) batches: [Batch; Kernel::ALL.len()],
    /// For the kernels that work in lanes, in the same order: those wait for company.
    pub(super) gatherings: [Option<Gathering>; Kernel::ALL.len()],
    /// What only engine threads are to do.
    pub(super) long: VecDeque<Token>,
    /// What waits for kernels of others, in the order of their first use.
    pub(super) custom: Vec<Custom>,
    pub(super) custom_next: usize,
    /// How many more units of the signatures that are begun come before any other.
    pub(super) signing_units: u32,
    /// Where the next search for work starts, so that kernels take turns unit by unit.
    pub(super) kernel_next: usize,
    /// Operations without a slot, in order of arrival: ticket and whom to wake.
    pub(super) waiters: VecDeque<(u64, Rc<Waker>)>,
    pub(super) ticket_next: u64,
    /// The queue is gone: nothing will run any more.
    pub(super) closed: bool,
}

pub(super) struct Slot {
    pub(super) state: State,
    /// The operation was dropped; whoever ends the work drops the request.
    pub(super) orphan: bool,
    pub(super) kernel: Kernel,
    pub(super) waker: Option<Waker>,
    /// Of the request that lies in the slot's [`Keep`] while the slot is not free.
    vtable: &'static Vtable,
}

/// What is done with a request in a [`Keep`] whose type only `reserve` knew.
struct Vtable {
    /// # Safety
    ///
    /// The request lies there and nobody works on it.
    describe: unsafe fn(&Keep) -> Work,
    /// Drops it.
    ///
    /// # Safety
    ///
    /// As [`Keep::discard`].
    discard: unsafe fn(&Keep),
    /// See [`Request::replace_target`].
    ///
    /// # Safety
    ///
    /// As `describe`, but for the device that keeps the target.
    replace_target: unsafe fn(&Keep) -> bool,
}

impl Vtable {
    const fn of<R: Request>() -> Self {
        /// # Safety
        ///
        /// As [`Vtable::describe`], for an `R`.
        unsafe fn describe<R: Request>(keep: &Keep) -> Work {
            // SAFETY: passed on from the caller.
            unsafe { keep.as_mut::<R>() }.describe()
        }
        /// # Safety
        ///
        /// As [`Vtable::replace_target`], for an `R`.
        unsafe fn replace_target<R: Request>(keep: &Keep) -> bool {
            // SAFETY: passed on from the caller; a device has what the target owns, and not the
            // request.
            unsafe { keep.as_mut::<R>() }.replace_target()
        }
        Self {
            describe: describe::<R>,
            discard: Keep::discard::<R>,
            replace_target: replace_target::<R>,
        }
    }

    const NONE: &'static Self = &Self {
        describe: |_| unreachable!("a free slot has no request"),
        discard: |_| {},
        replace_target: |_| false,
    };
}

pub(super) enum State {
    Done(Ending),
    Free,
    Running,
    Submitted,
}

/// A kernel that somebody else has brought, and what waits for it.
pub(super) struct Custom {
    pub(super) kernel: &'static dyn AnyKernel,
    pub(super) gathering: Gathering,
    pub(super) stats: KernelStats,
}

impl Slots {
    pub(super) fn new(depth: usize) -> Self {
        let tokens = Token::try_from(depth).expect("depth fits a token");
        Self {
            entries: (0..depth).map(|_| Slot::free()).collect(),
            // Low tokens on top: a queue that is never deep stays in few cache lines.
            free: (0..tokens).rev().collect(),
            arrived: VecDeque::with_capacity(depth),
            batches: Kernel::ALL.map(|_| Batch::new(depth)),
            gatherings: Kernel::ALL.map(|kernel| gathering(kernel, depth)),
            long: VecDeque::new(),
            custom: Vec::new(),
            custom_next: 0,
            signing_units: 0,
            kernel_next: 0,
            waiters: VecDeque::new(),
            ticket_next: 0,
            closed: false,
        }
    }

    /// Whether a slot is free for who stands in line at this place, or behind the last: each of those before has
    /// one kept.
    pub(super) fn is_one_free_for(&self, place: usize) -> bool {
        place.min(self.waiters.len()) < self.free.len()
    }

    /// Whatever waits for company.
    pub(super) fn gatherings(&self) -> impl Iterator<Item = &Gathering> {
        let custom = self.custom.iter().map(|custom| &custom.gathering);
        self.gatherings.iter().flatten().chain(custom)
    }

    pub(super) fn gatherings_mut(&mut self) -> impl Iterator<Item = &mut Gathering> {
        let custom = self.custom.iter_mut().map(|custom| &mut custom.gathering);
        self.gatherings.iter_mut().flatten().chain(custom)
    }

    /// What waits for a kernel of others, if it was used before.
    fn custom(&mut self, kernel: &'static dyn AnyKernel) -> Option<&mut Gathering> {
        let same = |custom: &&mut Custom| {
            std::ptr::addr_eq(custom.kernel, kernel) && custom.kernel.type_id() == kernel.type_id()
        };
        self.custom.iter_mut().find(same).map(|custom| &mut custom.gathering)
    }

    /// The next kernel of others that has something to do, in turn.
    pub(super) fn next_custom(&mut self, now: Instant) -> Option<usize> {
        let count = self.custom.len();
        let index = (0..count)
            .map(|step| (self.custom_next + step) % count)
            .find(|index| self.custom[*index].gathering.is_due(Some(now)))?;
        self.custom_next = index + 1;
        Some(index)
    }

    /// Units that wait, of full vectors what works in lanes.
    pub(super) fn waiting(&self) -> usize {
        let batched: usize = self.batches.iter().map(Batch::len).sum();
        batched + self.gatherings().map(Gathering::full).sum::<usize>()
    }

    /// What those would take, as far as it is known.
    pub(super) fn waiting_ns(&self, team: &Membership) -> u64 {
        let units = |kernel: Kernel| {
            let full = |gathering: &Gathering| gathering.full();
            let custom = self.custom.iter().map(|custom| custom.gathering.full());
            match kernel {
                Kernel::Custom => custom.sum(),
                kernel => self.gatherings[kernel as usize]
                    .as_ref()
                    .map_or_else(|| self.batches[kernel as usize].len(), full),
            }
        };
        Kernel::ALL.into_iter().map(|kernel| units(kernel) as u64 * team.cost_ns(kernel)).sum()
    }
}

impl Slot {
    fn free() -> Self {
        Self {
            state: State::Free,
            orphan: false,
            kernel: Kernel::Compress,
            waker: None,
            vtable: Vtable::NONE,
        }
    }
}

/// For the kernels that work in lanes, where they do.
fn gathering(kernel: Kernel, depth: usize) -> Option<Gathering> {
    let age = match kernel {
        Kernel::Ecdsa => ECDSA_AGE,
        Kernel::KeyExchange => EXCHANGE_AGE,
        Kernel::RsaPrivate => SIGN_AGE,
        _ => return None,
    };
    Some(Gathering::new(depth, crate::together(kernel)?, age))
}

impl Shared {
    /// Reserves a slot, fills it and hands it to its kernel's batch.
    pub(crate) fn reserve<R: Request>(&self, request: R) -> Result<Token, R> {
        let mut slots = self.slots.borrow_mut();
        let Some(token) = slots.free.pop() else {
            drop(slots);
            self.count(|stats| stats.full += 1);
            return Err(request);
        };
        let kernel = request.kernel();
        self.keeps[token as usize].put(request);
        slots.entries[token as usize] = Slot {
            state: State::Submitted,
            orphan: false,
            kernel,
            waker: None,
            vtable: const { &Vtable::of::<R>() },
        };
        if kernel == Kernel::Custom {
            let Work::Call(call) = self.describe(token, &slots.entries[token as usize]) else {
                unreachable!("of such a kernel")
            };
            slots = self.gather_custom(slots, token, call.kernel);
        } else if self.has_devices {
            slots.arrived.push_back((token, false));
        } else {
            self.gather(&mut slots, token);
        }
        drop(slots);
        self.count(|stats| stats.submitted += 1);
        Ok(token)
    }

    /// Hands an item to a kernel of others, which is asked what it wants at its first use.
    fn gather_custom<'a>(
        &'a self,
        mut slots: RefMut<'a, Slots>,
        token: Token,
        kernel: &'static dyn AnyKernel,
    ) -> RefMut<'a, Slots> {
        if slots.custom(kernel).is_none() {
            drop(slots);
            let asked = catch_unwind(AssertUnwindSafe(|| (kernel.width(), kernel.patience())));
            let (width, patience) = match asked {
                Ok(asked) => asked,
                Err(panic) => {
                    let ending = Ending::Done(Err(Error::Panicked));
                    self.slots.borrow_mut().entries[token as usize].state = State::Done(ending);
                    self.discard(token);
                    resume_unwind(panic)
                }
            };
            slots = self.slots.borrow_mut();
            // It may have been used by what it was asked.
            if slots.custom(kernel).is_none() {
                let gathering = Gathering::new(self.keeps.len(), width, patience);
                slots.custom.push(Custom { kernel, gathering, stats: KernelStats::default() });
            }
        }
        slots.custom(kernel).expect("known by now").gather(token);
        slots
    }

    /// What a backend is told of the request in a slot.
    pub(super) fn describe(&self, token: Token, slot: &Slot) -> Work {
        debug_assert!(matches!(slot.state, State::Submitted), "described before it is worked on");
        // SAFETY: a submitted slot's request lies in its keep, is of the vtable's type, and nobody
        // works on it.
        unsafe { (slot.vtable.describe)(&self.keeps[token as usize]) }
    }

    /// Puts another target in the place of one that a device keeps. False: there is none.
    pub(super) fn replace_target(&self, token: Token, slot: &Slot) -> bool {
        debug_assert!(matches!(slot.state, State::Submitted), "replaced before it is worked on");
        // SAFETY: as above; the device, which may write to what the target owned, has nothing of
        // the request itself.
        unsafe { (slot.vtable.replace_target)(&self.keeps[token as usize]) }
    }

    /// Hands a request to software.
    pub(super) fn gather(&self, slots: &mut Slots, token: Token) {
        let slot = &slots.entries[token as usize];
        let kernel = slot.kernel;
        if let Some(gathering) = &mut slots.gatherings[kernel as usize] {
            gathering.gather(token);
        } else if kernel == Kernel::Compress
            && self.team.is_some()
            && self.describe(token, slot).is_long()
        {
            slots.long.push_back(token);
        } else {
            slots.batches[kernel as usize].gather(token);
        }
    }

    /// Ends the work of a slot, which nobody works on any more, and wakes its operation.
    pub(super) fn complete(&self, token: Token, ending: Ending) {
        let failed = !matches!(ending, Ending::Done(Ok(_)));
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.entries[token as usize];
        slot.state = State::Done(ending);
        let orphan = slot.orphan;
        let waker = slot.waker.take();
        drop(slots);
        self.count(|stats| {
            stats.completed += 1;
            stats.failed += u64::from(failed && !orphan);
        });
        if orphan {
            self.discard(token);
        } else if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The output of an operation in flight, whose slot is then to be [released](Self::release), or a
    /// promise to wake `waker`.
    ///
    /// # Safety
    ///
    /// `token` came from `reserve::<R>` and neither a result nor a drop has used it up.
    pub(crate) unsafe fn poll<R: Request>(&self, token: Token, waker: &Waker) -> Option<R::Output> {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.entries[token as usize];
        if !matches!(slot.state, State::Done(_)) && self.generation.is_past() {
            // A device works for the parent only: it cannot reach this process' memory.
            slot.state = State::Done(Ending::Done(Err(Error::Forked)));
        }
        if !matches!(slot.state, State::Done(_)) {
            let known = slot.waker.as_ref().is_some_and(|old| old.will_wake(waker));
            drop(slots);
            if !known {
                let cloned = waker.clone();
                let mut slots = self.slots.borrow_mut();
                let slot = &mut slots.entries[token as usize];
                let old = slot.waker.replace(cloned);
                // To clone it may have turned the queue.
                let is_done = matches!(slot.state, State::Done(_));
                drop(slots);
                drop(old);
                if is_done {
                    // SAFETY: passed on from the caller.
                    return unsafe { self.poll::<R>(token, waker) };
                }
            }
            return None;
        }
        let State::Done(ending) = std::mem::replace(&mut slot.state, State::Free) else {
            unreachable!("checked above");
        };
        // SAFETY: an `R` was put here (caller), and Done means that the backend is finished.
        let request = unsafe { self.keeps[token as usize].take::<R>() };
        drop(slots);
        Some(request.finish(ending))
    }

    /// Lets go of an operation in flight that nobody waits for any more.
    ///
    /// # Safety
    ///
    /// As [`Shared::poll`].
    pub(crate) unsafe fn abandon(&self, token: Token) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.entries[token as usize];
        let waker = slot.waker.take();
        if matches!(slot.state, State::Done(_)) {
            drop((slots, waker));
            self.discard(token);
        } else {
            slot.orphan = true;
            // One that waits for company is not kept for it.
            let waited = slots.gatherings_mut().any(|gathering| gathering.remove(token));
            drop((slots, waker));
            self.count(|stats| stats.dropped_in_flight += 1);
            if waited {
                self.complete(token, Ending::Done(Err(Error::Closed)));
            }
        }
    }

    /// Drops the request of a Done slot and frees the slot.
    pub(super) fn discard(&self, token: Token) {
        let slots = self.slots.borrow();
        let slot = &slots.entries[token as usize];
        let vtable = slot.vtable;
        // What a device may still write to is forgotten.
        let drops = !matches!(slot.state, State::Done(Ending::Stranded));
        drop(slots);
        let mut foreign = Foreign::default();
        if drops {
            // SAFETY: the slot is not free, so its request lies in the keep, and the vtable is of
            // its type; Done means that the backend is finished with it.
            foreign.run(|| unsafe { (vtable.discard)(&self.keeps[token as usize]) });
        }
        self.release(token);
        foreign.finish();
    }

    /// Frees a slot that has nothing any more. Wakes, which may panic.
    pub(crate) fn release(&self, token: Token) {
        let mut slots = self.slots.borrow_mut();
        slots.entries[token as usize] = Slot::free();
        slots.free.push(token);
        drop(slots);
        self.wake_waiter();
    }
}
