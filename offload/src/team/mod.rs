//! Queues that help each other: an idle core works on what a busy one has not come to.
//!
//! ```text
//!   owner ── posts what waits ──> its board <── looks, claims ── idle members, engine threads
//!     └───── reaps <── rung if it sleeps <───── finished ──────────┘
//! ```
//!
//! A member is a queue of the team, which both has work and helps, or an *engine thread*, which
//! only helps. A queue posts only while somebody is idle, and takes back what nobody has claimed
//! when it comes to it. Who is idle looks at the boards as long as it spins; one who sleeps is
//! woken, one at a time, when what waits is worth the waking.
//!
//! *Long* work (a unit above a millisecond) is posted at once and done by engine threads only: a
//! core with I/O of its own must not be held up by it.

mod board;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::thread::{CpuSet, sched_getaffinity};

pub(crate) use self::board::Takes;
use self::board::{Board, Sleeper};
use crate::backend::{Job, Software};
use crate::fork::Generation;
use crate::stats::Kernel;

/// How long an engine thread looks for work before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// Units that a core works on while what it has posted waits for somebody. Half as many are a reason to
/// wake one who sleeps, whoever else seems to be looking.
const UNCLAIMED_MAX: u32 = 8;

/// Niceness of engine threads that only do long work.
const NICE: i32 = 10;

/// Queues, mostly one for each core, that do each other's work when they are idle, and the engine
/// threads that help them. Clones are the same team; it ends with the last of them and the last
/// queue in it.
///
/// ```
/// use warpcore_offload::{Devices, Queue, Team};
///
/// let team = Team::new();
/// let queue = Queue::in_team(64, &Devices::none(), &team)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Team(Arc<Handle>);

/// What ends with the last clone.
struct Handle(Arc<Shared>);

struct Shared {
    members: Mutex<Vec<Arc<Member>>>,
    /// How often `members` has changed.
    changes: AtomicUsize,
    /// Members that have nothing of their own to do and take short work: those that look for it or
    /// are at it, and those that sleep. Hints: how much to post, and whether to wake somebody.
    idle: AtomicUsize,
    asleep: AtomicUsize,
    /// What waking a thread costs, in nanoseconds.
    wake_ns: u64,
    /// Where the team was made: engine threads may run there, though who starts one is pinned.
    cores: Option<CpuSet>,
    engines: Engines,
    /// No queue is left.
    closed: AtomicBool,
    generation: Generation,
}

struct Engines {
    /// How many there may be.
    most: usize,
    takes: Takes,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Of `threads`.
    started: AtomicUsize,
}

/// What others see of a member.
struct Member {
    board: Board<Box<Job>>,
    takes: Takes,
    sleeper: Sleeper,
    /// Ends its sleep.
    bell: OwnedFd,
}

impl Team {
    /// A team of queues whose owners have I/O of their own. Long work goes to engine threads, as
    /// many as there are cores, which are started when there is such work and give way to others.
    ///
    /// Measures what it costs to wake a thread, which takes about a millisecond.
    pub fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::with(Engines::new(cores, Takes::Long))
    }

    /// A team with so many engine threads that take whatever the queues have: for servers whose
    /// cores have no queues of their own that could help. They are started when there is work
    /// for them.
    ///
    /// # Panics
    ///
    /// If `threads` is 0.
    pub fn with_engine_threads(threads: usize) -> Self {
        assert!(threads > 0, "an engine needs a thread");
        Self::with(Engines::new(threads, Takes::All))
    }

    fn with(engines: Engines) -> Self {
        Self(Arc::new(Handle(Arc::new(Shared {
            members: Mutex::default(),
            changes: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            wake_ns: measure_wake(),
            cores: sched_getaffinity(None).ok(),
            engines,
            closed: AtomicBool::new(false),
            generation: Generation::current(),
        }))))
    }

    /// Engine threads that were started.
    pub fn engine_threads(&self) -> usize {
        self.0.0.engines.started.load(Ordering::Relaxed)
    }
}

impl Default for Team {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = lock(&self.0.0.members).len();
        write!(f, "Team({members} members)")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let shared = &self.0;
        // A child has a copy of the team and none of its threads.
        if shared.generation.is_past() {
            return;
        }
        shared.closed.store(true, Ordering::Relaxed);
        // The fence in `wake` orders this before the look at who sleeps.
        let members = lock(&shared.members).clone();
        for member in members {
            member.wake();
        }
        let threads = std::mem::take(&mut *lock(&shared.engines.threads));
        for engine in threads {
            if engine.join().is_err() {
                tracing::error!("an engine thread has panicked");
            }
        }
    }
}

impl Engines {
    fn new(most: usize, takes: Takes) -> Self {
        Self { most, takes, threads: Mutex::default(), started: AtomicUsize::new(0) }
    }
}

impl Member {
    fn new(takes: Takes) -> io::Result<Arc<Self>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { board: Board::new(), takes, sleeper: Sleeper::new(), bell }))
    }

    /// Wakes it if it sleeps: there is something for it. Whether it did.
    fn wake(&self) -> bool {
        let rings = self.sleeper.wake();
        if rings {
            // Full only after 2^64 - 2 rings that nobody heard.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
        rings
    }
}

/// A member's own view of its team: a thread's.
pub(crate) struct Membership {
    shared: Arc<Shared>,
    me: Arc<Member>,
    /// The other members, as of so many changes.
    others: RefCell<(usize, Vec<Arc<Member>>)>,
    /// Where the next search starts, so that all boards are looked at alike.
    next: Cell<usize>,
    /// Counted among the idle, and among those of them who sleep.
    idle: Cell<bool>,
    asleep: Cell<bool>,
    /// It may have slept since it was last awake.
    parked: Cell<bool>,
    /// Somebody was about to ring.
    owed: Cell<bool>,
    /// What a unit of each kernel takes, in nanoseconds; 0 is not known.
    costs_ns: Cell<[u64; Kernel::ALL.len()]>,
    /// Jobs on the board.
    posted: Cell<usize>,
    /// Units of its own since a job was last reaped or taken back, while some wait.
    unclaimed: Cell<u32>,
    /// The team lasts as long as a queue is in it; engine threads do not hold it.
    _team: Option<Team>,
}

/// Work of another member, in hand: for a turn, not longer, since nobody else can have it meanwhile.
pub(crate) struct Helped {
    owner: Arc<Member>,
    index: usize,
    job: Box<Job>,
}

impl Helped {
    /// Works on it for a unit. True: it has ended, and is to be given back.
    pub(crate) fn step(&mut self, software: &RefCell<Software>) -> bool {
        // SAFETY: its owner keeps what the works name until it has the job back: their slots are
        // Running until then, and `Membership::leave` waits.
        unsafe { self.job.step_measured(software) }
    }

    pub(crate) fn kernel(&self) -> Kernel {
        self.job.kernel()
    }

    /// Gives it back, `ended` or not. Who sleeps and has the rest of its work back can do it.
    pub(crate) fn give_back(self, ended: bool) {
        match ended {
            true => self.owner.board.finish(self.index, self.job),
            false => self.owner.board.put_back(self.index, self.job),
        }
        self.owner.wake();
    }
}

impl Membership {
    /// A queue joins.
    pub(crate) fn join(team: &Team) -> io::Result<Self> {
        if team.0.0.generation.is_past() {
            return Err(io::Error::other(
                "the team belongs to the process that this was forked from",
            ));
        }
        let member = Self::new(Arc::clone(&team.0.0), Takes::Short, Some(team.clone()))?;
        member.enter();
        Ok(member)
    }

    fn new(shared: Arc<Shared>, takes: Takes, team: Option<Team>) -> io::Result<Self> {
        Ok(Self {
            shared,
            me: Member::new(takes)?,
            others: RefCell::default(),
            next: Cell::new(0),
            idle: Cell::new(false),
            asleep: Cell::new(false),
            parked: Cell::new(false),
            owed: Cell::new(false),
            costs_ns: Cell::new([0; Kernel::ALL.len()]),
            posted: Cell::new(0),
            unclaimed: Cell::new(0),
            _team: team,
        })
    }

    /// Lets the others know.
    fn enter(&self) {
        lock(&self.shared.members).push(Arc::clone(&self.me));
        self.shared.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Is neither helped nor helps from here on.
    pub(crate) fn leave(&self) {
        self.settle();
        self.woken();
        lock(&self.shared.members).retain(|member| !Arc::ptr_eq(member, &self.me));
        self.shared.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Readable when somebody has rung.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.me.bell.as_fd()
    }

    /// Short jobs that would find somebody: how many more to post, of those that wait and would
    /// take `waiting_ns`, which is asked for if it matters.
    pub(crate) fn wanted(&self, waiting_ns: impl FnOnce() -> u64) -> usize {
        // Relaxed: hints.
        let idle = self.shared.idle.load(Ordering::Relaxed);
        let asleep = self.shared.asleep.load(Ordering::Relaxed);
        let (awake, most) = (idle.saturating_sub(asleep), idle.max(self.engines_left()));
        let worth_waking = awake < most && waiting_ns() >= 2 * self.shared.wake_ns;
        let helpers = if worth_waking { most } else { awake };
        // Two for each: who has finished one need not wait until the owner comes by.
        let ready = if self.posted.get() == 0 { 0 } else { self.me.board.ready() };
        (2 * helpers).saturating_sub(ready)
    }

    /// Engine threads for short work that could still be started.
    fn engines_left(&self) -> usize {
        let engines = &self.shared.engines;
        let left = engines.most - engines.started.load(Ordering::Relaxed).min(engines.most);
        if engines.takes.takes(false) { left } else { 0 }
    }

    /// Whether the board has room for another job.
    pub(crate) fn has_room(&self) -> bool {
        self.me.board.has_room()
    }

    /// Puts up a job for others: there must be room.
    pub(crate) fn post(&self, job: Box<Job>, long: bool) {
        self.me.board.post(job, long);
        self.posted.set(self.posted.get() + 1);
    }

    /// Sees to it that somebody looks at what was posted, `long` or not. False: nobody will, and
    /// nobody can be found.
    pub(crate) fn call(&self, long: bool) -> bool {
        self.refresh();
        let (_, others) = &*self.others.borrow();
        let engines = &self.shared.engines;
        // Short work is seen by who is awake; but one who only seems to be is not waited for.
        let looking = !long
            && self.unclaimed.get() < UNCLAIMED_MAX / 2
            && self.shared.idle.load(Ordering::Relaxed)
                > self.shared.asleep.load(Ordering::Relaxed);
        if looking || others.iter().any(|other| other.takes.takes(long) && other.wake()) {
            return true;
        }
        if engines.takes.takes(long) && self.shared.start_engine() {
            return true;
        }
        // All are busy, and look at the boards before they sleep. An engine thread that was started
        // just now may not be among the others yet, and looks too.
        others.iter().any(|other| other.takes.takes(long))
            || engines.takes.takes(long) && engines.started.load(Ordering::Relaxed) > 0
    }

    /// A job of another member's, if there is any.
    pub(crate) fn claim(&self) -> Option<Helped> {
        self.refresh();
        let (_, others) = &*self.others.borrow();
        let count = others.len();
        (0..count).find_map(|step| {
            let at = (self.next.get() + step) % count;
            let (index, job) = others[at].board.claim(self.me.takes)?;
            self.next.set(at + 1);
            Some(Helped { owner: Arc::clone(&others[at]), index, job })
        })
    }

    /// Whether [`claim`](Self::claim) would have found one just now.
    pub(crate) fn has_ready(&self) -> bool {
        self.refresh();
        self.others.borrow().1.iter().any(|other| other.board.has_ready(self.me.takes))
    }

    /// The own core has come to a unit that was not posted.
    pub(crate) fn count_own_unit(&self) {
        self.unclaimed.set(if self.has_posted() { self.unclaimed.get() + 1 } else { 0 });
    }

    /// What was posted has waited for too many of them, and is to be taken back.
    pub(crate) fn is_overdue(&self) -> bool {
        self.unclaimed.get() >= UNCLAIMED_MAX
    }

    /// Takes back the oldest job that nobody has claimed.
    pub(crate) fn take_back(&self, takes: Takes) -> Option<Box<Job>> {
        if self.posted.get() == 0 {
            return None;
        }
        let (index, job) = self.me.board.claim(takes)?;
        self.me.board.free(index);
        self.posted.set(self.posted.get() - 1);
        self.unclaimed.set(0);
        Some(job)
    }

    /// Takes a job that another has finished.
    pub(crate) fn reap(&self) -> Option<Box<Job>> {
        if self.posted.get() == 0 {
            return None;
        }
        let job = self.me.board.reap()?;
        self.posted.set(self.posted.get() - 1);
        self.unclaimed.set(0);
        Some(job)
    }

    /// Short work on the own board waits for somebody.
    pub(crate) fn has_posted(&self) -> bool {
        self.posted.get() > 0 && self.me.board.ready() > 0
    }

    /// Something on the own board is to be reaped, or to be taken back.
    pub(crate) fn is_busy(&self) -> bool {
        self.has_posted() || self.posted.get() > 0 && self.me.board.has_done()
    }

    /// There is nothing of its own to do: it looks for others' work from here on.
    pub(crate) fn look(&self) {
        if self.me.takes.takes(false) && !self.idle.replace(true) {
            self.shared.idle.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It has something of its own to do.
    pub(crate) fn settle(&self) {
        if self.idle.replace(false) {
            self.shared.idle.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Asks whether it may sleep, until the bell.
    pub(crate) fn prepare_park(&self) -> bool {
        // It may have been asked before without having slept.
        self.woken();
        self.look();
        let sleeps = self.me.sleeper.prepare_park(|| {
            // Looked for here, after the fence: who has joined and rung before is seen.
            self.refresh();
            let (_, others) = &*self.others.borrow();
            self.shared.closed.load(Ordering::Relaxed)
                || self.is_busy()
                || others.iter().any(|other| other.board.has_ready(self.me.takes))
        });
        self.parked.set(sleeps);
        if sleeps && self.idle.get() && !self.asleep.replace(true) {
            self.shared.asleep.fetch_add(1, Ordering::Relaxed);
        }
        sleeps
    }

    /// It is awake again.
    pub(crate) fn woken(&self) {
        if !self.parked.replace(false) {
            return;
        }
        if self.asleep.replace(false) {
            self.shared.asleep.fetch_sub(1, Ordering::Relaxed);
        }
        if self.me.sleeper.unpark() || self.owed.get() {
            // Who rings lowers the flag and then writes: what is not there yet is read next time.
            self.owed.set(rustix::io::read(&self.me.bell, &mut [0; 8]).is_err());
        }
    }

    /// What a unit of `kernel` took just now.
    pub(crate) fn count_cost(&self, kernel: Kernel, cost_ns: u64) {
        let mut costs = self.costs_ns.get();
        let cost = &mut costs[kernel as usize];
        *cost = if *cost == 0 { cost_ns } else { (*cost * 7 + cost_ns) / 8 };
        self.costs_ns.set(costs);
    }

    /// What a unit of `kernel` takes.
    pub(crate) fn cost_ns(&self, kernel: Kernel) -> u64 {
        self.costs_ns.get()[kernel as usize]
    }

    /// Withdraws what nobody has claimed, and waits for the rest: what the works name may be freed
    /// after the last job. For who leaves.
    pub(crate) fn withdraw(&self) -> Option<Box<Job>> {
        loop {
            if let Some(job) = self.take_back(Takes::All).or_else(|| self.reap()) {
                return Some(job);
            }
            if self.posted.get() == 0 {
                return None;
            }
            if self.me.sleeper.prepare_park(|| self.is_busy()) {
                self.parked.set(true);
                wait_for(&self.me.bell);
            }
            self.woken();
        }
    }

    /// Asks for other members' boards when the team has changed.
    fn refresh(&self) {
        // Relaxed: the lock synchronises. Before a sleep the fence has (`prepare_park`).
        let changes = self.shared.changes.load(Ordering::Relaxed);
        let mut others = self.others.borrow_mut();
        if others.0 != changes {
            let members = lock(&self.shared.members);
            others.1 =
                members.iter().filter(|other| !Arc::ptr_eq(other, &self.me)).cloned().collect();
            others.0 = self.shared.changes.load(Ordering::Relaxed);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.shared.generation.is_past() {
            return;
        }
        self.leave();
    }
}

impl Shared {
    /// Starts another engine thread, if there may be one. It looks at the boards before it sleeps.
    fn start_engine(self: &Arc<Self>) -> bool {
        let mut threads = lock(&self.engines.threads);
        if threads.len() >= self.engines.most {
            return false;
        }
        // It enters the team itself: one that could not be started is nobody to rely on.
        let started =
            Membership::new(Arc::clone(self), self.engines.takes, None).and_then(|member| {
                let engine = Engine(member);
                let thread = thread::Builder::new().name(format!("engine {}", threads.len()));
                thread.spawn(move || engine.run())
            });
        match started {
            Ok(thread) => {
                threads.push(thread);
                self.engines.started.store(threads.len(), Ordering::Relaxed);
                true
            }
            Err(error) => {
                tracing::warn!("no engine thread could be started: {error}");
                false
            }
        }
    }
}

/// A thread that only helps. Its membership is made by another thread and used by this one alone.
struct Engine(Membership);

impl Engine {
    fn run(self) {
        let Self(member) = self;
        member.enter();
        if let Some(cores) = &member.shared.cores
            && let Err(error) = rustix::thread::sched_setaffinity(None, cores)
        {
            tracing::warn!("an engine thread stays on the core that started it: {error}");
        }
        if member.me.takes == Takes::Long
            && let Err(error) =
                rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE)
        {
            tracing::warn!("an engine thread runs at the priority of others: {error}");
        }
        let software = RefCell::new(Software::new());
        let mut since = Instant::now();
        while !member.shared.closed.load(Ordering::Relaxed) {
            if let Some(mut helped) = member.claim() {
                while !helped.step(&software) {}
                helped.give_back(true);
                since = Instant::now();
                continue;
            }
            member.look();
            if since.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            if member.prepare_park() {
                wait_for(&member.me.bell);
            }
            member.woken();
            since = Instant::now();
        }
    }
}

/// Sleeps until the bell rings. May return early.
fn wait_for(bell: &OwnedFd) {
    // Interrupted, or out of memory: look once more.
    let _ = poll(&mut [PollFd::new(bell, PollFlags::IN)], None);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is changed in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What it costs to wake a thread, in nanoseconds: half of a round trip, the best of a few.
fn measure_wake() -> u64 {
    const ROUNDS: usize = 8;
    let caller = thread::current();
    let answers = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answers);
    let thread = thread::Builder::new().spawn(move || {
        for round in 1..=ROUNDS {
            while counter.load(Ordering::Acquire) != 2 * round - 1 {
                thread::park();
            }
            counter.store(2 * round, Ordering::Release);
            caller.unpark();
        }
    });
    let Ok(thread) = thread else { return 50_000 };
    let mut best = Duration::from_micros(100);
    for round in 1..=ROUNDS {
        let started = Instant::now();
        answers.store(2 * round - 1, Ordering::Release);
        thread.thread().unpark();
        while answers.load(Ordering::Acquire) != 2 * round {
            thread::park();
        }
        best = best.min(started.elapsed() / 2);
    }
    let _ = thread.join();
    u64::try_from(best.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A helper that has lowered the flag, and is stopped before it rings.
    #[test]
    fn a_ring_that_comes_late_is_heard_once() {
        let member = Membership::join(&Team::with_engine_threads(1)).expect("a descriptor is left");
        assert!(member.prepare_park() && member.me.sleeper.wake());
        // Something else has ended the sleep.
        member.woken();
        rustix::io::write(&member.me.bell, &1_u64.to_ne_bytes()).expect("it is not full");
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut rings = 0;
        for _ in 0..10 {
            assert!(member.prepare_park());
            let mut bell = [PollFd::new(&member.me.bell, PollFlags::IN)];
            rings += poll(&mut bell, Some(&now)).expect("polls");
            member.woken();
        }
        assert_eq!(rings, 1);
    }
}
