//! The model as the driver's port: what opening, ioctl, mmap and a store to the doorbell do. For
//! drivers of others, that only know files, the same as plain calls.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::ioctl::Opcode;

use super::ModelKind;
use super::qm::{Manager, dus_len_bytes};
use crate::backend::uacce::kernel::{PUT_Q, QpContext, QpInfo, SET_QP_CTX, SET_QP_INFO, START_Q};
use crate::backend::uacce::qm::{QueueInfo, Version};
use crate::backend::uacce::{Attributes, Port, QueueFile};
use crate::doorbell::Doorbell;
use crate::region::Region;

pub(super) struct ModelPort(pub(super) Arc<Manager>);

impl Port for ModelPort {
    type File = ModelFile;

    fn name(&self) -> &str {
        self.0.name()
    }

    fn attributes(&self) -> io::Result<Attributes> {
        let config = self.0.config();
        let algorithms: &[&str] = match self.0.kind() {
            ModelKind::Hpre => &["rsa", "dh"],
            ModelKind::Zip => &["zlib", "gzip", "deflate"],
        };
        Ok(Attributes {
            api: match config.version {
                Version::V1 => "hisi_qm_v1".into(),
                Version::V2 => "hisi_qm_v2".into(),
                Version::V3 => "hisi_qm_v3".into(),
            },
            shared_addresses: true,
            algorithms: algorithms.iter().map(ToString::to_string).collect(),
            instances: u32::try_from(self.0.free()).ok(),
            mmio_len_bytes: mmio_len_bytes(),
            dus_len_bytes: dus_len_bytes(self.0.sqe_words(), config.depth),
            node: None,
            isolated: self.0.is_isolated(),
        })
    }

    fn open(&self) -> io::Result<ModelFile> {
        let (number, memory, event) = self.0.open()?;
        Ok(ModelFile { manager: Arc::clone(&self.0), number, memory, event })
    }
}

fn mmio_len_bytes() -> usize {
    2 * rustix::param::page_size()
}

pub(super) struct ModelFile {
    manager: Arc<Manager>,
    number: usize,
    memory: OwnedFd,
    event: OwnedFd,
}

/// An open queue file of a model, for who stands in for the kernel: each call is what a system
/// call on `/dev/hisi_zip-0` does.
pub struct ModelQueue(pub(super) ModelFile);

impl ModelQueue {
    /// An ioctl of `uacce.h` or `hisi_qm.h`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for one that there is not, or that the queue's state or the argument does not allow,
    /// `EFAULT` without an argument, `ENXIO` after a reset.
    ///
    /// # Safety
    ///
    /// `argument` is null, or what this ioctl takes: readable, writable and aligned.
    pub unsafe fn ioctl(&self, request: u64, argument: *mut c_void) -> io::Result<()> {
        let request = Opcode::try_from(request).map_err(|_| Errno::INVAL)?;
        match request {
            START_Q => self.0.start(),
            PUT_Q => self.0.put(),
            SET_QP_CTX | SET_QP_INFO if argument.is_null() => Err(Errno::FAULT.into()),
            SET_QP_CTX => {
                // SAFETY: the caller's `struct hisi_qp_ctx`.
                let context = unsafe { &mut *argument.cast::<QpContext>() };
                context.id = self.0.set_context(context.kind)?;
                Ok(())
            }
            SET_QP_INFO => {
                let QueueInfo { sqe_len_bytes, sq_depth, cq_depth } = self.0.info()?;
                let sqe_size = u32::try_from(sqe_len_bytes).map_err(io::Error::other)?;
                let info = QpInfo { sqe_size, sq_depth, cq_depth, reserved: 0 };
                // SAFETY: the caller's `struct hisi_qp_info`.
                unsafe { argument.cast::<QpInfo>().write(info) };
                Ok(())
            }
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Length of the MMIO region: the page of the kernel's registers, and that of the doorbells.
    pub fn mmio_len_bytes(&self) -> usize {
        mmio_len_bytes()
    }

    /// The file of the queue memory (the DUS region), to be mapped shared and as a whole.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.0.memory.as_fd()
    }

    /// Length of [`memory`](Self::memory).
    pub fn memory_len_bytes(&self) -> usize {
        dus_len_bytes(self.0.manager.sqe_words(), self.0.manager.config().depth)
    }

    /// Where the doorbell is in the MMIO region.
    pub fn doorbell_offset(&self) -> usize {
        self.0.manager.config().version.doorbell_offset()
    }

    /// A store of 64 bits to the doorbell.
    ///
    /// # Safety
    ///
    /// Every descriptor up to the tail that `value` tells names memory that lives, and that nobody else uses,
    /// until the descriptor is completed or the queue has stopped: the device reads and writes it. With
    /// [`Fault::Runaway`](crate::Fault) about, for ever.
    pub unsafe fn ring(&self, value: u64) {
        self.0.manager.ring(self.0.number, value);
    }

    /// Readable once a completion came after the CQ doorbell had armed it.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    /// What `poll` of the file answers: whether completions have come since the last call.
    pub fn poll(&self) -> bool {
        self.0.manager.hear(self.0.number);
        self.0.manager.poll(self.0.number)
    }
}

impl Drop for ModelFile {
    /// Closes the file, which stops the queue.
    fn drop(&mut self) {
        self.manager.close(self.number);
    }
}

impl fmt::Debug for ModelQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelQueue").field("number", &self.0.number).finish_non_exhaustive()
    }
}

impl QueueFile for ModelFile {
    type Doorbell = ModelDoorbell;

    fn set_context(&self, kind: u16) -> io::Result<u16> {
        self.manager.set_context(self.number, kind)
    }

    fn info(&self) -> io::Result<QueueInfo> {
        self.manager.info(self.number)
    }

    fn map_queues(&self, len_bytes: usize) -> io::Result<Region> {
        Region::map(self.memory.as_fd(), 0, len_bytes)
    }

    fn map_doorbell(&self, _len_bytes: usize, _version: Version) -> io::Result<ModelDoorbell> {
        Ok(ModelDoorbell { manager: Arc::clone(&self.manager), number: self.number })
    }

    fn start(&self) -> io::Result<()> {
        self.manager.start_queue(self.number)
    }

    fn put(&self) -> io::Result<()> {
        self.manager.put(self.number)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn woken(&self) {
        self.manager.hear(self.number);
        self.manager.poll(self.number);
    }

    fn catch_up(&self) {
        self.manager.poll(self.number);
    }
}

/// A store to the doorbell is a call.
pub(super) struct ModelDoorbell {
    manager: Arc<Manager>,
    number: usize,
}

impl Doorbell for ModelDoorbell {
    fn ring(&self, value: u64) {
        // The manager's lock orders what was written before.
        self.manager.ring(self.number, value);
    }
}
