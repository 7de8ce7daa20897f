//! What software works on as one: a request, or a few that are computed together. Whoever has it
//! works on it, unit by unit: the owner of the queue, or a thread that helps.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::backend::Software;
use crate::batch::Token;
use crate::custom::Item;
use crate::ecdsa::EcdsaSigner;
use crate::error::Error;
use crate::request::Work;
use crate::rsa::{Running, Signer};
use crate::stats::Kernel;

/// Requests of one kernel, and how they end. Reused, with its room.
pub(crate) struct Job {
    kernel: Kernel,
    /// Their slots, which are Running.
    tokens: Vec<Token>,
    works: Vec<Work>,
    /// One for each, where each has its own.
    results: Vec<Option<Result<usize, Error>>>,
    /// How the others end.
    rest: Result<usize, Error>,
    /// Signatures that are begun.
    running: Option<Running>,
    items: Vec<Item>,
    spent_ns: u64,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            kernel: Kernel::Compress,
            tokens: Vec::new(),
            works: Vec::new(),
            results: Vec::new(),
            rest: Err(Error::Closed),
            running: None,
            items: Vec::new(),
            spent_ns: 0,
        }
    }
}

impl Job {
    /// Of this kernel from here on.
    pub(crate) fn start(&mut self, kernel: Kernel) {
        debug_assert!(self.tokens.is_empty() && self.running.is_none(), "the last has ended");
        self.kernel = kernel;
        self.rest = Err(Error::Closed);
        self.spent_ns = 0;
    }

    pub(crate) fn push(&mut self, token: Token, work: Work) {
        self.tokens.push(token);
        self.works.push(work);
    }

    pub(crate) fn kernel(&self) -> Kernel {
        self.kernel
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// What was spent on it so far, if that was measured.
    pub(crate) fn spent_ns(&self) -> u64 {
        self.spent_ns
    }

    /// Works on it for a unit. True: all have ended. `software` is not borrowed while a kernel of
    /// others runs.
    ///
    /// # Safety
    ///
    /// What the works name is alive until all have ended; until then nobody writes the sources, or
    /// touches the targets, items and streams.
    pub(crate) unsafe fn step(&mut self, software: &RefCell<Software>) -> bool {
        // SAFETY: passed on from the caller.
        let stepped = catch_unwind(AssertUnwindSafe(|| unsafe { self.try_step(software) }));
        stepped.unwrap_or_else(|_| {
            if self.kernel != Kernel::Custom {
                // Half done: its contexts are not to be used again.
                *software.borrow_mut() = Software::new();
            }
            self.running = None;
            self.rest = Err(Error::Panicked);
            true
        })
    }

    /// As [`step`](Self::step), and adds what it took to what was spent.
    ///
    /// # Safety
    ///
    /// As there.
    pub(crate) unsafe fn step_measured(&mut self, software: &RefCell<Software>) -> bool {
        let started = Instant::now();
        // SAFETY: passed on from the caller.
        let ended = unsafe { self.step(software) };
        self.spent_ns += u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        ended
    }

    /// # Safety
    ///
    /// As [`step`](Self::step).
    unsafe fn try_step(&mut self, software: &RefCell<Software>) -> bool {
        let Self { works, results, .. } = self;
        match self.kernel {
            Kernel::Custom => {
                let Some(Work::Call(first)) = works.first() else { return true };
                let kernel = first.kernel;
                self.items.clear();
                self.items.extend(works.iter().map(|work| match work {
                    Work::Call(call) => call.item(),
                    _ => unreachable!("only calls are of this kernel"),
                }));
                // SAFETY: they are this kernel's, as gathered; the rest as the caller promises.
                unsafe { kernel.run_erased(&mut self.items) };
                self.rest = Ok(0);
            }
            Kernel::Ecdsa if EcdsaSigner::has_lanes() => {
                // SAFETY: passed on from the caller.
                let ended = unsafe { software.borrow_mut().sign_ecdsa(works) };
                results.extend(ended.into_iter().map(Some));
            }
            Kernel::KeyExchange => {
                // SAFETY: passed on from the caller.
                let ended = unsafe { software.borrow_mut().exchange(works) };
                results.extend(ended.into_iter().map(Some));
            }
            Kernel::RsaPrivate if Signer::together().is_some() && !goes_alone(works) => {
                // SAFETY: passed on from the caller.
                return unsafe { self.sign(software) };
            }
            _ => {
                let mut software = software.borrow_mut();
                // SAFETY: passed on from the caller.
                let execute = |work| Some(unsafe { software.execute(work) });
                results.extend(works.iter().map(execute));
            }
        }
        true
    }

    /// # Safety
    ///
    /// As [`step`](Self::step).
    unsafe fn sign(&mut self, software: &RefCell<Software>) -> bool {
        let mut software = software.borrow_mut();
        let Some(running) = &mut self.running else {
            self.results.resize(self.works.len(), None);
            let mut encoded = Vec::with_capacity(self.works.len());
            // Each that cannot be encoded ends by itself; the others go on without it.
            for (work, result) in self.works.iter().zip(&mut self.results) {
                // SAFETY: passed on from the caller.
                match unsafe { software.encode(work) } {
                    Ok(number) => encoded.push(number),
                    Err(error) => *result = Some(Err(error)),
                }
            }
            if encoded.is_empty() {
                return true;
            }
            match software.start(encoded) {
                Ok(running) => self.running = Some(running),
                Err(error) => self.rest = Err(error),
            }
            return self.running.is_none();
        };
        match software.step(running) {
            Ok(false) => return false,
            Ok(true) => {}
            Err(error) => {
                self.running = None;
                self.rest = Err(error);
                return true;
            }
        }
        let running = self.running.take().expect("looked at above");
        let open = |result: &Option<_>| result.is_none();
        let works = self.works.iter().zip(&self.results);
        let works: Vec<_> =
            works.filter(|(_, result)| open(result)).map(|(work, _)| work).collect();
        // SAFETY: passed on from the caller.
        let ends = unsafe { software.finish(running, &works) };
        let results = self.results.iter_mut().filter(|result| open(result));
        results.zip(ends).for_each(|(result, end)| *result = Some(end));
        true
    }

    /// How each has ended, in order. The works are dropped first: nobody follows their addresses
    /// once a request is given back.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Token, Result<usize, Error>)> {
        self.works.clear();
        self.items.clear();
        self.running = None;
        let Self { tokens, results, rest, .. } = self;
        let mut results = results.drain(..);
        tokens.drain(..).map(move |token| {
            let result = results.next().flatten();
            (token, result.unwrap_or_else(|| rest.clone()))
        })
    }
}

/// Whether this is one signature, for which `ring` needs less time than lanes of which half are empty.
fn goes_alone(works: &[Work]) -> bool {
    let is_one = matches!(works, [Work::Sign { key, .. }] if key.pair().is_some());
    is_one && !Signer::is_for_one()
}
