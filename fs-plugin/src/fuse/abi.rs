//! Structs and numbers of the wire: `fuse-abi` for what it has, and the newer rest here.
//!
//! Source: `include/uapi/linux/fuse.h` of Linux 6.14 (protocol 7.42), which brought FUSE over
//! io_uring, and `Documentation/filesystems/fuse-io-uring.rst`.

pub(crate) use fuse_abi::linux::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Requests by number, as `enum fuse_opcode`.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const TMPFILE: u32 = 51;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const POLL: u32 = 40;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const STATX: u32 = 52;
    pub(crate) const COPY_FILE_RANGE_64: u32 = 53;
}

/// The answer of COPY_FILE_RANGE_64 (protocol 7.45).
#[derive(Debug, Clone, Copy, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct fuse_copy_file_range_out {
    pub(crate) bytes_copied: u64,
}

/// Length of `struct fuse_rename_in`.
pub(crate) const RENAME_IN_LEN: usize = 8;

/// `FUSE_OVER_IO_URING`, bit 41: in `flags2` of INIT.
pub(crate) const FUSE_OVER_IO_URING: u64 = 1 << 41;

/// `enum fuse_uring_cmd`: registers an entry and waits for its first request.
pub(crate) const FUSE_IO_URING_CMD_REGISTER: u32 = 1;
/// Answers the request of an entry and waits for the next.
pub(crate) const FUSE_IO_URING_CMD_COMMIT_AND_FETCH: u32 = 2;

/// `struct fuse_uring_req_header`: what the kernel fills for a request, and we for the answer.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(crate) struct UringHeader {
    /// `fuse_in_header` of the request; `fuse_out_header` of the answer, at the same place.
    pub(crate) in_out: [u8; 128],
    /// The struct of the request's operation. Answers do not use it.
    pub(crate) op_in: [u8; 128],
    pub(crate) entry: UringEntry,
}

/// `struct fuse_uring_ent_in_out`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(crate) struct UringEntry {
    pub(crate) flags: u64,
    /// Names the request in the commit.
    pub(crate) commit_id: u64,
    /// Bytes of the payload that are the request's, or the answer's.
    pub(crate) payload_sz: u32,
    pub(crate) padding: u32,
    pub(crate) reserved: u64,
}

/// `struct fuse_uring_cmd_req`: at the start of the SQE's command area.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(crate) struct UringCommand {
    pub(crate) flags: u64,
    pub(crate) commit_id: u64,
    /// The queue: a possible CPU.
    pub(crate) qid: u16,
    pub(crate) padding: [u8; 6],
}

const _: () = assert!(size_of::<UringHeader>() == 288);
const _: () = assert!(size_of::<UringEntry>() == 32);
const _: () = assert!(size_of::<UringCommand>() == 24);
const _: () = assert!(size_of::<fuse_in_header>() == 40);
const _: () = assert!(size_of::<fuse_out_header>() == 16);
const _: () = assert!(size_of::<fuse_init_out>() == 64);

/// Length of an operation's own struct, which stands between header and payload.
pub(crate) fn args_len(operation: u32) -> usize {
    match operation {
        opcode::BATCH_FORGET => size_of::<fuse_batch_forget_in>(),
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            size_of::<fuse_copy_file_range_in>()
        }
        opcode::CREATE | opcode::TMPFILE => size_of::<fuse_create_in>(),
        opcode::FALLOCATE => size_of::<fuse_fallocate_in>(),
        opcode::FLUSH => size_of::<fuse_flush_in>(),
        opcode::FORGET => size_of::<fuse_forget_in>(),
        opcode::FSYNC | opcode::FSYNCDIR => size_of::<fuse_fsync_in>(),
        opcode::GETATTR => size_of::<fuse_getattr_in>(),
        opcode::GETXATTR | opcode::LISTXATTR => size_of::<fuse_getxattr_in>(),
        opcode::INIT => size_of::<fuse_init_in>(),
        opcode::INTERRUPT => size_of::<fuse_interrupt_in>(),
        opcode::LINK => size_of::<fuse_link_in>(),
        opcode::LSEEK => size_of::<fuse_lseek_in>(),
        opcode::MKDIR => size_of::<fuse_mkdir_in>(),
        opcode::MKNOD => size_of::<fuse_mknod_in>(),
        opcode::OPEN | opcode::OPENDIR => size_of::<fuse_open_in>(),
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => size_of::<fuse_read_in>(),
        opcode::RELEASE | opcode::RELEASEDIR => size_of::<fuse_release_in>(),
        opcode::RENAME => RENAME_IN_LEN,
        opcode::RENAME2 => size_of::<fuse_rename2_in>(),
        opcode::SETATTR => size_of::<fuse_setattr_in>(),
        opcode::SETXATTR => size_of::<fuse_setxattr_in>(),
        opcode::STATX => size_of::<fuse_statx_in>(),
        opcode::WRITE => size_of::<fuse_write_in>(),
        _ => 0,
    }
}
