//! Power cuts of real filesystems under load, and a daemon that is killed under load: what was
//! acknowledged is there, `fs check` finds nothing damaged. `.ci/full` does it more often.

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::disk::Disk;
use common::{MOUNT, Place, seeds, tool, warpcore};
use warpcore_need::{Need, need};

const EXT4: Need = Need::Tool("mkfs.ext4", "e2fsprogs");
const MKFS_EXT4: [&str; 3] = ["mkfs.ext4", "-q", "-F"];
const XFS: Need = Need::Tool("mkfs.xfs", "xfsprogs");
const MKFS_XFS: [&str; 2] = ["mkfs.xfs", "-q"];

/// Synced changes until the power is cut, as far apart as they may be.
fn changes(round: u64) -> usize {
    20 + usize::try_from(round * 97 % 400).expect("small")
}

const BLOCK: usize = 4096;
const BLOCKS: usize = 32;

/// What a writer has had acknowledged, and what it was doing when it ended.
struct Writer {
    /// Of each block of its file the version.
    acknowledged: [u32; BLOCKS],
    /// The block that was being written.
    written: usize,
    /// Version of the file that is replaced as a whole.
    replaced: u32,
}

/// What the writers share.
#[derive(Default)]
struct Load {
    /// Synced changes.
    done: AtomicUsize,
    /// The power is being cut, or is about to be.
    is_cut: AtomicBool,
}

fn block(version: u32, place: usize) -> Vec<u8> {
    let line = format!("version {version} of {place}\n");
    line.bytes().cycle().take(BLOCK).collect()
}

fn whole(version: u32) -> Vec<u8> {
    block(version, 7).repeat(1 + version as usize % 40)
}

/// Overwrites blocks of a file, each synced; now and then replaces another as a whole, and one that
/// nobody syncs. Until it fails.
fn write(target: &Path, number: u32, load: &Load) -> Writer {
    let mut writer = Writer { acknowledged: [0; BLOCKS], written: 0, replaced: 0 };
    let file = target.join(format!("blocks {number}"));
    let (other, new) =
        (target.join(format!("whole {number}")), target.join(format!("new {number}")));
    let unsynced = target.join(format!("unsynced {number}"));
    let result: io::Result<()> = (|| {
        fs::write(&unsynced, whole(0))?;
        File::open(&unsynced)?.sync_all()?;
        let file = File::create(file)?;
        for version in 1.. {
            writer.written = (version * (2 * number + 7)) as usize % BLOCKS;
            let offset = (writer.written * BLOCK) as u64;
            file.write_all_at(&block(version, writer.written), offset)?;
            file.sync_data()?;
            if version == 1 {
                File::open(target)?.sync_all()?;
            }
            writer.acknowledged[writer.written] = version;
            load.done.fetch_add(1, Ordering::Relaxed);
            if version % 3 == 0 {
                fs::write(&new, whole(version))?;
                fs::rename(&new, &unsynced)?;
            }
            if version % 5 == 0 {
                fs::write(&new, whole(version))?;
                File::open(&new)?.sync_all()?;
                fs::rename(&new, &other)?;
                File::open(target)?.sync_all()?;
                if load.is_cut.load(Ordering::SeqCst) {
                    // XFS that was shut down says so to who syncs a file, and has nothing to sync for
                    // who syncs a directory (`xfs_dir_fsync`): it may be lost.
                    return Err(io::ErrorKind::Other.into());
                }
                writer.replaced = version;
            }
        }
        Ok(())
    })();
    result.expect_err("only the cut ends it");
    writer
}

fn verify(target: &Path, number: u32, writer: &Writer) {
    let total = writer.acknowledged.iter().max().expect("blocks");
    if *total > 0 {
        let found = fs::read(target.join(format!("blocks {number}"))).expect("readable");
        for (place, version) in writer.acknowledged.iter().enumerate() {
            let from = (place * BLOCK).min(found.len());
            let found = &found[from..found.len().min(from + BLOCK)];
            let is = |version| match version {
                // Never written: a hole, or behind the end.
                0 => found.iter().all(|byte| *byte == 0),
                version => found == block(version, place),
            };
            let may_be_next = place == writer.written && is(total + 1);
            assert!(is(*version) || may_be_next, "block {place} of {number}, version {version}");
        }
    }
    if *total > 0 {
        let found = fs::read(target.join(format!("unsynced {number}"))).expect("readable");
        let mut versions = (0..=total + 1).step_by(3);
        let heads =
            found.chunks(BLOCK).map(|part| String::from_utf8_lossy(&part[..part.len().min(12)]));
        assert!(
            versions.any(|version| found == whole(version)),
            "file {number}, up to version {total}: {} bytes, {:?}",
            found.len(),
            heads.collect::<Vec<_>>()
        );
    }
    let found = fs::read(target.join(format!("whole {number}"))).unwrap_or_default();
    let next = writer.replaced + 5;
    let replaced = writer.replaced == 0 && found.is_empty() || found == whole(writer.replaced);
    let head = found.first_chunk::<16>().map(|head| String::from_utf8_lossy(head));
    assert!(
        replaced || found == whole(next),
        "file {number}, version {}: {} bytes, {head:?}",
        writer.replaced,
        found.len()
    );
}

/// Writers until `cut` ends them, after so many changes.
fn load(target: &Path, changes: usize, cut: impl FnOnce()) -> Vec<Writer> {
    let load = Load::default();
    thread::scope(|scope| {
        let load = &load;
        let writers: Vec<_> =
            (0..4).map(|number| scope.spawn(move || write(target, number, load))).collect();
        while load.done.load(Ordering::Relaxed) < changes
            && writers.iter().all(|one| !one.is_finished())
        {
            thread::yield_now();
        }
        load.is_cut.store(true, Ordering::SeqCst);
        cut();
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    })
}

/// What the writers knew is on a mount of the place, and nothing is damaged.
fn recovered(place: &Place, writers: &[Writer]) {
    let checked = warpcore().args(["fs", "check"]).arg(&place.source).output().expect("runs");
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && said.contains(" 0 damaged"), "{said}");
    let mounted = place.mount(&[]);
    for (number, writer) in (0..).zip(writers) {
        verify(&place.target, number, writer);
    }
    mounted.unmount();
}

fn power_cuts(mkfs: &[&str], options: &[&str]) {
    for round in 0..3 * seeds() {
        let disk = Disk::new(mkfs, 320 << 20);
        let mounted = disk.place.mount(options);
        let writers = load(&disk.place.target, changes(round), || disk.cut_power());
        mounted.kill();
        disk.restore_power();
        recovered(&disk.place, &writers);
    }
}

/// What takes the name of another while it is open is on the disk once it is closed: its bytes come after the
/// name.
#[test]
fn a_file_that_replaces_another_before_it_is_closed() {
    if !(need(&MOUNT) && need(&[Need::Loop, EXT4])) {
        return;
    }
    let disk = Disk::new(&MKFS_EXT4, 320 << 20);
    let mounted = disk.place.mount(&[]);
    let target = &disk.place.target;
    let (name, new) = (target.join("name"), target.join("new"));
    fs::write(&name, whole(1)).expect("writes");
    File::open(&name).and_then(|file| file.sync_all()).expect("syncs");
    let file = File::create(&new).expect("creates");
    file.write_all_at(&whole(2), 0).expect("writes");
    fs::rename(&new, &name).expect("renames");
    // The name is on the disk.
    File::open(target).and_then(|directory| directory.sync_all()).expect("syncs");
    drop(file);
    disk.cut_power();
    mounted.kill();
    disk.restore_power();
    let mounted = disk.place.mount(&[]);
    assert!(fs::read(&name).expect("reads") == whole(2));
    mounted.unmount();
}

#[test]
fn ext4_without_power() {
    if need(&MOUNT) && need(&[Need::Loop, EXT4]) {
        power_cuts(&MKFS_EXT4, &[]);
    }
}

#[test]
fn xfs_without_power() {
    if need(&MOUNT) && need(&[Need::Loop, XFS]) {
        power_cuts(&MKFS_XFS, &["no_uring", "writethrough"]);
    }
}

#[test]
fn a_killed_daemon() {
    if !need(&MOUNT) {
        return;
    }
    for round in 0..20 * seeds().min(10) {
        let place = Place::new();
        let options: &[&str] = if round % 2 == 0 { &[] } else { &["writethrough"] };
        let mounted = place.mount(options);
        let writers = load(&place.target, changes(round), || _ = mounted.kill());
        recovered(&place, &writers);
    }
}

const SQLITE: Need = Need::Tool("sqlite3", "sqlite3");

/// A database is whole, and has every transaction that was committed.
fn assert_whole(target: &Path, committed: usize) {
    let script = "PRAGMA integrity_check; SELECT count(*) FROM t;";
    let found = tool("sqlite3", &["database", script], target);
    let count = found.strip_prefix("ok\n").and_then(|count| count.trim().parse::<usize>().ok());
    assert!(count >= Some(committed), "{found} of {committed}");
}

#[test]
fn sqlite_and_a_killed_daemon() {
    if !(need(&MOUNT) && need(&[SQLITE])) {
        return;
    }
    for round in 0..20 * seeds().min(10) {
        let place = Place::new();
        let mode = if round % 2 == 0 { "WAL" } else { "DELETE" };
        let options: &[&str] = if round % 4 < 2 { &[] } else { &["no_uring"] };
        let mounted = place.mount(options);
        let committed = transactions(&place.target, mode, changes(round), || _ = mounted.kill());
        let mounted = place.mount(options);
        assert_whole(&place.target, committed);
        mounted.unmount();
    }
}

#[test]
fn sqlite_without_power() {
    if !(need(&MOUNT) && need(&[Need::Loop, EXT4, XFS, SQLITE])) {
        return;
    }
    for round in 0..4 * seeds() {
        let mkfs: &[&str] = if round % 4 < 2 { &MKFS_EXT4 } else { &MKFS_XFS };
        let disk = Disk::new(mkfs, 320 << 20);
        let mounted = disk.place.mount(&[]);
        let mode = if round % 2 == 0 { "WAL" } else { "DELETE" };
        let committed = transactions(&disk.place.target, mode, changes(round), || disk.cut_power());
        mounted.kill();
        disk.restore_power();
        let mounted = disk.place.mount(&[]);
        assert_whole(&disk.place.target, committed);
        mounted.unmount();
    }
}

/// Commits until `cut` ends it, after so many; says how many were acknowledged. EXTRA: with FULL the
/// deletion of a journal, which is the commit, is not synced.
fn transactions(target: &Path, mode: &str, count: usize, cut: impl FnOnce()) -> usize {
    let mut sqlite = Command::new("sqlite3")
        .args(["-batch", "-bail", "database"])
        .current_dir(target)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("checked by need");
    let mut stdin = sqlite.stdin.take().expect("piped");
    let stdout = BufReader::new(sqlite.stdout.take().expect("piped"));
    let mut text = format!(
        "PRAGMA journal_mode={mode}; PRAGMA synchronous=EXTRA; CREATE TABLE t (line TEXT);\n\
         SELECT 'begins';\n"
    );
    let writer = thread::spawn(move || {
        loop {
            if stdin.write_all(text.as_bytes()).is_err() {
                return;
            }
            text = format!("INSERT INTO t VALUES ('{}'); SELECT 1;\n", "row ".repeat(50));
        }
    });
    let mut cut = Some(cut);
    let mut committed = 0;
    let lines = stdout.lines().map_while(Result::ok).skip_while(|line| line != "begins").skip(1);
    for _ in lines {
        committed += 1;
        if committed == count {
            cut.take().expect("once")();
        }
    }
    sqlite.wait().expect("ours");
    writer.join().expect("no panic");
    committed
}
