//! Whose records, hashes and verification: ring's, or with the feature `aws-lc-rs` AWS-LC's; and whose
//! key exchanges.

use std::sync::Arc;

use rustls::NamedGroup;
use rustls::crypto::CryptoProvider;
#[cfg(feature = "aws-lc-rs")]
pub(crate) use rustls::crypto::aws_lc_rs as base;
#[cfg(not(feature = "aws-lc-rs"))]
pub(crate) use rustls::crypto::ring as base;

use crate::key_exchange::{OFFLOADED_X25519, OFFLOADED_X25519_MLKEM768};

/// Whose records, hashes and signatures in place those of this build are.
pub const LIBRARY: &str = if cfg!(feature = "aws-lc-rs") { "AWS-LC" } else { "ring" };

/// The library's, with our groups first: the hybrid, then X25519.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = base::default_provider();
    let ours = [NamedGroup::X25519MLKEM768, NamedGroup::X25519];
    provider.kx_groups.retain(|group| !ours.contains(&group.name()));
    provider.kx_groups.splice(0..0, [OFFLOADED_X25519_MLKEM768, OFFLOADED_X25519]);
    Arc::new(provider)
}
