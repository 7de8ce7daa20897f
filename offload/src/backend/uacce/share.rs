//! One core's share of a device: its queue pairs, opened at first use, and what is in flight on
//! them.
//!
//! ```text
//!            first use, or back-off over          failed, or a deadline missed
//!   closed ──────────────────────────────> open ───────────────────────────────> waiting
//!                                           ^                                       │
//!                                           └───────── back-off over, next request ─┘
//! ```
//!
//! A pair fails as a whole: it is stopped first, and only then what was in flight is given back to be
//! done in software, in other memory, for the device may still write. From then on it gets one
//! request at a time, until it has answered one.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;

use super::Uacce;
use super::pair::{Pair, SQE_WORDS_MAX, Sqe};
use super::port::{Port, QueueFile};
use crate::backend::{Backend, Ended, Submitted};
use crate::batch::Token;
use crate::error::Error;
use crate::request::Work;

/// The first wait after a failure; it doubles with each that follows.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(600);
/// A device whose results are wrong so often in a row is broken.
const WRONG_IN_A_ROW_MAX: u32 = 16;

/// One kind of engine: how requests become descriptors, and descriptors results.
pub(crate) trait Engine: 'static {
    /// What is kept while a descriptor is in flight.
    type Flight: 'static;

    /// Words of a descriptor.
    const SQE_WORDS: usize;
    /// What a queue pair can be for: the values of `qc_type`.
    const KINDS: &'static [u16];

    /// Which of [`KINDS`](Self::KINDS) does `work`, by index; none if the engine does not.
    fn kind(&self, work: &Work) -> Option<usize>;

    /// Writes the descriptor for `work`.
    ///
    /// # Safety
    ///
    /// What `work` names stays as it is and is touched by nobody else until
    /// [`finish`](Self::finish) or [`give_up`](Self::give_up).
    unsafe fn fill(&mut self, token: Token, work: &Work) -> Filled<Self::Flight>;

    /// Reads a finished descriptor. After [`Finished::Nonsense`] the flight goes on, until the queue
    /// is stopped.
    fn finish(&mut self, token: Token, flight: &Self::Flight, sqe: &Sqe) -> Finished;

    /// The flight of `token` ended without a result. `held`: the device may still write to its
    /// memory, so that what is ours of that must never be freed. The answer is
    /// [`Ended::Stranded`] if some is the caller's.
    fn give_up(&mut self, token: Token, flight: Self::Flight, held: bool) -> Ended;
}

/// What became of a request.
#[allow(clippy::large_enum_variant, reason = "a descriptor on its way into the queue")]
pub(crate) enum Filled<F> {
    /// Nothing was left for a device to do.
    Done(Result<usize, Error>),
    /// A descriptor.
    Ready(Sqe, F),
    /// The engine cannot do this one.
    Unfit,
}

/// What a finished descriptor says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    /// The result.
    Done(Result<usize, Error>),
    /// What no descriptor of ours can lead to: the device is broken.
    Nonsense,
    /// An error that software had better look into.
    Wrong,
}

pub(crate) struct Share<P: Port, E: Engine> {
    device: Arc<Uacce<P>>,
    engine: E,
    /// By index of the kind.
    pairs: Vec<Place<P::File>>,
    /// By token: the index of the kind, and what the engine keeps.
    flights: Vec<Option<(usize, E::Flight)>>,
    /// Wakes the queue's owner when a pair has completions.
    epoll: Rc<OwnedFd>,
    deadline: Duration,
    /// What ended while a pair was stopped, until it is reaped.
    ended: Vec<(Token, Ended)>,
}

struct Place<F: QueueFile> {
    state: State<F>,
    /// Failures since the last result.
    failures: u32,
    /// Wrong results since the last right one.
    wrong: u32,
}

enum State<F: QueueFile> {
    Closed,
    Open(Pair<F>),
    Waiting(Instant),
}

impl<P: Port, E: Engine> Share<P, E> {
    pub(crate) fn new(
        device: Arc<Uacce<P>>,
        engine: E,
        depth: usize,
        epoll: Rc<OwnedFd>,
        deadline: Duration,
    ) -> Self {
        let place = |_| Place { state: State::Closed, failures: 0, wrong: 0 };
        Self {
            device,
            engine,
            pairs: E::KINDS.iter().map(place).collect(),
            flights: (0..depth).map(|_| None).collect(),
            epoll,
            deadline,
            ended: Vec::with_capacity(depth),
        }
    }

    /// The pair for a kind, opened if it is time to.
    fn open(&mut self, index: usize, now: Instant) -> Option<&mut Pair<P::File>> {
        let place = &mut self.pairs[index];
        let due = match place.state {
            State::Open(_) => false,
            State::Closed => true,
            State::Waiting(until) => now >= until,
        };
        if due {
            let kind = E::KINDS[index];
            match self.device.open_pair(kind, E::SQE_WORDS, &self.epoll) {
                Ok(pair) => place.state = State::Open(pair),
                Err(error) => {
                    let busy = error.kind() == io::ErrorKind::ResourceBusy;
                    let name = self.device.name();
                    if busy {
                        tracing::info!("{name} has no free queue for this core: using software");
                    } else {
                        tracing::warn!("cannot open a queue of {name}: {error}; using software");
                    }
                    place.back_off(now);
                }
            }
        }
        match &mut self.pairs[index].state {
            State::Open(pair) => Some(pair),
            State::Closed | State::Waiting(_) => None,
        }
    }

    /// Takes a pair out of service; `doubtful` is a request that it says it has finished.
    fn fail(&mut self, index: usize, now: Instant, doubtful: Option<Token>, why: &str) {
        let state = std::mem::replace(&mut self.pairs[index].state, State::Closed);
        let State::Open(pair) = state else { return };
        let in_flight = pair.in_flight() + usize::from(doubtful.is_some());
        self.pairs[index].back_off(now);
        tracing::warn!("{}: {why}; {in_flight} requests were in flight", self.device.name());
        self.stop(pair, doubtful);
    }

    /// Stops a pair and files what was in flight on it.
    fn stop(&mut self, pair: Pair<P::File>, doubtful: Option<Token>) {
        // A model keeps the other end open: closing ours would not take it out.
        let _ = epoll::delete(&*self.epoll, pair.file().fd());
        // And whether the device may still work on it.
        let mut lost: Vec<_> = doubtful.map(|token| (token, true)).into_iter().collect();
        let mut finished = Vec::new();
        pair.stop(|token, sqe| finished.push((token, *sqe)), |token| lost.push((token, true)));
        for (token, sqe) in finished {
            let (_, flight) = self.flights[token as usize].as_ref().expect("in flight");
            match self.engine.finish(token, flight, &sqe) {
                Finished::Done(result) => {
                    self.flights[token as usize] = None;
                    self.ended.push((token, Ended::Done(result)));
                }
                Finished::Nonsense => lost.push((token, true)),
                Finished::Wrong => lost.push((token, false)),
            }
        }
        let mut held = 0;
        for (token, is_held) in lost {
            let (_, flight) = self.flights[token as usize].take().expect("in flight");
            held += usize::from(is_held);
            self.ended.push((token, self.engine.give_up(token, flight, is_held)));
        }
        if held > 0 {
            let name = self.device.name();
            tracing::error!(
                "{name} may still write: the memory of {held} requests is kept for good"
            );
        }
    }

    fn reap_pair(&mut self, index: usize, now: Instant) {
        let mut sqe = [0; SQE_WORDS_MAX];
        loop {
            let place = &mut self.pairs[index];
            let State::Open(pair) = &mut place.state else { return };
            let token = match pair.reap(&mut sqe) {
                Ok(Some(token)) => token,
                Ok(None) => break,
                Err(_) => return self.fail(index, now, None, "completes what was not asked for"),
            };
            let (_, flight) = self.flights[token as usize].as_ref().expect("in flight");
            let ended = match self.engine.finish(token, flight, &sqe) {
                Finished::Done(result) => {
                    place.failures = 0;
                    place.wrong = 0;
                    Ended::Done(result)
                }
                Finished::Wrong => {
                    place.wrong += 1;
                    Ended::Redo
                }
                Finished::Nonsense => {
                    return self.fail(index, now, Some(token), "gives results that cannot be");
                }
            };
            self.flights[token as usize] = None;
            self.ended.push((token, ended));
            if place.wrong > WRONG_IN_A_ROW_MAX {
                return self.fail(index, now, None, "gives wrong results only");
            }
        }
        let State::Open(pair) = &mut self.pairs[index].state else { return };
        pair.release();
        if pair.is_disabled() {
            self.fail(index, now, None, "was reset or disabled");
        } else if pair
            .oldest()
            .and_then(|oldest| oldest.checked_add(self.deadline))
            .is_some_and(|deadline| now >= deadline)
        {
            self.fail(index, now, None, "missed a deadline");
        }
    }
}

impl<F: QueueFile> Place<F> {
    fn back_off(&mut self, now: Instant) {
        let wait = BACK_OFF.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_MAX);
        self.failures += 1;
        self.wrong = 0;
        self.state = State::Waiting(now + wait);
    }
}

impl<P: Port, E: Engine> Backend for Share<P, E> {
    unsafe fn submit(&mut self, token: Token, work: &Work, now: Instant) -> Submitted {
        let Some(index) = self.engine.kind(work) else { return Submitted::Unfit };
        // What it does not answer takes its memory with it, each time.
        let on_trial = self.pairs[index].failures > 0;
        match self.open(index, now) {
            None => return Submitted::Unavailable,
            Some(pair) if !pair.has_room() => return Submitted::Full,
            Some(pair) if on_trial && pair.in_flight() > 0 => return Submitted::Full,
            Some(_) => {}
        }
        // SAFETY: passed on from the caller.
        match unsafe { self.engine.fill(token, work) } {
            Filled::Done(result) => Submitted::Done(result),
            Filled::Unfit => Submitted::Unfit,
            Filled::Ready(sqe, flight) => {
                let State::Open(pair) = &mut self.pairs[index].state else {
                    unreachable!("opened above")
                };
                pair.submit(token, &sqe, now);
                let old = self.flights[token as usize].replace((index, flight));
                assert!(old.is_none(), "a token is in flight once");
                Submitted::InFlight
            }
        }
    }

    fn ring(&mut self) {
        for place in &mut self.pairs {
            if let State::Open(pair) = &mut place.state {
                pair.ring();
            }
        }
    }

    fn reap(&mut self, now: Instant, ended: &mut Vec<(Token, Ended)>) {
        for index in 0..self.pairs.len() {
            self.reap_pair(index, now);
        }
        ended.append(&mut self.ended);
    }

    fn has_news(&self) -> bool {
        self.pairs.iter().any(|place| match &place.state {
            State::Open(pair) => {
                pair.is_disabled() || pair.in_flight() > 0 && pair.has_completion()
            }
            _ => false,
        })
    }

    fn prepare_park(&mut self) -> bool {
        // Each is asked, so that each is armed.
        self.pairs.iter_mut().fold(true, |sleep, place| {
            sleep
                & match &mut place.state {
                    State::Open(pair) => {
                        !pair.is_disabled() && (pair.in_flight() == 0 || pair.arm())
                    }
                    State::Closed | State::Waiting(_) => true,
                }
        })
    }

    fn deadline(&self) -> Option<Instant> {
        let oldest = self.pairs.iter().filter_map(|place| match &place.state {
            State::Open(pair) => pair.oldest(),
            _ => None,
        });
        oldest.min()?.checked_add(self.deadline)
    }

    fn close(&mut self, ended: &mut Vec<(Token, Ended)>) {
        for index in 0..self.pairs.len() {
            let state = std::mem::replace(&mut self.pairs[index].state, State::Closed);
            if let State::Open(pair) = state {
                self.stop(pair, None);
            }
        }
        ended.append(&mut self.ended);
    }
}

const _: () = assert!(SQE_WORDS_MAX >= 32, "a ZIP descriptor has 32 words");

/// Registers `file` with `epoll`.
pub(super) fn watch<F: QueueFile>(epoll: &OwnedFd, file: &F) -> Result<(), Errno> {
    epoll::add(epoll, file.fd(), epoll::EventData::new_u64(0), epoll::EventFlags::IN)
}
