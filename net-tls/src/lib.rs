//! A TLS termination proxy whose RSA signatures go through the shard's offload queue.
//!
//! ```text
//!   client ══TLS══> listener ─> handshake ─────> relay ──plain──> upstream
//!                  (a socket     │      ▲        (both ways, one
//!                   per shard)   ▼      │         record buffer each)
//!                     rustls on a coroutine: the signer suspends,
//!                     the request goes to the offload queue,
//!                     the completion resumes
//! ```
//!
//! Hundreds of handshakes wait for signatures on one core, and the signatures that wait together
//! are one batch.

mod config;
mod connection;
mod error;
mod handshake;
mod listener;
mod relay;
mod signer;
mod stack;
mod stats;

pub use config::{Config, Signing, Timeouts};
pub use error::Error;
pub use listener::{Listener, Proxy};
pub use stats::Stats;
