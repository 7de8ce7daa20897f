//! The per-core handle: submit, turn, reap, park.
//!
//! # A slot's life
//!
//! 1. *Free*: on the free list.
//! 2. *Submitted*: reserved and filled; the request lies in the slot's [`Keep`] and its token waits
//!    to be offered to the devices, or in the batch of its kernel for software. While it is *on a
//!    device*, that reads and writes what the request names, and nobody else may. A device that
//!    fails gives the request back, for software, and keeps what it may still write to: another target
//!    takes the place of that.
//! 3. *Running*: software reads and writes what the request names.
//! 4. *Done*: the result waits for its operation, which takes it and frees the slot.
//!
//! An operation that is dropped leaves its slot an *orphan*: the request stays where it is until
//! the backend is finished with it, and is then dropped by the queue.
//!
//! ```text
//!   slots.rs     from reserved to free      devices.rs    offered, and what comes back
//!   line.rs      for whom none is free      software.rs   units of work, in turn
//!                                           team.rs       what others do, and what is done for them
//! ```

mod devices;
mod line;
mod slots;
mod software;
mod team;

use std::any::Any;
use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;

pub(crate) use self::line::Waiting;
use self::slots::Slots;
use crate::backend::{Backend, Devices, Ended, Job, Software};
use crate::batch::{Batch, Gathering, Token};
use crate::fork::Generation;
use crate::host::Bell;
use crate::keep::Keep;
use crate::op::Op;
use crate::request::Request;
use crate::stats::{KernelStats, Stats};
use crate::team::{Membership, Team};

/// One core's accelerator queue.
///
/// It is neither `Send` nor `Sync`: its owner submits, turns and reaps without a lock, an atomic
/// or a system call. Dropping it ends every operation that still waits in [`Error::Closed`](crate::Error::Closed).
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
        Self {
            shared: Rc::new(Shared {
                keeps: (0..depth).map(|_| Keep::empty()).collect(),
                slots: RefCell::new(Slots::new(depth)),
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
        wakers.iter().for_each(|waker| foreign.run(|| waker.wake_by_ref()));
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

impl Shared {
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
