//! The modelled queue manager: which queues are open, what they were given, and its completion.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;

use super::fault::{Fault, Faults};
use super::{ModelKind, hpre, zip};
use crate::backend::uacce::qm::{
    Announce, CQE_LEN_BYTES, CQE_PHASE, CQE_SQ_HEAD, DEPTH_DEFAULT, PHASE_BIT, QueueInfo,
    RX_STATUS_FROM_END, TX_STATUS_FROM_END, Version,
};
use crate::fork::Generation;
use crate::region::Region;

/// A descriptor; engines with shorter ones use the first words.
pub(super) type Sqe = [u32; 32];

/// The device, for who uses it. Its thread, if it has one, ends with the last user.
pub(super) struct Manager {
    core: Arc<Core>,
    generation: Generation,
}

struct Core {
    kind: ModelKind,
    name: String,
    state: Mutex<Inner>,
    /// Held while a descriptor is worked on. Never taken while `state` is held.
    engine: Mutex<Engine>,
    /// There is work, or the end.
    work: Condvar,
    /// A queue may have become idle.
    idle: Condvar,
}

enum Engine {
    Hpre,
    Zip(zip::Zip),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Config {
    pub(super) version: Version,
    pub(super) instances: usize,
    pub(super) depth: u16,
    pub(super) old_kernel: bool,
}

struct Inner {
    config: Config,
    faults: Faults,
    isolated: bool,
    /// By number.
    queues: Vec<Option<Queue>>,
    /// Where the search for the next descriptor begins.
    turn: usize,
    /// What is written to for ever: addresses and lengths.
    runaways: Vec<(u64, usize)>,
    /// Tells queue files of the same number apart.
    opened: u64,
    completed: u64,
    /// The device's thread sleeps.
    asleep: bool,
    /// Threads that wait until nothing is being worked on.
    waiters: usize,
    ending: bool,
}

struct Queue {
    serial: u64,
    status: Status,
    kind: u16,
    /// Our own mapping of the memory that the driver maps too.
    memory: Region,
    event: OwnedFd,
    depth: u16,
    /// The next descriptor to fetch, and one past the last.
    sq_head: u16,
    sq_tail: u16,
    cq_tail: u16,
    phase: bool,
    /// Completions since the kernel last moved its own head, which it does when it is polled.
    unpolled: u64,
    armed: bool,
    /// Descriptors being worked on.
    busy: usize,
    /// Fetched, and not to be completed yet.
    waiting: VecDeque<Job>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// The device is gone, or was reset: only good for closing.
    Dead,
    /// Told the kernel that it is broken.
    Disabled,
    Init,
    Started,
    /// Takes no more descriptors, finishes what it works on.
    Stopping,
}

/// A descriptor on its way.
struct Job {
    queue: usize,
    serial: u64,
    index: u16,
    fault: Option<Fault>,
    /// Steps until it may be completed; none: not before the queue is stopped.
    due: Option<u8>,
}

/// Bytes for the memory of whoever submitted.
pub(super) struct Write {
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
}

impl Manager {
    pub(super) fn new(kind: ModelKind) -> Arc<Self> {
        let (name, engine) = match kind {
            ModelKind::Hpre => ("model:hpre", Engine::Hpre),
            ModelKind::Zip => ("model:zip", Engine::Zip(zip::Zip::default())),
        };
        Arc::new(Self {
            generation: Generation::current(),
            core: Arc::new(Core {
                kind,
                name: name.into(),
                state: Mutex::new(Inner {
                    config: Config {
                        version: Version::V3,
                        instances: 64,
                        depth: DEPTH_DEFAULT,
                        old_kernel: false,
                    },
                    faults: Faults::script([]),
                    isolated: false,
                    queues: Vec::new(),
                    turn: 0,
                    runaways: Vec::new(),
                    opened: 0,
                    completed: 0,
                    asleep: false,
                    waiters: 0,
                    ending: false,
                }),
                engine: Mutex::new(engine),
                work: Condvar::new(),
                idle: Condvar::new(),
            }),
        })
    }

    pub(super) fn configure(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.core.lock().config);
    }

    pub(super) fn misbehave(&self, faults: Faults) {
        self.core.lock().faults = faults;
    }

    pub(super) fn start(&self) {
        let core = Arc::clone(&self.core);
        let thread = std::thread::Builder::new().name(core.name.clone());
        let spawned = thread.spawn(move || {
            leave_signals_to_others();
            while core.wait_for_work() {
                core.step();
            }
        });
        if let Err(error) = spawned {
            tracing::error!("{} has no thread: {error}; it will not answer", self.name());
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.core.name
    }

    pub(super) fn kind(&self) -> ModelKind {
        self.core.kind
    }

    pub(super) fn step(&self) -> bool {
        self.core.step()
    }

    pub(super) fn config(&self) -> Config {
        self.core.lock().config
    }

    pub(super) fn is_isolated(&self) -> bool {
        self.core.lock().isolated
    }

    pub(super) fn free(&self) -> usize {
        let state = self.core.lock();
        state.config.instances - state.queues.iter().flatten().count()
    }

    pub(super) fn open_queues(&self) -> usize {
        self.core.lock().queues.iter().flatten().count()
    }

    pub(super) fn completed(&self) -> u64 {
        self.core.lock().completed
    }

    pub(super) fn isolate(&self, isolated: bool) {
        let mut state = self.core.lock();
        state.isolated = isolated;
        if isolated {
            drop(self.core.reset(state));
        }
    }

    pub(super) fn reset(&self) {
        drop(self.core.reset(self.core.lock()));
    }

    pub(super) fn may_write(&self, start: u64, end: u64) -> bool {
        self.core.may_write(start, end)
    }

    /// Words of this device's descriptors.
    pub(super) fn sqe_words(&self) -> usize {
        self.core.sqe_words()
    }

    /// Opens a queue: its number, the file of its memory, and its event.
    pub(super) fn open(&self) -> io::Result<(usize, OwnedFd, OwnedFd)> {
        let mut state = self.core.lock();
        let taken = state.queues.iter().flatten().count();
        if taken >= state.config.instances {
            return Err(Errno::BUSY.into());
        }
        let depth = state.config.depth;
        let len_bytes = dus_len_bytes(self.sqe_words(), depth);
        let file = memfd_create("warpcore-model", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len_bytes as u64)?;
        let memory = Region::map(file.as_fd(), 0, len_bytes)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = event.try_clone()?;
        state.opened += 1;
        let queue = Queue {
            serial: state.opened,
            status: Status::Init,
            kind: 0,
            memory,
            event,
            depth,
            sq_head: 0,
            sq_tail: 0,
            cq_tail: 0,
            phase: true,
            unpolled: 0,
            armed: false,
            busy: 0,
            waiting: VecDeque::new(),
        };
        let number = state.queues.iter().position(Option::is_none).unwrap_or_else(|| {
            state.queues.push(None);
            state.queues.len() - 1
        });
        state.queues[number] = Some(queue);
        Ok((number, file, shared))
    }

    pub(super) fn set_context(&self, number: usize, kind: u16) -> io::Result<u16> {
        let mut state = self.core.lock();
        let queue = state.queue(number)?;
        if kind > 1 {
            return Err(Errno::INVAL.into());
        }
        queue.kind = kind;
        u16::try_from(number).map_err(io::Error::other)
    }

    pub(super) fn info(&self, number: usize) -> io::Result<QueueInfo> {
        let mut state = self.core.lock();
        if state.config.old_kernel {
            return Err(Errno::INVAL.into());
        }
        let depth = state.queue(number)?.depth;
        let sqe_len_bytes = self.sqe_words() * 4;
        Ok(QueueInfo { sqe_len_bytes, sq_depth: depth, cq_depth: depth })
    }

    pub(super) fn start_queue(&self, number: usize) -> io::Result<()> {
        let mut state = self.core.lock();
        let queue = state.queue(number)?;
        if queue.status != Status::Init {
            return Err(Errno::INVAL.into());
        }
        queue.status = Status::Started;
        Ok(())
    }

    /// `PUT_Q`.
    pub(super) fn put(&self, number: usize) -> io::Result<()> {
        let mut state = self.core.wait_until_idle(self.core.lock(), number, |queue| {
            if queue.status == Status::Started {
                queue.status = Status::Stopping;
            }
        });
        let old_kernel = state.config.old_kernel;
        let queue = state.queues[number].as_mut().expect("open until it is closed");
        match queue.status {
            Status::Dead => return Ok(()),
            Status::Init => return Err(Errno::INVAL.into()),
            Status::Disabled => {}
            Status::Started | Status::Stopping => {
                // What the device has, it finishes (linux `qm_drain_qp`), but for what hangs.
                let begun = std::mem::take(&mut queue.waiting).into_iter();
                let ends = |job: &Job| matches!(job.fault, Some(Fault::Late | Fault::Slow(_)));
                let rest = std::iter::from_fn(|| queue.fetch(number));
                for job in begun.filter(ends).chain(rest).collect::<Vec<_>>() {
                    state = self.core.work(state, job);
                }
            }
        }
        let queue = state.queues[number].as_mut().expect("open until it is closed");
        // It was reset meanwhile.
        if queue.status == Status::Dead {
            return Ok(());
        }
        queue.waiting.clear();
        // Newer kernels let it be started again, older ones have let go of it.
        queue.status = if old_kernel { Status::Disabled } else { Status::Init };
        Ok(())
    }

    /// Closes a queue, which stops it (linux `uacce_fops_release`).
    pub(super) fn close(&self, number: usize) {
        // In a child the lock may have been held when it was forked, and the queue is the parent's.
        if self.generation.is_past() {
            return;
        }
        // Or it was never started, or has stopped.
        let _ = self.put(number);
        self.core.lock().queues[number] = None;
    }

    /// A store to the doorbell of queue `number`.
    pub(super) fn ring(&self, number: usize, value: u64) {
        let mut state = self.core.lock();
        let version = state.config.version;
        let decoded = Announce::decode(version, value);
        // The page of a queue reaches that queue only.
        let Some((named, announce)) = decoded.filter(|(named, _)| usize::from(*named) == number)
        else {
            tracing::warn!("{}: doorbell {value:#x} names no queue of its page", self.name());
            return;
        };
        let Ok(queue) = state.queue(named.into()) else { return };
        if queue.status != Status::Started {
            return;
        }
        match announce {
            Announce::Tail(tail) if tail < queue.depth => {
                queue.sq_tail = tail;
                // Waking nobody is a system call too, which no doorbell is.
                if state.asleep {
                    self.core.work.notify_one();
                }
            }
            Announce::Tail(_) => queue.disable(),
            Announce::Head { index, arm } => {
                queue.armed |= arm;
                // Armed with completions that were not taken: at once.
                if arm && index != queue.cq_tail {
                    queue.wake();
                }
            }
        }
    }

    /// Takes the event of queue `number` back. Under the lock, so that the event of a completion
    /// that was seen has been raised by now.
    pub(super) fn hear(&self, number: usize) {
        // Also of a dead one: its event was raised to tell.
        if let Some(Some(queue)) = self.core.lock().queues.get(number) {
            let _ = rustix::io::read(&queue.event, &mut [0; 8]);
        }
    }

    /// What `poll` answers (linux `hisi_qm_is_q_updated`).
    pub(super) fn poll(&self, number: usize) -> bool {
        let mut state = self.core.lock();
        let Ok(queue) = state.queue(number) else { return false };
        let news = queue.is_updated();
        if news {
            // As far as the phase is the one it expects: to the end of what it takes for new.
            queue.unpolled -= (queue.unpolled - 1) % u64::from(queue.depth) + 1;
        }
        news
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // In a child there is no thread to end, and the lock may have been held when it was forked.
        if !self.generation.is_past() {
            self.core.lock().ending = true;
            self.core.work.notify_all();
        }
    }
}

/// Length of a queue's memory (linux `hisi_qm_uacce_init`): the queues and a page, in pages.
pub(super) fn dus_len_bytes(sqe_words: usize, depth: u16) -> usize {
    let page = rustix::param::page_size();
    (usize::from(depth) * (sqe_words * 4 + CQE_LEN_BYTES) + page).next_multiple_of(page)
}

/// A device hears none: who uses it may wait for them (signalfd(2)) from later on, and a signal goes to any thread
/// that has not blocked it.
fn leave_signals_to_others() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initialises the set, which is read then; the mask is this thread's own.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere is reported there; the device goes on as far as it can.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sqe_words(&self) -> usize {
        match self.kind {
            ModelKind::Hpre => 16,
            ModelKind::Zip => 32,
        }
    }

    /// Sleeps until there is something to do. False: the end.
    fn wait_for_work(&self) -> bool {
        let mut state = self.lock();
        while !state.ending && !state.has_work() {
            state.asleep = true;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.asleep = false;
        }
        !state.ending
    }

    /// Waits until nothing of queue `number` is being worked on.
    fn wait_until_idle<'a>(
        &self,
        mut state: MutexGuard<'a, Inner>,
        number: usize,
        before: impl FnOnce(&mut Queue),
    ) -> MutexGuard<'a, Inner> {
        before(state.queues[number].as_mut().expect("open until it is closed"));
        while state.queues[number].as_ref().is_some_and(|queue| queue.busy > 0) {
            state.waiters += 1;
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiters -= 1;
        }
        state
    }

    fn step(&self) -> bool {
        let mut state = self.lock();
        scribble(&state.runaways);
        let Some(job) = state.next_job() else { return state.age() };
        let name = &self.name;
        match job.fault {
            None | Some(Fault::Status(_) | Fault::Wrong) => drop(self.work(state, job)),
            Some(Fault::Slow(_)) if job.due == Some(0) => drop(self.work(state, job)),
            Some(Fault::Slow(_) | Fault::Hang | Fault::Late) => {
                if let Ok(queue) = state.queue(job.queue) {
                    queue.waiting.push_back(job);
                }
            }
            Some(Fault::Runaway) => {
                if let Ok(queue) = state.queue(job.queue) {
                    let targets = self.targets(&queue.sqe(job.index, self.sqe_words()));
                    state.runaways.extend(targets);
                }
            }
            Some(Fault::QueueError) => {
                tracing::debug!("{name}: queue {} reports an error", job.queue);
                if let Ok(queue) = state.queue(job.queue) {
                    queue.disable();
                }
            }
            Some(Fault::Isolate) => {
                state.isolated = true;
                drop(self.reset(state));
            }
            Some(Fault::Reset) => drop(self.reset(state)),
            Some(Fault::Misreport) => {
                if let Ok(queue) = state.queue(job.queue) {
                    let beyond = queue.depth.saturating_add(7);
                    let next = if queue.sq_head == queue.sq_tail { beyond } else { queue.sq_head };
                    queue.waiting.push_back(job);
                    queue.complete(next, self.sqe_words());
                }
            }
        }
        true
    }

    /// Works on a descriptor, without the lock, and completes it if its queue still is there.
    fn work<'a>(&'a self, mut state: MutexGuard<'a, Inner>, job: Job) -> MutexGuard<'a, Inner> {
        let words = self.sqe_words();
        let Ok(queue) = state.queue(job.queue) else { return state };
        if queue.serial != job.serial {
            return state;
        }
        let kind = queue.kind;
        let mut sqe = queue.sqe(job.index, words);
        queue.busy += 1;
        drop(state);
        // A library that panics on some input makes a device that does not answer, not a driver
        // that waits for ever.
        let worked = catch_unwind(AssertUnwindSafe(|| {
            let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *engine {
                Engine::Hpre => hpre::work(&mut sqe, job.fault),
                Engine::Zip(zip) => zip.work(kind, &mut sqe, job.fault),
            }
        }));
        let mut state = self.lock();
        // It is not closed while it is busy.
        if let Some(Some(queue)) = state.queues.get_mut(job.queue) {
            queue.busy -= 1;
        }
        if state.waiters > 0 {
            self.idle.notify_all();
        }
        let Ok(writes) = worked else { return state };
        let Ok(queue) = state.queue(job.queue) else { return state };
        if queue.serial == job.serial && matches!(queue.status, Status::Started | Status::Stopping)
        {
            for write in writes {
                // SAFETY: who submitted the descriptor keeps its memory until it is completed or
                // the queue is stopped, and neither has happened: the queue runs, and stopping
                // takes the lock that we hold.
                unsafe { write.perform() };
            }
            queue.write_sqe(job.index, &sqe, words);
            queue.complete(job.index, words);
            state.completed += 1;
        }
        state
    }

    fn reset<'a>(&'a self, mut state: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        for number in 0..state.queues.len() {
            if state.queues[number].is_none() {
                continue;
            }
            state = self.wait_until_idle(state, number, |queue| {
                queue.set_status(TX_STATUS_FROM_END);
                if queue.status == Status::Started {
                    queue.status = Status::Stopping;
                }
            });
            let Some(queue) = &mut state.queues[number] else { continue };
            queue.waiting.clear();
            queue.sq_tail = queue.sq_head;
            queue.status = Status::Dead;
            queue.set_status(RX_STATUS_FROM_END);
            queue.raise();
        }
        state
    }

    fn may_write(&self, start: u64, end: u64) -> bool {
        let state = self.lock();
        let words = self.sqe_words();
        let mut jobs = Vec::new();
        for queue in state.queues.iter().flatten() {
            if matches!(queue.status, Status::Started | Status::Stopping) {
                let mut index = queue.sq_head;
                while index != queue.sq_tail {
                    jobs.push(queue.sqe(index, words));
                    index = queue.after(index);
                }
            }
            jobs.extend(queue.waiting.iter().map(|job| queue.sqe(job.index, words)));
        }
        jobs.iter()
            .flat_map(|sqe| self.targets(sqe))
            .chain(state.runaways.iter().copied())
            .any(|(target, len_bytes)| target < end && start < target + len_bytes as u64)
    }

    /// Where a descriptor has results written to.
    fn targets(&self, sqe: &Sqe) -> Vec<(u64, usize)> {
        match self.kind {
            ModelKind::Hpre => hpre::targets(sqe),
            ModelKind::Zip => zip::targets(sqe),
        }
    }
}

impl Inner {
    fn queue(&mut self, number: usize) -> io::Result<&mut Queue> {
        match self.queues.get_mut(number) {
            Some(Some(queue)) if queue.status != Status::Dead => Ok(queue),
            _ => Err(Errno::NXIO.into()),
        }
    }

    fn has_work(&self) -> bool {
        self.queues.iter().flatten().any(|queue| {
            queue.status == Status::Started
                && (queue.sq_head != queue.sq_tail
                    || queue.waiting.iter().any(|job| job.due.is_some()))
        })
    }

    /// A descriptor that was late and is due, or the next one of the queues in turn.
    fn next_job(&mut self) -> Option<Job> {
        for queue in self.queues.iter_mut().flatten() {
            if queue.status == Status::Started
                && let Some(at) = queue.waiting.iter().position(|job| job.due == Some(0))
            {
                return queue.waiting.remove(at);
            }
        }
        let count = self.queues.len();
        for step in 0..count {
            let number = (self.turn + step) % count;
            let Some(queue) = &mut self.queues[number] else { continue };
            if queue.status != Status::Started || queue.sq_head == queue.sq_tail {
                continue;
            }
            self.turn = number + 1;
            let mut job = queue.fetch(number)?;
            job.fault = self.faults.next();
            if let Some(Fault::Slow(steps)) = job.fault {
                job.due = Some(steps.max(1));
            }
            self.age();
            return Some(job);
        }
        None
    }

    /// Lets time pass for what is late. False: nothing is.
    fn age(&mut self) -> bool {
        let mut aged = false;
        for job in self.queues.iter_mut().flatten().flat_map(|queue| &mut queue.waiting) {
            if let Some(due) = &mut job.due {
                *due = due.saturating_sub(1);
                aged = true;
            }
        }
        aged
    }
}

impl Queue {
    fn after(&self, index: u16) -> u16 {
        if index + 1 == self.depth { 0 } else { index + 1 }
    }

    /// The next descriptor; `number`: of this queue.
    fn fetch(&mut self, number: usize) -> Option<Job> {
        let index = self.sq_head;
        if index == self.sq_tail {
            return None;
        }
        self.sq_head = self.after(index);
        Some(Job { queue: number, serial: self.serial, index, fault: None, due: None })
    }

    fn sqe(&self, index: u16, words: usize) -> Sqe {
        let start = usize::from(index) * words * 4;
        let mut sqe = [0; 32];
        for (at, word) in sqe[..words].iter_mut().enumerate() {
            *word = self.memory.read(start + at * 4);
        }
        sqe
    }

    fn write_sqe(&self, index: u16, sqe: &Sqe, words: usize) {
        let start = usize::from(index) * words * 4;
        for (at, word) in sqe[..words].iter().enumerate() {
            self.memory.write(start + at * 4, *word);
        }
    }

    /// Writes the completion of descriptor `index`.
    fn complete(&mut self, index: u16, words: usize) {
        let start = usize::from(self.depth) * words * 4 + usize::from(self.cq_tail) * CQE_LEN_BYTES;
        self.memory.write(start + CQE_SQ_HEAD, index.into());
        let phase = if self.phase { PHASE_BIT } else { 0 };
        // Release: descriptor, results and the rest of the completion come before the phase.
        self.memory.atomic(start + CQE_PHASE).store(phase.to_le(), Ordering::Release);
        self.unpolled += 1;
        self.cq_tail = self.after(self.cq_tail);
        if self.cq_tail == 0 {
            self.phase = !self.phase;
        }
        self.wake();
    }

    /// The interrupt of an armed queue, and what the kernel makes of it.
    fn wake(&mut self) {
        if std::mem::take(&mut self.armed) && self.is_updated() {
            self.raise();
        }
    }

    /// Whether the entry at the kernel's own head has the phase that it expects.
    fn is_updated(&self) -> bool {
        self.unpolled > 0 && ((self.unpolled - 1) / u64::from(self.depth)).is_multiple_of(2)
    }

    fn raise(&self) {
        // It is full only after 2^64 - 2 events that nobody took.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// The kernel takes a broken queue out of service.
    fn disable(&mut self) {
        self.status = Status::Disabled;
        self.waiting.clear();
        self.sq_tail = self.sq_head;
        self.set_status(TX_STATUS_FROM_END);
        self.set_status(RX_STATUS_FROM_END);
        self.raise();
    }

    fn set_status(&self, from_end: usize) {
        let word = self.memory.atomic(self.memory.len_bytes() - from_end);
        // Release: what was written before the stop is seen with it.
        word.store(1_u32.to_le(), Ordering::Release);
    }
}

fn scribble(runaways: &[(u64, usize)]) {
    for &(address, len_bytes) in runaways {
        let bytes = vec![0xee; len_bytes.min(64)];
        // SAFETY: the descriptor was not completed, so whoever submitted keeps the memory.
        unsafe { Write { address, bytes }.perform() };
    }
}

impl Write {
    /// # Safety
    ///
    /// The memory is alive and nobody else touches it.
    unsafe fn perform(&self) {
        let address = usize::try_from(self.address).expect("addresses have 64 bits");
        let target = std::ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: passed on from the caller.
        unsafe { target.copy_from(self.bytes.as_ptr(), self.bytes.len()) };
    }
}

/// Copies memory of whoever submitted.
///
/// # Safety
///
/// The memory is alive and not written meanwhile.
pub(super) unsafe fn read_memory(address: u64, len_bytes: usize) -> Vec<u8> {
    let address = usize::try_from(address).expect("addresses have 64 bits");
    let source = std::ptr::with_exposed_provenance::<u8>(address);
    let mut bytes = Vec::with_capacity(len_bytes);
    // SAFETY: passed on from the caller; a fresh Vec is elsewhere, and long enough.
    unsafe {
        source.copy_to_nonoverlapping(bytes.as_mut_ptr(), len_bytes);
        bytes.set_len(len_bytes);
    }
    bytes
}
