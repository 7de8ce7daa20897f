//! A Kunpeng ZIP and HPRE for programs that know nothing of us, by `LD_PRELOAD`.
//!
//! A program written for uacce, such as one that uses UADK, finds `/dev/hisi_zip-0` and
//! `/dev/hisi_hpre-0` and runs unmodified; behind them is the model of `warpcore-offload`, in the
//! same process, so that it shares the program's addresses as a device with SVA does.
//!
//! ```text
//!   calls.rs   the system calls that the program makes by way of the C library: ours, or passed on
//!   next.rs    the C library's own
//!   files.rs   sysfs and the device nodes, as plain files in a temporary folder
//!   queues.rs  open queue files
//!   trap.rs    stores to the doorbell: a page that cannot be written, and a SIGSEGV handler
//! ```
//!
//! The environment says what the devices are: `WARPCORE_MODEL_API` (`v1`, `v2`, `v3`),
//! `WARPCORE_MODEL_INSTANCES` (queues of each), `WARPCORE_MODEL_FAULTS` (`SEED:PER_MILLE`: so many
//! descriptors go wrong, as the seed says).
//!
//! Not covered: statically linked programs, system calls made without the C library, epoll and
//! select on queue files (`poll` and `ppoll` are), duplicates of their descriptors, doorbells rung
//! by anything but a 64-bit `mov`, `movnti` or `xchg`, and children without `exec`.
//!
//! Stores to the doorbell are decoded for x86-64, on Linux; elsewhere it is an empty library.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[cfg_attr(test, allow(dead_code, reason = "tests do not stand in front of their own C library"))]
mod calls;
#[cfg_attr(test, allow(dead_code, reason = "as above"))]
mod files;
#[cfg_attr(test, allow(dead_code, reason = "as above"))]
mod next;
#[cfg_attr(test, allow(dead_code, reason = "as above"))]
mod queues;
#[cfg_attr(test, allow(dead_code, reason = "as above"))]
mod trap;
