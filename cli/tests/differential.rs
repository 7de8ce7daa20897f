//! Random operations on the mount and on a directory of the lower filesystem: each has the same result
//! on both, and both trees are the same afterwards. Seeds replay.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{MOUNT, Place, SETPRIV, seeds, warpcore, warpcore_without_handles};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use warpcore_need::{Need, need};

/// Few, so that operations meet.
const NAMES: [&str; 9] = ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "f"];

/// Descriptors that may be open at a time.
const SLOTS: usize = 4;

#[derive(Debug, Clone, Copy)]
enum Op {
    /// By another process, which then reads all that is there.
    Append(usize, usize),
    Chmod(usize, u32),
    Close(usize),
    Copy {
        from: usize,
        to: usize,
        source: u64,
        target: u64,
        len: usize,
    },
    Fallocate {
        slot: usize,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    },
    GetXattr(usize, usize),
    Link(usize, usize),
    /// Writes through a mapping, and reads it.
    Map {
        slot: usize,
        shared: bool,
        offset: u64,
        len: usize,
        byte: u8,
    },
    List(usize),
    Mkdir(usize),
    /// `direct`: on the mount past the page cache, at whatever alignment.
    Open {
        slot: usize,
        name: usize,
        flags: OFlags,
        direct: bool,
    },
    Read {
        slot: usize,
        offset: u64,
        len: usize,
    },
    ReadLink(usize),
    Rename {
        from: usize,
        to: usize,
        flags: RenameFlags,
    },
    Rmdir(usize),
    SetLen {
        slot: usize,
        len: u64,
    },
    SetTime(usize, i64),
    SetXattr {
        name: usize,
        key: usize,
        len: usize,
        flags: XattrFlags,
    },
    Stat(usize),
    Symlink(usize, usize),
    Sync(usize),
    Truncate(usize, u64),
    Unlink(usize),
    Write {
        slot: usize,
        offset: u64,
        len: usize,
        byte: u8,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..NAMES.len();
    let slot = 0..SLOTS;
    // Around pages and chunks, and anywhere.
    let offset = prop_oneof![
        0..300_000_u64,
        (0..70_u64).prop_map(|page| page * 4096),
        (0..5_u64).prop_map(|chunk| chunk * 65_536),
    ];
    let len = prop_oneof![1..200_usize, 1..150_000_usize, Just(65_536)];
    let open = prop_oneof![
        Just(OFlags::RDONLY),
        Just(OFlags::RDWR),
        Just(OFlags::RDWR | OFlags::CREATE),
        Just(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL),
        Just(OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC),
        Just(OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND),
        Just(OFlags::RDONLY | OFlags::NOFOLLOW),
    ];
    let fallocate = prop_oneof![
        Just(FallocateFlags::empty()),
        Just(FallocateFlags::KEEP_SIZE),
        Just(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
        Just(FallocateFlags::ZERO_RANGE),
        Just(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
    ];
    let rename = prop_oneof![
        3 => Just(RenameFlags::empty()),
        1 => Just(RenameFlags::NOREPLACE),
        1 => Just(RenameFlags::EXCHANGE),
    ];
    let xattr = prop_oneof![
        2 => Just(XattrFlags::empty()),
        1 => Just(XattrFlags::CREATE),
        1 => Just(XattrFlags::REPLACE),
    ];
    let files = prop_oneof![
        6 => (slot.clone(), name.clone(), open, prop::bool::weighted(0.2))
            .prop_map(|(slot, name, flags, direct)| Op::Open { slot, name, flags, direct }),
        2 => slot.clone().prop_map(Op::Close),
        8 => (slot.clone(), offset.clone(), len.clone(), any::<u8>())
            .prop_map(|(slot, offset, len, byte)| Op::Write { slot, offset, len, byte }),
        4 => (slot.clone(), offset.clone(), len.clone())
            .prop_map(|(slot, offset, len)| Op::Read { slot, offset, len }),
        4 => (slot.clone(), any::<bool>(), offset.clone(), len.clone(), any::<u8>())
            .prop_map(|(slot, shared, offset, len, byte)| {
                Op::Map { slot, shared, offset, len, byte }
            }),
        2 => (slot.clone(), offset.clone()).prop_map(|(slot, len)| Op::SetLen { slot, len }),
        1 => (name.clone(), offset.clone()).prop_map(|(name, len)| Op::Truncate(name, len)),
        2 => (slot.clone(), fallocate, offset.clone(), 1..150_000_u64)
            .prop_map(|(slot, mode, offset, len)| Op::Fallocate { slot, mode, offset, len }),
        2 => (slot.clone(), slot.clone(), offset.clone(), offset, len)
            .prop_map(|(from, to, source, target, len)| Op::Copy { from, to, source, target, len }),
        1 => slot.prop_map(Op::Sync),
    ];
    let names = prop_oneof![
        2 => name.clone().prop_map(Op::Mkdir),
        1 => name.clone().prop_map(Op::Rmdir),
        2 => name.clone().prop_map(Op::Unlink),
        3 => (name.clone(), name.clone(), rename)
            .prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        2 => (name.clone(), name.clone()).prop_map(|(from, to)| Op::Link(from, to)),
        1 => (name.clone(), name.clone()).prop_map(|(from, to)| Op::Symlink(from, to)),
        1 => name.clone().prop_map(Op::ReadLink),
        2 => (name.clone(), 1..10_000_usize).prop_map(|(name, len)| Op::Append(name, len)),
        1 => (name.clone(), 0..0o10_000_u32).prop_map(|(name, mode)| Op::Chmod(name, mode)),
        3 => name.clone().prop_map(Op::Stat),
        1 => name.clone().prop_map(Op::List),
        1 => (name.clone(), 0..2_000_000_000_i64).prop_map(|(name, time)| Op::SetTime(name, time)),
        1 => (name.clone(), 0..3_usize, 0..100_usize, xattr)
            .prop_map(|(name, key, len, flags)| Op::SetXattr { name, key, len, flags }),
        1 => (name, 0..3_usize).prop_map(|(name, key)| Op::GetXattr(name, key)),
    ];
    prop_oneof![3 => files, 2 => names]
}

/// One of the two trees, and what is open in it.
struct Side {
    root: PathBuf,
    /// On the mount.
    is_ours: bool,
    open: [Option<File>; SLOTS],
}

/// What a caller sees, or its errno.
type Seen = Result<String, Errno>;

fn done<T>(result: Result<T, Errno>) -> Seen {
    result.map(|_| String::new())
}

fn seen<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).expect("of a system call"))
}

impl Side {
    fn new(root: PathBuf, is_ours: bool) -> Self {
        fs::create_dir(&root).expect("new");
        Self { root, is_ours, open: Default::default() }
    }

    fn slot(&self, slot: usize) -> Result<&File, Errno> {
        self.open[slot].as_ref().ok_or(Errno::BADF)
    }

    fn apply(&mut self, op: Op) -> Seen {
        let path = |name: usize| self.root.join(NAMES[name]);
        let key = |key: usize| format!("user.key{key}");
        match op {
            Op::Append(name, len) => {
                let script = r#"printf %0*d "$0" 0 >> "$1" && cat "$1""#;
                let mut shell = Command::new("sh");
                shell.args(["-c", script, &len.to_string()]).arg(path(name));
                let output = seen(shell.output())?;
                Ok(format!("{}, {}", output.status, digest(&output.stdout)))
            }
            Op::Chmod(name, mode) => done(rustix::fs::chmod(path(name), Mode::from_raw_mode(mode))),
            Op::Close(slot) => done(Ok(self.open[slot].take())),
            Op::Copy { from, to, mut source, mut target, len } => {
                let (from, to) = (self.slot(from)?, self.slot(to)?);
                let copied = rustix::fs::copy_file_range(
                    from,
                    Some(&mut source),
                    to,
                    Some(&mut target),
                    len,
                );
                Ok(copied?.to_string())
            }
            Op::Fallocate { slot, mode, offset, len } => {
                done(rustix::fs::fallocate(self.slot(slot)?, mode, offset, len))
            }
            Op::GetXattr(name, which) => {
                let mut value = [0; 200];
                let len = rustix::fs::getxattr(path(name), key(which), &mut value[..])?;
                Ok(format!("{:?}", &value[..len]))
            }
            Op::Link(from, to) => done(seen(fs::hard_link(path(from), path(to)))),
            Op::List(name) => list(&path(name)),
            Op::Mkdir(name) => done(rustix::fs::mkdir(path(name), Mode::from_raw_mode(0o755))),
            Op::Map { slot, shared, offset, len, byte } => {
                map(self.slot(slot)?, shared, offset, len, byte)
            }
            Op::Open { slot, name, flags, direct } => {
                self.open[slot] = None;
                let mode = Mode::from_raw_mode(0o644);
                let fd = rustix::fs::open(path(name), flags | OFlags::CLOEXEC, mode)?;
                let file = File::from(fd);
                if direct && self.is_ours && seen(file.metadata())?.is_file() {
                    let flags = rustix::fs::fcntl_getfl(&file)? | OFlags::DIRECT;
                    rustix::fs::fcntl_setfl(&file, flags)?;
                }
                self.open[slot] = Some(file);
                Ok(String::new())
            }
            Op::Read { slot, offset, len } => {
                let mut bytes = vec![0; len];
                let len = seen(self.slot(slot)?.read_at(&mut bytes, offset))?;
                Ok(digest(&bytes[..len]))
            }
            Op::ReadLink(name) => {
                Ok(format!("{:?}", rustix::fs::readlink(path(name), Vec::new())?))
            }
            Op::Rename { from, to, flags } => {
                done(rustix::fs::renameat_with(CWD, path(from), CWD, path(to), flags))
            }
            Op::Rmdir(name) => done(rustix::fs::rmdir(path(name))),
            Op::SetLen { slot, len } => done(rustix::fs::ftruncate(self.slot(slot)?, len)),
            Op::SetTime(name, tv_sec) => {
                let time = Timespec { tv_sec, tv_nsec: 123_456_789 };
                let times = Timestamps { last_access: time, last_modification: time };
                done(rustix::fs::utimensat(CWD, path(name), &times, AtFlags::SYMLINK_NOFOLLOW))
            }
            Op::SetXattr { name, key: which, len, flags } => {
                done(rustix::fs::setxattr(path(name), key(which), &vec![7; len], flags))
            }
            Op::Stat(name) => stat(&path(name)),
            Op::Symlink(to, name) => done(seen(symlink(NAMES[to], path(name)))),
            Op::Sync(slot) => done(seen(self.slot(slot)?.sync_all())),
            Op::Truncate(name, len) => {
                let file = seen(File::options().write(true).open(path(name)))?;
                done(seen(file.set_len(len)))
            }
            Op::Unlink(name) => done(rustix::fs::unlink(path(name))),
            Op::Write { slot, offset, len, byte } => {
                Ok(seen(self.slot(slot)?.write_at(&lines(byte, len), offset))?.to_string())
            }
        }
    }
}

fn lines(byte: u8, len: usize) -> Vec<u8> {
    let lines = (0..=u8::MAX).flat_map(|line| [byte ^ line; 100]);
    lines.cycle().take(len).collect()
}

/// Writes to a mapping of a part of the file, as far as that goes; what is in its pages afterwards.
fn map(file: &File, shared: bool, offset: u64, len: usize, byte: u8) -> Seen {
    let start = offset / 4096 * 4096;
    let end = seen(file.metadata())?.len().min(offset + len as u64);
    let Some(len) = end.checked_sub(offset).filter(|len| *len > 0) else {
        return Ok("behind the end".to_owned());
    };
    let within = |len: u64| usize::try_from(len).expect("a part of a small file");
    let (before, len) = (within(offset - start), within(len));
    let flags = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
    let (null, prot) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: new memory; nobody else maps it or cuts the file while it is used below.
    let pages = unsafe { mmap(null, before + len, prot, flags, file, start)? };
    // SAFETY: as long as it was mapped, whole pages of which every one begins within the file.
    let mapped = unsafe { std::slice::from_raw_parts_mut(pages.cast::<u8>(), before + len) };
    mapped[before..].copy_from_slice(&lines(byte, len));
    let found = digest(mapped);
    // SAFETY: what was mapped above, and no reference to it is left.
    unsafe { munmap(pages, before + len)? };
    Ok(found)
}

/// Short enough to be printed, and different if anything is.
fn digest(bytes: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} bytes, {:x}", bytes.len(), hasher.finish())
}

/// What does not depend on when, and where on the disk.
fn stat(path: &Path) -> Seen {
    let metadata = seen(fs::symlink_metadata(path))?;
    let size = if metadata.is_dir() { 0 } else { metadata.len() };
    let (mode, links) = (metadata.permissions().mode(), metadata.nlink());
    Ok(format!("{mode:o}, {links} links, {size} bytes"))
}

fn list(path: &Path) -> Seen {
    let entries = seen(fs::read_dir(path))?.map(|entry| {
        let entry = seen(entry)?;
        Ok((entry.file_name(), seen(entry.file_type())?))
    });
    let mut entries = entries.collect::<Result<Vec<_>, Errno>>()?;
    entries.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(format!("{entries:?}"))
}

/// All that is below, with contents.
fn tree(root: &Path) -> Vec<(PathBuf, Seen)> {
    let mut found = Vec::new();
    let mut names: Vec<_> =
        fs::read_dir(root).expect("lists").map(|entry| entry.expect("an entry").path()).collect();
    names.sort();
    for path in names {
        let name = path.file_name().expect("a name").into();
        found.push((name, stat(&path)));
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            found.push((PathBuf::from("contents"), Ok(digest(&fs::read(&path).expect("reads")))));
        }
    }
    found
}

fn compare(program: fn() -> Command, options: &[&str]) {
    let cases = 60 * u32::try_from(seeds()).expect("a small number");
    let place = Place::new();
    let model = place.directory.path().join("model");
    fs::create_dir(&model).expect("new");
    let mounted = place.mount_by(program(), options);
    let number = std::cell::Cell::new(0_u32);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&prop::collection::vec(op(), 1..120), |ops| {
        let name = number.replace(number.get() + 1).to_string();
        let sides = [(&place.target, true), (&model, false)];
        let mut sides = sides.map(|(root, is_ours)| Side::new(root.join(&name), is_ours));
        for (nth, op) in ops.iter().enumerate() {
            let [ours, expected] = sides.each_mut().map(|side| side.apply(*op));
            prop_assert_eq!(ours, expected, "operation {}: {:?}", nth, op);
        }
        let [ours, expected] = sides.map(|side| tree(&side.root));
        prop_assert_eq!(ours, expected);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    mounted.unmount();
    let mounted = place.mount_by(program(), options);
    for name in 0..number.get() {
        let [ours, expected] =
            [&place.target, &model].map(|root| tree(&root.join(name.to_string())));
        assert_eq!(ours, expected, "in {name}, mounted anew");
    }
    mounted.unmount();
}

#[test]
fn with_write_back() {
    if need(&MOUNT) && need(&[Need::FuseUring]) {
        compare(warpcore, &[]);
    }
}

#[test]
fn with_write_through() {
    if need(&MOUNT) && need(&[Need::FuseUring]) {
        compare(warpcore, &["writethrough"]);
    }
}

#[test]
fn classic_with_write_back() {
    if need(&MOUNT) {
        compare(warpcore, &["no_uring"]);
    }
}

#[test]
fn classic_with_write_through() {
    if need(&MOUNT) {
        compare(warpcore, &["no_uring", "writethrough"]);
    }
}

#[test]
fn without_handles() {
    if need(&MOUNT) && need(&[Need::FuseUring, SETPRIV]) {
        compare(warpcore_without_handles, &[]);
        compare(warpcore_without_handles, &["writethrough"]);
    }
}
