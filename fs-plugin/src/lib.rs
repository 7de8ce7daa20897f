//! A filesystem that compresses on write, stacked on a directory.
//!
//! ```text
//!   kernel ══ FUSE ══> fuse/   classic (/dev/fuse) and io_uring, one dispatcher
//!                        │
//!                        ▼
//!                      fs/     names, attributes, handles: the lower directory's
//!                        │
//!                        ▼
//!                      store/  contents: chunks, extents, commits ──> backing files
//! ```
//!
//! Names, modes, owners, attributes and links are the lower filesystem's; contents are stored in
//! the format of FORMAT.md. [`Mount`] mounts and serves; [`store`] reads and checks backing files
//! without a mount.

mod error;
mod fs;
mod fuse;
mod mount;
mod session;
pub mod store;

pub use error::Error;
pub use fs::{Cache, Transport};
pub use mount::{
    Config, Flag, LockError, MountError, are_mount_ids_unique, is_on_fuse, is_shown, lock_tree,
    mount_id, unmount_dead,
};
pub use session::{Mount, Summary};

/// Parses a request as it comes from `/dev/fuse`, and whatever may be in it.
#[cfg(fuzzing)]
pub fn fuzz_request(bytes: &[u8]) {
    if let Some((request, _)) = fuse::request::Request::parse(bytes) {
        let _ = request.answer_len_max();
        let _ = request.args::<fuse::abi::fuse_setattr_in>();
        let _ = request.name();
        let _ = request.names::<2>();
        let _ = request.name_and_rest();
    }
}
