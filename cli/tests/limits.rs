//! What the system has too little of: descriptors, room on the disk, or of a quota.

mod common;

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::disk::Disk;
use common::{MOUNT, Place, SETPRIV, noise, tool, wait_until_unused, warpcore_without_handles};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use warpcore_need::{Need, need};

const PRLIMIT: Need = Need::Tool("prlimit", "util-linux");

/// The caller hears that the system has no more (ENFILE), not that it has itself too many (EMFILE);
/// what is open works on, and what is closed makes room.
#[test]
fn too_few_descriptors_are_not_the_callers() {
    if !(need(&MOUNT) && need(&[PRLIMIT])) {
        return;
    }
    let place = Place::new();
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=100:100").arg(env!("CARGO_BIN_EXE_warpcore"));
    let mounted = place.mount_by(limited, &[]);
    let mut open = Vec::new();
    let refused = loop {
        let path = place.target.join(open.len().to_string());
        match File::create_new(path) {
            Ok(file) => open.push(file),
            Err(error) => break error,
        }
        assert!(open.len() < 100, "more than there are");
    };
    assert_eq!(refused.raw_os_error(), Some(Errno::NFILE.raw_os_error()), "{refused}");
    let refused = place.source.join(open.len().to_string());
    assert!(!refused.exists(), "made all the same");
    for file in &mut open {
        file.write_all(b"open").expect("writes");
        file.sync_all().expect("syncs");
    }
    let names = open.len();
    drop(open);
    wait_until_unused(&place);
    for name in 0..names {
        let read = fs::read(place.target.join(name.to_string())).expect("reads again");
        assert_eq!(read, b"open");
    }
    mounted.unmount();
}

/// Where inodes are found by their names they cost no descriptor either, and follow what becomes of them.
#[test]
fn a_tree_has_more_inodes_than_there_are_descriptors() {
    if !(need(&MOUNT) && need(&[PRLIMIT, SETPRIV])) {
        return;
    }
    let place = Place::new();
    let mut limited = Command::new("prlimit");
    let program = warpcore_without_handles();
    limited.arg("--nofile=100:100").arg(program.get_program()).args(program.get_args());
    let mounted = place.mount_by(limited, &[]);
    let deep = place.target.join("a/b/c/d/e");
    fs::create_dir_all(&deep).expect("makes");
    for directory in 0..60 {
        let directory = deep.join(directory.to_string());
        fs::create_dir(&directory).expect("makes");
        for name in 0..10 {
            fs::write(directory.join(name.to_string()), name.to_string()).expect("writes");
        }
    }
    // The kernel knows them all, and shall ask for all again.
    let held: Vec<_> = ["", "59", "59/9"].map(|name| open_for_nothing(&deep.join(name))).into();
    let other_link = deep.join("link");
    fs::hard_link(deep.join("59/9"), &other_link).expect("links");
    // No descriptor is kept of any directory on the way to this one.
    for directory in 0..30 {
        fs::write(deep.join(directory.to_string()).join("new"), "").expect("writes");
    }
    fs::rename(place.target.join("a/b"), place.target.join("moved")).expect("moves");
    let deep = place.target.join("moved/c/d/e");
    let nothing = rustix::fs::openat(&held[0], "nothing", OFlags::RDONLY, Mode::empty());
    assert_eq!(nothing.expect_err("no such file"), Errno::NOENT);
    for directory in 0..60 {
        for name in 0..10 {
            let path = deep.join(directory.to_string()).join(name.to_string());
            assert_eq!(fs::read(&path).expect("reads"), name.to_string().as_bytes());
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("sets");
        }
    }
    // The name that was last heard of goes, then the other one, and then there is none.
    for (name, links) in [("link", 1), ("59/9", 0)] {
        fs::remove_file(deep.join(name)).expect("removes");
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let stat = rustix::fs::statx(&held[2], "", flags, StatxFlags::NLINK).expect("held");
        assert_eq!(stat.stx_nlink, links);
    }
    fs::remove_dir_all(deep.join("59")).expect("removes");
    let removed = rustix::fs::openat(&held[1], "0", OFlags::RDONLY, Mode::empty());
    assert_eq!(removed.expect_err("removed"), Errno::NOENT);
    // Two change places, with what is in them.
    let (one, other) = (deep.join("0"), deep.join("1"));
    fs::write(one.join("of the first"), "").expect("writes");
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(&held[0], "0", &held[0], "1", exchange).expect("exchanges");
    assert!(other.join("of the first").exists() && !one.join("of the first").exists());
    fs::write(other.join("of the first"), "again").expect("writes");
    fs::rename(other.join("of the first"), deep.join("2/3")).expect("replaces");
    assert_eq!(fs::read(deep.join("2/3")).expect("reads"), b"again");
    drop(held);
    mounted.unmount();
    assert_eq!(fs::read_dir(place.source.join("moved/c/d/e")).expect("lists").count(), 59);
}

fn open_for_nothing(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH, Mode::empty()).expect("there")
}

/// The room that the lower filesystem keeps for root stays free, and what was acknowledged is there.
#[test]
fn a_full_disk_keeps_roots_reserve_and_loses_nothing() {
    if !(need(&MOUNT) && need(&[Need::Loop, Need::Tool("mkfs.ext4", "e2fsprogs")])) {
        return;
    }
    let disk = Disk::new(&["mkfs.ext4", "-q", "-F", "-m", "10"], 64 << 20);
    let mounted = disk.place.mount(&[]);
    let noise = noise(1 << 20);
    let mut acknowledged = Vec::new();
    let refused = loop {
        let name = acknowledged.len().to_string();
        let file = File::create_new(disk.place.target.join(&name)).expect("an empty file has room");
        match (&file).write_all(&noise).and_then(|()| file.sync_all()) {
            Ok(()) => acknowledged.push(name),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 64, "more than the disk has");
    };
    assert_eq!(refused.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{refused}");
    assert!(acknowledged.len() > 40, "{} MB of 57", acknowledged.len());
    let stat = rustix::fs::statvfs(&disk.place.source).expect("known");
    // A tenth, but for what names and attributes take.
    assert!(stat.f_bfree * stat.f_frsize > 6 << 20, "{} blocks left", stat.f_bfree);
    for name in &acknowledged {
        assert!(fs::read(disk.place.target.join(name)).expect("reads") == noise, "{name}");
    }
    // Room is made by what takes none.
    fs::remove_file(disk.place.target.join(&acknowledged[0])).expect("removes");
    fs::write(disk.place.target.join("again"), &noise[..1 << 19]).expect("writes");
    mounted.unmount();
}

/// Takes all the room that a disk has, in a file of this name.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("created");
    let mut filled = 1;
    while filled > 0 {
        filled = 0;
        while file.write(&[7; 4096]).is_ok_and(|len| len > 0) {
            filled += 1;
        }
        // What was set aside for more than it takes is free again.
        file.sync_all().expect("room was set aside");
    }
}

/// Who closes a file for which there is no room hears it, and what it was before is what is shown, though the
/// kernel keeps lengths itself.
#[test]
fn what_a_full_disk_did_not_take_is_not_shown() {
    if !(need(&MOUNT) && need(&[Need::Loop, Need::Tool("mkfs.ext4", "e2fsprogs")])) {
        return;
    }
    // More than was set aside ahead by syncing.
    let bytes = noise(600_000);
    for options in [&[][..], &["writethrough"]] {
        let disk = Disk::new(&["mkfs.ext4", "-q", "-F"], 16 << 20);
        let mounted = disk.place.mount(options);
        let path = disk.place.target.join("name");
        let mut file = File::create(&path).expect("created");
        file.write_all(&bytes[..10_000]).expect("written");
        file.sync_all().expect("synced");
        let filler = disk.place.source.join("filler");
        fill(&filler);
        file.write_all(&bytes[10_000..]).expect("in memory");
        // SAFETY: the descriptor was ours alone, and is none any more.
        let closed = unsafe { libc::close(file.into_raw_fd()) };
        assert_eq!((closed, Error::last_os_error().kind()), (-1, ErrorKind::StorageFull));
        wait_until_unused(&disk.place);
        fs::remove_file(&filler).expect("removed");

        let found = fs::read(&path).expect("opens");
        assert!(found == bytes[..10_000], "{options:?}: {} bytes", found.len());
        assert_eq!(fs::metadata(&path).expect("there").len(), 10_000);
        fs::write(&path, &bytes).expect("there is room again");
        assert!(fs::read(&path).expect("opens") == bytes);
        mounted.unmount();
    }
}

/// A write that was refused long after write(2) has returned: the kernel has told the file's length by then.
/// Once it is closed its length is what is stored.
#[test]
fn what_was_refused_later_is_not_shown() {
    const LEN: usize = 8 << 20;
    if !(need(&MOUNT) && need(&[Need::Loop, Need::Tool("mkfs.ext4", "e2fsprogs")])) {
        return;
    }
    let disk = Disk::new(&["mkfs.ext4", "-q", "-F"], 16 << 20);
    let [path, filler] = [&disk.place.target, &disk.place.source].map(|path| path.join("name"));
    let filler = filler.with_file_name("filler");
    let mounted = disk.place.mount(&[]);
    let mut file = File::create(&path).expect("created");
    file.sync_all().expect("synced");
    fill(&filler);
    let refused = file.write_all(&noise(LEN)).and_then(|()| file.sync_all());
    assert_eq!(refused.expect_err("no room").kind(), ErrorKind::StorageFull);
    fs::remove_file(&filler).expect("removed");
    drop(file);
    wait_until_unused(&disk.place);
    let shown = fs::read(&path).expect("opens");
    assert!(shown.len() < LEN, "all of it");
    assert_eq!(fs::metadata(&path).expect("there").len(), shown.len() as u64);
    mounted.unmount();
    let mounted = disk.place.mount(&[]);
    assert!(fs::read(&path).expect("opens") == shown, "it is other bytes that are stored");
    mounted.unmount();
}

/// A quota binds who writes through the mount, though the daemon is root, and what was acknowledged
/// is there.
#[test]
fn a_quota_binds() {
    const BTRFS: Need = Need::Tool("mkfs.btrfs", "btrfs-progs");
    if !(need(&MOUNT) && need(&[Need::Loop, BTRFS, Need::Tool("findmnt", "util-linux")])) {
        return;
    }
    let disk = Disk::new(&["mkfs.btrfs", "-q"], 256 << 20);
    let source = disk.place.source.to_str().expect("UTF-8");
    tool("btrfs", &["quota", "enable", source], Path::new("/"));
    tool("btrfs", &["qgroup", "limit", "32M", source], Path::new("/"));
    // Who has CAP_SYS_RESOURCE is not bound then (`qgroup_reserve` of fs/btrfs/qgroup.c); who has it
    // not cannot set this, and is bound anyway.
    let id = tool("findmnt", &["-no", "UUID", source], Path::new("/"));
    let may_exceed = format!("/sys/fs/btrfs/{}/quota_override", id.trim());
    let _ = fs::write(may_exceed, "1");
    let mounted = disk.place.mount(&[]);
    let noise = noise(1 << 20);
    let mut acknowledged = 0;
    let refused = loop {
        let path = disk.place.target.join(acknowledged.to_string());
        let written = File::create_new(path).and_then(|mut file| {
            file.write_all(&noise)?;
            file.sync_all()
        });
        match written {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 64, "more than the quota has");
    };
    assert_eq!(refused.raw_os_error(), Some(Errno::DQUOT.raw_os_error()), "{refused}");
    assert!(acknowledged > 20, "{acknowledged} of 32 MB");
    for name in 0..acknowledged {
        let found = fs::read(disk.place.target.join(name.to_string())).expect("reads");
        assert!(found == noise, "{name}");
    }
    mounted.unmount();
}
