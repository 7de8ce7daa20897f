//! The lower directory: how an inode is found again without holding a descriptor for it.
//!
//! As root an inode is kept as a file handle (open_by_handle_at(2)), which survives renames and
//! costs no descriptor; where that is not permitted or not supported, by its name (`lookup.rs`), or as
//! an `O_PATH` descriptor if it has none.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::time::Timespec;

/// Largest file handle (MAX_HANDLE_SZ of linux/exportfs.h).
const HANDLE_LEN_MAX: usize = 128;

/// The directory that a mount is stacked on.
#[derive(Debug)]
pub(crate) struct Lower {
    root: OwnedFd,
    device: u64,
    by_handle: bool,
    /// Whose files are that this process makes.
    owner: (u32, u32),
    /// Nothing is to be changed, by recovery neither.
    read_only: bool,
    /// Nor is the time of the last access, as far as that is to be had.
    no_atime: bool,
}

/// Where an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Descriptor(Descriptor),
    Handle(Handle),
    /// Of a filesystem with long handles.
    LongHandle(Box<Handle<HANDLE_LEN_MAX>>),
}

/// An inode that was just found.
pub(crate) struct Found {
    /// Its inode number.
    pub(crate) number: u64,
    /// Where to find it again, if there are handles.
    pub(crate) handle: Option<Address>,
    /// A descriptor of it, open for nothing maybe.
    pub(crate) fd: Arc<OwnedFd>,
}

impl Address {
    /// As long as the kernel knows the inode it stays, whatever becomes of its names.
    pub(crate) fn pinned(fd: &Arc<OwnedFd>) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let is_path = fs::fcntl_getfl(fd)?.contains(OFlags::PATH);
        Ok(Self::Descriptor(Descriptor(match is_path {
            true => Arc::clone(fd),
            // Not to hold it open for writing.
            false => Arc::new(fs::open(proc_path(&**fd), flags, Mode::empty())?),
        })))
    }
}

/// An `O_PATH` descriptor. It pins the inode, so its number is not reused meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct Descriptor(Arc<OwnedFd>);

impl PartialEq for Descriptor {
    fn eq(&self, _: &Self) -> bool {
        // Only compared for one inode number, which a descriptor pins.
        true
    }
}

impl Eq for Descriptor {}

/// Handles of ext4 have 8 bytes, of XFS 12, of btrfs 20: one for each inode that the kernel knows,
/// so they lie in place.
const HANDLE_LEN: usize = 20;

/// A file handle: it tells an inode from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handle<const LEN: usize = HANDLE_LEN> {
    len: u8,
    /// As `handle_type`, which fits a byte in every filesystem (`enum fid_type`).
    kind: u8,
    bytes: [u8; LEN],
}

/// `struct file_handle` with room.
#[repr(C)]
struct RawHandle {
    len_bytes: u32,
    kind: i32,
    bytes: [u8; HANDLE_LEN_MAX],
}

impl Lower {
    /// Takes over the open directory.
    pub(crate) fn new(root: OwnedFd, read_only: bool, no_atime: bool) -> Result<Self, Errno> {
        let device = fs::fstat(&root)?.st_dev;
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let mut lower = Self { root, device, by_handle: true, owner, read_only, no_atime };
        let probe = lower.handle(lower.root.as_fd());
        lower.by_handle = probe.is_ok_and(|handle| lower.open(&handle, OFlags::PATH).is_ok());
        Ok(lower)
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether inodes are found by handles.
    pub(crate) fn by_handle(&self) -> bool {
        self.by_handle
    }

    pub(crate) fn owner(&self) -> (u32, u32) {
        self.owner
    }

    /// The inode that has this name now.
    pub(crate) fn find(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<Found, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What is mounted there may be served by somebody who does not answer, or by us.
        let resolve = ResolveFlags::NO_XDEV;
        let fd = Arc::new(fs::openat2(parent, name, flags, Mode::empty(), resolve)?);
        // By the descriptor: the name may be another inode's a moment later.
        self.identify(&fd)
    }

    /// What this process has just made under this name, not before `since`, and not what somebody who may
    /// rename there has put in its place: it is to be given away.
    pub(crate) fn made(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        kind: FileType,
        since: Timespec,
    ) -> Result<Arc<OwnedFd>, Errno> {
        let Found { fd, .. } = self.find(parent, name)?;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = fs::statx(&fd, "", AtFlags::EMPTY_PATH, wanted)?;
        let born = (stat.stx_btime.tv_sec, i64::from(stat.stx_btime.tv_nsec));
        // As coarse as filesystems date. Where there is none the rest has to do.
        let since = (since.tv_sec, since.tv_nsec / 1000 * 1000);
        let is_old = stat.stx_mask & StatxFlags::BTIME.bits() != 0 && born < since;
        let is_ours = FileType::from_raw_mode(stat.stx_mode.into()) == kind
            && stat.stx_uid == self.owner.0
            && !is_old;
        if is_ours { Ok(fd) } else { Err(Errno::IO) }
    }

    /// The inode of a descriptor, which may be open for anything.
    pub(crate) fn identify(&self, fd: &Arc<OwnedFd>) -> Result<Found, Errno> {
        let stat = fs::fstat(fd)?;
        if stat.st_dev != self.device {
            // Another filesystem is mounted there: its inode numbers are not ours to tell apart.
            return Err(Errno::XDEV);
        }
        let handle = self.by_handle.then(|| self.handle(fd.as_fd())).transpose()?;
        Ok(Found { number: stat.st_ino, handle, fd: Arc::clone(fd) })
    }

    /// An `O_PATH` descriptor of an inode.
    pub(crate) fn path_fd(&self, address: &Address) -> Result<Arc<OwnedFd>, Errno> {
        match address {
            Address::Descriptor(Descriptor(fd)) => Ok(Arc::clone(fd)),
            _ => self.open(address, OFlags::PATH | OFlags::NOFOLLOW).map(Arc::new),
        }
    }

    /// Opens a regular file for its contents, to be written too where that is possible. `AGAIN`: not yet.
    pub(crate) fn open_contents(&self, address: &Address) -> Result<(OwnedFd, bool), Errno> {
        // Who has a lease on it (fcntl(2)) is told, and would keep us waiting.
        let open = |flags: OFlags| self.open_unseen(address, flags | OFlags::NONBLOCK);
        let written = match self.read_only {
            true => Err(Errno::ROFS),
            false => open(OFlags::RDWR),
        };
        let (fd, is_writable) = match written {
            Ok(fd) => (fd, true),
            // The kernel has checked who may write; here it is the lower that cannot.
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::TXTBSY) => {
                (open(OFlags::RDONLY)?, false)
            }
            Err(errno) => return Err(errno),
        };
        let kept = match self.no_atime {
            true => fs::fcntl_getfl(&fd)?.difference(OFlags::NONBLOCK),
            false => OFlags::empty(),
        };
        fs::fcntl_setfl(&fd, kept)?;
        Ok((fd, is_writable))
    }

    /// Opens an inode to be read; without a change of its time where that is asked for, and ours to ask for.
    pub(crate) fn open_unseen(&self, address: &Address, flags: OFlags) -> Result<OwnedFd, Errno> {
        if self.no_atime {
            match self.open(address, flags | OFlags::NOATIME) {
                Err(Errno::PERM) => {}
                opened => return opened,
            }
        }
        self.open(address, flags)
    }

    /// Opens an inode.
    pub(crate) fn open(&self, address: &Address, flags: OFlags) -> Result<OwnedFd, Errno> {
        match address {
            Address::Descriptor(Descriptor(fd)) => {
                fs::open(proc_path(fd), flags | OFlags::CLOEXEC, Mode::empty())
            }
            Address::Handle(Handle { len, kind, bytes }) => {
                self.open_handle(*kind, &bytes[..usize::from(*len)], flags)
            }
            Address::LongHandle(handle) => {
                self.open_handle(handle.kind, &handle.bytes[..usize::from(handle.len)], flags)
            }
        }
    }

    fn handle(&self, fd: BorrowedFd<'_>) -> Result<Address, Errno> {
        let room = u32::try_from(HANDLE_LEN_MAX).expect("small");
        let mut raw = RawHandle { len_bytes: room, kind: 0, bytes: [0; HANDLE_LEN_MAX] };
        let mut mount_id = 0;
        // SAFETY: a valid name, and a handle with the room that it says.
        let result = unsafe {
            libc::name_to_handle_at(
                fd.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if result != 0 {
            return Err(last_errno());
        }
        let len = u8::try_from(raw.len_bytes).map_err(|_| Errno::OVERFLOW)?;
        let kind = u8::try_from(raw.kind).map_err(|_| Errno::OVERFLOW)?;
        Ok(if usize::from(len) <= HANDLE_LEN {
            let bytes = *raw.bytes.first_chunk().expect("longer than that");
            Address::Handle(Handle { len, kind, bytes })
        } else {
            Address::LongHandle(Box::new(Handle { len, kind, bytes: raw.bytes }))
        })
    }

    fn open_handle(&self, kind: u8, bytes: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let len_bytes = u32::try_from(bytes.len()).expect("at most the maximum");
        let mut raw = RawHandle { len_bytes, kind: kind.into(), bytes: [0; HANDLE_LEN_MAX] };
        raw.bytes[..bytes.len()].copy_from_slice(bytes);
        let flags = i32::try_from((flags | OFlags::CLOEXEC).bits()).map_err(|_| Errno::INVAL)?;
        // SAFETY: a handle with as many bytes as it says.
        let fd =
            unsafe { libc::open_by_handle_at(self.root.as_raw_fd(), (&raw mut raw).cast(), flags) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: just opened, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// The value of an extended attribute of an inode, without room its length. Also of one that is open
/// for nothing (`O_PATH`), which fgetxattr(2) refuses.
pub(crate) fn attribute_of(fd: &OwnedFd, name: impl Arg, value: &mut [u8]) -> Result<usize, Errno> {
    /// `struct xattr_args` of linux/xattr.h.
    #[repr(C)]
    struct Arguments {
        value: u64,
        size: u32,
        flags: u32,
    }
    let name = name.into_c_str()?;
    let arguments = Arguments {
        value: value.as_mut_ptr().expose_provenance() as u64,
        size: u32::try_from(value.len()).expect("a short value"),
        flags: 0,
    };
    let link = CString::new(fd.as_raw_fd().to_string()).expect("digits");
    // SAFETY: valid strings, and a value with the room that it says.
    let result = unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            own_descriptors()?.as_raw_fd(),
            link.as_ptr(),
            0,
            name.as_ptr(),
            &raw const arguments,
            size_of::<Arguments>(),
        )
    };
    match usize::try_from(result).map_err(|_| last_errno()) {
        // Before Linux 6.13.
        Err(Errno::NOSYS) => fs::getxattr(proc_path(fd), &*name, value),
        result => result,
    }
}

/// The directory in which each of our descriptors has a link.
fn own_descriptors() -> Result<&'static OwnedFd, Errno> {
    static DIRECTORY: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = DIRECTORY.get_or_init(|| fs::open("/proc/self/fd", flags, Mode::empty()));
    opened.as_ref().map_err(|errno| *errno)
}

/// `__NR_getxattrat` of asm-generic/unistd.h, the same on every architecture since they share it.
const SYS_GETXATTRAT: libc::c_long = 464;

/// A path that leads to an open descriptor, for system calls that have no other way to one.
pub(crate) fn proc_path(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    /// Root gives it away: it is not to be what a user has put in its place.
    #[test]
    fn only_what_was_just_made_is_given_away() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root = fs::open(place.path(), flags, Mode::empty()).expect("opens");
        let lower = Lower::new(root, false, false).expect("a directory");
        let name = OsStr::new("made");
        let since = clock_gettime(ClockId::RealtimeCoarse);
        fs::mkdirat(lower.root(), name, Mode::RWXU).expect("made");
        let made = |kind, since| lower.made(lower.root(), name, kind, since).map(drop);
        assert_eq!(made(FileType::Directory, since), Ok(()));
        assert_eq!(made(FileType::Fifo, since), Err(Errno::IO), "another kind");
        let later = Timespec { tv_sec: since.tv_sec + 60, ..since };
        assert_eq!(made(FileType::Directory, later), Err(Errno::IO), "it was there before");
    }
}
