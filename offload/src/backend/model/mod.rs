//! A device in software, faithful to the wire: queue manager, ZIP and HPRE at the level of uacce.
//!
//! The driver cannot tell it from a card: it opens queue files, maps queues, rings doorbells, and
//! finds descriptors worked on and completions with their phase. Deflate is flate2's and numbers
//! are num-bigint's, none of it our kernels, so that one mistake cannot hide on both sides.
//!
//! ```text
//!   qm.rs     queue files, doorbells, completions, stop and reset    file.rs   the port to it
//!   zip.rs    deflate, zlib, gzip                                    fault.rs  what goes wrong
//!   hpre.rs   powers of numbers
//! ```
//!
//! A model works in a thread of its own ([`Model::start`]) or when it is told to
//! ([`Model::step`]), and misbehaves as a seed says ([`Model::faults`]).
//!
//! It is not a card in these points: a stream's state is kept beside the stream's memory, which
//! only names it; timing is the CPU's; and numbers of errors are ours where no public source has
//! the device's.

mod fault;
mod file;
mod hpre;
mod qm;
mod zip;

use std::fmt;
use std::io;
use std::sync::Arc;

pub use fault::{Fault, Faults};
pub use file::ModelQueue;

use super::Accelerator;
use super::uacce::qm::Version;
use super::uacce::{Port, Uacce};
use file::ModelPort;
use qm::Manager;

/// Which engine a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// RSA.
    Hpre,
    /// Compression.
    Zip,
}

/// A model of a device. Clones are the same device.
#[derive(Clone)]
pub struct Model {
    manager: Arc<Manager>,
}

impl Model {
    /// A device of queue manager version 3 with 64 queues, that waits to be stepped.
    pub fn new(kind: ModelKind) -> Self {
        Self { manager: Manager::new(kind) }
    }

    /// With the interface of queue manager 1, 2 or 3; others are taken for 3.
    #[must_use]
    pub fn version(self, version: u8) -> Self {
        self.manager.configure(|config| {
            config.version = match version {
                1 => Version::V1,
                2 => Version::V2,
                _ => Version::V3,
            };
        });
        self
    }

    /// With `instances` queues, 1,024 at most.
    #[must_use]
    pub fn instances(self, instances: usize) -> Self {
        self.manager.configure(|config| config.instances = instances.min(1024));
        self
    }

    /// With queues of `depth` entries, at least 2.
    #[must_use]
    pub fn depth(self, depth: u16) -> Self {
        self.manager.configure(|config| config.depth = depth.max(2));
        self
    }

    /// As a kernel before 5.18: it does not tell the size of its queues, which have 1,024 entries,
    /// and after `PUT_Q` a queue cannot be started again.
    #[must_use]
    pub fn old_kernel(self) -> Self {
        self.manager.configure(|config| {
            config.old_kernel = true;
            config.depth = super::uacce::qm::DEPTH_DEFAULT;
        });
        self
    }

    /// Misbehaving in this way from now on.
    #[must_use]
    pub fn faults(self, faults: Faults) -> Self {
        self.manager.misbehave(faults);
        self
    }

    /// Working in a thread of its own, until the last clone, device and queue file is gone.
    #[must_use]
    pub fn start(self) -> Self {
        Manager::start(&self.manager);
        self
    }

    /// Opens a queue file, for a driver that is not ours.
    ///
    /// # Errors
    ///
    /// `EBUSY` when every queue is open; what making a memory file or an event may fail with.
    pub fn open(&self) -> io::Result<ModelQueue> {
        ModelPort(Arc::clone(&self.manager)).open().map(ModelQueue)
    }

    /// Its attributes as the kernel shows them: names and texts of the files in
    /// `/sys/class/uacce/hisi_zip-0`.
    ///
    /// # Errors
    ///
    /// None now; a device of the kernel's may refuse.
    pub fn attributes(&self) -> io::Result<Vec<(&'static str, String)>> {
        let attributes = ModelPort(Arc::clone(&self.manager)).attributes()?;
        Ok(vec![
            ("api", attributes.api),
            ("flags", u32::from(attributes.shared_addresses).to_string()),
            ("algorithms", attributes.algorithms.join("\n")),
            ("available_instances", attributes.instances.unwrap_or(0).to_string()),
            ("region_mmio_size", attributes.mmio_len_bytes.to_string()),
            ("region_dus_size", attributes.dus_len_bytes.to_string()),
            ("isolate", u32::from(attributes.isolated).to_string()),
            ("isolate_strategy", "0".to_owned()),
            ("device/numa_node", "-1".to_owned()),
        ])
    }

    /// Works on one descriptor, or lets time pass for those that are late. False: nothing to do.
    pub fn step(&self) -> bool {
        self.manager.step()
    }

    /// Resets the device as a driver does after an error: what is in flight is lost, queue files
    /// are dead, and new ones can be opened.
    pub fn reset(&self) {
        self.manager.reset();
    }

    /// Takes the device out of service, or puts it back.
    pub fn isolate(&self, isolated: bool) {
        self.manager.isolate(isolated);
    }

    /// Whether the device may still write to any of these bytes.
    pub fn may_write(&self, bytes: &[u8]) -> bool {
        let start = bytes.as_ptr() as u64;
        self.manager.may_write(start, start + bytes.len() as u64)
    }

    /// Open queue files.
    pub fn open_queues(&self) -> usize {
        self.manager.open_queues()
    }

    /// Descriptors completed, of any result.
    pub fn completed(&self) -> u64 {
        self.manager.completed()
    }

    pub(super) fn accelerator(&self) -> Arc<dyn Accelerator> {
        Uacce::new(ModelPort(Arc::clone(&self.manager)))
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Model").field(&self.manager.name()).finish()
    }
}
