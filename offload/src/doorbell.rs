//! The one store that announces new descriptors to a device.

use crate::region::Region;

/// A device register that takes 64 bits.
///
/// Everything the caller wrote to memory before is seen by the device when it acts on the store.
pub(crate) trait Doorbell {
    /// Stores `value`.
    fn ring(&self, value: u64);
}

/// A register in mapped device memory.
#[derive(Debug)]
pub(crate) struct Mmio {
    region: Region,
    offset: usize,
}

impl Mmio {
    /// The register at `offset` of `region`.
    pub(crate) fn new(region: Region, offset: usize) -> Self {
        assert!(offset + 8 <= region.len_bytes(), "the register lies outside the region");
        Self { region, offset }
    }
}

impl Doorbell for Mmio {
    fn ring(&self, value: u64) {
        order_before_device();
        self.region.write_register(self.offset, value);
    }
}

/// Orders the writes to memory so far before a store to a device.
///
/// An atomic fence is not enough on Arm: it becomes `dmb ish`, which orders what other CPUs of the
/// inner shareable domain see, while a device is outside of it; the kernel's `wmb()`, which its
/// `writeq` implies, is `dsb st` (linux `arch/arm64/include/asm/barrier.h`). Not proven: no such
/// machine was at hand.
#[cfg(target_arch = "aarch64")]
fn order_before_device() {
    // SAFETY: a barrier has no effect but order.
    unsafe { std::arch::asm!("dsb st", options(nostack, preserves_flags)) };
}

/// On x86 stores to write-back memory are not passed by a later store to uncached memory; the
/// fence keeps the compiler from moving them and the CPU from holding write-combined ones back.
#[cfg(not(target_arch = "aarch64"))]
fn order_before_device() {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// Orders reads after a flag that the device wrote behind them: the kernel's `dma_rmb()`. The
/// caller read the flag with `Acquire`, which is enough among CPUs, and on x86 for devices too.
pub(crate) fn order_after_device() {
    // SAFETY: a barrier has no effect but order.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
}
