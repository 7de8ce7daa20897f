//! A thread-per-core runtime: each shard has an executor, an io_uring and an offload queue, and
//! parks in one place.
//!
//! ```text
//!   shard (one per core, pinned, !Send)
//!   ┌──────────────────────────────────────────────────────────────────────┐
//!   │  turn:  run ready tasks ─> mailbox ─> one unit of offloaded work     │
//!   │         ─> timers ─> flush SQ, reap CQ ─> park when all agree        │
//!   └──────────────────────────────────────────────────────────────────────┘
//!            ▲ mailbox + bell (eventfd), what shards share
//! ```
//!
//! A [`Builder`] starts the shards and runs the same future on each; inside it, [`spawn`],
//! [`queue`], [`sleep`], [`net`] and [`fs`] work on the shard they are called from, and panic where
//! there is none. Buffers are owned: an operation has them until the kernel is done, also when its
//! future is dropped.
//!
//! ```
//! use warpcore_offload::{Codec, Compress};
//!
//! let stored = warpcore_runtime::Builder::new().shards(1).run(|_| async {
//!     let request = Compress {
//!         codec: Codec::Zstd,
//!         level: 1,
//!         source: vec![1; 1000],
//!         target: vec![0; 1100],
//!     };
//!     let done = warpcore_runtime::queue().submit(request).await;
//!     done.result.map_err(std::io::Error::other)
//! })?;
//! assert!(stored[0].as_ref().is_ok_and(|len| *len < 100));
//! # Ok::<(), warpcore_runtime::Error>(())
//! ```

mod buf;
mod builder;
mod error;
mod executor;
pub mod fs;
mod holders;
mod mailbox;
pub mod net;
pub mod op;
mod reactor;
mod ring;
mod shard;
mod signal;
mod sync;
mod sys;
mod time;

pub use buf::{IoBuf, IoBufMut};
pub use builder::{Builder, shards_possible};
pub use error::Error;
pub use executor::{JoinError, JoinHandle};
pub use holders::{Holder, Holders};
pub use shard::{
    Stats, Stopper, Stopping, queue, send, shard, shard_on, shards, spawn, stats, stop, stopper,
    stopping, until_stopped,
};
pub use time::{Elapsed, Sleep, sleep, sleep_until, timeout};
