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

use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::backend::{Backend, Devices, Ended, Software, Submitted};
use crate::batch::{Batch, Gathering, Token};
use crate::custom::AnyKernel;
use crate::error::Error;
use crate::fork::Generation;
use crate::host::Bell;
use crate::keep::Keep;
use crate::kx::Exchanger;
use crate::op::Op;
use crate::request::{Ending, Request, Work};
use crate::rsa::{Running, Signer};
use crate::stats::{Kernel, KernelStats, Stats};
use rustix::event::epoll;

/// The longest that a signature, and a key exchange, waits for others while its core is busy: about
/// what it would cost alone, and for signatures not more than anybody notices.
const SIGN_AGE: Duration = Duration::from_micros(100);
const EXCHANGE_AGE: Duration = Duration::from_micros(35);

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
        Self::build(depth, Vec::new(), None)
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
        Ok(Self::build(depth, devices.shares(depth, &epoll), Some(epoll)))
    }

    fn build(depth: usize, backends: Vec<Box<dyn Backend>>, epoll: Option<Rc<OwnedFd>>) -> Self {
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
                    signing: Gathering::new(depth, Signer::TOGETHER, SIGN_AGE),
                    exchanging: Gathering::new(depth, Exchanger::TOGETHER, EXCHANGE_AGE),
                    custom: Vec::new(),
                    custom_next: 0,
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
                lanes: RefCell::new(None),
                group: RefCell::default(),
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
        } else if self.shared.slots.borrow().waiters.is_empty() {
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

    /// Takes what devices have finished, hands them what was submitted, and runs software's work
    /// for about `slice`, at least one unit. Wakes who waits for any of it; a waker may use the
    /// queue, and turn it.
    ///
    /// A unit is never interrupted: one chunk compressed, a raw private operation, or about 50 us of
    /// signatures that are made together (at the first use of a key and every 256th, up to 1 ms).
    /// Signatures and key exchanges wait for company until there are enough for all lanes, until the
    /// oldest has waited for 100 and 35 us by `now`, or until the owner has nothing else to do
    /// ([`flush`](Self::flush)).
    pub fn turn(&self, now: Instant, slice: Duration) -> Turn {
        let mut units = 0;
        if self.shared.generation.is_past() {
            return Turn { units, busy: false };
        }
        if self.shared.has_devices {
            units += self.shared.reap(now);
            units += self.shared.offer(now);
        }
        let mut started = None;
        while let Some(unit) = self.shared.next_unit(now) {
            let started = (!slice.is_zero()).then(|| *started.get_or_insert_with(Instant::now));
            units += 1;
            match unit {
                Unit::Custom(index) => self.shared.run_custom(index),
                Unit::Exchanges => self.shared.run_exchanges(),
                Unit::Lanes => self.shared.run_lanes(),
                Unit::One(token) => self.shared.run_one(token),
            }
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
        self.is_busy()
    }

    /// A turn would find something to do right now: a cheap look, for who spins.
    pub fn has_news(&self) -> bool {
        self.is_busy()
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

    /// Readable when a device has finished something since [`prepare_park`](Self::prepare_park).
    /// None without devices.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.shared.epoll.as_ref().map(|epoll| epoll.as_fd())
    }

    /// Work is left that could run.
    fn is_busy(&self) -> bool {
        let slots = self.shared.slots.borrow();
        slots.arrived.iter().any(|(_, blocked)| !blocked)
            || !slots.batches.iter().all(Batch::is_empty)
            || self.shared.is_signing()
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
        if self.shared.generation.is_past() {
            // The devices are the parent's: even closing their queues would disturb it.
            std::mem::forget(self.shared.backends.take());
        } else {
            self.shared.close_devices();
        }
        self.shared.close_software();
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
    /// In the order in which they are asked.
    backends: RefCell<Vec<Box<dyn Backend>>>,
    has_devices: bool,
    /// Room for what backends answer.
    ended: RefCell<Vec<(Token, Ended)>>,
    /// Over the files of the devices' queues.
    epoll: Option<Rc<OwnedFd>>,
    software: RefCell<Software>,
    /// The signatures that are being made together.
    lanes: RefCell<Option<InLanes>>,
    /// Room for what is worked on together.
    group: RefCell<Group>,
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
    /// Signatures that are made together.
    signing: Gathering,
    /// Key exchanges that are made together.
    exchanging: Gathering,
    /// What waits for kernels of others, in the order of their first use.
    custom: Vec<Custom>,
    custom_next: usize,
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
        Self { describe: describe::<R>, discard: Keep::discard::<R> }
    }

    const NONE: &'static Self =
        &Self { describe: |_| unreachable!("a free slot has no request"), discard: |_| {} };
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
    /// Key exchanges that are made together.
    Exchanges,
    /// Some of the signatures that are made together.
    Lanes,
    /// A request, from start to end.
    One(Token),
}

/// Signatures that are being made together. Their slots are Running.
struct InLanes {
    tokens: Vec<Token>,
    works: Vec<Work>,
    running: Running,
}

/// Requests that are worked on together, and room for them.
#[derive(Default)]
struct Group {
    /// As gathered.
    taken: Vec<Token>,
    /// Those that somebody waits for, and what they ask for.
    tokens: Vec<Token>,
    works: Vec<Work>,
    items: Vec<NonNull<()>>,
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
            slots.gather(token);
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

    /// Offers what has arrived to the devices, and rings each once. Returns how much ended at once.
    fn offer(&self, now: Instant) -> usize {
        let mut taken = [0_u64; Kernel::ALL.len()];
        let mut units = 0;
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
                    self.complete(token, Ending::Done(result));
                    slots = self.slots.borrow_mut();
                }
                Offered::Full => slots.arrived.push_back((token, true)),
                Offered::Software { spilled } => {
                    slots.gather(token);
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
        for (token, ended) in ended.drain(..) {
            self.end(token, ended);
        }
        self.ended.replace(ended);
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
                slots.gather(token);
                return self.count(|stats| stats.kernels[kernel].redone += 1);
            }
            Ended::Redo => Ending::Done(Err(Error::DeviceLost)),
            Ended::Stranded => {
                self.count(|stats| stats.stranded += 1);
                Ending::Stranded
            }
        };
        drop(slots);
        self.complete(token, ending);
    }

    /// Stops the devices and ends what they had, and what was to be offered to them.
    fn close_devices(&self) {
        let mut ended = Vec::new();
        // Taken out: what is woken by the end of its operation may look at the queue.
        for mut backend in self.backends.take() {
            backend.close(&mut ended);
        }
        for (token, ended) in ended {
            self.end(token, ended);
        }
        while let Some((token, _)) = { self.slots.borrow_mut().arrived.pop_front() } {
            self.complete(token, Ending::Done(Err(Error::Closed)));
        }
    }

    /// Ends what software had, and what it was to do.
    fn close_software(&self) {
        if let Some(InLanes { tokens, works, running }) = self.lanes.take() {
            drop((works, running));
            for token in tokens {
                self.complete(token, Ending::Done(Err(Error::Closed)));
            }
        }
        loop {
            let token = {
                let mut slots = self.slots.borrow_mut();
                let mut stats = KernelStats::default();
                let batched = slots.batches.iter_mut().find_map(|batch| batch.next(&mut stats));
                batched.or_else(|| slots.gatherings_mut().find_map(Gathering::pop))
            };
            let Some(token) = token else { return };
            self.complete(token, Ending::Done(Err(Error::Closed)));
        }
    }

    /// The next unit of work: kernels take turns.
    fn next_unit(&self, now: Instant) -> Option<Unit> {
        let mut slots = self.slots.borrow_mut();
        let mut stats = self.stats.borrow_mut();
        let (kernel, unit) = (0..Kernel::ALL.len()).find_map(|step| {
            let kernel = (slots.kernel_next + step) % Kernel::ALL.len();
            let unit = match Kernel::ALL[kernel] {
                Kernel::Custom => slots.next_custom(now).map(Unit::Custom),
                Kernel::KeyExchange if slots.exchanging.is_due(Some(now)) => Some(Unit::Exchanges),
                Kernel::Sign if self.is_signing() || slots.signing.is_due(Some(now)) => {
                    Some(Unit::Lanes)
                }
                _ => slots.batches[kernel].next(&mut stats.kernels[kernel]).map(Unit::One),
            };
            Some((kernel, unit?))
        })?;
        slots.kernel_next = (kernel + 1) % Kernel::ALL.len();
        Some(unit)
    }

    /// Signatures are being made together.
    fn is_signing(&self) -> bool {
        self.lanes.borrow().is_some()
    }

    /// Works on one request, from start to end.
    fn run_one(&self, token: Token) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.entries[token as usize];
        if slot.orphan {
            // Nobody waits for it any more: do not start it.
            drop(slots);
            return self.complete(token, Ending::Done(Err(Error::Closed)));
        }
        let work = self.describe(token, slot);
        slot.state = State::Running;
        drop(slots);
        // SAFETY: the slot's request owns what `work` names. It is Running, so the request stays in
        // its slot and nobody else reads or writes those bytes.
        let result = unsafe { self.software.borrow_mut().execute(&work) };
        drop(work);
        self.complete(token, Ending::Done(result));
    }

    /// A unit of the signatures that are made together; starts on the next if there are none.
    fn run_lanes(&self) {
        let current = self.lanes.borrow_mut().take();
        let Some(mut current) = current.or_else(|| self.start_lanes()) else { return };
        let stepped = self.software.borrow_mut().step(&mut current.running);
        if stepped == Ok(false) {
            *self.lanes.borrow_mut() = Some(current);
            return;
        }
        let InLanes { tokens, works, running } = current;
        if let Err(error) = stepped {
            drop((works, running));
            for token in tokens {
                self.complete(token, Ending::Done(Err(error.clone())));
            }
            return;
        }
        // SAFETY: the slots' requests own what the works name. They are Running, so the requests
        // stay in their slots and nobody else reads or writes those bytes.
        let results = unsafe { self.software.borrow_mut().finish(running, &works) };
        drop(works);
        for (token, result) in tokens.into_iter().zip(results) {
            self.complete(token, Ending::Done(result));
        }
    }

    /// Lets a kernel of others work on what has gathered for it: a unit.
    fn run_custom(&self, index: usize) {
        let mut group = self.group.take();
        let kernel = {
            let custom = &mut self.slots.borrow_mut().custom[index];
            custom.gathering.take(&mut group.taken, |_| true);
            custom.kernel
        };
        self.claim(&mut group);
        let count = group.tokens.len() as u64;
        self.count(|stats| stats.kernels[Kernel::Custom as usize].count_batch(count));
        self.slots.borrow_mut().custom[index].stats.count_batch(count);
        group.items.extend(group.works.drain(..).map(|work| match work {
            Work::Call(call) => call.item,
            _ => unreachable!("only calls gather here"),
        }));
        let ran = group.items.is_empty()
            // SAFETY: they are this kernel's, as gathered; the slots are Running, so that the
            // requests that own the items stay there, and nobody else touches them.
            || catch_unwind(AssertUnwindSafe(|| unsafe { kernel.run_erased(&mut group.items) }))
                .is_ok();
        group.items.clear();
        for token in group.tokens.drain(..) {
            let result = if ran { Ok(0) } else { Err(Error::Panicked) };
            self.complete(token, Ending::Done(result));
        }
        self.group.replace(group);
    }

    /// Makes the key exchanges that have gathered: a unit.
    fn run_exchanges(&self) {
        let mut group = self.group.take();
        self.slots.borrow_mut().exchanging.take(&mut group.taken, |_| true);
        self.claim(&mut group);
        // SAFETY: the slots' requests own what the works name. They are Running, so the requests
        // stay in their slots and nobody else touches those bytes.
        let results = unsafe { self.software.borrow_mut().exchange(&group.works) };
        group.works.clear();
        let kernel = Kernel::KeyExchange as usize;
        self.count(|stats| stats.kernels[kernel].count_batch(group.tokens.len() as u64));
        for (token, result) in group.tokens.drain(..).zip(results) {
            self.complete(token, Ending::Done(result));
        }
        self.group.replace(group);
    }

    /// Describes what was taken. Its slots are Running from here on; those that nobody waits for
    /// any more are ended.
    fn claim(&self, group: &mut Group) {
        let mut slots = self.slots.borrow_mut();
        for token in group.taken.drain(..) {
            let slot = &mut slots.entries[token as usize];
            if slot.orphan {
                drop(slots);
                self.complete(token, Ending::Done(Err(Error::Closed)));
                slots = self.slots.borrow_mut();
                continue;
            }
            group.works.push(self.describe(token, slot));
            slot.state = State::Running;
            group.tokens.push(token);
        }
    }

    /// Starts on signatures that have gathered.
    fn start_lanes(&self) -> Option<InLanes> {
        // Its own: it is kept until the signatures are made.
        let mut group = Group::default();
        {
            let mut slots = self.slots.borrow_mut();
            let Slots { entries, signing, .. } = &mut *slots;
            let mut size = None;
            signing.take(&mut group.taken, |token| {
                let slot = &entries[token as usize];
                // One that nobody waits for goes with any.
                slot.orphan || {
                    let len = self.describe(token, slot).modulus_len_bytes();
                    *size.get_or_insert(len) == len
                }
            });
        }
        self.claim(&mut group);
        // Each that cannot be encoded ends by itself; the others go on without it.
        let (mut tokens, mut works, mut encoded) = (Vec::new(), Vec::new(), Vec::new());
        for (token, work) in group.tokens.into_iter().zip(group.works) {
            // SAFETY: the slot's request owns what the work names, and the slot is Running.
            match unsafe { self.software.borrow_mut().encode(&work) } {
                Ok(number) => {
                    tokens.push(token);
                    works.push(work);
                    encoded.push(number);
                }
                Err(error) => self.complete(token, Ending::Done(Err(error))),
            }
        }
        if tokens.is_empty() {
            return None;
        }
        self.count(|stats| stats.kernels[Kernel::Sign as usize].count_batch(tokens.len() as u64));
        let started = self.software.borrow_mut().start(encoded);
        match started {
            Ok(running) => Some(InLanes { tokens, works, running }),
            Err(error) => {
                for token in tokens {
                    self.complete(token, Ending::Done(Err(error.clone())));
                }
                None
            }
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
                let waker = waker.clone();
                let old = self.slots.borrow_mut().entries[token as usize].waker.replace(waker);
                drop(old);
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

    /// Stands in line for a slot, or takes one when `ticket` is first and one is free.
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
        let slots = self.slots.borrow();
        let slot = &slots.entries[token as usize];
        let vtable = slot.vtable;
        // What a device may still write to is forgotten.
        let drops = !matches!(slot.state, State::Done(Ending::Stranded));
        drop(slots);
        if drops {
            // SAFETY: the slot is not free, so its request lies in the keep, and the vtable is of
            // its type; Done means that the backend is finished with it.
            unsafe { (vtable.discard)(&self.keeps[token as usize]) };
        }
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
        change(&mut self.stats.borrow_mut());
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
    /// Whatever waits for company.
    fn gatherings(&self) -> impl Iterator<Item = &Gathering> {
        let custom = self.custom.iter().map(|custom| &custom.gathering);
        [&self.signing, &self.exchanging].into_iter().chain(custom)
    }

    fn gatherings_mut(&mut self) -> impl Iterator<Item = &mut Gathering> {
        let custom = self.custom.iter_mut().map(|custom| &mut custom.gathering);
        [&mut self.signing, &mut self.exchanging].into_iter().chain(custom)
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

    /// Hands a request to software.
    fn gather(&mut self, token: Token) {
        let kernel = self.entries[token as usize].kernel;
        if kernel == Kernel::Sign && Signer::has_lanes() {
            self.signing.gather(token);
        } else if kernel == Kernel::KeyExchange && Exchanger::has_lanes() {
            self.exchanging.gather(token);
        } else {
            self.batches[kernel as usize].gather(token);
        }
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
