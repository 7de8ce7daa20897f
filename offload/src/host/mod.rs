//! Hosts: whose loop turns the queue.
//!
//! | host | queue | futures |
//! |---|---|---|
//! | a thread without a loop | [`Queue::run`](crate::Queue::run) | not `Send` |
//! | an executor of one thread | [`Local`], its [`Driver`] a task | not `Send` |
//! | glommio | [`Local`], driven by `glommio::drive` | not `Send` |
//! | tokio: current-thread or `LocalSet` | [`Local`], driven by `tokio::drive` | not `Send` |
//! | tokio, multi-thread | on threads of its own, by a `tokio::Handle` | `Send` |
//!
//! A host that is not built for it cannot say when it has nothing else to do: a driver lets every
//! task that is ready run once, and takes that for it. So a lone signature waits for one round of
//! the executor. Work is done on the executor's thread, in slices of about 50 us; who must not wait
//! for that uses threads of its own. glommio has no place for another source of completions: there
//! devices are polled, every 50 us while something is in flight; and a queue of a
//! [`Team`](crate::Team) that sleeps there does not hear that others want help.

#[cfg(feature = "glommio")]
pub mod glommio;
mod local;
mod thread;
#[cfg(feature = "tokio")]
pub mod tokio;

pub(crate) use thread::Bell;

pub use local::{Driver, Local, Submitted, Turned};
