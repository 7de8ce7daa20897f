//! What POSIX and Linux promise and the suites do not ask for, on both transports, with the kernel's
//! write-back cache and without.

mod common;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    MOUNT, Place, SETPRIV, noise, number, stats, take_by_power_cut, tool, wait_until_unused,
    warpcore, warpcore_without_handles,
};
use rustix::fs::{Advice, AtFlags, CWD, FallocateFlags, Mode, OFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;
use warpcore_need::{Need, need};

/// Runs a test on every kind of mount.
fn on_every(needs: &[Need], test: impl Fn(&Place)) {
    on(&[&["no_uring"], &[], &["no_uring", "writethrough"], &["writethrough"]], needs, test);
}

/// Runs a test on the mounts that show files with their holes.
fn with_holes(test: impl Fn(&Place)) {
    on(&[&["no_uring", "writethrough"], &["writethrough"]], &[], test);
}

fn on(kinds: &[&[&str]], needs: &[Need], test: impl Fn(&Place)) {
    if !(need(&MOUNT) && need(&[Need::FuseUring]) && need(needs)) {
        return;
    }
    for kind in kinds {
        let options = [*kind, &["allow_other"]].concat();
        let place = Place::new();
        let mounted = place.mount(&options);
        test(&place);
        mounted.unmount();
        let mounted = place.mount(&options);
        mounted.unmount();
    }
}

fn open_rw(place: &Place, name: &str) -> File {
    let path = place.target.join(name);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    file.expect("opens")
}

/// Every span of data in a file, as SEEK_DATA and SEEK_HOLE tell.
fn data(file: &File) -> Vec<(u64, u64)> {
    let mut spans = Vec::new();
    let mut at = 0;
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = rustix::fs::seek(file, SeekFrom::Hole(start)).expect("a hole follows");
                spans.push((start, at));
            }
            Err(Errno::NXIO) => return spans,
            Err(errno) => panic!("SEEK_DATA: {errno}"),
        }
    }
}

#[test]
fn holes_are_where_they_were_made() {
    with_holes(|place| {
        let file = open_rw(place, "holes");
        file.write_all_at(&vec![7; 300_000], 0).expect("writes");
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 65_536, 131_072).expect("punches");
        assert_eq!(data(&file), [(0, 65_536), (196_608, 300_000)]);
        file.sync_all().expect("syncs");
        assert_eq!(data(&file), [(0, 65_536), (196_608, 300_000)]);
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).expect("reads");
        // Allocating promises a length, and keeps it if told to.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 400_000).expect("allocates");
        assert_eq!(file.metadata().expect("there").len(), 400_000);
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 500_000).expect("allocates");
        assert_eq!(file.metadata().expect("there").len(), 400_000);
        rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 450_000).expect("zeros");
        assert_eq!(file.metadata().expect("there").len(), 450_000);
        assert_eq!(data(&file), []);
        for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            let refused = rustix::fs::fallocate(&file, flags, 0, 65_536);
            assert_eq!(refused, Err(Errno::OPNOTSUPP));
        }
    });
}

/// What was compressed well is copied as it is, by a mount that would compress it less.
#[test]
fn a_copy_is_not_compressed_again() {
    on_every(&[], |place| {
        let bytes = fs::read("/proc/self/exe").expect("ourselves");
        let bytes = &bytes[..2 << 20];
        fs::write(place.target.join("quick"), bytes).expect("writes");
        // Another mount, beside this one: its files are copied by hand.
        let best = Place::new();
        let mounted = best.mount(&["level=19"]);
        fs::write(best.target.join("well"), bytes).expect("writes");
        mounted.unmount();
        fs::copy(best.source.join("well"), place.source.join("well")).expect("copies");
        fs::copy(place.target.join("well"), place.target.join("copy")).expect("copies");
        let stored = |name: &str| fs::metadata(place.source.join(name)).expect("there").len();
        assert!(stored("well") < stored("quick") * 95 / 100, "the case needs a difference");
        // But for records.
        assert!(stored("copy").abs_diff(stored("well")) < 4096);
        assert!(fs::read(place.target.join("copy")).expect("reads") == bytes);
    });
}

/// An inode without a name is there as long as somebody has it.
#[test]
fn what_is_removed_while_in_use_answers() {
    on_every(&[], |place| {
        let script = "import os\n\
            os.mkfifo('fifo'); f=os.open('fifo',os.O_RDWR); os.unlink('fifo'); print(os.fstat(f).st_nlink)\n\
            os.mkdir('one'); os.chdir('one'); os.rmdir('../one'); print(os.stat('.').st_nlink)\n\
            os.chdir('..'); open('a','w').write('a'); open('b','w').write('b')\n\
            p=os.open('b',os.O_PATH); os.rename('a','b'); print(os.fstat(p).st_nlink)";
        let shown = tool("python3", &["-c", script], &place.target);
        assert_eq!(shown, "0\n0\n0\n");
    });
}

/// Capabilities set after synced writes are not taken away by closing; what root changes keeps its
/// set-user-id; names of `trusted.*` are root's.
#[test]
fn privileges_end_only_where_linux_ends_them() {
    on_every(&[], |place| {
        let script = "import os,struct\n\
            f=os.open('file',os.O_RDWR|os.O_CREAT,0o755)\n\
            for n in range(6): os.pwrite(f,b'x',n); os.fsync(f)\n\
            v=struct.pack('<5I',0x02000001,1<<10,0,0,0); os.setxattr('file','security.capability',v)\n\
            os.close(f); print(os.getxattr('file','security.capability')==v)\n\
            f=os.open('late',os.O_RDWR|os.O_CREAT,0o755); os.write(f,b'x'*100000)\n\
            os.setxattr('late','security.capability',v); os.close(f)\n\
            print(os.getxattr('late','security.capability')==v)\n\
            f=os.open('late',os.O_RDWR); os.setxattr('late','security.capability',v); os.write(f,b'y')\n\
            os.close(f); print('security.capability' in os.listxattr('late'))\n\
            w=struct.pack('<5I',0x02000001,1<<12,0,0,0); f=os.open('late',os.O_RDWR)\n\
            os.setxattr('late','security.capability',v)\n\
            try: os.setxattr('late','security.capability',w,os.XATTR_CREATE)\n\
            except FileExistsError: os.close(f); print(os.getxattr('late','security.capability')==v)\n\
            f=os.open('file',os.O_RDWR); os.fchmod(f,0o6755); os.posix_fallocate(f,0,100)\n\
            print(oct(os.fstat(f).st_mode)); os.close(f)\n\
            os.setxattr('file','trusted.x',b'1'); os.setxattr('file','user.x',b'1')\n\
            print('trusted.x' in os.listxattr('file'))\n\
            f=os.open('file',os.O_RDONLY); os.setuid(65534); print(os.listxattr(f))";
        let shown = tool("python3", &["-c", script], &place.target);
        let user = "['user.x']";
        let expected = "True\nTrue\nFalse\nTrue\n0o106755\nTrue\n";
        assert!(shown.starts_with(expected) && shown.contains(user), "{shown}");
    });
}

/// Whole chunks are copied as they are stored; the rest byte by byte.
#[test]
fn a_copied_range_is_the_same() {
    on_every(&[], |place| {
        let bytes = fs::read("/proc/self/exe").expect("ourselves");
        let bytes = &bytes[..3 << 20];
        let source = open_rw(place, "source");
        source.write_all_at(bytes, 0).expect("writes");
        let copy = |target: &File, from: usize, to: usize, len: usize| {
            let (mut from, mut to, mut left) = (from as u64, to as u64, len);
            while left > 0 {
                let copied = rustix::fs::copy_file_range(
                    &source,
                    Some(&mut from),
                    target,
                    Some(&mut to),
                    left,
                );
                let copied = copied.expect("copies");
                assert!(copied > 0, "{left} bytes are left");
                left -= copied;
            }
        };
        let whole = open_rw(place, "whole");
        copy(&whole, 0, 0, bytes.len());
        let shifted = open_rw(place, "shifted");
        copy(&shifted, 1000, 77, 200_000);
        drop((whole, shifted));
        assert!(fs::read(place.target.join("whole")).expect("reads") == bytes);
        let shifted = fs::read(place.target.join("shifted")).expect("reads");
        assert!(shifted[..77] == [0; 77] && shifted[77..] == bytes[1000..201_000]);
        // Within one file.
        copy(&source, 0, 2 << 20, 1 << 20);
        drop(source);
        let source = fs::read(place.target.join("source")).expect("reads");
        assert!(source[2 << 20..] == bytes[..1 << 20]);
    });
}

#[test]
fn a_file_without_a_name_gets_one_or_goes() {
    on_every(&[], |place| {
        let flags = OFlags::RDWR | OFlags::TMPFILE;
        let open = || {
            let fd = rustix::fs::open(&place.target, flags, Mode::from_raw_mode(0o600));
            File::from(fd.expect("opens"))
        };
        let mut file = open();
        file.write_all(b"no name yet").expect("writes");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let name = place.target.join("named");
        rustix::fs::linkat(CWD, path, CWD, &name, AtFlags::SYMLINK_FOLLOW).expect("links");
        drop(file);
        assert_eq!(fs::read(&name).expect("reads"), b"no name yet");
        assert_eq!(fs::metadata(&name).expect("there").mode() & 0o7777, 0o600);
        let mut file = open();
        file.write_all(&[1; 100_000]).expect("writes");
        drop(file);
        assert_eq!(fs::read_dir(&place.source).expect("lists").count(), 1, "it has gone");
    });
}

/// A default ACL takes the place of the umask, and what it grants is obeyed.
#[test]
fn access_control_lists_are_inherited_and_obeyed() {
    const SETFACL: Need = Need::Tool("setfacl", "acl");
    on_every(&[SETFACL], |place| {
        let inside = place.target.join("inside");
        fs::create_dir(&inside).expect("new");
        tool("setfacl", &["-d", "-m", "u:nobody:rw,m::rw", "inside"], &place.target);
        fs::write(inside.join("file"), "text").expect("writes");
        let shown = tool("getfacl", &["-pc", "file"], &inside);
        assert!(shown.contains("user:nobody:rw-"), "{shown}");
        fs::write(place.target.join("beside"), "text").expect("writes");
        tool("setfacl", &["-m", "u:daemon:r", "beside"], &place.target);
        let mode = |name: &str| fs::metadata(place.target.join(name)).expect("there").mode();
        assert_eq!(mode("beside") & 0o070, 0o040, "the mask is the group's");
        tool("setfacl", &["-b", "beside"], &place.target);
        let shown = tool("getfacl", &["-pc", "beside"], &place.target);
        assert!(!shown.contains("daemon"), "{shown}");
    });
}

/// Each caller's own, whichever shard makes the file for it.
#[test]
fn a_umask_is_its_callers() {
    on_every(&[], |place| {
        let threads: Vec<_> = [(0o077, 0o600), (0o022, 0o644), (0o000, 0o666)]
            .into_iter()
            .map(|(umask, mode)| {
                let target = place.target.clone();
                std::thread::spawn(move || {
                    for n in 0..100 {
                        let name = format!("{umask:o}-{n}");
                        let line = format!("umask {umask:o}; : > {name}; stat -c %a {name}");
                        let shown = tool("sh", &["-c", &line], &target);
                        assert_eq!(shown.trim(), format!("{mode:o}"));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
}

/// The names that a filesystem must take, and a directory that is larger than any buffer.
#[test]
fn long_names_and_many() {
    use std::os::unix::ffi::OsStrExt;
    on_every(&[], |place| {
        let long = [b'n'; 255];
        let odd = b"not \xff\xfe UTF-8";
        for name in [&long[..], odd] {
            let path = place.target.join(std::ffi::OsStr::from_bytes(name));
            fs::write(&path, "x").expect("writes");
            assert_eq!(fs::read(&path).expect("reads"), b"x");
            fs::remove_file(&path).expect("removes");
        }
        let too_long = place.target.join("n".repeat(256));
        assert_eq!(fs::write(too_long, "x").expect_err("refused").raw_os_error(), Some(36));
        let many = place.target.join("many");
        fs::create_dir(&many).expect("new");
        for n in 0..3000 {
            File::create(many.join(format!("{n}"))).expect("creates");
        }
        let mut seen: Vec<u32> = fs::read_dir(&many)
            .expect("lists")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().parse())
            .collect::<Result<_, _>>()
            .expect("numbers");
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..3000));
    });
}

/// A handle of an inode that is gone is stale: the kernel looks the name up again, as with NFS, and the
/// caller never hears of it. Who has the file open keeps what it opened.
#[test]
fn what_is_replaced_behind_the_mount_is_found_again() {
    on_every(&[], |place| {
        let [name, other] = ["name", "other"].map(|name| place.source.join(name));
        fs::write(&name, "old").expect("writes");
        fs::write(&other, "new").expect("writes");
        let seen = place.target.join("name");
        assert_eq!(fs::read(&seen).expect("reads"), b"old");
        wait_until_unused(place);
        fs::rename(&other, &name).expect("renames");
        assert_eq!(fs::read(&seen).expect("reads"), b"new");
    });
}

/// A power cut has left zeros at the end of a file whose mark says that it was closed in order. Who opens it
/// finds what was synced, by either of its names, also if its old length was told before, and where the mark
/// cannot be changed.
#[test]
fn what_a_power_cut_has_taken_is_not_shown() {
    const LEN: usize = 300_000;
    const SYNCED: usize = 100_000;
    if !(need(&MOUNT) && need(&[Need::FuseUring, SETPRIV])) {
        return;
    }
    let bytes = noise(LEN);
    for options in [&[][..], &["no_uring"], &["writethrough"]] {
        for program in [warpcore, warpcore_without_handles] {
            let place = Place::new();
            let names = ["name", "other"].map(|name| place.target.join(name));
            let mounted = place.mount_by(program(), options);
            let mut file = File::create(&names[0]).expect("created");
            file.write_all(&bytes[..SYNCED]).expect("written");
            file.sync_all().expect("synced");
            file.write_all(&bytes[SYNCED..]).expect("written");
            drop(file);
            fs::hard_link(&names[0], &names[1]).expect("linked");
            mounted.unmount();
            let stored = File::options().write(true).open(place.source.join("name"));
            let stored = stored.expect("opens");
            let len = stored.metadata().expect("is there").len();
            stored.write_all_at(&[0; LEN / 3], len - LEN as u64 / 3).expect("written");

            let len = |name: &PathBuf| fs::metadata(name).expect("is there").len();
            let is_synced = |name: &PathBuf| {
                let left = fs::read(name).expect("opens");
                assert!((SYNCED..LEN).contains(&left.len()), "{options:?}: {} bytes", left.len());
                assert!(bytes.starts_with(&left), "{options:?}");
                assert_eq!(len(name), left.len() as u64);
            };
            let mounted = place.mount_by(program(), &[options, &["ro"]].concat());
            assert_eq!(names.each_ref().map(len), [LEN as u64; 2]);
            names.iter().for_each(is_synced);
            mounted.unmount();

            let mounted = place.mount_by(program(), options);
            assert_eq!(names.each_ref().map(len), [LEN as u64; 2]);
            names.iter().for_each(is_synced);
            let left = len(&names[0]);
            let mut file = File::options().append(true).open(&names[1]).expect("opens");
            file.write_all(b"on").expect("written");
            drop(file);
            let [name, other] = names.each_ref().map(|name| fs::read(name).expect("opens"));
            assert!(name.ends_with(b"on") && name == other, "{options:?}");
            assert_eq!(name.len() as u64, left + 2);
            mounted.unmount();
        }
    }
}

/// A power cut has left zeros in the middle of a file that was closed before the system started, which is found
/// as it is written on: who does that is told, and who opens it again finds what was synced.
#[test]
fn what_a_power_cut_has_taken_is_not_written_on() {
    const SYNCED: usize = 100_000;
    if !(need(&MOUNT) && need(&[Need::FuseUring])) {
        return;
    }
    let bytes = noise(300_000);
    for options in [&[][..], &["no_uring", "writethrough"]] {
        let place = Place::new();
        let name = place.target.join("name");
        let mounted = place.mount(options);
        let mut file = File::create(&name).expect("created");
        file.write_all(&bytes[..SYNCED]).expect("written");
        file.sync_all().expect("synced");
        file.write_all(&bytes[SYNCED..]).expect("written");
        drop(file);
        mounted.unmount();
        take_by_power_cut(&place.source.join("name"), 200_000, 4096);

        let mounted = place.mount(options);
        let reader = File::open(&name).expect("opens");
        let mut file = File::options().append(true).open(&name).expect("opens");
        let written = file.write_all(b"on").and_then(|()| file.sync_all());
        assert_eq!(written.expect_err("built on").raw_os_error(), Some(libc::EIO));
        let again = file.write_all(b"on").and_then(|()| file.sync_all());
        assert_eq!(again.expect_err("built on").raw_os_error(), Some(libc::EIO));
        let again = file.sync_all();
        assert_eq!(again.expect_err("as before").raw_os_error(), Some(libc::EIO));
        let mut part = [0; 1000];
        reader.read_exact_at(&mut part, 0).expect("is there");
        assert!(bytes.starts_with(&part));
        // Or the end of the file, where the kernel asks for its length.
        let taken = reader.read_exact_at(&mut part, 250_000).expect_err("gone");
        assert!(
            taken.raw_os_error() == Some(libc::EIO) || taken.kind() == ErrorKind::UnexpectedEof
        );
        drop((reader, file));
        wait_until_unused(&place);
        let mut file = File::options().append(true).open(&name).expect("opens");
        file.write_all(b"on").expect("written");
        file.sync_all().expect("synced");
        drop(file);
        let found = fs::read(&name).expect("opens");
        let left = found.strip_suffix(b"on").expect("as it was written");
        assert!((SYNCED..bytes.len()).contains(&left.len()) && bytes.starts_with(left));
        mounted.unmount();
    }
}

/// By several processes at once, past the kernel's cache, in parts that are read in one window.
#[test]
fn what_many_read_at_once_is_what_each_gets() {
    const LEN: usize = 10 << 20;
    const PAGE: usize = 4096;
    on(&[&["chunk=4k"], &["chunk=4k", "no_uring", "writethrough"]], &[], |place| {
        let bytes = noise(LEN);
        fs::write(place.target.join("stored"), &bytes).expect("writes");
        fs::write(place.source.join("plain"), &bytes).expect("writes");
        for name in ["stored", "plain"] {
            std::thread::scope(|scope| {
                let read = |start: usize| {
                    let path = place.target.join(name);
                    let flags = OFlags::RDONLY | OFlags::DIRECT;
                    let file = rustix::fs::open(path, flags, Mode::empty()).expect("opens");
                    let file = File::from(file);
                    let mut page = vec![0; PAGE];
                    for n in 0..3000 {
                        let at = (start + n * 1_234_577) % (LEN / PAGE) * PAGE;
                        file.read_exact_at(&mut page, at as u64).expect("reads");
                        assert!(page == bytes[at..at + PAGE], "{name}: other bytes at {at}");
                    }
                };
                for start in 0..4 {
                    scope.spawn(move || read(start * 100));
                }
            });
        }
    });
}

/// Of all files together, however many are open: who writes makes room first.
#[test]
fn what_is_in_memory_only_is_bounded() {
    on(&[&["dirty=2m", "writethrough"], &["dirty=2m"]], &[], |place| {
        let dirty = || -> u64 { number(&stats(place, "."), "dirty") };
        let files: Vec<_> = (0..20).map(|n| open_rw(place, &format!("{n}"))).collect();
        for file in &files {
            file.write_all_at(&vec![7; 500_000], 0).expect("writes");
            // One may have come since the last look; it had room.
            assert!(dirty() <= (2 << 20) + 500_000, "{}", dirty());
        }
        files.iter().for_each(|file| file.sync_all().expect("syncs"));
        assert_eq!(dirty(), 0);
        let shown = stats(place, "3");
        assert_eq!(number(&shown, "size"), 500_000);
        assert!(number(&shown, "stored") < 50_000, "{shown}");
        drop(files);
        wait_until_unused(place);
    });
}

/// Of all files together, however many are open: who knows too much forgets it, and reads it again.
#[test]
fn what_is_known_of_where_contents_lie_is_bounded() {
    on(&[&["index=1m", "chunk=4k"]], &[], |place| {
        let index = || -> u64 { number(&stats(place, "."), "index") };
        // 8192 parts of 100 bytes each: together four times what may be.
        let len = 32 << 20;
        let files: Vec<_> = (0..5_u8).map(|n| open_rw(place, &format!("{n}"))).collect();
        for (file, n) in files.iter().zip(0..) {
            file.write_all_at(&vec![n; len], 0).expect("writes");
            file.sync_all().expect("syncs");
        }
        let mut bytes = vec![0; len];
        for round in 0..2 {
            for (file, n) in files.iter().zip(0..) {
                // Not from the page cache.
                rustix::fs::fadvise(file, 0, None, Advice::DontNeed).expect("drops pages");
                file.read_exact_at(&mut bytes, 0).expect("reads");
                assert!(bytes.iter().all(|byte| *byte == n), "file {n}, round {round}");
                assert!(index() <= 2 << 20, "{} bytes", index());
            }
        }
        drop(files);
        wait_until_unused(place);
        assert_eq!(index(), 0);
    });
}

/// Also if nobody ever syncs: each opening gives back what it has replaced.
#[test]
fn what_is_overwritten_is_given_back() {
    on_every(&[], |place| {
        let len = 4 << 20;
        let bytes = noise(len);
        open_rw(place, "file").write_all_at(&bytes, 0).expect("writes");
        for round in 1..5 {
            let file = open_rw(place, "file");
            for at in (0..len).step_by(64 << 10).rev() {
                file.write_all_at(&bytes[at..at + (64 << 10)], at as u64).expect("overwrites");
            }
            drop(file);
            wait_until_unused(place);
            let source = place.source.join("file");
            let allocated = fs::metadata(source).expect("there").blocks() * 512;
            assert!(allocated < 2 * len as u64, "{allocated} bytes, round {round}");
        }
        assert!(fs::read(place.target.join("file")).expect("reads") == bytes);
    });
}

/// Room, names and inodes are the lower filesystem's.
#[test]
fn the_room_that_is_left_is_the_lowers() {
    on_every(&[], |place| {
        let [ours, lower] = [&place.target, &place.source].map(|path| {
            let stat = rustix::fs::statvfs(path).expect("known");
            (stat.f_blocks, stat.f_frsize, stat.f_files, stat.f_namemax)
        });
        assert_eq!(ours, lower);
    });
}

/// What the kernel forgets takes no memory of ours.
#[test]
fn what_is_removed_is_forgotten() {
    on_every(&[], |place| {
        let paths: Vec<_> = (0..500).map(|name| place.target.join(name.to_string())).collect();
        for path in &paths {
            fs::write(path, "x").expect("writes");
        }
        assert!(number(&stats(place, "."), "inodes") > 500);
        for path in &paths {
            fs::remove_file(path).expect("removes");
        }
        // The kernel tells it when it has nothing else to do.
        while number(&stats(place, "."), "inodes") > 1 {
            std::thread::yield_now();
        }
    });
}

/// What is written reaches the lower filesystem though nobody closes or syncs it.
#[test]
fn what_stays_open_is_stored_after_some_seconds() {
    on(&[&["no_uring", "writethrough"], &["writethrough"]], &[], |place| {
        let file = open_rw(place, "log");
        file.write_all_at(b"a line\n", 0).expect("writes");
        let stored = || fs::metadata(place.source.join("log")).expect("there").len();
        let deadline = Instant::now() + Duration::from_secs(30);
        while stored() == 0 {
            assert!(Instant::now() < deadline, "never stored");
            std::thread::yield_now();
        }
        assert_eq!(number(&stats(place, "log"), "dirty"), 0);
    });
}

/// ramfs has no attributes of users, and no file handles.
#[test]
fn a_lower_filesystem_that_has_only_files() {
    if !(need(&MOUNT) && need(&[Need::FuseUring])) {
        return;
    }
    struct Ramfs<'a>(&'a Place);
    impl Drop for Ramfs<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0.source).output();
        }
    }
    for options in [&[][..], &["no_uring", "writethrough"]] {
        let place = Place::new();
        let source = place.source.to_str().expect("UTF-8");
        tool("mount", &["-t", "ramfs", "none", source], Path::new("/"));
        let _lower = Ramfs(&place);
        let text = "compressible ".repeat(10_000);
        let mounted = place.mount(options);
        fs::create_dir(place.target.join("directory")).expect("makes");
        for name in ["one", "directory/two"] {
            fs::write(place.target.join(name), &text).expect("writes");
        }
        fs::write(place.target.join("empty"), "").expect("writes");
        fs::rename(place.target.join("directory"), place.target.join("moved")).expect("moves");
        fs::hard_link(place.target.join("one"), place.target.join("moved/one")).expect("links");
        let flags = XattrFlags::empty();
        let refused = rustix::fs::setxattr(place.target.join("one"), "user.mark", b"x", flags);
        assert_eq!(refused.expect_err("there are none"), Errno::OPNOTSUPP);
        mounted.unmount();
        let stored = fs::metadata(place.source.join("one")).expect("there").len();
        assert!(stored < 10_000, "{stored} bytes");
        let mounted = place.mount(options);
        for name in ["one", "moved/one", "moved/two"] {
            let path = place.target.join(name);
            assert_eq!(fs::metadata(&path).expect("there").len(), text.len() as u64, "{name}");
            assert!(fs::read_to_string(&path).expect("reads") == text, "{name}");
        }
        let mut file = File::options().append(true).open(place.target.join("one")).expect("opens");
        file.write_all(b"end").expect("writes");
        drop(file);
        assert!(fs::read(place.target.join("moved/one")).expect("reads").ends_with(b"end"));
        assert_eq!(fs::metadata(place.target.join("empty")).expect("there").len(), 0);
        mounted.unmount();
    }
}

/// In two processes: what one has mapped and changed, the other sees, and it is kept.
#[test]
fn what_is_changed_through_a_mapping_is_kept() {
    on_every(&[], |place| {
        let file = open_rw(place, "mapped");
        file.set_len(1 << 20).expect("sets the length");
        write_through_a_mapping(place, "mapped");
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 500_000).expect("reads");
        assert_eq!(&bytes, b"other");
        drop(file);
        let path = place.target.join("mapped");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("ours");
        let synced = rustix::fs::syncfs(File::open(&path).expect("opens").as_fd());
        synced.expect("syncs");
    });
}

#[test]
fn a_page_that_is_changed_through_a_mapping_is_data() {
    with_holes(|place| {
        let file = open_rw(place, "mapped");
        file.set_len(1 << 20).expect("sets the length");
        write_through_a_mapping(place, "mapped");
        assert_eq!(data(&file), [(499_712, 503_808)]);
    });
}

fn write_through_a_mapping(place: &Place, name: &str) {
    let script = "import mmap,sys\n\
                  f=open(sys.argv[1],'r+b'); m=mmap.mmap(f.fileno(),0)\n\
                  m[500000:500005]=b'other'; m.flush()";
    tool("python3", &["-c", script, name], &place.target);
}

/// With the kernel's write-back cache a page may be dirty in what we know as a hole: who looks for
/// data must be told that all of it is, or it would lose them.
#[test]
fn with_write_back_a_dirty_page_in_a_hole_is_found() {
    if !(need(&MOUNT) && need(&[Need::FuseUring])) {
        return;
    }
    let place = Place::new();
    let mounted = place.mount(&[]);
    let file = open_rw(&place, "sparse");
    file.set_len(1 << 20).expect("sets the length");
    file.sync_all().expect("syncs");
    file.write_all_at(b"dirty", 500_000).expect("writes");
    let script = "import os,sys; f=os.open(sys.argv[1],os.O_RDONLY)\n\
                  print(os.lseek(f,0,os.SEEK_DATA), os.lseek(f,0,os.SEEK_HOLE))";
    let path = place.target.join("sparse");
    let seen = tool("python3", &["-c", script, path.to_str().expect("UTF-8")], &place.target);
    assert_eq!(seen.trim(), "0 1048576");
    drop(file);
    mounted.unmount();
}
