//! The per-core handle: submit, turn, reap, park.
//!
//! # A slot's life
//!
//! 1. *Free*: on the free list.
//! 2. *Ready*: reserved and filled by `submit`; the request lies in the slot's [`Keep`] and its
//!    token waits in the batch of its kernel.
//! 3. *Running*: the backend reads and writes what the request names. Nobody else may.
//! 4. *Done*: the result waits for its operation, which takes it and frees the slot.
//!
//! An operation that is dropped leaves its slot an *orphan*: the request stays where it is until
//! the backend is finished with it, and is then dropped by the queue.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::backend::Software;
use crate::batch::{Batch, Token};
use crate::error::Error;
use crate::keep::Keep;
use crate::op::Op;
use crate::request::{Request, Work};
use crate::stats::{Kernel, Stats};

/// One core's accelerator queue.
///
/// It is neither `Send` nor `Sync`: its owner submits, turns and reaps without a lock, an atomic
/// or a system call. Dropping it ends every operation that still waits in [`Error::Closed`].
pub struct Queue {
    shared: Rc<Shared>,
}

/// What [`Queue::turn`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Units of work that ended.
    pub units: usize,
    /// Work is left that could have run.
    pub busy: bool,
}

/// What [`Queue::prepare_park`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Park {
    /// Work is left: do not sleep.
    Busy,
    /// Nothing happens here until the next submission.
    Sleep,
}

/// No slot was free. Holds the request, untouched.
pub struct Full<R>(pub R);

impl Queue {
    /// A queue with `depth` slots on the software accelerator.
    ///
    /// # Panics
    ///
    /// If `depth` is 0 or does not fit 32 bits.
    pub fn new(depth: usize) -> Self {
        assert!(depth > 0, "a queue needs at least one slot");
        let tokens = Token::try_from(depth).expect("depth fits a token");
        Self {
            shared: Rc::new(Shared {
                keeps: (0..depth).map(|_| Keep::empty()).collect(),
                slots: RefCell::new(Slots {
                    entries: (0..depth).map(|_| Slot::free()).collect(),
                    // Low tokens on top: a queue that is never deep stays in few cache lines.
                    free: (0..tokens).rev().collect(),
                    batches: Kernel::ALL.map(|_| Batch::new(depth)),
                    kernel_next: 0,
                    waiters: VecDeque::new(),
                    ticket_next: 0,
                    closed: false,
                }),
                software: RefCell::new(Software::new()),
                stats: Cell::new(Stats::default()),
            }),
        }
    }

    /// Submits `request`, or hands it back when no slot is free or others wait for one.
    pub fn try_submit<R: Request>(&self, request: R) -> Result<Op<R>, Full<R>> {
        if self.shared.slots.borrow().waiters.is_empty() {
            self.shared.reserve(request).map(|token| Op::in_flight(&self.shared, token))
        } else {
            self.shared.count(|stats| stats.full += 1);
            Err(request)
        }
        .map_err(Full)
    }

    /// Submits `request` now if a slot is free, else as soon as the returned operation is awaited
    /// and its turn comes. Those who wait are served in order.
    pub fn submit<R: Request>(&self, request: R) -> Op<R> {
        match self.try_submit(request) {
            Ok(op) => op,
            Err(Full(request)) => Op::waiting(&self.shared, request),
        }
    }

    /// Runs dispatched work for about `slice`, at least one unit, and wakes who waits for it.
    ///
    /// A unit is never interrupted: one chunk compressed, one signature.
    pub fn turn(&self, slice: Duration) -> Turn {
        let mut units = 0;
        let mut started = None;
        while let Some((token, work)) = self.shared.next_work() {
            let started = *started.get_or_insert_with(Instant::now);
            // SAFETY: the slot's request owns what `work` names. It is Running now, so the
            // request stays in its slot and nobody else reads or writes those bytes.
            let result = unsafe { self.shared.software.borrow_mut().execute(work) };
            units += 1;
            self.shared.complete(token, result);
            if started.elapsed() >= slice {
                break;
            }
        }
        Turn { units, busy: self.prepare_park() == Park::Busy }
    }

    /// Asks whether the owner may sleep. To be called after the last [`turn`](Self::turn) and
    /// right before sleeping.
    pub fn prepare_park(&self) -> Park {
        if self.shared.slots.borrow().batches.iter().all(Batch::is_empty) {
            Park::Sleep
        } else {
            Park::Busy
        }
    }

    /// Number of slots.
    pub fn depth(&self) -> usize {
        self.shared.keeps.len()
    }

    /// The counters as they stand.
    pub fn stats(&self) -> Stats {
        self.shared.stats.get()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let wakers = {
            let mut slots = self.shared.slots.borrow_mut();
            slots.closed = true;
            slots.waiters.drain(..).map(|(_, waker)| waker).collect::<Vec<_>>()
        };
        while let Some((token, work)) = self.shared.next_work() {
            drop(work);
            self.shared.complete(token, Err(Error::Closed));
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("depth", &self.depth()).field("stats", &self.stats()).finish()
    }
}

impl<R> fmt::Debug for Full<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full(..)")
    }
}

impl<R> fmt::Display for Full<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("every slot of the queue is taken")
    }
}

impl<R> std::error::Error for Full<R> {}

/// What the queue and its operations share. One thread's.
///
/// No method runs foreign code (a waker, the drop of a caller's buffer) while a cell is borrowed:
/// such code may submit, poll or drop operations of this very queue.
pub(crate) struct Shared {
    slots: RefCell<Slots>,
    /// The room of each slot, apart from `slots` so that its address can be handed out.
    keeps: Box<[Keep]>,
    software: RefCell<Software>,
    stats: Cell<Stats>,
}

struct Slots {
    entries: Box<[Slot]>,
    free: Vec<Token>,
    /// One per kernel, in the order of [`Kernel::ALL`].
    batches: [Batch; Kernel::ALL.len()],
    /// Where the next search for work starts, so that kernels take turns unit by unit.
    kernel_next: usize,
    /// Operations without a slot, in order of arrival: ticket and whom to wake.
    waiters: VecDeque<(u64, Waker)>,
    ticket_next: u64,
    /// The queue is gone: nothing will run any more.
    closed: bool,
}

struct Slot {
    state: State,
    /// The operation was dropped; whoever ends the work drops the request.
    orphan: bool,
    waker: Option<Waker>,
    /// Drops the request that lies in the slot's [`Keep`]. Set while the slot is not free.
    discard: unsafe fn(&Keep),
}

enum State {
    Done(Result<usize, Error>),
    Free,
    Ready(Work),
    Running,
}

/// Where an operation stands that has no result yet.
pub(crate) enum Waiting {
    /// The queue is gone.
    Closed,
    /// In line, with this ticket.
    InLine(u64),
    /// Submitted.
    Reserved(Token),
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
        let keep = &self.keeps[token as usize];
        let place = keep.put(request);
        drop(slots);
        // The caller's `Source` and `Target` are called now, with nothing borrowed; should they
        // panic, request and slot are freed.
        let unwound = Unwound { shared: self, token, discard: Keep::discard::<R> };
        // SAFETY: `put` has just written a request here and the slot is off the free list, so
        // nobody else touches the place.
        let work = unsafe { (*place).describe() };
        std::mem::forget(unwound);
        let kernel = work.kernel();
        let mut slots = self.slots.borrow_mut();
        slots.entries[token as usize] = Slot {
            state: State::Ready(work),
            orphan: false,
            waker: None,
            discard: Keep::discard::<R>,
        };
        slots.batches[kernel as usize].gather(token);
        drop(slots);
        self.count(|stats| stats.submitted += 1);
        Ok(token)
    }

    /// The next unit of work: its slot is Running from here on, until [`Shared::complete`].
    fn next_work(&self) -> Option<(Token, Work)> {
        loop {
            let mut slots = self.slots.borrow_mut();
            let (kernel, token) = self.next_token(&mut slots)?;
            slots.kernel_next = (kernel + 1) % Kernel::ALL.len();
            let slot = &mut slots.entries[token as usize];
            let State::Ready(work) = std::mem::replace(&mut slot.state, State::Running) else {
                unreachable!("a gathered slot is ready");
            };
            if !slot.orphan {
                return Some((token, work));
            }
            // Nobody waits for it any more: do not start it.
            drop((slots, work));
            self.complete(token, Err(Error::Closed));
        }
    }

    fn next_token(&self, slots: &mut Slots) -> Option<(usize, Token)> {
        let mut stats = self.stats.get();
        let found = (0..Kernel::ALL.len()).find_map(|step| {
            let kernel = (slots.kernel_next + step) % Kernel::ALL.len();
            let token = slots.batches[kernel].next(&mut stats.kernels[kernel])?;
            Some((kernel, token))
        });
        if found.is_some() {
            self.stats.set(stats);
        }
        found
    }

    /// Ends the work of a Running slot and wakes its operation.
    fn complete(&self, token: Token, result: Result<usize, Error>) {
        let failed = result.is_err();
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.entries[token as usize];
        slot.state = State::Done(result);
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

    /// The output of an operation in flight, or a promise to wake `waker`.
    ///
    /// # Safety
    ///
    /// `token` came from `reserve::<R>` and neither a result nor a drop has used it up.
    pub(crate) unsafe fn poll<R: Request>(&self, token: Token, waker: &Waker) -> Option<R::Output> {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.entries[token as usize];
        if !matches!(slot.state, State::Done(_)) {
            let known = slot.waker.as_ref().is_some_and(|old| old.will_wake(waker));
            drop(slots);
            if !known {
                let waker = waker.clone();
                let old = self.slots.borrow_mut().entries[token as usize].waker.replace(waker);
                drop(old);
            }
            return None;
        }
        let State::Done(result) = std::mem::replace(&mut slot.state, State::Free) else {
            unreachable!("checked above");
        };
        // SAFETY: an `R` was put here (caller), and Done means that the backend is finished.
        let request = unsafe { self.keeps[token as usize].take::<R>() };
        drop(slots);
        self.release(token);
        Some(request.finish(result))
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
            drop((slots, waker));
            self.count(|stats| stats.dropped_in_flight += 1);
        }
    }

    /// Stands in line for a slot, or takes one when `ticket` is first and one is free.
    pub(crate) fn wait<R: Request>(
        &self,
        request: &mut Option<R>,
        ticket: Option<u64>,
        waker: &Waker,
    ) -> Waiting {
        let waker = waker.clone();
        let mut slots = self.slots.borrow_mut();
        if slots.closed {
            return Waiting::Closed;
        }
        let place = ticket
            .and_then(|ticket| slots.waiters.iter().position(|(other, _)| *other == ticket))
            .unwrap_or(slots.waiters.len());
        if place == 0 && !slots.free.is_empty() {
            let left = slots.waiters.pop_front();
            drop(slots);
            let request = request.take().expect("a waiting operation holds its request");
            let Ok(token) = self.reserve(request) else {
                unreachable!("a slot is free");
            };
            drop(left);
            self.wake_waiter();
            return Waiting::Reserved(token);
        }
        if let Some((ticket, old)) = slots.waiters.get_mut(place) {
            let ticket = *ticket;
            let old = std::mem::replace(old, waker);
            drop((slots, old));
            return Waiting::InLine(ticket);
        }
        let ticket = slots.ticket_next;
        slots.ticket_next += 1;
        slots.waiters.push_back((ticket, waker));
        Waiting::InLine(ticket)
    }

    /// Leaves the line.
    pub(crate) fn leave(&self, ticket: u64) {
        let mut slots = self.slots.borrow_mut();
        let place = slots.waiters.iter().position(|(other, _)| *other == ticket);
        let left = place.and_then(|place| slots.waiters.remove(place));
        drop((slots, left));
        // The slot that this operation was woken for goes to the next in line.
        self.wake_waiter();
    }

    /// Drops the request of a Done slot and frees the slot.
    fn discard(&self, token: Token) {
        let discard = self.slots.borrow().entries[token as usize].discard;
        // SAFETY: the slot is not free, so its request lies in the keep, and `discard` is of its
        // type; Done means that the backend is finished with it.
        unsafe { discard(&self.keeps[token as usize]) };
        self.release(token);
    }

    fn release(&self, token: Token) {
        let mut slots = self.slots.borrow_mut();
        slots.entries[token as usize] = Slot::free();
        slots.free.push(token);
        drop(slots);
        self.wake_waiter();
    }

    /// Wakes the first in line if a slot is free. It keeps its place until it takes the slot.
    fn wake_waiter(&self) {
        let slots = self.slots.borrow();
        if slots.free.is_empty() {
            return;
        }
        let waker = slots.waiters.front().map(|(_, waker)| waker.clone());
        drop(slots);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn count(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}

/// Frees a reserved slot whose request panicked while it was described.
struct Unwound<'a> {
    shared: &'a Shared,
    token: Token,
    discard: unsafe fn(&Keep),
}

impl Drop for Unwound<'_> {
    fn drop(&mut self) {
        // SAFETY: `reserve` has put a request of this type here and described none of it to anybody.
        unsafe { (self.discard)(&self.shared.keeps[self.token as usize]) };
        self.shared.release(self.token);
    }
}

impl Slot {
    fn free() -> Self {
        // SAFETY: does nothing.
        unsafe fn nothing(_: &Keep) {}
        Self { state: State::Free, orphan: false, waker: None, discard: nothing }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Every operation holds a reference to us, so none is left; the queue completed what was
        // not orphaned, and `complete` discards orphans.
        let slots = self.slots.get_mut();
        debug_assert_eq!(slots.free.len(), self.keeps.len(), "a slot was leaked");
    }
}
