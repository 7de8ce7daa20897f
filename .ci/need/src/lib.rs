//! What a test needs from the machine: asked in one way, told in one way.
//!
//! A test that cannot run here says so on stderr, with the cure, and passes; under `CI=true` it
//! fails, so that nothing is skipped where it counts.

use std::io::{self, Write};
use std::path::Path;

/// Something a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A program that cargo installs under its own name.
    Crate(&'static str),
    /// `/dev/fuse`, and the right to mount.
    Fuse,
    /// FUSE over io_uring, switched on in the kernel module.
    FuseUring,
    /// The io_uring system calls.
    IoUring,
    /// Sockets of IPv6.
    Ipv6,
    /// Files as disks.
    Loop,
    /// Control groups that limit memory.
    MemoryGroup,
    /// A program of the Python package of its name.
    Pip(&'static str),
    /// User id 0.
    Root,
    /// A program on the path, and the Debian package that has it.
    Tool(&'static str, &'static str),
}

/// Whether all of `needs` are there. If not: says which and how to get it, or fails under CI.
///
/// # Panics
///
/// If something is missing and the environment says `CI=true`.
#[must_use]
pub fn need(needs: &[Need]) -> bool {
    let Some((need, cure)) = needs.iter().find_map(|need| Some((need, missing(*need)?))) else {
        return true;
    };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "this machine lacks {need:?}, which CI must have: {cure}"
    );
    skipped(&format!("needs {need:?}: {cure}"));
    false
}

/// Says that this test, or a part of it, cannot run here, whatever is installed: `why`.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    // Past the test runner, which shows what `eprintln!` says of a test only if that fails.
    let _ = writeln!(io::stderr(), "SKIPPED {name}: {why}");
}

/// The cure, if `need` is not met.
fn missing(need: Need) -> Option<String> {
    match need {
        Need::Fuse => {
            let open = std::fs::File::options().read(true).write(true).open("/dev/fuse");
            open.err().map(|error| format!("/dev/fuse: {error}; `modprobe fuse`, and run as root"))
        }
        Need::FuseUring => {
            let path = "/sys/module/fuse/parameters/enable_uring";
            let on = std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "Y");
            (!on).then(|| format!("`echo Y > {path}` (Linux 6.14 and later)"))
        }
        Need::Loop => {
            let path = "/dev/loop-control";
            let open = std::fs::File::options().read(true).write(true).open(path);
            open.err().map(|error| format!("{path}: {error}; `modprobe loop`, and run as root"))
        }
        Need::MemoryGroup => {
            let roots = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
            let procs = roots.map(|root| Path::new(root).join("cgroup.procs"));
            (!procs.iter().any(|procs| procs.exists()))
                .then(|| "`mount -t cgroup2 none /sys/fs/cgroup`".to_owned())
        }
        Need::IoUring => {
            // SAFETY: 0 entries and no parameters: fails with EINVAL or EFAULT where io_uring
            // works, and has no effect anywhere.
            unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<u8>()) };
            let error = io::Error::last_os_error();
            matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
                .then(|| "`sysctl kernel.io_uring_disabled=0`".to_owned())
        }
        Need::Ipv6 => std::net::TcpListener::bind("[::]:0")
            .err()
            .map(|error| format!("[::]: {error}; boot without `ipv6.disable=1`")),
        Need::Root => {
            // SAFETY: takes nothing, changes nothing.
            (unsafe { libc::geteuid() } != 0).then(|| "run as root".to_owned())
        }
        Need::Pip(tool) => (!is_on_path(tool)).then(|| {
            format!(
                "`python3 -m venv target/tools/python && target/tools/python/bin/pip install \
                 {tool}`, and target/tools/python/bin on the path"
            )
        }),
        Need::Crate(tool) => (!is_on_path(tool)).then(|| {
            format!("`cargo install {tool} --root target/tools`, and target/tools/bin on the path")
        }),
        Need::Tool(tool, package) => {
            (!is_on_path(tool)).then(|| format!("`apt-get install {package}`"))
        }
    }
}

fn is_on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain([Path::new("/sbin").to_owned()]);
    places.any(|place| place.join(tool).is_file())
}
