//! The FUSE protocol: what the kernel asks, how it is answered, and by which way.
//!
//! [`abi`] has the structs of the wire, [`request`] and [`reply`] their meaning; [`classic`] and
//! [`uring`] carry them. Both ways lead to the same dispatcher.

pub(crate) mod abi;
pub(crate) mod classic;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod uring;
