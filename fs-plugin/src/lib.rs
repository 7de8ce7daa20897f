//! A filesystem that compresses on write, stacked on a directory.
//!
//! Names, modes, owners, attributes and links are the lower filesystem's; contents are stored in
//! the format of FORMAT.md.

mod error;
pub mod store;

pub use error::Error;
