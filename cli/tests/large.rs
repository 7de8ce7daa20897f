//! Many names, large files: a million and more than there is memory.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{MOUNT, Place, seeds, tool, warpcore};
use rustix::fs::Dir;
use warpcore_need::{Need, need};

/// They are listed once each, a position leads to where it was taken, and each inode that the kernel
/// knows takes 100 bytes at most.
#[test]
fn a_directory_of_many_names() {
    if !(need(&MOUNT) && need(&[Need::FuseUring])) {
        return;
    }
    let names = if seeds() > 1 { 1_000_000 } else { 20_000 };
    let place = Place::new();
    for name in 0..names {
        File::create(place.source.join(name.to_string())).expect("creates");
    }
    let mounted = place.mount(&[]);
    let list = || {
        let directory = File::open(&place.target).expect("opens");
        Dir::read_from(directory).expect("a directory")
    };
    let mut seen = vec![false; names];
    // Each a thousandth name, and the position behind the one before it.
    let mut places = Vec::new();
    let mut position = 0;
    for (nth, entry) in list().map(|entry| entry.expect("an entry")).enumerate() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if nth % (names / 1000) == 1 {
            places.push((position, name.clone()));
        }
        position = entry.offset();
        if let Ok(number) = name.parse::<usize>() {
            assert!(!std::mem::replace(&mut seen[number], true), "{number} twice");
        }
    }
    assert!(seen.into_iter().all(|seen| seen), "one is missing");
    let mut directory = list();
    for (position, name) in places.iter().rev() {
        directory.seek(*position).expect("seeks");
        let found = directory.next().expect("not the end").expect("an entry");
        assert_eq!(found.file_name().to_string_lossy(), *name);
    }
    drop(directory);
    let before = mounted.resident();
    for name in 0..names {
        fs::symlink_metadata(place.target.join(name.to_string())).expect("there");
    }
    let growth = mounted.resident().saturating_sub(before);
    // Tables double, and buffers are warmed.
    assert!(growth <= 100 * names as u64 + (4 << 20), "{growth} bytes for {names} inodes");
    mounted.unmount();
}

/// Eight terabytes of nothing, with something at both ends and in the middle.
#[test]
fn a_sparse_file() {
    const LEN: u64 = 8 << 40;
    if !need(&MOUNT) {
        return;
    }
    let place = Place::new();
    let ends = [0, LEN / 2 + 12_345, LEN - 5];
    let mounted = place.mount(&[]);
    let path = place.target.join("sparse");
    let file = File::create(&path).expect("creates");
    for offset in ends {
        file.write_all_at(b"bytes", offset).expect("writes");
    }
    drop(file);
    mounted.unmount();
    let mounted = place.mount(&["writethrough"]);
    let file = File::open(&path).expect("opens");
    let mut found = [1; 10];
    for offset in ends {
        file.read_exact_at(&mut found[..5], offset).expect("reads");
        assert_eq!(&found[..5], b"bytes");
        file.read_exact_at(&mut found, offset / 3 * 2 + 4096).expect("reads");
        assert_eq!(found, [0; 10]);
    }
    let metadata = fs::metadata(&path).expect("there");
    assert!(metadata.len() == LEN && metadata.blocks() * 512 < 1 << 20, "{metadata:?}");
    drop(file);
    // Holes stay holes.
    let copy = place.target.join("copy");
    tool("cp", &["--sparse=auto", "sparse", "copy"], &place.target);
    let metadata = fs::metadata(copy).expect("there");
    assert!(metadata.len() == LEN && metadata.blocks() * 512 < 1 << 20, "{metadata:?}");
    mounted.unmount();
}

/// The daemon, who writes through it, and all that the kernel keeps for both have 128 MiB. What is
/// waited for then is never the mount itself.
#[test]
fn more_is_written_than_there_is_memory() {
    if !(need(&MOUNT) && need(&[Need::MemoryGroup])) {
        return;
    }
    let ours = warpcore();
    let program = Path::new(ours.get_program());
    let len = fs::metadata(program).expect("it is there").len();
    let wanted: u64 = if seeds() > 1 { 8 << 30 } else { 400 << 20 };
    let times = wanted.div_ceil(len);
    let group = MemoryGroup::new(128 << 20);
    let place = Place::new();
    let mut daemon = group.command();
    daemon.arg(r#"exec "$0" "$@""#).arg(program);
    let mounted = place.mount_by(daemon, &[]);
    let all = format!(r#"for n in $(seq {times}); do cat "$0"; done"#);
    for script in [format!("({all}) > file"), format!("({all}) | cmp - file")] {
        let output = group.command().arg(script).arg(program).current_dir(&place.target).output();
        let output = output.expect("a shell");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    mounted.unmount();
}

/// Processes that share so much memory, by cgroups(7) of either version.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Self {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = match first.exists() {
            true => (first, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let group = root.join(format!("warpcore-test-{}", std::process::id()));
        fs::create_dir(&group).expect("as root");
        fs::write(group.join(limit), bytes.to_string()).expect("a limit of memory");
        Self(group)
    }

    /// A shell in it, for one script.
    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        let procs = self.0.join("cgroup.procs");
        command.env("GROUP", procs).args(["-c", r#"echo $$ > "$GROUP"; exec sh -c "$@""#, "sh"]);
        command
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its processes have ended.
        let _ = fs::remove_dir(&self.0);
    }
}
