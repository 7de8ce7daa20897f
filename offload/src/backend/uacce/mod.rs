//! Kunpeng accelerators (ZIP and HPRE) through Linux' uacce: queues as files, pointers as they are.
//!
//! ```text
//!   Share (per core)   requests <-> descriptors: zip.rs, hpre.rs, sgl.rs
//!     └─ Pair          SQ, CQ, doorbell of one open queue file: pair.rs, on qm.rs
//!          └─ Port     the kernel's devices (kernel.rs), or a model of them
//! ```
//!
//! Only devices that share our address space (SVA: the kernel's `UACCE_DEV_SVA`) are used:
//! descriptors name the caller's memory itself, nothing is copied or pinned. The driver has run
//! against the [model](crate::Model) only, never on silicon.

mod hpre;
pub(crate) mod kernel;
mod pair;
mod port;
pub(crate) mod qm;
mod sgl;
mod share;
mod zip;

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(crate) use kernel::{CLASS, Kernel};
pub(crate) use port::{Attributes, Port, QueueFile};

use self::hpre::Hpre;
use self::pair::Pair;
use self::qm::Version;
use self::share::Share;
use self::zip::Zip;
use super::{Accelerator, Backend, Device, State};
use crate::codec::Codec;

/// A device behind a port.
pub(crate) struct Uacce<P: Port> {
    port: P,
    /// Tells devices apart, also ones of the same name.
    id: u64,
}

/// What a device is, by its algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hpre,
    Zip,
}

impl<P: Port> Uacce<P> {
    pub(crate) fn new(port: P) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only that each is another matters.
        Arc::new(Self { port, id: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    pub(crate) fn name(&self) -> &str {
        self.port.name()
    }

    /// What the device is and says, or why it cannot be used.
    fn check(&self) -> Result<(Kind, Version, Attributes), String> {
        let attributes = self
            .port
            .attributes()
            .map_err(|error| format!("its attributes cannot be read: {error}"))?;
        let Some(version) = Version::from_api(&attributes.api) else {
            return Err(format!("its interface '{}' is not known here", attributes.api));
        };
        let has = |name: &str| attributes.algorithms.iter().any(|algorithm| algorithm == name);
        let kind = if has("rsa") {
            Kind::Hpre
        } else if !zip::codecs(&attributes.algorithms).is_empty() {
            Kind::Zip
        } else {
            return Err(format!(
                "nothing of what it does is used: {}",
                attributes.algorithms.join(", ")
            ));
        };
        if !attributes.shared_addresses {
            return Err("it does not share our addresses (SVA is off in its flags): \
                        data would have to be copied; switch on the IOMMU and SVA"
                .into());
        }
        if attributes.isolated {
            return Err("the kernel has isolated it after too many hardware errors".into());
        }
        Ok((kind, version, attributes))
    }

    fn open_pair(&self, kind: u16, sqe_words: usize, epoll: &OwnedFd) -> io::Result<Pair<P::File>> {
        let (_, version, attributes) = self.check().map_err(io::Error::other)?;
        let pair = Pair::open(&self.port, &attributes, version, kind, sqe_words)?;
        share::watch(epoll, pair.file())?;
        Ok(pair)
    }
}

impl<P: Port> Accelerator for Uacce<P> {
    fn device(&self) -> Device {
        let (does, state) = match self.check() {
            Ok((kind, _, attributes)) => {
                let does = match kind {
                    Kind::Hpre => vec!["RSA-1024 to RSA-4096: sign, raw private and public".into()],
                    Kind::Zip => {
                        let codecs = zip::codecs(&attributes.algorithms);
                        let names: Vec<_> = codecs.iter().map(ToString::to_string).collect();
                        vec![format!("compress, decompress: {}", names.join(", "))]
                    }
                };
                let queues = attributes.instances.map_or_else(
                    || "free queues not counted".into(),
                    |instances| format!("{instances} free queues"),
                );
                (does, State::Ready { queues: format!("{}, {queues}", attributes.api) })
            }
            Err(why) => (Vec::new(), State::Unusable { why }),
        };
        Device { name: self.name().to_owned(), does, state }
    }

    fn compresses(&self, codec: Codec) -> bool {
        self.check().is_ok_and(|(kind, _, attributes)| {
            kind == Kind::Zip && zip::codecs(&attributes.algorithms).contains(&codec)
        })
    }

    fn signs(&self) -> bool {
        self.check().is_ok_and(|(kind, ..)| kind == Kind::Hpre)
    }

    fn distance(&self, node: u32) -> (u32, u32) {
        self.port.attributes().map_or((u32::MAX, u32::MAX), |attributes| {
            let distance = attributes.node.map_or(0, |device| super::node::distance(node, device));
            (distance, u32::MAX - attributes.instances.unwrap_or(0))
        })
    }

    fn share(
        self: Arc<Self>,
        depth: usize,
        epoll: &Rc<OwnedFd>,
        deadline: Duration,
    ) -> Option<Box<dyn Backend>> {
        let (kind, version, attributes) = match self.check() {
            Ok(checked) => checked,
            Err(why) => {
                tracing::warn!("{} is not used: {why}", self.name());
                return None;
            }
        };
        let epoll = Rc::clone(epoll);
        Some(match kind {
            Kind::Hpre => Box::new(Share::new(self, Hpre::new(depth), depth, epoll, deadline)),
            Kind::Zip => {
                let zip = Zip::new(self.id, version, &attributes.algorithms, depth);
                Box::new(Share::new(self, zip, depth, epoll, deadline))
            }
        })
    }
}
