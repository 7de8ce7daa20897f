//! What does the work: one folder each, and one row in [`discover`].
//!
//! ```text
//!   Accelerator   a device of the process, shared by its cores: what it does, why it is not used
//!     └─ Backend  one queue's share of it: descriptors out, results in
//! ```
//!
//! Software is not among them: it does not go away and has no queue of its own, so that the queue
//! calls it directly (`software::Software`). A device is asked first, in the order of
//! [`Devices`]; what none of them takes, or has room for, software does.

#[cfg(test)]
mod conformance;
mod model;
mod node;
mod software;
mod uacce;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use model::{Fault, Faults, Model, ModelKind, ModelQueue};
pub(crate) use software::{Job, Software};

use self::uacce::{Kernel, Uacce};
use crate::batch::Token;
use crate::codec::Codec;
use crate::error::Error;
use crate::request::Work;

/// A request that a device has not answered for so long is taken from it.
const DEADLINE: Duration = Duration::from_secs(5);

/// A backend as `warpcore devices` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// Name of the backend or device.
    pub name: String,
    /// What it does, one line each.
    pub does: Vec<String>,
    /// Whether it is used here, and if not, why not.
    pub state: State,
}

/// Whether a device is used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It is there and could be used; it is, if it is selected.
    Ready {
        /// Its queues, for people.
        queues: String,
    },
    /// It is not there, or not fit for use.
    Unusable {
        /// The reason.
        why: String,
    },
    /// It does what nobody else does.
    Used,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { queues } => write!(f, "usable; {queues}"),
            Self::Unusable { why } => write!(f, "not used: {why}"),
            Self::Used => f.write_str("used"),
        }
    }
}

/// A device of this process.
pub(crate) trait Accelerator: Send + Sync {
    /// What it is and does, as of now.
    fn device(&self) -> Device;

    /// Whether it compresses this way.
    fn compresses(&self, codec: Codec) -> bool;

    /// Whether it makes RSA signatures.
    fn signs(&self) -> bool;

    /// How far it is from a memory node and how busy: the smallest is asked first.
    fn distance(&self, node: u32) -> (u32, u32);

    /// The share of one queue with `depth` tokens. None if the device cannot be used.
    fn share(
        self: Arc<Self>,
        depth: usize,
        epoll: &Rc<OwnedFd>,
        deadline: Duration,
    ) -> Option<Box<dyn Backend>>;
}

/// One queue's share of a device.
pub(crate) trait Backend {
    /// Hands `work` to the device, if it does such work; [`ring`](Self::ring) lets it know.
    ///
    /// # Safety
    ///
    /// If the answer is [`Submitted::InFlight`], what `work` names stays as it is and is touched by
    /// nobody else until [`reap`](Self::reap) or [`close`](Self::close) has named `token`.
    unsafe fn submit(&mut self, token: Token, work: &Work, now: Instant) -> Submitted;

    /// One doorbell for everything submitted since the last.
    fn ring(&mut self);

    /// Appends what has ended.
    fn reap(&mut self, now: Instant, ended: &mut Vec<(Token, Ended)>);

    /// A look for completions that were not reaped.
    fn has_news(&self) -> bool;

    /// Makes sure that the next completion wakes the owner. False: do not sleep, reap.
    fn prepare_park(&mut self) -> bool;

    /// When the oldest request in flight will have waited too long.
    fn deadline(&self) -> Option<Instant>;

    /// Stops the device and appends everything that was in flight.
    fn close(&mut self, ended: &mut Vec<(Token, Ended)>);
}

/// What became of a request that was handed to a device.
#[derive(Debug)]
pub(crate) enum Submitted {
    /// It needed no device.
    Done(Result<usize, Error>),
    /// The device has no room right now.
    Full,
    /// It is the device's until it ends.
    InFlight,
    /// The device is out of service right now.
    Unavailable,
    /// The device cannot do this one.
    Unfit,
}

/// How a request in flight ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With this result.
    Done(Result<usize, Error>),
    /// Without one, and the device has let go of the caller's memory, or never had it.
    Redo,
    /// Without one, and the device may write to its target for ever.
    Stranded,
}

/// Which devices a program uses, in the order in which they are asked.
///
/// Clones share the devices: give one to each core's [`Queue`](crate::Queue).
#[derive(Clone)]
pub struct Devices {
    accelerators: Arc<[Arc<dyn Accelerator>]>,
    pub(crate) deadline: Duration,
}

impl Devices {
    /// None: software does everything.
    pub fn none() -> Self {
        Self::of(Vec::new())
    }

    /// Whether a selected device compresses this way.
    pub fn compresses(&self, codec: Codec) -> bool {
        self.accelerators.iter().any(|accelerator| accelerator.compresses(codec))
    }

    /// Whether a selected device signs.
    pub fn signs(&self) -> bool {
        self.accelerators.iter().any(|accelerator| accelerator.signs())
    }

    /// What is selected by the environment variable `WARPCORE_DEVICES` (see
    /// [`select`](Self::select)), or else every device of this machine that can be used.
    pub fn from_environment() -> Result<Self, SelectError> {
        match std::env::var("WARPCORE_DEVICES") {
            Ok(names) => Self::select(&names),
            Err(std::env::VarError::NotPresent) => Ok(Self::of(usable()?)),
            Err(std::env::VarError::NotUnicode(names)) => {
                Err(SelectError::Unknown { name: names.to_string_lossy().into_owned() })
            }
        }
    }

    /// Devices by name, separated by commas:
    ///
    /// - `software`: none but software, whatever the machine has;
    /// - `hisi_zip-0`: this one;
    /// - `uacce`: every one that can be used, of which there has to be one;
    /// - `model:zip`, `model:hpre`, `model`: a model of one in a thread, or of both.
    pub fn select(names: &str) -> Result<Self, SelectError> {
        let mut accelerators: Vec<Arc<dyn Accelerator>> = Vec::new();
        for name in names.split(',').map(str::trim) {
            match name {
                "software" => {}
                "model" => {
                    accelerators.push(Model::new(ModelKind::Zip).start().accelerator());
                    accelerators.push(Model::new(ModelKind::Hpre).start().accelerator());
                }
                "model:hpre" => {
                    accelerators.push(Model::new(ModelKind::Hpre).start().accelerator());
                }
                "model:zip" => accelerators.push(Model::new(ModelKind::Zip).start().accelerator()),
                "uacce" => match usable()? {
                    none if none.is_empty() => {
                        let why =
                            "no device of this machine is ready; `warpcore devices` lists them";
                        let (name, why) = (name.to_owned(), why.to_owned());
                        return Err(SelectError::Unusable { name, why });
                    }
                    usable => accelerators.extend(usable),
                },
                name => {
                    let found = discover()?
                        .into_iter()
                        .find(|accelerator| accelerator.device().name == name)
                        .ok_or_else(|| SelectError::Unknown { name: name.to_owned() })?;
                    if let State::Unusable { why } = found.device().state {
                        return Err(SelectError::Unusable { name: name.to_owned(), why });
                    }
                    accelerators.push(found);
                }
            }
        }
        Ok(Self::of(accelerators))
    }

    /// These models, in this order.
    pub fn models<'a>(models: impl IntoIterator<Item = &'a Model>) -> Self {
        Self::of(models.into_iter().map(Model::accelerator).collect())
    }

    /// A request that a device has not answered for so long is taken from it, and the device is
    /// taken to have failed. 5 s unless told.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// No device is selected.
    pub fn is_empty(&self) -> bool {
        self.accelerators.is_empty()
    }

    /// The selected devices as they stand.
    pub fn list(&self) -> Vec<Device> {
        self.accelerators.iter().map(|accelerator| accelerator.device()).collect()
    }

    fn of(accelerators: Vec<Arc<dyn Accelerator>>) -> Self {
        Self { accelerators: accelerators.into(), deadline: DEADLINE }
    }

    /// A queue's share of each, the nearest and least busy first.
    pub(crate) fn shares(&self, depth: usize, epoll: &Rc<OwnedFd>) -> Vec<Box<dyn Backend>> {
        let node = node::current();
        let mut accelerators = self.accelerators.to_vec();
        accelerators.sort_by_cached_key(|accelerator| accelerator.distance(node));
        accelerators
            .into_iter()
            .filter_map(|accelerator| accelerator.share(depth, epoll, self.deadline))
            .collect()
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.list().into_iter().map(|device| device.name);
        f.debug_list().entries(names).finish()
    }
}

/// Why devices could not be selected.
#[derive(Debug)]
#[non_exhaustive]
pub enum SelectError {
    /// The kernel's list of devices could not be read.
    Discovery(std::io::Error),
    /// There is no device of this name.
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The device is there and cannot be used.
    Unusable {
        /// The name asked for.
        name: String,
        /// The reason.
        why: String,
    },
}

impl fmt::Display for SelectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discovery(error) => write!(f, "cannot read {}: {error}", uacce::CLASS),
            Self::Unknown { name } => write!(
                f,
                "no accelerator is called '{name}' here; `warpcore devices` lists them, and there \
                 are always: software, model, model:zip, model:hpre"
            ),
            Self::Unusable { name, why } => write!(f, "{name} cannot be used: {why}"),
        }
    }
}

impl std::error::Error for SelectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Discovery(error) => Some(error),
            Self::Unknown { .. } | Self::Unusable { .. } => None,
        }
    }
}

/// Every hardware device of this machine, fit for use or not. A row per kind of backend.
fn discover() -> Result<Vec<Arc<dyn Accelerator>>, SelectError> {
    let uacce = Kernel::list(Path::new(uacce::CLASS), Path::new("/dev"));
    let uacce = uacce.map_err(SelectError::Discovery)?;
    Ok(uacce.into_iter().map(|port| Uacce::new(port) as Arc<dyn Accelerator>).collect())
}

/// Those that can be used.
fn usable() -> Result<Vec<Arc<dyn Accelerator>>, SelectError> {
    let mut devices = discover()?;
    devices.retain(|accelerator| matches!(accelerator.device().state, State::Ready { .. }));
    Ok(devices)
}

/// Every backend of this build, and what it does on this machine, or why it is not used.
pub fn devices() -> Result<Vec<Device>, SelectError> {
    let mut devices = vec![software::device()];
    let found = discover()?;
    if found.is_empty() {
        devices.push(Device {
            name: "uacce".into(),
            does: vec!["Kunpeng ZIP and HPRE".into()],
            state: State::Unusable {
                why: format!("the kernel lists no device in {}", uacce::CLASS),
            },
        });
    }
    devices.extend(found.iter().map(|accelerator| accelerator.device()));
    Ok(devices)
}
