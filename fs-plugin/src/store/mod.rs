//! Contents as they are stored: see FORMAT.md for every byte.
//!
//! ```text
//!   Contents ── writes gather in dirty chunks ──> compressed by the offload queue
//!      │                                                   │
//!      │  extents: logical range -> stored bytes           ▼
//!      └── commit: [frames][commit record] appended to the Medium, one fdatasync when asked
//! ```
//!
//! [`mod@format`] is pure bytes; [`index`] is what is stored where, as far as it was read, and
//! [`extents`] its visible parts in memory; [`recovery`] finds the newest commit that holds, [`loss`]
//! tells what a power cut took; [`contents`] is a file's life between open and close; [`medium`] is where the bytes lie.

pub mod contents;
pub mod extents;
pub mod format;
pub mod index;
pub mod loss;
pub mod medium;
pub mod recovery;
mod spans;
