//! Runs the rustls calls that may sign or exchange keys, so that either can be awaited.
//!
//! [`Call::start`] makes a call on a pooled coroutine. When rustls signs, or exchanges keys, our part
//! of it [`suspend`]s, and the caller gets [`Step::Pending`] with the request; [`Suspended::complete`]
//! goes on with the result. In place (the twin, and when no stack is left) the same call simply
//! runs through. rustls plans a state machine that pauses by itself (rustls issue 850); `Step` is
//! shaped so that it can take its place.
//!
//! # A suspended coroutine is never dropped
//!
//! corosensei would unwind it by force, a panic inside rustls's frames. The drop of [`Suspended`]
//! resumes it with an error instead, and rustls returns in its own way.
//!
//! # Nothing may be held across a suspension
//!
//! No `RefCell` borrow, lock or entered span: other handshakes run on this thread in between.
//! rustls holds no lock while it signs or exchanges keys; our part holds nothing.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;

use corosensei::{Coroutine, CoroutineResult, Yielder};
use rustls::server::Accepted;
use rustls::{ServerConfig, ServerConnection};
use warpcore_offload::{Error, Exchanged, Signature};

use crate::config::Signing;
use crate::signer::SignRequest;
use crate::stack::Stack;

/// What a suspended call asks for.
pub(crate) enum Asked {
    /// A fresh X25519 key, and what it shares with this one.
    Exchange([u8; 32]),
    /// A signature.
    Sign(SignRequest),
}

/// What it is answered.
#[allow(clippy::large_enum_variant, reason = "on its way from one stack to another")]
pub(crate) enum Answer {
    /// There will be none: it is to give up.
    Closed,
    Exchanged(Result<Exchanged, Error>),
    Signed(Result<Signature, Error>),
}

/// What a coroutine is resumed with; the first time, nothing.
type Resume = Option<Answer>;

/// A call that may suspend.
pub(crate) enum Call {
    /// Answer a ClientHello, as this configuration says.
    Accept(Box<Accepted>, Arc<ServerConfig>),
    /// Go on with what was received since.
    Process(Box<ServerConnection>),
}

/// The connection, or why there is none any more.
pub(crate) type Processed = Result<Box<ServerConnection>, Refused>;

/// rustls will have nothing to do with it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: rustls::Error,
    /// Records that tell the client.
    pub(crate) alert: Vec<u8>,
}

/// Where a call to rustls stands.
pub(crate) enum Step {
    /// It waits for this.
    Pending(Asked, Suspended),
    /// It has returned.
    Processed(Processed),
}

/// A call to rustls that waits.
pub(crate) struct Suspended {
    /// None only while it is being resumed.
    coroutine: Option<Coroutine<Resume, Asked, Processed, Stack>>,
}

impl Call {
    /// Makes the call.
    pub(crate) fn start(self, signing: Signing) -> Step {
        let stack = match signing {
            Signing::InPlace => None,
            Signing::Offloaded => Stack::take(),
        };
        let Some(stack) = stack else { return Step::Processed(self.make()) };
        let coroutine = Coroutine::with_stack(stack, move |yielder, _first: Resume| {
            let _published = Published::new(yielder);
            self.make()
        });
        Suspended { coroutine: Some(coroutine) }.resume(None)
    }

    fn make(self) -> Processed {
        let mut alert = Vec::new();
        match self {
            Self::Accept(accepted, config) => {
                accepted.into_connection(config).map(Box::new).map_err(|(error, mut records)| {
                    records.write_all(&mut alert).expect("to memory");
                    Refused { error, alert }
                })
            }
            Self::Process(mut connection) => match connection.process_new_packets() {
                Ok(_) => Ok(connection),
                Err(error) => {
                    while connection.wants_write() {
                        connection.write_tls(&mut alert).expect("to memory");
                    }
                    Err(Refused { error, alert })
                }
            },
        }
    }
}

impl Suspended {
    /// Goes on with what was asked for, or with the reason why there is none.
    pub(crate) fn complete(self, answer: Answer) -> Step {
        self.resume(Some(answer))
    }

    fn resume(mut self, with: Resume) -> Step {
        let mut coroutine = self.coroutine.take().expect("held while suspended");
        match coroutine.resume(with) {
            CoroutineResult::Yield(request) => {
                self.coroutine = Some(coroutine);
                Step::Pending(request, self)
            }
            CoroutineResult::Return(processed) => {
                coroutine.into_stack().put_back();
                Step::Processed(processed)
            }
        }
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        let Some(coroutine) = self.coroutine.take() else {
            return;
        };
        let mut suspended = Self { coroutine: Some(coroutine) };
        // Each round ends in an error for rustls, which gives up at the first.
        while let Step::Pending(_, again) = suspended.complete(Answer::Closed) {
            suspended = again;
        }
    }
}

thread_local! {
    /// The coroutine that runs on this thread now; null outside of coroutines.
    static RUNNING: Cell<*const Yielder<Resume, Asked>> = const { Cell::new(ptr::null()) };
}

/// Publishes a coroutine's yielder while the coroutine runs; also withdraws it on a panic.
struct Published;

impl Published {
    fn new(yielder: &Yielder<Resume, Asked>) -> Self {
        debug_assert!(RUNNING.get().is_null(), "coroutines do not nest");
        RUNNING.set(yielder);
        Self
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        RUNNING.set(ptr::null());
    }
}

/// Suspends the running coroutine with a request and returns what it is resumed with. None, and
/// `request` is not called, outside of a coroutine.
pub(crate) fn suspend(request: impl FnOnce() -> Asked) -> Option<Answer> {
    let yielder = RUNNING.get();
    if yielder.is_null() {
        return None;
    }
    let request = request();
    // Others run on this thread until we are resumed.
    RUNNING.set(ptr::null());
    // SAFETY: only `Published` sets the pointer, to the yielder of the coroutine on whose stack it
    // lives, and every suspension and every way out of the coroutine resets it. So it is ours: we
    // run on that stack, and the yielder lives until the coroutine returns.
    let resumed = unsafe { &*yielder }.suspend(request);
    debug_assert!(RUNNING.get().is_null(), "whoever ran in between has withdrawn");
    RUNNING.set(yielder);
    Some(resumed.unwrap_or(Answer::Closed))
}
