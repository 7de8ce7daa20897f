//! What the driver needs of the world: a device that opens queue files. The kernel's, or a model's.

use std::io;
use std::os::fd::BorrowedFd;

use super::qm::{QueueInfo, Version};
use crate::doorbell::Doorbell;
use crate::region::Region;

/// A device as its attributes describe it (linux `Documentation/ABI/testing/sysfs-driver-uacce`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// `api`.
    pub(crate) api: String,
    /// `flags`, bit 0: the device takes our addresses (SVA).
    pub(crate) shared_addresses: bool,
    /// `algorithms`, a line each.
    pub(crate) algorithms: Vec<String>,
    /// `available_instances`, where the driver counts them.
    pub(crate) instances: Option<u32>,
    /// `region_mmio_size`.
    pub(crate) mmio_len_bytes: usize,
    /// `region_dus_size`.
    pub(crate) dus_len_bytes: usize,
    /// `device/numa_node`.
    pub(crate) node: Option<u32>,
    /// `isolate`: taken out of service after too many hardware errors.
    pub(crate) isolated: bool,
}

/// A device that opens queue files.
pub(crate) trait Port: Send + Sync + 'static {
    type File: QueueFile;

    /// Its name, such as `hisi_zip-0`.
    fn name(&self) -> &str;

    /// What it says of itself right now.
    fn attributes(&self) -> io::Result<Attributes>;

    /// A new queue. `ResourceBusy` when none is left.
    fn open(&self) -> io::Result<Self::File>;
}

/// One queue, open until it is dropped.
pub(crate) trait QueueFile: 'static {
    type Doorbell: Doorbell;

    /// Says what the queue is for; answers its number.
    fn set_context(&self, kind: u16) -> io::Result<u16>;

    /// Sizes, or `InvalidInput` from kernels that do not tell.
    fn info(&self) -> io::Result<QueueInfo>;

    /// Maps the queue memory.
    fn map_queues(&self, len_bytes: usize) -> io::Result<Region>;

    /// Maps the doorbell.
    fn map_doorbell(&self, len_bytes: usize, version: Version) -> io::Result<Self::Doorbell>;

    /// Lets the device take descriptors.
    fn start(&self) -> io::Result<()>;

    /// Lets the device finish what it has, and stops the queue. `Ok` does not say that it has: the
    /// kernel gives up after a while, and only logs that it did (linux `hisi_qm_stop_qp`).
    fn put(&self) -> io::Result<()>;

    /// Readable once the device has finished something after the CQ doorbell was armed.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Takes note that [`fd`](Self::fd) was readable.
    fn woken(&self);

    /// Lets the kernel follow the completions that were taken without waiting for any. It moves its
    /// own head and phase only when it is polled (linux `hisi_qm_is_q_updated`): more than a queue's
    /// length behind, it takes new completions for old ones.
    fn catch_up(&self);
}
