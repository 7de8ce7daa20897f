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
//! use warpcore_tls::{CertificateConfig, Config, Proxy};
//!
//! let proxy = Arc::new(Proxy::new(&Config::single(
//!     "0.0.0.0:443".parse()?,
//!     CertificateConfig { chain: "chain.pem".into(), key: "key.pem".into() },
//!     &"127.0.0.1:8080".parse()?,
//! ))?);
//! warpcore_runtime::Builder::new().stop_on_signals(true).run(move |_shard| {
//!     let proxy = Arc::clone(&proxy);
//!     async move { proxy.serve().await }
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod access_log;
mod certificates;
mod config;
mod connection;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handshake;
mod key_exchange;
mod limits;
mod listener;
mod metrics;
mod provider;
mod proxy_protocol;
mod relay;
mod signer;
mod site;
mod stack;
mod stats;
mod ticket;
mod upstream;

pub use config::{
    Balance, CertificateConfig, ClientCertificates, Config, Limits, ListenerConfig, PoolConfig,
    ProxyProtocol, Signing, SiteConfig, Timeouts,
};
pub use error::{Error, Key};
pub use listener::{GivenSocket, Proxy};
pub use provider::LIBRARY;
pub use stats::Stats;
