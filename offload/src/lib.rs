//! One accelerator queue per core: a request owns its buffers, a completion is a future.
//!
//! An accelerator is *another processor*, not a function to call. A request names memory that
//! stays where it is; the [`Queue`] owns those buffers from submission to completion; the caller
//! gets them back with the result, also on error (a [`Target`] that a failed device may still write to
//! never comes back: [`another`](Target::another) does). In between the caller does something else.
//!
//! ```text
//!   caller                     Queue (one per core, !Send)                 backend
//!   submit(request) ── slot: reserve, fill ──> gathered ── dispatch ──> batch ── one unit a turn
//!   Op (a future) <── waker ── slot: done <──────────────── reap ─────────┘
//! ```
//!
//! The crate has no executor and no reactor. Whoever owns the queue calls [`Queue::turn`] as part
//! of its own loop and asks [`Queue::prepare_park`] before it sleeps; [`Queue::run`] is such a
//! loop for a thread that has none. Queues of a [`Team`] do each other's work when they are idle.
//!
//! ```
//! use warpcore_offload::{Codec, Compress, Queue};
//!
//! let queue = Queue::new(64);
//! let done = queue.run(queue.submit(Compress {
//!     codec: Codec::Zstd,
//!     level: 1,
//!     source: vec![7_u8; 1000],
//!     target: vec![0_u8; Codec::Zstd.bound(1000)],
//! }));
//! let stored = &done.target[..done.result?];
//! assert!(stored.len() < done.source.len());
//! # Ok::<(), warpcore_offload::Error>(())
//! ```

mod backend;
mod batch;
mod buffer;
mod checksum;
mod codec;
mod custom;
mod doorbell;
mod ecdsa;
mod element;
mod error;

mod fork;
pub mod host;
mod keep;
#[cfg(feature = "kernels")]
#[doc(hidden)]
pub mod kernels;
mod kx;
mod op;
mod pem;
mod queue;
mod region;
mod request;
mod rsa;
mod stats;
mod stream;
mod sync;
mod team;
mod wipe;

pub use backend::{
    Device, Devices, Fault, Faults, Model, ModelKind, ModelQueue, SelectError, State, devices,
};
pub use buffer::{Parts, Source, Target};
pub use checksum::Checksum;
pub use codec::Codec;
pub use custom::{Call, Called, CustomKernel};
pub use ecdsa::EcdsaKey;
pub use error::{Error, KeyError};
pub use kx::SharedSecret;
pub use op::Op;
pub use pem::private_key_from_pem;
pub use queue::{Full, Park, Queue, Turn};
pub use request::{
    Check, Checked, Compress, Decompress, Done, EcdsaSign, Exchanged, Fed, Feed, KeyExchange,
    Request, RsaPrivate, RsaPublic, Sign, Signed,
};
pub use rsa::{PrivateKey, PublicKey, Scheme, Signature};
pub use stats::{Kernel, KernelStats, Stats};
pub use stream::{Progress, Stream};
pub use team::Team;

/// How many requests of a kernel go together in lanes on this processor: with AVX-512 IFMA four RSA
/// signatures, four key exchanges and eight signatures of P-256, with AVX2 and FMA two RSA signatures.
/// None: they are computed one at a time.
pub fn together(kernel: Kernel) -> Option<usize> {
    match kernel {
        Kernel::Ecdsa => ecdsa::EcdsaSigner::has_lanes().then_some(ecdsa::EcdsaSigner::TOGETHER),
        Kernel::KeyExchange => kx::Exchanger::has_lanes().then_some(kx::Exchanger::TOGETHER),
        Kernel::RsaPrivate => rsa::Signer::together(),
        _ => None,
    }
}
