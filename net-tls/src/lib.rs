//! A TLS termination proxy whose RSA signatures and key exchanges go through the shard's offload
//! queue.
//!
//! ```text
//!   client ══TLS══> listener ─> handshake ─────> relay ──plain──> upstream
//!                  (a socket     │      ▲        (both ways, one
//!                   per shard)   ▼      │         record buffer each)
//!                     rustls on a coroutine: ours suspends,
//!                     the request goes to the offload queue,
//!                     the completion resumes
//! ```
//!
//! Hundreds of handshakes wait for signatures on one core, and the signatures that wait together
//! are one batch.
//!
//! ```no_run
//! use std::sync::Arc;
//! use warpcore_tls::{Config, Proxy, Signing, Timeouts};
//!
//! let proxy = Arc::new(Proxy::new(&Config {
//!     listen: ([0, 0, 0, 0], 443).into(),
//!     certificate: "chain.pem".into(),
//!     key: "key.pem".into(),
//!     upstream: ([127, 0, 0, 1], 8080).into(),
//!     signing: Signing::Offloaded,
//!     timeouts: Timeouts::default(),
//! })?);
//! warpcore_runtime::Builder::new().stop_on_signals(true).run(move |_shard| {
//!     let proxy = Arc::clone(&proxy);
//!     async move { Ok::<_, warpcore_tls::Error>(proxy.listen()?.serve().await) }
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod connection;
mod error;
mod handshake;
mod key_exchange;
mod listener;
mod relay;
mod signer;
mod stack;
mod stats;

pub use config::{Config, Signing, Timeouts};
pub use error::Error;
pub use listener::{Listener, Proxy};
pub use stats::Stats;
