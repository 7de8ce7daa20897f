//! The lower directory: how an inode is found again without holding a descriptor for it.
//!
//! As root an inode is kept as a file handle (open_by_handle_at(2)), which survives renames and
//! costs no descriptor; where that is not permitted or not supported, as an `O_PATH` descriptor.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Largest file handle (MAX_HANDLE_SZ of linux/exportfs.h).
const HANDLE_LEN_MAX: usize = 128;

/// The directory that a mount is stacked on.
#[derive(Debug)]
pub(crate) struct Lower {
    root: OwnedFd,
    device: u64,
    by_handle: bool,
}

/// Where an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Descriptor(Descriptor),
    Handle(Handle),
}

/// An `O_PATH` descriptor. It pins the inode, so its number is not reused meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct Descriptor(Rc<OwnedFd>);

impl PartialEq for Descriptor {
    fn eq(&self, _: &Self) -> bool {
        // Only compared for one inode number, which a descriptor pins.
        true
    }
}

impl Eq for Descriptor {}

/// A file handle: it tells an inode from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handle {
    kind: i32,
    bytes: Box<[u8]>,
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
        let mut lower = Self { root, device, by_handle: true };
        let probe = lower.handle(lower.root.as_fd(), OsStr::new("."));
        lower.by_handle =
            probe.is_ok_and(|handle| lower.open_handle(&handle, OFlags::PATH).is_ok());
        Ok(lower)
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Attributes of `name`, and where to find it again.
    pub(crate) fn find(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<(Stat, Address), Errno> {
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_dev != self.device {
            // Another filesystem is mounted there: its inode numbers are not ours to tell apart.
            return Err(Errno::XDEV);
        }
        let address = if self.by_handle {
            Address::Handle(self.handle(parent, name)?)
        } else {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = fs::openat(parent, name, flags, Mode::empty())?;
            Address::Descriptor(Descriptor(Rc::new(fd)))
        };
        Ok((stat, address))
    }

    /// An `O_PATH` descriptor of an inode.
    pub(crate) fn path_fd(&self, address: &Address) -> Result<Rc<OwnedFd>, Errno> {
        match address {
            Address::Descriptor(Descriptor(fd)) => Ok(Rc::clone(fd)),
            Address::Handle(handle) => {
                self.open_handle(handle, OFlags::PATH | OFlags::NOFOLLOW).map(Rc::new)
            }
        }
    }

    /// Opens an inode.
    pub(crate) fn open(&self, address: &Address, flags: OFlags) -> Result<OwnedFd, Errno> {
        match address {
            Address::Descriptor(Descriptor(fd)) => {
                fs::open(proc_path(fd), flags | OFlags::CLOEXEC, Mode::empty())
            }
            Address::Handle(handle) => self.open_handle(handle, flags),
        }
    }

    fn handle(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<Handle, Errno> {
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
                0,
            )
        };
        if result != 0 {
            return Err(last_errno());
        }
        let len = (raw.len_bytes as usize).min(HANDLE_LEN_MAX);
        Ok(Handle { kind: raw.kind, bytes: raw.bytes[..len].into() })
    }

    fn open_handle(&self, handle: &Handle, flags: OFlags) -> Result<OwnedFd, Errno> {
        let len_bytes = u32::try_from(handle.bytes.len()).expect("at most the maximum");
        let mut raw = RawHandle { len_bytes, kind: handle.kind, bytes: [0; HANDLE_LEN_MAX] };
        raw.bytes[..handle.bytes.len()].copy_from_slice(&handle.bytes);
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

/// A path that leads to an open descriptor, for system calls that have no other way to one.
pub(crate) fn proc_path(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
