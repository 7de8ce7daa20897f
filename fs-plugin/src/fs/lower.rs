//! The lower directory: how an inode is found again without holding a descriptor for it.
//!
//! As root an inode is kept as a file handle (open_by_handle_at(2)), which survives renames and
//! costs no descriptor; where that is not permitted or not supported, as an `O_PATH` descriptor.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;

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
}

/// Where an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Descriptor(Descriptor),
    Handle(Handle),
    /// Of a filesystem with long handles.
    LongHandle(Box<Handle<HANDLE_LEN_MAX>>),
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
    pub(crate) fn new(root: OwnedFd) -> Result<Self, Errno> {
        let device = fs::fstat(&root)?.st_dev;
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let mut lower = Self { root, device, by_handle: true, owner };
        let probe = lower.handle(lower.root.as_fd(), OsStr::new("."));
        lower.by_handle = probe.is_ok_and(|handle| lower.open(&handle, OFlags::PATH).is_ok());
        Ok(lower)
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(crate) fn owner(&self) -> (u32, u32) {
        self.owner
    }

    /// Attributes of `name`, and where to find it again. An empty name is `parent` itself.
    pub(crate) fn find(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<(Stat, Address), Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        let stat = fs::statat(parent, name, flags)?;
        if stat.st_dev != self.device {
            // Another filesystem is mounted there: its inode numbers are not ours to tell apart.
            return Err(Errno::XDEV);
        }
        let address = if self.by_handle {
            self.handle(parent, name)?
        } else {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let fd = if name.is_empty() {
                fs::open(proc_path(&parent), flags, Mode::empty())?
            } else {
                fs::openat(parent, name, flags | OFlags::NOFOLLOW, Mode::empty())?
            };
            Address::Descriptor(Descriptor(Arc::new(fd)))
        };
        Ok((stat, address))
    }

    /// An `O_PATH` descriptor of an inode.
    pub(crate) fn path_fd(&self, address: &Address) -> Result<Arc<OwnedFd>, Errno> {
        match address {
            Address::Descriptor(Descriptor(fd)) => Ok(Arc::clone(fd)),
            _ => self.open(address, OFlags::PATH | OFlags::NOFOLLOW).map(Arc::new),
        }
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

    fn handle(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<Address, Errno> {
        let name = std::ffi::CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
        let room = u32::try_from(HANDLE_LEN_MAX).expect("small");
        let mut raw = RawHandle { len_bytes: room, kind: 0, bytes: [0; HANDLE_LEN_MAX] };
        let mut mount_id = 0;
        // SAFETY: a valid name, and a handle with the room that it says.
        let result = unsafe {
            libc::name_to_handle_at(
                parent.as_raw_fd(),
                name.as_ptr(),
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

/// The value of an extended attribute of an inode, without room its length.
pub(crate) fn attribute_of(fd: &OwnedFd, name: impl Arg, value: &mut [u8]) -> Result<usize, Errno> {
    let name = name.into_c_str()?;
    match fs::fgetxattr(fd, &*name, &mut *value) {
        // Open for nothing (`O_PATH`).
        Err(Errno::BADF) => fs::getxattr(proc_path(fd), &*name, value),
        result => result,
    }
}

/// The value of an extended attribute of `name` in `parent`, as far as it fits; None if it has none,
/// or can have none.
pub(crate) fn attribute_at(
    parent: BorrowedFd<'_>,
    name: &CStr,
    attribute: &CStr,
    value: &mut [u8],
) -> Result<Option<usize>, Errno> {
    /// `struct xattr_args` of linux/xattr.h.
    #[repr(C)]
    struct Arguments {
        value: u64,
        size: u32,
        flags: u32,
    }
    let arguments = Arguments {
        value: value.as_mut_ptr().expose_provenance() as u64,
        size: u32::try_from(value.len()).expect("a short value"),
        flags: 0,
    };
    // SAFETY: valid strings, and a value with the room that it says.
    let result = unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            parent.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            attribute.as_ptr(),
            &raw const arguments,
            size_of::<Arguments>(),
        )
    };
    let result = usize::try_from(result).map_err(|_| last_errno());
    // Before Linux 6.13.
    let result = if result == Err(Errno::NOSYS) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(parent, name, flags, Mode::empty())?;
        fs::getxattr(proc_path(&fd), attribute, value)
    } else {
        result
    };
    match result {
        Ok(len) => Ok(Some(len)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
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
