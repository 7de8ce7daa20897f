//! The per-core handle: submit, turn, reap, park.
//!
//! # A slot's life
//!
//! 1. *Free*: on the free list.
//! 2. *Submitted*: reserved and filled; the request lies in the slot's [`Keep`] and its token waits
//!    to be offered to the devices, or in the batch of its kernel for software. While it is *on a
//!    device*, that reads and writes what the request names, and nobody else may. A device that
//!    fails gives the request back, for software.
//! 3. *Running*: software reads and writes what the request names.
//! 4. *Done*: the result waits for its operation, which takes it and frees the slot.
//!
//! An operation that is dropped leaves its slot an *orphan*: the request stays where it is until
//! the backend is finished with it, and is then dropped by the queue.

use std::any::Any;
use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::backend::{Backend, Devices, Ended, Job, Software, Submitted};
use crate::batch::{Batch, Gathering, Token};
use crate::custom::AnyKernel;
use crate::error::Error;
use crate::fork::Generation;
use crate::host::Bell;
use crate::keep::Keep;
use crate::op::Op;
use crate::request::{Ending, Request, Work};
use crate::stats::{Kernel, KernelStats, Stats};
use crate::team::{Helped, Membership, Takes, Team};
use rustix::event::epoll;

/// The longest that a signature, and a key exchange, waits for others while its core is busy: about
/// what it would cost alone, and for signatures not more than anybody notices.
const SIGN_AGE: Duration = Duration::from_micros(100);
const EXCHANGE_AGE: Duration = Duration::from_micros(35);
const ECDSA_AGE: Duration = Duration::from_micros(20);

/// Units of signatures that are begun, for one of another kernel: together they take about as long as
/// one compression of 64 KiB, so that a signature is delayed by about as much as it takes itself.
const SIGNING_UNITS: u32 = 4;

/// One core's accelerator queue.
///
/// It is neither `Send` nor `Sync`: its owner submits, turns and reaps without a lock, an atomic
/// or a system call. Dropping it ends every operation that still waits in [`Error::Closed`].
pub struct Queue {
    pub(crate) shared: Rc<Shared>,
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
    /// Nothing happens here until the next submission, until [`Queue::fd`] is readable, or until
    /// the deadline, if there is one.
    Sleep {
        /// When a device will have been too slow.
        deadline: Option<Instant>,
    },
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
        Self::build(depth, Vec::new(), None, None)
    }

    /// A queue with `depth` slots whose requests are offered to `devices` first. Their queues are
    /// opened when there is a request for them.
    ///
    /// # Errors
    ///
    /// If the file descriptor that tells of completions cannot be made.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new).
    pub fn with_devices(depth: usize, devices: &Devices) -> std::io::Result<Self> {
        if devices.is_empty() {
            return Ok(Self::new(depth));
        }
        let epoll = Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        Ok(Self::build(depth, devices.shares(depth, &epoll), Some(epoll), None))
    }

    /// As [`with_devices`](Self::with_devices), in a team: what this core has not come to others
    /// do, and this one does theirs when it is idle.
    ///
    /// # Errors
    ///
    /// If what it waits with cannot be made.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new).
    pub fn in_team(depth: usize, devices: &Devices, team: &Team) -> std::io::Result<Self> {
        let epoll = Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let team = Membership::join(team)?;
        epoll::add(&epoll, team.bell(), epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        Ok(Self::build(depth, devices.shares(depth, &epoll), Some(epoll), Some(team)))
    }

    fn build(
        depth: usize,
        backends: Vec<Box<dyn Backend>>,
        epoll: Option<Rc<OwnedFd>>,
        team: Option<Membership>,
    ) -> Self {
        assert!(depth > 0, "a queue needs at least one slot");
        let tokens = Token::try_from(depth).expect("depth fits a token");
        Self {
            shared: Rc::new(Shared {
                keeps: (0..depth).map(|_| Keep::empty()).collect(),
                slots: RefCell::new(Slots {
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
                }),
                has_devices: !backends.is_empty(),
                backends: RefCell::new(backends),
                ended: RefCell::new(Vec::with_capacity(depth)),
                epoll,
                software: RefCell::new(Software::new()),
                signing: RefCell::new(None),
                spare: RefCell::default(),
                taken: RefCell::new(Vec::with_capacity(depth)),
                team,
                bell: OnceCell::new(),
                stats: RefCell::new(Stats::default()),
                generation: Generation::current(),
            }),
        }
    }

    /// Submits `request`, or hands it back when no slot is free or others wait for one.
    pub fn try_submit<R: Request>(&self, request: R) -> Result<Op<R>, Full<R>> {
        if self.shared.generation.is_past() {
            Err(request)
        } else if self.shared.slots.borrow().is_one_free_for(usize::MAX) {
            self.shared.reserve(request).map(|token| Op::in_flight(&self.shared, token))
        } else {
            self.shared.count(|stats| stats.full += 1);
            Err(request)
        }
        .map_err(Full)
    }

    /// Submits `request` now if a slot is free, else as soon as the returned operation is awaited
    /// and its turn comes. Each who waits has a free slot kept, in the order in which they were first awaited:
    /// one that is not awaited any more, and not dropped either, keeps it.
    pub fn submit<R: Request>(&self, request: R) -> Op<R> {
        match self.try_submit(request) {
            Ok(op) => op,
            Err(Full(request)) => Op::waiting(&self.shared, request),
        }
    }

    /// Takes what devices have finished, hands them what was submitted, and runs software's work
    /// for about `slice`, at least one unit. Wakes who waits for any of it; a waker may use the
    /// queue, and turn it.
    ///
    /// A unit is never interrupted: one chunk compressed, one group of key exchanges or of signatures
    /// of P-256, or about 50 us of RSA signatures that are made together (at the first use of a key
    /// and every 256th, up to 1 ms). RSA signatures that are begun get four units for one of any
    /// other kernel. Signatures and key exchanges wait for company until there are enough for all
    /// lanes, until the oldest has waited by `now` for as long as it takes alone (RSA: 100 us, key
    /// exchanges: 35 us, P-256: 20 us), or until the owner has nothing else to do
    /// ([`flush`](Self::flush)).
    ///
    /// In a [`Team`] a unit may be another queue's, if this one has none; and compression that takes
    /// more than about a millisecond (zstd from level 7 up, for 64 KiB) is left to engine threads.
    pub fn turn(&self, now: Instant, slice: Duration) -> Turn {
        let mut units = 0;
        if self.shared.generation.is_past() {
            return Turn { units, busy: false };
        }
        if self.shared.has_devices {
            units += self.shared.reap(now);
            units += self.shared.offer(now);
        }
        if let Some(team) = &self.shared.team {
            team.woken();
            units += self.shared.take_home(team);
            self.shared.share(team, now);
        }
        let mut started = None;
        while let Some(unit) = self.shared.next_unit(now) {
            let started = (!slice.is_zero()).then(|| *started.get_or_insert_with(Instant::now));
            units += 1;
            self.shared.run(unit);
            if started.is_none_or(|started| started.elapsed() >= slice) {
                break;
            }
        }
        Turn { units, busy: self.is_busy() }
    }

    /// Nothing else will be submitted for now: what gathers need not wait for company. To be called
    /// before spinning or sleeping. True: there is work.
    pub fn flush(&self) -> bool {
        if self.shared.generation.is_past() {
            return false;
        }
        self.shared.slots.borrow_mut().gatherings_mut().for_each(Gathering::flush);
        let busy = self.is_busy();
        if let Some(team) = &self.shared.team
            && !busy
        {
            team.look();
        }
        busy
    }

    /// A turn would find something to do right now: a cheap look, for who spins.
    pub fn has_news(&self) -> bool {
        if self.shared.generation.is_past() {
            return false;
        }
        self.is_busy()
            || self.shared.team.as_ref().is_some_and(Membership::has_ready)
            || self.shared.has_devices
                && self.shared.backends.borrow().iter().any(|backend| backend.has_news())
    }

    /// Asks whether the owner may sleep. To be called after the last [`turn`](Self::turn) and
    /// right before sleeping.
    pub fn prepare_park(&self, now: Instant) -> Park {
        if self.shared.generation.is_past() {
            return Park::Sleep { deadline: None };
        }
        if self.flush() {
            return Park::Busy;
        }
        if let Some(team) = &self.shared.team
            && !team.prepare_park()
        {
            return Park::Busy;
        }
        if !self.shared.has_devices {
            return Park::Sleep { deadline: None };
        }
        let mut backends = self.shared.backends.borrow_mut();
        let deadline = backends.iter().filter_map(|backend| backend.deadline()).min();
        // Each is asked, so that each is armed.
        let mut sleep = true;
        for backend in backends.iter_mut() {
            sleep &= backend.prepare_park();
        }
        if sleep && deadline.is_none_or(|deadline| now < deadline) {
            Park::Sleep { deadline }
        } else {
            Park::Busy
        }
    }

    /// Readable when a device, or another thread of the team, has finished something since
    /// [`prepare_park`](Self::prepare_park), or has work for this one. None without both.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.shared.epoll.as_ref().map(|epoll| epoll.as_fd())
    }

    /// Nobody hears this queue's bell while it sleeps: it does not help, and is not to be woken for that.
    pub(crate) fn stay_deaf(&self) {
        if let Some(team) = &self.shared.team {
            team.woken();
            team.settle();
        }
    }

    /// Work is left that could run.
    fn is_busy(&self) -> bool {
        let slots = self.shared.slots.borrow();
        slots.arrived.iter().any(|(_, blocked)| !blocked)
            || !slots.batches.iter().all(Batch::is_empty)
            || self.shared.is_signing()
            || self
                .shared
                .team
                .as_ref()
                .is_some_and(|team| team.is_busy() || !slots.long.is_empty() && team.has_room())
            || slots.gatherings().any(|gathering| gathering.is_due(None))
    }

    /// Operations that were dropped and are still worked on: their buffers are not free yet.
    pub fn orphans(&self) -> usize {
        self.shared.slots.borrow().entries.iter().filter(|slot| slot.orphan).count()
    }

    /// Number of slots.
    pub fn depth(&self) -> usize {
        self.shared.keeps.len()
    }

    /// The counters of each kernel of others that was used, by name.
    pub fn custom_stats(&self) -> Vec<(&'static str, KernelStats)> {
        let slots = self.shared.slots.borrow();
        slots.custom.iter().map(|custom| (custom.kernel.name(), custom.stats)).collect()
    }

    /// The counters as they stand.
    pub fn stats(&self) -> Stats {
        *self.shared.stats.borrow()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let wakers = {
            let mut slots = self.shared.slots.borrow_mut();
            slots.closed = true;
            slots.waiters.drain(..).map(|(_, waker)| waker).collect::<Vec<_>>()
        };
        let mut foreign = Foreign::default();
        if self.shared.generation.is_past() {
            // The devices are the parent's: even closing their queues would disturb it.
            std::mem::forget(self.shared.backends.take());
        } else {
            self.shared.leave_team(&mut foreign);
            self.shared.close_devices(&mut foreign);
        }
        self.shared.close_software(&mut foreign);
        wakers.into_iter().for_each(|waker| foreign.run(|| waker.wake()));
        foreign.finish();
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
    /// In the order in which they are asked.
    backends: RefCell<Vec<Box<dyn Backend>>>,
    has_devices: bool,
    /// Room for what backends answer.
    ended: RefCell<Vec<(Token, Ended)>>,
    /// Over the files of the devices' queues.
    epoll: Option<Rc<OwnedFd>>,
    software: RefCell<Software>,
    /// The signatures that are being made together.
    signing: RefCell<Option<Box<Job>>>,
    /// Jobs without work, for their room; and room for what one takes.
    #[allow(clippy::vec_box, reason = "boxed once: a job goes from hand to hand")]
    spare: RefCell<Vec<Box<Job>>>,
    taken: RefCell<Vec<Token>>,
    /// Others that help, and are helped.
    team: Option<Membership>,
    /// Of [`Queue::run`].
    pub(crate) bell: OnceCell<Arc<Bell>>,
    stats: RefCell<Stats>,
    generation: Generation,
}

struct Slots {
    entries: Box<[Slot]>,
    free: Vec<Token>,
    /// To be offered to the devices, in order of arrival; true: no device had room for it yet,
    /// and software cannot do it.
    arrived: VecDeque<(Token, bool)>,
    /// One per kernel, in the order of [`Kernel::ALL`].
    batches: [Batch; Kernel::ALL.len()],
    /// For the kernels that work in lanes, in the same order: those wait for company.
    gatherings: [Option<Gathering>; Kernel::ALL.len()],
    /// What only engine threads are to do.
    long: VecDeque<Token>,
    /// What waits for kernels of others, in the order of their first use.
    custom: Vec<Custom>,
    custom_next: usize,
    /// How many more units of the signatures that are begun come before any other.
    signing_units: u32,
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
    kernel: Kernel,
    waker: Option<Waker>,
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

enum State {
    Done(Ending),
    Free,
    Running,
    Submitted,
}

/// Work for a turn.
enum Unit {
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

/// A kernel that somebody else has brought, and what waits for it.
struct Custom {
    kernel: &'static dyn AnyKernel,
    gathering: Gathering,
    stats: KernelStats,
}

/// Where an operation stands that has no result yet.
pub(crate) enum Waiting {
    /// The queue is gone.
    Closed,
    /// This is not the queue's process.
    Forked,
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
            slots.gather_custom(token, call.kernel, self.keeps.len());
        } else if self.has_devices {
            slots.arrived.push_back((token, false));
        } else {
            self.gather(&mut slots, token);
        }
        drop(slots);
        self.count(|stats| stats.submitted += 1);
        Ok(token)
    }

    /// What a backend is told of the request in a slot.
    fn describe(&self, token: Token, slot: &Slot) -> Work {
        debug_assert!(matches!(slot.state, State::Submitted), "described before it is worked on");
        // SAFETY: a submitted slot's request lies in its keep, is of the vtable's type, and nobody
        // works on it.
        unsafe { (slot.vtable.describe)(&self.keeps[token as usize]) }
    }

    /// Hands a request to software.
    fn gather(&self, slots: &mut Slots, token: Token) {
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

    /// Offers what has arrived to the devices, and rings each once. Returns how much ended at once.
    fn offer(&self, now: Instant) -> usize {
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
    fn reap(&self, now: Instant) -> usize {
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
                // SAFETY: the slot's request lies in its keep and is of the vtable's type. The
                // device, which may write to what the target owned, has nothing of the request.
                if !over && unsafe { (slot.vtable.replace_target)(&self.keeps[token as usize]) } {
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
    fn close_devices(&self, foreign: &mut Foreign) {
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

    /// Ends what others have of this queue's.
    fn leave_team(&self, foreign: &mut Foreign) {
        let Some(team) = &self.team else { return };
        // All of it first: nobody is to work on a slot once wakers run.
        let jobs: Vec<_> = std::iter::from_fn(|| team.withdraw()).collect();
        team.leave();
        jobs.into_iter().for_each(|job| self.end_job(job, foreign));
    }

    /// Ends what software had, and what it was to do.
    fn close_software(&self, foreign: &mut Foreign) {
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

    /// The next unit of work: of this queue's, which kernels take in turn; of what it has posted and
    /// nobody claims; of others'.
    fn next_unit(&self, now: Instant) -> Option<Unit> {
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
    fn next_own(&self, now: Instant, begun: bool) -> Option<Unit> {
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
    fn is_signing(&self) -> bool {
        self.signing.borrow().is_some()
    }

    /// Works for a unit.
    fn run(&self, unit: Unit) {
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
    fn form(&self, unit: Unit) -> Option<Box<Job>> {
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
    fn end_job(&self, mut job: Box<Job>, foreign: &mut Foreign) {
        for (token, result) in job.drain() {
            foreign.run(|| self.complete(token, Ending::Done(result)));
        }
        self.spare.borrow_mut().push(job);
    }

    /// Works for a unit on what another queue has posted.
    fn help(&self, mut helped: Helped) {
        let ended = helped.step(&self.software);
        helped.give_back(ended);
    }

    /// Takes what others have finished. Returns how much that was.
    fn take_home(&self, team: &Membership) -> usize {
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

    /// Puts up for others what this core will not come to soon: as much as there are idle ones.
    fn share(&self, team: &Membership, now: Instant) {
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

    /// Ends the work of a slot, which nobody works on any more, and wakes its operation.
    fn complete(&self, token: Token, ending: Ending) {
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

    /// The output of an operation in flight, or a promise to wake `waker`.
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
        self.release(token);
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

    /// Stands in line for a slot, or takes one if one is free for whoever has `ticket`.
    pub(crate) fn wait<R: Request>(
        &self,
        request: &mut Option<R>,
        ticket: Option<u64>,
        waker: &Waker,
    ) -> Waiting {
        let waker = waker.clone();
        if self.generation.is_past() {
            return Waiting::Forked;
        }
        let mut slots = self.slots.borrow_mut();
        if slots.closed {
            return Waiting::Closed;
        }
        let place = ticket
            .and_then(|ticket| slots.waiters.iter().position(|(other, _)| *other == ticket))
            .unwrap_or(slots.waiters.len());
        if slots.is_one_free_for(place) {
            let left = slots.waiters.remove(place);
            drop(slots);
            let request = request.take().expect("a waiting operation holds its request");
            let Ok(token) = self.reserve(request) else {
                unreachable!("a slot is free");
            };
            drop(left);
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
        let had_slot = place.is_some_and(|place| slots.is_one_free_for(place));
        let left = place.and_then(|place| slots.waiters.remove(place));
        drop((slots, left));
        // The slot that was kept for this operation goes to the next in line.
        if had_slot {
            self.wake_waiter();
        }
    }

    /// Drops the request of a Done slot and frees the slot.
    fn discard(&self, token: Token) {
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

    fn release(&self, token: Token) {
        let mut slots = self.slots.borrow_mut();
        slots.entries[token as usize] = Slot::free();
        slots.free.push(token);
        drop(slots);
        self.wake_waiter();
    }

    /// Wakes the last of those in line for whom a slot is free; the others have been. Each keeps its place until
    /// it takes the slot.
    fn wake_waiter(&self) {
        let slots = self.slots.borrow();
        let last = slots.free.len().checked_sub(1);
        let waiter = last.and_then(|last| slots.waiters.get(last));
        let waker = waiter.map(|(_, waker)| waker.clone());
        drop(slots);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn count(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.stats.borrow_mut());
    }
}

/// Runs wakers, and drops of callers' buffers, for several operations: one that panics does so when all
/// have had their turn.
#[derive(Default)]
struct Foreign(Option<Box<dyn Any + Send>>);

impl Foreign {
    fn run(&mut self, end: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(end)) {
            self.0.get_or_insert(panic);
        }
    }

    fn finish(self) {
        if let Some(panic) = self.0
            && !std::thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

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

impl Slots {
    /// Whether a slot is free for who stands in line at this place, or behind the last: each of those before has
    /// one kept.
    fn is_one_free_for(&self, place: usize) -> bool {
        place.min(self.waiters.len()) < self.free.len()
    }

    /// Whatever waits for company.
    fn gatherings(&self) -> impl Iterator<Item = &Gathering> {
        let custom = self.custom.iter().map(|custom| &custom.gathering);
        self.gatherings.iter().flatten().chain(custom)
    }

    fn gatherings_mut(&mut self) -> impl Iterator<Item = &mut Gathering> {
        let custom = self.custom.iter_mut().map(|custom| &mut custom.gathering);
        self.gatherings.iter_mut().flatten().chain(custom)
    }

    /// Hands an item to a kernel of others; `depth`: the queue's.
    fn gather_custom(&mut self, token: Token, kernel: &'static dyn AnyKernel, depth: usize) {
        let same = |custom: &Custom| {
            std::ptr::addr_eq(custom.kernel, kernel) && custom.kernel.type_id() == kernel.type_id()
        };
        let index = self.custom.iter().position(same).unwrap_or_else(|| {
            let gathering = Gathering::new(depth, kernel.width(), kernel.patience());
            self.custom.push(Custom { kernel, gathering, stats: KernelStats::default() });
            self.custom.len() - 1
        });
        self.custom[index].gathering.gather(token);
    }

    /// The next kernel of others that has something to do, in turn.
    fn next_custom(&mut self, now: Instant) -> Option<usize> {
        let count = self.custom.len();
        let index = (0..count)
            .map(|step| (self.custom_next + step) % count)
            .find(|index| self.custom[*index].gathering.is_due(Some(now)))?;
        self.custom_next = index + 1;
        Some(index)
    }

    /// Units that wait, of full vectors what works in lanes.
    fn waiting(&self) -> usize {
        let batched: usize = self.batches.iter().map(Batch::len).sum();
        batched + self.gatherings().map(Gathering::full).sum::<usize>()
    }

    /// What those would take, as far as it is known.
    fn waiting_ns(&self, team: &Membership) -> u64 {
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

impl Drop for Shared {
    fn drop(&mut self) {
        // Every operation holds a reference to us, so none is left; the queue completed what was
        // not orphaned, and `complete` discards orphans.
        let slots = self.slots.get_mut();
        debug_assert!(
            self.generation.is_past() || slots.free.len() == self.keeps.len(),
            "a slot was leaked"
        );
    }
}
