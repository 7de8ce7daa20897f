//! The dispatcher: each request to the function that answers it.
//!
//! What is absent answers EOPNOTSUPP: ENOSYS switches an operation off for the whole mount.

mod attr;
mod dir;
mod file;
mod file_in_use;
mod inodes;
mod lookup;
mod lower;
mod range;
mod stats;
mod xattr;

use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use futures_lite::FutureExt;
use rustix::io::Errno;
use slab::Slab;
use zerocopy::IntoBytes;

use crate::fuse::abi::*;
use crate::fuse::reply::{self, Answer, DONE, Reply};
use crate::fuse::request::Request;
use crate::mount::Config;
use crate::store::contents::{AHEAD_MAX, Options};
use file_in_use::InMemory;
use inodes::Inodes;
pub(crate) use lower::{Lower, proc_path};
pub(crate) use stats::STATS_NAME;

/// The most bytes that one WRITE carries, and one READ asks for.
pub(crate) const MAX_WRITE: u32 = 256 * 1024;

/// What one mount serves: all shards' together.
pub(crate) struct Fs {
    lower: Lower,
    options: Options,
    in_memory: Arc<InMemory>,
    inodes: Mutex<Inodes>,
    /// Where inodes are found by names, who changes one is alone.
    names: Option<RwLock<()>>,
    /// Open directories, by their handle.
    directories: Mutex<Slab<Arc<OwnedFd>>>,
    /// Agree on io_uring, if the kernel offers it.
    io_uring: bool,
    cache: Cache,
    /// INIT was answered: with io_uring, or without.
    pub(crate) transport: OnceLock<Transport>,
}

/// What the kernel keeps in its page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Writes reach us before write(2) returns. Names and attributes are asked for again after a
    /// second; SEEK_HOLE and SEEK_DATA are exact.
    WriteThrough,
    /// The kernel gathers writes and sends them later, or when asked to sync or to close. Sizes and
    /// times are its own, so nobody else may change what lies below. Files have no holes: the kernel
    /// would ask for them without sending first what it has (`fuse_lseek`).
    WriteBack,
}

impl Cache {
    /// How long the kernel may use names and attributes without asking, in seconds.
    fn valid_s(self) -> u64 {
        match self {
            Self::WriteThrough => 1,
            Self::WriteBack => 60,
        }
    }
}

/// The way requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `/dev/fuse` alone.
    Classic,
    /// A ring queue for each possible CPU, beside it.
    IoUring,
}

impl Fs {
    pub(crate) fn new(lower: Lower, io_uring: bool, config: &Config) -> Result<Self, Errno> {
        let Config { contents: options, dirty_max, index_max, cache, .. } = *config;
        let (dirty, index) = <(AtomicU64, AtomicU64)>::default();
        let inodes = Mutex::new(Inodes::new(&lower)?);
        Ok(Self {
            names: (!lower.by_handle()).then(RwLock::default),
            lower,
            options,
            in_memory: Arc::new(InMemory { dirty, dirty_max, index, index_max }),
            inodes,
            directories: Mutex::default(),
            io_uring,
            cache,
            transport: OnceLock::new(),
        })
    }

    /// Answers a request. `payload` holds what a WRITE brings, and takes what a READ gets.
    pub(crate) async fn dispatch(&self, request: &Request, payload: &mut [u8]) -> Answer {
        let answer = match answered(self.answer(request, payload)).await {
            // The limit is ours, not the caller's.
            Err(Errno::MFILE) => Err(Errno::NFILE),
            answer => answer,
        };
        tracing::trace!(
            opcode = request.opcode,
            nodeid = request.nodeid,
            error = answer.as_ref().err().map(|errno| errno.raw_os_error()),
        );
        answer
    }

    async fn answer(&self, request: &Request, payload: &mut [u8]) -> Answer {
        match request.opcode {
            opcode::BATCH_FORGET => self.batch_forget(request),
            opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
                self.copy_file_range(request).await
            }
            opcode::CREATE => self.create(request).await,
            opcode::DESTROY => DONE,
            opcode::FALLOCATE => self.fallocate(request).await,
            opcode::FLUSH => self.flush(request).await,
            opcode::FORGET => self.forget(request),
            opcode::FSYNC => self.fsync(request).await,
            opcode::FSYNCDIR => self.fsync_directory(request).await,
            opcode::GETATTR => self.getattr(request).await,
            opcode::GETXATTR => self.getxattr(request).await,
            opcode::INIT => self.init(request),
            // Nothing we do is worth interrupting.
            opcode::INTERRUPT => Ok(Reply::None),
            // What the kernel says for a file without controls.
            opcode::IOCTL => Err(Errno::NOTTY),
            opcode::LINK => self.link(request).await,
            opcode::LISTXATTR => self.listxattr(request),
            opcode::LOOKUP => self.lookup(request).await,
            // The kernel then takes all of a file for data, and asks no more.
            opcode::LSEEK if self.cache == Cache::WriteBack => Err(Errno::NOSYS),
            opcode::LSEEK => self.lseek(request).await,
            opcode::MKDIR => self.mkdir(request).await,
            opcode::MKNOD => self.mknod(request).await,
            opcode::OPEN => self.open(request).await,
            opcode::OPENDIR => self.opendir(request),
            // The kernel then takes files for always ready, as they are, and asks no more: io_uring
            // would ask a hundred times for each buffered write.
            opcode::POLL => Err(Errno::NOSYS),
            opcode::READ => self.read(request, payload).await,
            opcode::READDIR => self.readdir(request, false).await,
            opcode::READDIRPLUS => self.readdir(request, true).await,
            opcode::READLINK => self.readlink(request),
            opcode::RELEASE => self.release(request).await,
            opcode::RELEASEDIR => self.release_directory(request),
            opcode::REMOVEXATTR => self.removexattr(request),
            opcode::RENAME | opcode::RENAME2 => self.rename(request).await,
            opcode::RMDIR => self.unlink(request, true),
            opcode::SETATTR => self.setattr(request).await,
            opcode::SETXATTR => self.setxattr(request).await,
            opcode::STATFS => self.statfs(),
            opcode::STATX => self.statx(request).await,
            opcode::SYMLINK => self.symlink(request).await,
            opcode::TMPFILE => self.tmpfile(request).await,
            opcode::UNLINK => self.unlink(request, false),
            opcode::WRITE => self.write(request, payload).await,
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// Agrees with the kernel on a version and on what both can do.
    fn init(&self, request: &Request) -> Answer {
        /// Requests that the kernel may have under way without anybody waiting. As many writes of
        /// a file wait for each other in order, so that it is stored front to back.
        const BACKGROUND_MAX: u16 = 16;
        const _: () = assert!(BACKGROUND_MAX as u64 * MAX_WRITE as u64 <= AHEAD_MAX);
        let args: fuse_init_in = request.args()?;
        // Without it SETXATTR is shorter, and reads otherwise.
        if args.major != FUSE_KERNEL_VERSION || args.flags & FUSE_SETXATTR_EXT == 0 {
            let (major, minor) = (args.major, args.minor);
            tracing::error!("the kernel speaks FUSE {major}.{minor}; Linux 5.13 is needed");
            return Err(Errno::PROTO);
        }
        let offered = u64::from(args.flags)
            | if args.flags & FUSE_INIT_EXT != 0 { u64::from(args.flags2) << 32 } else { 0 };
        // Without FUSE_ATOMIC_O_TRUNC: the kernel would have a file emptied before it finds that it is
        // being executed (ETXTBSY).
        let wanted = u64::from(
            FUSE_ASYNC_READ
                | FUSE_AUTO_INVAL_DATA
                | FUSE_BIG_WRITES
                | FUSE_DO_READDIRPLUS
                | FUSE_DONT_MASK
                | FUSE_HANDLE_KILLPRIV_V2
                | FUSE_INIT_EXT
                | FUSE_MAX_PAGES
                | FUSE_PARALLEL_DIROPS
                | FUSE_POSIX_ACL
                | FUSE_READDIRPLUS_AUTO
                | FUSE_SETXATTR_EXT,
        ) | if self.cache == Cache::WriteBack { u64::from(FUSE_WRITEBACK_CACHE) } else { 0 }
            // A handle outlives what we remember of an inode.
            | FUSE_NO_EXPORT_SUPPORT
            | if self.io_uring { FUSE_OVER_IO_URING } else { 0 };
        let agreed = offered & wanted;
        let uring = agreed & FUSE_OVER_IO_URING != 0;
        // The kernel sends it once.
        let transport = if uring { Transport::IoUring } else { Transport::Classic };
        let _ = self.transport.set(transport);
        let low = |flags: u64| u32::try_from(flags & u64::from(u32::MAX)).expect("masked");
        reply::with(&fuse_init_out {
            major: FUSE_KERNEL_VERSION,
            minor: FUSE_KERNEL_MINOR_VERSION,
            max_readahead: args.max_readahead,
            flags: low(agreed),
            flags2: low(agreed >> 32),
            max_background: BACKGROUND_MAX,
            congestion_threshold: BACKGROUND_MAX / 4 * 3,
            max_write: MAX_WRITE,
            time_gran: 1,
            max_pages: u16::try_from(MAX_WRITE as usize / rustix::param::page_size())
                .expect("a small number of pages"),
            ..Default::default()
        })
    }

    fn statfs(&self) -> Answer {
        let stat = rustix::fs::fstatvfs(self.lower.root())?;
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let st = fuse_kstatfs {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: narrow(stat.f_bsize),
            namelen: narrow(stat.f_namemax),
            frsize: narrow(stat.f_frsize),
            ..Default::default()
        };
        Ok(Reply::Body(st.as_bytes().to_vec()))
    }
}

/// The answer, also if that panics: a request that is never answered would hang its caller, whom
/// nothing can kill.
async fn answered(answer: impl Future<Output = Answer>) -> Answer {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or(Err(Errno::IO))
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, yield_now};

    use super::*;

    #[test]
    fn a_panic_is_answered() {
        let answer = answered(async {
            yield_now().await;
            panic!("of a handler")
        });
        assert_eq!(block_on(answer), Err(Errno::IO));
        assert_eq!(block_on(answered(async { DONE })), DONE);
    }
}
