//! Which memory node this core is on, and how far another is.

use std::fs;

/// The node of the CPU that this thread runs on; 0 where there are none.
pub(crate) fn current() -> u32 {
    let cpu = rustix::thread::sched_getcpu();
    // A CPU's folder links to its node (linux `Documentation/ABI/stable/sysfs-devices-node`).
    let Ok(entries) = fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")) else { return 0 };
    entries
        .flatten()
        .find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
        .unwrap_or(0)
}

/// The distance between two nodes as the firmware gives it: 10 is none.
pub(crate) fn distance(from: u32, to: u32) -> u32 {
    let path = format!("/sys/devices/system/node/node{from}/distance");
    fs::read_to_string(path)
        .ok()
        .and_then(|text| {
            let to = usize::try_from(to).ok()?;
            text.split_whitespace().nth(to)?.parse().ok()
        })
        .unwrap_or(if from == to { 10 } else { 20 })
}
