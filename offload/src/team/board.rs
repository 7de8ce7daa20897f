//! Where a queue's owner puts up work that others may do, and how who sleeps is woken for it.
//!
//! ```text
//!            post             claim              finish            reap
//!   free ──────────> ready ──────────> claimed ──────────> done ──────────> free
//!            owner     ^     anybody,     │     who claimed         owner
//!                      │     the owner too│
//!                      └──── put back ────┘
//! ```
//!
//! Each entry has one state word, and the result is written where the work was: a thread that is
//! stopped in the middle delays what it has claimed and nothing else. What was posted first is
//! claimed first: beside the state the word has the number of the post.

use std::fmt;

use crate::sync::{AtomicBool, AtomicU32, Ordering, UnsafeCell, fence};

/// Entries of a board. Their states are one cache line, which is all that a look costs.
#[cfg(not(loom))]
const ENTRIES: usize = 16;
#[cfg(loom)]
const ENTRIES: usize = 2;

const FREE: u32 = 0;
const READY: u32 = 1;
/// Ready, and long: for those only who have nothing else to do.
const READY_LONG: u32 = 2;
const CLAIMED: u32 = 3;
const DONE: u32 = 4;
/// Bits of a word that are its state; the others count posts.
const STATE: u32 = 7;

/// Which work a thread takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// All there is.
    All,
    /// What a thread with I/O of its own must not be held up by.
    Long,
    /// What is soon done.
    Short,
}

impl Takes {
    pub(crate) fn takes(self, long: bool) -> bool {
        match self {
            Self::All => true,
            Self::Long => long,
            Self::Short => !long,
        }
    }
}

/// One owner's work for others.
pub(crate) struct Board<T> {
    states: States,
    /// Touched by the owner while free or done, and by who claimed it while claimed.
    places: [UnsafeCell<Option<T>>; ENTRIES],
    /// The number of the next post, in the bits above the state. Only the owner touches it.
    next: AtomicU32,
}

#[repr(align(64))]
struct States([AtomicU32; ENTRIES]);

// SAFETY: a value is handed from thread to thread by its state word: Release by who puts it in its
// place, Acquire by who takes it out.
unsafe impl<T: Send> Sync for Board<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Board<T> {}

impl<T> Board<T> {
    pub(crate) fn new() -> Self {
        Self {
            states: States(std::array::from_fn(|_| AtomicU32::new(FREE))),
            places: std::array::from_fn(|_| UnsafeCell::new(None)),
            next: AtomicU32::new(0),
        }
    }

    /// Puts work up. For the owner, who has looked for [room](Self::has_room), and then wakes
    /// somebody ([`Sleeper::wake`]).
    pub(crate) fn post(&self, work: T, long: bool) {
        let index = self.room().expect("the owner has looked for room");
        self.put(index, work);
        let state = if long { READY_LONG } else { READY };
        let number = self.next.load(Ordering::Relaxed);
        self.next.store(number.wrapping_add(STATE + 1), Ordering::Relaxed);
        // Release: who claims it sees the work, and all that it names.
        self.states.0[index].store(number | state, Ordering::Release);
    }

    /// Whether an entry is free. For the owner.
    pub(crate) fn has_room(&self) -> bool {
        self.room().is_some()
    }

    fn room(&self) -> Option<usize> {
        // Relaxed: only the owner takes an entry from free, or makes it that.
        self.states.0.iter().position(|word| word.load(Ordering::Relaxed) & STATE == FREE)
    }

    /// Takes the oldest work, for whoever comes first.
    pub(crate) fn claim(&self, takes: Takes) -> Option<(usize, T)> {
        loop {
            let mut oldest: Option<(usize, u32)> = None;
            for (index, word) in self.states.0.iter().enumerate() {
                let word = word.load(Ordering::Relaxed);
                let older = |than: u32| (word & !STATE).wrapping_sub(than & !STATE) >> 31 == 1;
                if is_ready(word, takes) && oldest.is_none_or(|(_, other)| older(other)) {
                    oldest = Some((index, word));
                }
            }
            let (index, word) = oldest?;
            let claimed = word & !STATE | CLAIMED;
            // Acquire: pairs with the Release of `post` and `put_back`.
            if self.states.0[index]
                .compare_exchange(word, claimed, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                return Some((index, self.take(index)));
            }
            // Somebody was faster: the next look finds less.
        }
    }

    /// Puts short work back that was claimed and is not finished, for whoever comes first. Its owner
    /// is to be woken.
    pub(crate) fn put_back(&self, index: usize, work: T) {
        self.put(index, work);
        self.change(index, READY);
    }

    /// Puts finished work where it was claimed. Its owner is to be woken.
    pub(crate) fn finish(&self, index: usize, work: T) {
        self.put(index, work);
        self.change(index, DONE);
    }

    /// Gives an entry, which the caller has claimed, another state.
    fn change(&self, index: usize, state: u32) {
        let word = &self.states.0[index];
        let number = word.load(Ordering::Relaxed) & !STATE;
        // Release: who takes the work sees what was done to it.
        word.store(number | state, Ordering::Release);
    }

    /// Takes finished work. For the owner.
    pub(crate) fn reap(&self) -> Option<T> {
        // Acquire: pairs with the Release of `finish`.
        let done = |word: &AtomicU32| word.load(Ordering::Acquire) & STATE == DONE;
        let index = self.states.0.iter().position(done)?;
        let work = self.take(index);
        self.states.0[index].store(FREE, Ordering::Relaxed);
        Some(work)
    }

    /// Takes back what was claimed by the owner itself. It is finished elsewhere.
    pub(crate) fn free(&self, index: usize) {
        self.states.0[index].store(FREE, Ordering::Relaxed);
    }

    /// Whether there was such work just now.
    pub(crate) fn has_ready(&self, takes: Takes) -> bool {
        self.count(|word| is_ready(word, takes)) > 0
    }

    /// How much short work waits.
    pub(crate) fn ready(&self) -> usize {
        self.count(|word| word & STATE == READY)
    }

    pub(crate) fn has_done(&self) -> bool {
        self.count(|word| word & STATE == DONE) > 0
    }

    fn count(&self, which: impl Fn(u32) -> bool) -> usize {
        self.states.0.iter().filter(|word| which(word.load(Ordering::Relaxed))).count()
    }

    fn put(&self, index: usize, work: T) {
        // SAFETY: the caller has the entry: it is free and the caller its owner, or it is claimed
        // by the caller.
        self.places[index].with_mut(|place| unsafe { *place = Some(work) });
    }

    fn take(&self, index: usize) -> T {
        // SAFETY: as in `put`; or it is done, and the caller its owner.
        let work = self.places[index].with_mut(|place| unsafe { (*place).take() });
        work.expect("an entry that is ready or done has work")
    }
}

fn is_ready(word: u32, takes: Takes) -> bool {
    match word & STATE {
        READY => takes.takes(false),
        READY_LONG => takes.takes(true),
        _ => false,
    }
}

impl<T> fmt::Debug for Board<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.states.0).finish()
    }
}

/// A thread that sleeps when there is nothing for it to do.
///
/// ```text
///   sleeper:  parked = true;      fence;  anything there?  ── no ──> sleep until the bell
///   others:   post, or finish;    fence;  parked?          ── yes ──> ring the bell
/// ```
///
/// Store-then-load on both sides: with a SeqCst fence between, at least one of the two loads sees
/// the other side's store.
#[derive(Debug)]
pub(crate) struct Sleeper {
    /// It sleeps, or is about to. Whoever turns it to false rings the bell.
    parked: AtomicBool,
}

impl Sleeper {
    pub(crate) fn new() -> Self {
        Self { parked: AtomicBool::new(false) }
    }

    /// Whether to ring the bell, now that there is something for the sleeper.
    #[must_use]
    pub(crate) fn wake(&self) -> bool {
        fence(Ordering::SeqCst);
        // Relaxed: the bell itself synchronises. The swap lets one of several ring.
        self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::Relaxed)
    }

    /// Says that the thread is about to sleep. False: `anything` is there, do not.
    pub(crate) fn prepare_park(&self, anything: impl FnOnce() -> bool) -> bool {
        // A swap, as in the mailbox of the shards: changes of the flag that loom can follow.
        self.parked.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let sleeps = !anything();
        if !sleeps {
            self.unpark();
        }
        sleeps
    }

    /// Says that the thread is awake. True: somebody has rung the bell, or is about to.
    pub(crate) fn unpark(&self) -> bool {
        !self.parked.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn work_goes_round() {
        let board = Board::new();
        for number in 0..ENTRIES {
            assert!(board.has_room());
            board.post(number, number % 2 == 1);
        }
        assert!(!board.has_room());
        assert_eq!(board.ready(), ENTRIES / 2);
        let (index, work) = board.claim(Takes::Long).expect("half of them");
        assert_eq!((index, work), (1, 1));
        board.finish(index, work + 100);
        assert_eq!(board.reap(), Some(101));
        assert_eq!(board.reap(), None);
        let (index, work) = board.claim(Takes::Short).expect("the other half");
        assert_eq!(work, 0);
        board.free(index);
        let mut left = Vec::new();
        while let Some((index, work)) = board.claim(Takes::All) {
            board.free(index);
            left.push(work);
        }
        assert_eq!(left, (2..ENTRIES).collect::<Vec<_>>());
        assert!(!board.has_ready(Takes::All) && !board.has_done());
    }

    #[test]
    fn the_oldest_goes_first_wherever_it_lies() {
        let board = Board::new();
        // Around the end of the numbers too.
        board.next.store(u32::MAX - STATE - 4 * (STATE + 1), Ordering::Relaxed);
        board.post(0, false);
        board.post(1, false);
        for number in 2..40 {
            let (index, work) = board.claim(Takes::Short).expect("two are there");
            assert_eq!(work, number - 2);
            board.put_back(index, work);
            let (index, again) = board.claim(Takes::Short).expect("it is still the oldest");
            assert_eq!(again, work);
            board.finish(index, work);
            assert_eq!(board.reap(), Some(work));
            board.post(number, false);
        }
    }
}

/// Every interleaving: `RUSTFLAGS="--cfg loom" cargo test -p warpcore-offload --lib board`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::{Arc, Notify};
    use loom::thread;

    struct Shared {
        board: Board<u32>,
        owner: (Sleeper, Notify),
        helper: (Sleeper, Notify),
    }

    fn shared() -> Arc<Shared> {
        Arc::new(Shared {
            board: Board::new(),
            owner: (Sleeper::new(), Notify::new()),
            helper: (Sleeper::new(), Notify::new()),
        })
    }

    fn wake((sleeper, bell): &(Sleeper, Notify)) {
        if sleeper.wake() {
            bell.notify();
        }
    }

    fn park((sleeper, bell): &(Sleeper, Notify), anything: impl FnOnce() -> bool) {
        if sleeper.prepare_park(anything) {
            bell.wait();
            sleeper.unpark();
        }
    }

    /// The owner never does long work, so all of it depends on the helper being woken, and the
    /// owner's end on being woken by the helper. A lost wake-up is a deadlock, which loom reports.
    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            let shared = shared();
            let helper = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let mut done = 0;
                    while done < 2 {
                        if let Some((index, work)) = shared.board.claim(Takes::Long) {
                            shared.board.finish(index, work + 1);
                            wake(&shared.owner);
                            done += 1;
                        } else {
                            park(&shared.helper, || shared.board.has_ready(Takes::Long));
                        }
                    }
                })
            };
            let mut sum = 0;
            for work in [10, 20] {
                shared.board.post(work, true);
                wake(&shared.helper);
            }
            let mut reaped = 0;
            while reaped < 2 {
                if let Some(work) = shared.board.reap() {
                    sum += work;
                    reaped += 1;
                } else {
                    park(&shared.owner, || shared.board.has_done());
                }
            }
            assert_eq!(sum, 32);
            helper.join().expect("no panic");
        });
    }

    /// Both claim; each work is done once, and what the owner withdraws nobody else has.
    #[test]
    fn work_is_done_once() {
        loom::model(|| {
            let shared = shared();
            shared.board.post(1, false);
            shared.board.post(2, false);
            let helper = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let mut put_back = false;
                    while let Some((index, work)) = shared.board.claim(Takes::Short) {
                        // As one that takes several units.
                        if put_back {
                            shared.board.finish(index, work * 10);
                        } else {
                            shared.board.put_back(index, work);
                            put_back = true;
                        }
                        wake(&shared.owner);
                    }
                })
            };
            let (mut own, mut helped, mut posted) = (0, 0, 2);
            // As a queue that is dropped.
            while posted > 0 {
                if let Some((index, work)) = shared.board.claim(Takes::All) {
                    shared.board.free(index);
                    own += work;
                    posted -= 1;
                } else if let Some(work) = shared.board.reap() {
                    helped += work;
                    posted -= 1;
                } else {
                    park(&shared.owner, || {
                        shared.board.has_done() || shared.board.has_ready(Takes::All)
                    });
                }
            }
            assert_eq!(own * 10 + helped, 30);
            helper.join().expect("no panic");
        });
    }
}
