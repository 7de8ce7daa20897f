//! The model as the driver's port: what opening, ioctl, mmap and a store to the doorbell do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::ModelKind;
use super::qm::{Manager, dus_len_bytes};
use crate::backend::uacce::qm::{QueueInfo, Version};
use crate::backend::uacce::{Attributes, Port, QueueFile, StillRunning};
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
            mmio_len_bytes: 2 * rustix::param::page_size(),
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

pub(super) struct ModelFile {
    manager: Arc<Manager>,
    number: usize,
    memory: OwnedFd,
    event: OwnedFd,
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
    }

    fn close(self) -> Result<(), StillRunning> {
        if self.manager.close(self.number) { Ok(()) } else { Err(StillRunning) }
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
