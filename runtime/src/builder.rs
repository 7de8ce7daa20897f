//! Cores, ring sizes, pinning: from wishes to running shards.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use warpcore_offload::{Devices, Queue, Team};

use crate::error::Error;
use crate::executor::Executor;
use crate::op::slab::Operations;
use crate::reactor;
use crate::ring::Ring;
use crate::shard::{Remote, Shard, is_shard, report_panic, set_current, spawn, stop_all};
use crate::signal::Signals;
use crate::sys;
use crate::time::{Timers, sleep_until};

/// The cores that this process may use: as many shards can be pinned.
pub fn shards_possible() -> usize {
    sys::cores().map_or(1, |cores| cores.len().max(1))
}

/// Describes a machine of shards and runs it.
#[derive(Debug, Clone)]
pub struct Builder {
    shards: usize,
    first_core: usize,
    sq_entries: u32,
    sqe128: bool,
    queue_depth: usize,
    devices: Devices,
    signals: bool,
    hangup: bool,
    spin: Duration,
    drain: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// A shard for each core this process may use, each with 256 SQEs and 256 offload slots.
    pub fn new() -> Self {
        Self {
            shards: shards_possible(),
            first_core: 0,
            sq_entries: 256,
            sqe128: false,
            queue_depth: 256,
            devices: Devices::none(),
            signals: false,
            hangup: false,
            spin: Duration::from_micros(20),
            drain: Duration::ZERO,
        }
    }

    /// Number of shards. Up to [`shards_possible`] each has a core of its own; more share cores.
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards.max(1);
        self
    }

    /// The core of the first shard, counted among those this process may use; the next ones follow.
    /// Several machines in one process keep out of each other's way with it.
    #[must_use]
    pub fn first_core(mut self, core: usize) -> Self {
        self.first_core = core;
        self
    }

    /// Entries of each submission queue; the completion queue has four times as many.
    #[must_use]
    pub fn sq_entries(mut self, entries: u32) -> Self {
        self.sq_entries = entries;
        self
    }

    /// Rings with SQEs of 128 bytes, which commands to drivers (FUSE, NVMe) need.
    #[must_use]
    pub fn sqe128(mut self, wide: bool) -> Self {
        self.sqe128 = wide;
        self
    }

    /// Slots of each shard's offload queue.
    #[must_use]
    pub fn queue_depth(mut self, depth: usize) -> Self {
        self.queue_depth = depth;
        self
    }

    /// The devices that the shards' offload queues ask first; none if not said.
    #[must_use]
    pub fn devices(mut self, devices: Devices) -> Self {
        self.devices = devices;
        self
    }

    /// SIGTERM and SIGINT make [`stopping`](crate::stopping) ready instead of ending the process.
    #[must_use]
    pub fn stop_on_signals(mut self, listen: bool) -> Self {
        self.signals = listen;
        self
    }

    /// SIGHUP does so too, which comes when a terminal goes; unless it was ignored before, as nohup(1) has it.
    /// For who [stops on signals](Self::stop_on_signals).
    #[must_use]
    pub fn stop_on_hangup(mut self, listen: bool) -> Self {
        self.hangup = listen;
        self
    }

    /// How long a shard that found nothing looks again before it sleeps; 20 us if not said. Waking a
    /// sleeping core takes tens of microseconds, so an answer that comes sooner is worth waiting
    /// for; zero gives the core to others at once.
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// How long tasks may run on after their shard's main future has ended.
    #[must_use]
    pub fn drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Runs `main(index)` on each shard and returns what they gave, in order of the shards.
    ///
    /// The last shard is this thread. When a main future has ended, tasks of its shard may go on
    /// for the time of [`Builder::drain`]; what is left then is cancelled and reported. When one
    /// panics, the others are told to stop.
    ///
    /// # Errors
    ///
    /// What the start of a shard lacks; a panic of a main future; and `EDEADLK`, if this is called on a shard.
    pub fn run<M, F, T>(self, main: M) -> Result<Vec<T>, Error>
    where
        M: Fn(usize) -> F + Send + Sync,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let setup = |what| move |source| Error::Setup { what, source };
        if is_shard() {
            let source = io::Error::from_raw_os_error(libc::EDEADLK);
            return Err(Error::Setup { what: "shards on a shard", source });
        }
        let cores = sys::cores().map_err(setup("pinning"))?;
        // Before the threads start, so that they all inherit the mask.
        let signals = self.signals.then(|| Signals::block(self.hangup)).transpose();
        let signals = signals.map_err(setup("signal handling"))?;
        let machine = (0..self.shards)
            .map(|index| Remote::new(self.core(&cores, index)).map(Arc::new))
            .collect::<Result<Arc<[_]>, Error>>()?;
        // Idle shards do the offloaded work of busy ones.
        let team = Team::new();
        let gate = Gate::new(self.shards);

        thread::scope(|scope| {
            let last = self.shards - 1;
            let start = |index: usize| {
                let (machine, team) = (Arc::clone(&machine), team.clone());
                let (main, builder, gate) = (&main, &self, &gate);
                move || builder.run_shard(index, machine, &team, gate, main)
            };
            // Ends the watch however this closure ends: the scope waits for its thread.
            let watch = signals.as_ref().map(Watch);
            if let Some(Watch(signals)) = watch {
                let machine_watched = Arc::clone(&machine);
                let thread = thread::Builder::new().name("signals".to_owned());
                let watch = move || signals.watch(&machine_watched);
                thread.spawn_scoped(scope, watch).map_err(setup("the signals' thread"))?;
            }
            let mut threads = Vec::with_capacity(last);
            let mut started = Ok(());
            for index in 0..last {
                let thread = thread::Builder::new().name(format!("shard {index}"));
                match thread.spawn_scoped(scope, start(index)) {
                    Ok(thread) => threads.push(thread),
                    Err(source) => {
                        started = Err(Some(Error::Setup { what: "a shard's thread", source }));
                        gate.close();
                        break;
                    }
                }
            }
            let own = started.and_then(|()| {
                catch_unwind(AssertUnwindSafe(start(last)))
                    .unwrap_or(Err(Some(Error::Panicked { shard: last })))
            });
            let mut ends = Vec::with_capacity(self.shards);
            for (index, thread) in threads.into_iter().enumerate() {
                ends.push(thread.join().unwrap_or(Err(Some(Error::Panicked { shard: index }))));
            }
            drop(watch);
            ends.push(own);
            let mut outputs = Vec::with_capacity(self.shards);
            let mut error = None;
            for end in ends {
                match end {
                    Ok(output) => outputs.push(output),
                    // The first that has one of its own.
                    Err(own) => error = error.or(own),
                }
            }
            error.map_or(Ok(outputs), Err)
        })
    }

    /// The core of a shard, of those that this process may use.
    fn core(&self, cores: &[usize], shard: usize) -> Option<usize> {
        cores.get((self.first_core + shard) % cores.len().max(1)).copied()
    }

    fn run_shard<M, F, T>(
        &self,
        index: usize,
        machine: Arc<[Arc<Remote>]>,
        team: &Team,
        gate: &Gate,
        main: &M,
    ) -> Result<T, Option<Error>>
    where
        M: Fn(usize) -> F,
        F: Future<Output = T> + 'static,
        T: 'static,
    {
        // Whatever ends this shard early ends the machine: the others would wait for ever.
        let mut guard = StopOthers { machine: Arc::clone(&machine), gate, armed: true };
        let pinning = |source| Error::Setup { what: "pinning", source };
        // The last shard is the caller's thread: it gets its freedom back.
        let _pinned = Pinned { before: sys::cores().map_err(pinning)? };
        sys::pin(machine[index].core.as_slice()).map_err(pinning)?;
        let bell = machine[index].bell.try_clone();
        let bell = bell.map_err(|source| Error::Setup { what: "the shard's bell", source })?;
        let queue = Queue::in_team(self.queue_depth, &self.devices, team);
        let queue =
            queue.map_err(|source| Error::Setup { what: "the shard's offload queue", source })?;
        let shard = Rc::new(Shard {
            index,
            executor: Executor::default(),
            ring: RefCell::new(Ring::new(self.sq_entries, self.sqe128)?),
            operations: RefCell::new(Operations::default()),
            queue: Rc::new(queue),
            timers: RefCell::new(Timers::default()),
            remote: Arc::clone(&machine[index]),
            machine,
            stopping: Cell::new(false),
            stop_waiters: RefCell::default(),
            reaped: RefCell::default(),
            spin: self.spin,
            turns: Cell::new(0),
            parks: Cell::new(0),
        });
        let completions = shard.queue.fd().map(|fd| fd.try_clone_to_owned()).transpose();
        let completions = completions
            .map_err(|source| Error::Setup { what: "the shard's offload queue", source })?;
        if !gate.pass() {
            return Err(None);
        }
        set_current(Some(Rc::clone(&shard)));
        // A waker that panics would take the reactor with it: reported like a task's panic, and
        // the shard still ends in order.
        let output = catch_unwind(AssertUnwindSafe(|| self.drive(&shard, bell, completions, main)));
        let output = output.unwrap_or_else(|payload| {
            report_panic(&*payload);
            None
        });
        reactor::shut_down(&shard);
        guard.armed = output.is_none();
        set_current(None);
        output.ok_or(Some(Error::Panicked { shard: index }))
    }

    /// Turns the shard until its main future has ended, and then as long as tasks may drain.
    fn drive<M, F, T>(
        &self,
        shard: &Rc<Shard>,
        bell: File,
        completions: Option<OwnedFd>,
        main: &M,
    ) -> Option<T>
    where
        M: Fn(usize) -> F,
        F: Future<Output = T> + 'static,
        T: 'static,
    {
        let mut own_tasks = 1;
        drop(spawn(reactor::hear_bell(bell)));
        if let Some(completions) = completions {
            own_tasks += 1;
            drop(spawn(reactor::watch_queue(Arc::new(completions))));
        }
        let output = Rc::new(RefCell::new(None));
        let task = spawn(main(shard.index));
        drop(spawn({
            let output = Rc::clone(&output);
            async move {
                let ended = task.await;
                output.replace(Some(ended));
            }
        }));
        reactor::run(shard, || output.borrow().is_some());

        let deadline = Instant::now() + self.drain;
        if shard.executor.live() > own_tasks && !self.drain.is_zero() {
            own_tasks += 1;
            let over = Rc::new(Cell::new(false));
            drop(spawn({
                let over = Rc::clone(&over);
                async move {
                    sleep_until(deadline).await;
                    over.set(true);
                }
            }));
            reactor::run(shard, || over.get() || shard.executor.live() <= own_tasks);
        }
        let left = shard.executor.live().saturating_sub(own_tasks);
        if left > 0 {
            tracing::warn!(
                shard = shard.index,
                tasks = left,
                "tasks were still running; cancelled"
            );
        }
        output.take().and_then(Result::ok)
    }
}

/// Where shards wait for each other before the first of them begins: what one lacks is said before
/// anything is done.
struct Gate {
    /// Shards that are yet to come; None: one never will.
    missing: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Gate {
    fn new(shards: usize) -> Self {
        Self { missing: Mutex::new(Some(shards)), changed: Condvar::new() }
    }

    /// Waits for the others. False: one of them cannot be had.
    fn pass(&self) -> bool {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(missing) = &mut *missing {
            *missing -= 1;
        }
        self.changed.notify_all();
        while missing.is_some_and(|missing| missing > 0) {
            missing = self.changed.wait(missing).unwrap_or_else(PoisonError::into_inner);
        }
        missing.is_some()
    }

    /// Does nothing once all have passed.
    fn close(&self) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if *missing != Some(0) {
            *missing = None;
            self.changed.notify_all();
        }
    }
}

/// Ends the watch for signals when dropped.
struct Watch<'a>(&'a Signals);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Gives a thread back the cores that it had.
struct Pinned {
    before: Vec<usize>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = sys::pin(&self.before) {
            tracing::warn!("a thread stays pinned: {error}");
        }
    }
}

struct StopOthers<'a> {
    machine: Arc<[Arc<Remote>]>,
    gate: &'a Gate,
    armed: bool,
}

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.gate.close();
            stop_all(&self.machine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_begin_or_none() {
        let pass = |gate: &Gate, closes: bool| {
            thread::scope(|scope| {
                let others: Vec<_> = (0..2).map(|_| scope.spawn(|| gate.pass())).collect();
                let own = if closes {
                    gate.close();
                    false
                } else {
                    gate.pass()
                };
                others
                    .into_iter()
                    .map(|one| one.join().expect("no panic"))
                    .all(|other| other == own)
            })
        };
        let gate = Gate::new(3);
        assert!(pass(&gate, false));
        // A shard that fails later on.
        gate.close();
        assert!(pass(&Gate::new(3), true));
    }
}
