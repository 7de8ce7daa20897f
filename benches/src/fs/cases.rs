//! What is timed, in groups: each starts with an empty filesystem.
//!
//! By the system calls of cat, find, git and rsync. `std::fs` asks for the time of birth with each stat,
//! and stats what it reads: a filesystem in user space is asked twice then.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::corpus::{Corpora, Source, TreeSize};
use super::systems::{System, succeed};
use crate::corpus::Random;
use crate::harness::{Bench, Gathered, Unit};

/// How much of everything.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) mixed: TreeSize,
    pub(super) small: TreeSize,
    /// Length of the big file.
    pub(super) big: usize,
    /// Length of an image; what is not used takes no room.
    pub(super) image: u64,
    /// How long operations are counted for.
    pub(super) span: Duration,
    pub(super) rounds: usize,
    pub(super) transactions: usize,
}

impl Sizes {
    pub(super) const FULL: Self = Self {
        mixed: TreeSize { files: 29_000, bytes: 1_100_000_000 },
        small: TreeSize { files: 24_000, bytes: 131_000_000 },
        big: 550_000_000,
        image: 4 << 30,
        span: Duration::from_secs(3),
        rounds: 3,
        transactions: 1000,
    };
    pub(super) const QUICK: Self = Self {
        mixed: TreeSize { files: 1500, bytes: 50_000_000 },
        small: TreeSize { files: 1500, bytes: 8_000_000 },
        big: 64_000_000,
        image: 1 << 30,
        span: Duration::from_millis(300),
        rounds: 1,
        transactions: 100,
    };
}

/// Bytes of one write(2), and of one read(2).
const PART: usize = 1 << 20;
const PAGE: usize = 4096;

pub(super) fn measure(
    bench: &mut Bench,
    corpora: &Corpora,
    sizes: &Sizes,
    systems: &mut [System],
) -> Result<(), String> {
    let mut samples = Gathered::default();
    for round in 0..sizes.rounds {
        for group in [mixed, small, big, appends] {
            eprintln!("fs: round {} of {}", round + 1, sizes.rounds);
            group(&mut samples, corpora, sizes, systems)?;
            for system in &mut *systems {
                empty(system.root())?;
                system.sync();
            }
        }
    }
    samples.file(bench);
    Ok(())
}

fn mixed(
    samples: &mut Gathered,
    corpora: &Corpora,
    _: &Sizes,
    systems: &mut [System],
) -> Result<(), String> {
    let tree = &corpora.mixed;
    let bytes = total(tree);
    for system in &mut *systems {
        make_directories(system.root(), tree)?;
        system.sync();
        let (used, cpu, started) = (system.used(), cpu_seconds(), Instant::now());
        write_tree(system.root(), tree)?;
        system.sync();
        samples.add("mixed write", Unit::Mbps, system.kind.name(), mbps(bytes, started.elapsed()));
        let cpu = (cpu_seconds() - cpu) / (bytes as f64 / 1e9);
        samples.add("mixed write cpu", Unit::SecondsPerGb, system.kind.name(), cpu);
        // What was freed by the way is given back by now.
        system.make_cold()?;
        let used = system.used().saturating_sub(used).max(1);
        samples.add("mixed ratio", Unit::Times, system.kind.name(), bytes as f64 / used as f64);
    }
    for system in &mut *systems {
        system.make_cold()?;
        let started = Instant::now();
        for source in tree {
            let path = system.root().join(&source.path);
            let stat = named(&path, rustix::fs::lstat(&path).map_err(Into::into))?;
            same(&path, u64::try_from(stat.st_size) == Ok(source.bytes.len() as u64))?;
        }
        let rate = tree.len() as f64 / started.elapsed().as_secs_f64();
        samples.add("mixed stat cold", Unit::PerSecond, system.kind.name(), rate);
    }
    for system in &mut *systems {
        system.make_cold()?;
        let started = Instant::now();
        read_tree(system.root(), tree)?;
        samples.add(
            "mixed read cold",
            Unit::Mbps,
            system.kind.name(),
            mbps(bytes, started.elapsed()),
        );
    }
    Ok(())
}

fn small(
    samples: &mut Gathered,
    corpora: &Corpora,
    _: &Sizes,
    systems: &mut [System],
) -> Result<(), String> {
    let tree = &corpora.small;
    // In memory, so that only writing is timed.
    let archive = tempfile::Builder::new().prefix("warpcore-bench-").tempdir_in("/dev/shm");
    let archive = archive.map_err(|error| format!("/dev/shm: {error}"))?;
    let unpacked = archive.path().join("tree");
    make_directories(&unpacked, tree)?;
    write_tree(&unpacked, tree)?;
    let tar = archive.path().join("tree.tar");
    succeed(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&unpacked).arg("."))?;
    named(&unpacked, fs::remove_dir_all(&unpacked))?;
    for system in &mut *systems {
        let started = Instant::now();
        succeed(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(system.root()))?;
        system.sync();
        let rate = tree.len() as f64 / started.elapsed().as_secs_f64();
        samples.add("small untar", Unit::PerSecond, system.kind.name(), rate);
    }
    for system in &mut *systems {
        system.make_cold()?;
        let started = Instant::now();
        read_tree(system.root(), tree)?;
        let rate = tree.len() as f64 / started.elapsed().as_secs_f64();
        samples.add("small read cold", Unit::PerSecond, system.kind.name(), rate);
    }
    Ok(())
}

fn big(
    samples: &mut Gathered,
    corpora: &Corpora,
    sizes: &Sizes,
    systems: &mut [System],
) -> Result<(), String> {
    let contents = &corpora.big;
    let pages = contents.len() / PAGE;
    for system in &mut *systems {
        system.sync();
        let used = system.used();
        let path = system.root().join("big");
        let started = Instant::now();
        let mut file = named(&path, File::create(&path))?;
        for part in contents.chunks(PART) {
            named(&path, file.write_all(part))?;
        }
        named(&path, file.sync_all())?;
        samples.add(
            "seq write fsync",
            Unit::Mbps,
            system.kind.name(),
            mbps(contents.len(), started.elapsed()),
        );
        drop(file);
        system.make_cold()?;
        let used = system.used().saturating_sub(used).max(1);
        samples.add(
            "big ratio",
            Unit::Times,
            system.kind.name(),
            contents.len() as f64 / used as f64,
        );
    }
    for system in &mut *systems {
        system.make_cold()?;
        let path = system.root().join("big");
        let started = Instant::now();
        let mut file = named(&path, File::open(&path))?;
        let mut part = vec![0; PART];
        let mut at = 0;
        loop {
            let len = named(&path, file.read(&mut part))?;
            same(&path, part[..len] == contents[at..at + len])?;
            at += len;
            if len == 0 {
                break;
            }
        }
        same(&path, at == contents.len())?;
        samples.add("seq read cold", Unit::Mbps, system.kind.name(), mbps(at, started.elapsed()));
    }
    for system in &mut *systems {
        system.make_cold()?;
        let path = system.root().join("big");
        let file = named(&path, File::open(&path))?;
        let advised = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
        named(&path, advised.map_err(Into::into))?;
        let mut random = Random::new(7);
        let mut page = vec![0; PAGE];
        let rate = rate(sizes.span, || {
            let at = random.below(pages) * PAGE;
            named(&path, file.read_exact_at(&mut page, at as u64))?;
            same(&path, page == contents[at..at + PAGE])
        })?;
        samples.add("rand read 4k cold", Unit::PerSecond, system.kind.name(), rate);
    }
    for (case, each) in [("overwrite 4k fsync", true), ("overwrite 4k batch", false)] {
        for system in &mut *systems {
            system.sync();
            let path = system.root().join("big");
            let file = named(&path, File::options().write(true).open(&path))?;
            let mut random = Random::new(11);
            let mut done = 0_u32;
            let started = Instant::now();
            while started.elapsed() < sizes.span {
                let at = random.below(pages) * PAGE;
                let from = random.below(pages) * PAGE;
                named(&path, file.write_all_at(&contents[from..from + PAGE], at as u64))?;
                if each {
                    named(&path, file.sync_data())?;
                }
                done += 1;
            }
            named(&path, file.sync_all())?;
            let rate = f64::from(done) / started.elapsed().as_secs_f64();
            samples.add(case, Unit::PerSecond, system.kind.name(), rate);
        }
    }
    Ok(())
}

fn appends(
    samples: &mut Gathered,
    corpora: &Corpora,
    sizes: &Sizes,
    systems: &mut [System],
) -> Result<(), String> {
    for system in &mut *systems {
        let path = system.root().join("log");
        let mut file = named(&path, File::options().append(true).create(true).open(&path))?;
        let mut lines = corpora.big.chunks_exact(200).cycle();
        let rate =
            rate(sizes.span, || named(&path, file.write_all(lines.next().expect("endless"))))?;
        samples.add("append 200", Unit::PerSecond, system.kind.name(), rate);
    }
    for system in &mut *systems {
        let database = system.root().join("database");
        let started = Instant::now();
        transactions(&database, sizes.transactions)?;
        let rate = sizes.transactions as f64 / started.elapsed().as_secs_f64();
        samples.add("sqlite wal full", Unit::PerSecond, system.kind.name(), rate);
    }
    Ok(())
}

/// Rows of 200 bytes, each inserted and synced by itself.
fn transactions(database: &Path, count: usize) -> Result<(), String> {
    let mut sqlite = Command::new("sqlite3")
        .args(["-batch", "-bail"])
        .arg(database)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("sqlite3: {error}"))?;
    let mut script = String::from(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; \
         CREATE TABLE t (id INTEGER PRIMARY KEY, line TEXT);\n",
    );
    for number in 0..count {
        script +=
            &format!("INSERT INTO t (line) VALUES ('{}');\n", format!("row {number} ").repeat(20));
    }
    let mut stdin = sqlite.stdin.take().expect("piped");
    stdin.write_all(script.as_bytes()).map_err(|error| format!("sqlite3: {error}"))?;
    drop(stdin);
    match sqlite.wait() {
        Ok(status) if status.success() => Ok(()),
        status => Err(format!("sqlite3: {status:?}")),
    }
}

fn make_directories(root: &Path, tree: &[Source]) -> Result<(), String> {
    for source in tree {
        let parent = root.join(source.path.parent().expect("paths have directories"));
        named(&parent, fs::create_dir_all(&parent))?;
    }
    Ok(())
}

fn write_tree(root: &Path, tree: &[Source]) -> Result<(), String> {
    for source in tree {
        let path = root.join(&source.path);
        let mut file = named(&path, File::create(&path))?;
        for part in source.bytes.chunks(PART) {
            named(&path, file.write_all(part))?;
        }
    }
    Ok(())
}

fn read_tree(root: &Path, tree: &[Source]) -> Result<(), String> {
    let mut part = vec![0; PART];
    for source in tree {
        let path = root.join(&source.path);
        let mut file = named(&path, File::open(&path))?;
        let mut left = &source.bytes[..];
        loop {
            let len = named(&path, file.read(&mut part))?;
            if len == 0 {
                break;
            }
            same(&path, left.starts_with(&part[..len]))?;
            left = &left[len..];
        }
        same(&path, left.is_empty())?;
    }
    Ok(())
}

fn empty(root: &Path) -> Result<(), String> {
    for entry in named(root, fs::read_dir(root))? {
        let path = named(root, entry)?.path();
        // gocryptfs and ext4 keep something of their own there.
        if path.ends_with("lost+found") || path.ends_with("stored") {
            continue;
        }
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        named(&path, removed)?;
    }
    Ok(())
}

/// How often it can be done in a second.
fn rate(span: Duration, mut act: impl FnMut() -> Result<(), String>) -> Result<f64, String> {
    let started = Instant::now();
    let mut done = 0_u32;
    while started.elapsed() < span {
        act()?;
        done += 1;
    }
    Ok(f64::from(done) / started.elapsed().as_secs_f64())
}

fn total(tree: &[Source]) -> usize {
    tree.iter().map(|source| source.bytes.len()).sum()
}

fn mbps(bytes: usize, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64()
}

/// What all processors together have worked so far, in seconds: user, nice, system, interrupts.
fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let numbers: Vec<f64> = numbers.map(|number| number.parse().unwrap_or(0.0)).collect();
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|index| numbers.get(*index)).sum::<f64>();
    busy / rustix::param::clock_ticks_per_second() as f64
}

fn named<T>(path: &Path, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{}: {error}", path.display()))
}

/// A benchmark of wrong answers is none.
fn same(path: &Path, same: bool) -> Result<(), String> {
    if same { Ok(()) } else { Err(format!("{}: not what was written", path.display())) }
}
