//! Work of your own on the queue: any kernel that a third party brings.
//!
//! A kernel works on *items*, each input and result in one, that lie where the caller's operations
//! put them. What was submitted together it gets together, up to its width, as the crate's own
//! kernels do.

use std::any::TypeId;
use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

use crate::error::Error;
use crate::request::{Ending, Request, Sealed, Work};
use crate::stats::Kernel;

/// A kernel. It lives as long as the process: a `static`, or leaked once.
pub trait CustomKernel: Send + Sync + 'static {
    /// What it works on: what is put in is what comes out, worked on. At most 512 bytes; what is
    /// larger goes in a `Box`.
    type Item: Send + 'static;

    /// Its name in the counters.
    fn name(&self) -> &'static str;

    /// The most items it takes at a time: the lanes of a vector, the rows of a tile.
    fn width(&self) -> usize {
        1
    }

    /// How long an item waits for others to fill the width, while its core is busy with other
    /// things. It never waits on a core that is idle.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    /// Works on some items: at least one, at most the width. Nothing else runs on this core
    /// meanwhile.
    ///
    /// A panic ends these items' operations in [`Error::Panicked`].
    fn run(&self, items: &mut [&mut Self::Item]);
}

/// Let `kernel` work on `item`.
#[derive(Debug)]
pub struct Call<K: CustomKernel> {
    /// Which.
    pub kernel: &'static K,
    /// On what.
    pub item: K::Item,
}

/// A finished [`Call`].
#[derive(Debug, Clone)]
pub struct Called<T> {
    /// Whether the kernel has worked on it.
    pub result: Result<(), Error>,
    /// The item, as the kernel left it.
    pub item: T,
}

/// A kernel whose items' type was forgotten.
pub(crate) trait AnyKernel: Send + Sync {
    /// Of the kernel: those without fields may share an address.
    fn type_id(&self) -> TypeId;
    fn name(&self) -> &'static str;
    fn width(&self) -> usize;
    fn patience(&self) -> Duration;

    /// # Safety
    ///
    /// Each is an item of this kernel's, which is alive and touched by nobody else.
    unsafe fn run_erased(&self, items: &mut [Item]);
}

impl<K: CustomKernel> AnyKernel for K {
    fn type_id(&self) -> TypeId {
        TypeId::of::<K>()
    }

    fn name(&self) -> &'static str {
        CustomKernel::name(self)
    }

    fn width(&self) -> usize {
        CustomKernel::width(self).max(1)
    }

    fn patience(&self) -> Duration {
        CustomKernel::patience(self)
    }

    unsafe fn run_erased(&self, items: &mut [Item]) {
        // SAFETY: a pointer to a sized type and a reference to it are laid out alike; what they
        // point to is as the caller promises.
        let items = unsafe {
            std::slice::from_raw_parts_mut(items.as_mut_ptr().cast::<&mut K::Item>(), items.len())
        };
        self.run(items);
    }
}

impl<K: CustomKernel> Sealed for Call<K> {}

impl<K: CustomKernel> Request for Call<K> {
    type Output = Called<K::Item>;

    fn kernel(&self) -> Kernel {
        Kernel::Custom
    }

    fn describe(&mut self) -> Work {
        Work::Call(CallSpan {
            kernel: self.kernel,
            item: Item(NonNull::from(&mut self.item).cast()),
        })
    }

    fn finish(self, ending: Ending) -> Called<K::Item> {
        let result = match ending {
            Ending::Done(result) => result.map(drop),
            // No device does this.
            Ending::Stranded => Err(Error::DeviceLost),
        };
        Called { result, item: self.item }
    }
}

/// Which kernel works on what; the slot that names the item owns it.
pub struct CallSpan {
    pub(crate) kernel: &'static dyn AnyKernel,
    item: Item,
}

/// Where an item of a forgotten type lies.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Item(NonNull<()>);

// SAFETY: items are `Send`; who follows the address promises what `run_erased` asks for.
unsafe impl Send for Item {}

impl CallSpan {
    pub(crate) fn item(&self) -> Item {
        self.item
    }
}

impl fmt::Debug for CallSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallSpan").field("kernel", &self.kernel.name()).finish_non_exhaustive()
    }
}
