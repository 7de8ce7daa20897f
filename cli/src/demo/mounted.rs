//! The filesystem's part: copy in, remount, compare.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use warpcore_offload::{Codec, Devices, Kernel, KernelStats};

use super::tree::{Entry, Tree, same};
use super::{Interrupted, mb, on_device, per_second, row};
use crate::progress::progress;
use crate::{Failure, print};

/// Returns the number of files that were verified.
pub(super) fn run(
    from: Option<&Path>,
    devices: &Devices,
    names: &str,
    interrupted: &Interrupted,
) -> Result<usize, Failure> {
    print(format_args!("filesystem: a real tree through a compressed mount"))?;
    let tree = Tree::pick(from)?;
    let roots: Vec<_> = tree.roots.iter().map(|root| root.display().to_string()).collect();
    let (files, bytes) = (tree.files, tree.bytes);
    row("tree", &format!("{files} files, {:.1} MB from {}", mb(bytes), roots.join(", ")))?;
    if tree.skipped > 0 {
        row("", &format!("{} could not be read and are left out", tree.skipped))?;
    }
    if !tree.is_enough() {
        row("", "less than 200 MB and 5,000 files: figures mean less")?;
    }

    let directory = tempfile::Builder::new().prefix("warpcore-demo-").tempdir()?;
    let free = rustix::fs::statvfs(directory.path())?;
    let free = free.f_bavail * free.f_frsize;
    if free < 3 * bytes {
        let place = directory.path().parent().unwrap_or_else(|| directory.path());
        return Err(format!(
            "{} has {:.0} MB free, the demo wants {:.0} MB; set TMPDIR to a place that has",
            place.display(),
            mb(free),
            mb(3 * bytes)
        )
        .into());
    }
    let (source, target) = (directory.path().join("stored"), directory.path().join("mounted"));
    fs::create_dir(&source)?;
    fs::create_dir(&target)?;

    let mount = Mounted::start(&source, &target, names)?;
    let started = Instant::now();
    let bar = progress("copying", bytes / 1_000_000, "MB");
    let mut done = 0;
    tree.copy(&target, interrupted, |entry| {
        done += len(entry);
        bar.set_position(done / 1_000_000);
    })?;
    bar.finish_and_clear();
    let copied = started.elapsed();
    row(
        "copied",
        &format!(
            "{:.1} MB/s, {:.0} files/s",
            per_second(bytes, copied) / 1e6,
            per_second(files as u64, copied)
        ),
    )?;
    let started = Instant::now();
    tree.sync(&target, interrupted)?;
    row("synced", &format!("{:.0} fsync/s", per_second(files as u64, started.elapsed())))?;
    let written = mount.unmount()?;

    let on_disk = allocated(&source)?;
    let ratio = bytes as f64 / on_disk.max(1) as f64;
    row("stored", &format!("{:.1} MB on disk, ratio {ratio:.2}", mb(on_disk)))?;

    let mount = Mounted::start(&source, &target, names)?;
    let started = Instant::now();
    let bar = progress("comparing", bytes / 1_000_000, "MB");
    let mut done = 0;
    tree.compare(&target, interrupted, |entry| {
        done += len(entry);
        bar.set_position(done / 1_000_000);
    })?;
    bar.finish_and_clear();
    let compared = per_second(bytes, started.elapsed()) / 1e6;
    row("compared", &format!("every byte, name, mode and time, at {compared:.1} MB/s"))?;
    let read = mount.unmount()?;
    row("transport", &read.transport)?;
    if devices.compresses(Codec::Deflate) {
        on_device("chunks compressed", &written.compress)?;
        on_device("chunks decompressed", &read.decompress)?;
        check_deflate(tree.largest(), &source)?;
    } else {
        check_zstd(tree.largest(), &source)?;
    }
    Ok(files)
}

/// Stored by zstd, written front to back: stock zstd reads the file.
fn check_zstd(largest: &Entry, stored: &Path) -> Result<(), Failure> {
    let mut stream = zstd::Decoder::new(File::open(stored.join(&largest.path))?)?;
    if !same(&mut File::open(&largest.source)?, &mut stream)? {
        return Err(format!("{}: as a zstd stream it differs", largest.path.display()).into());
    }
    let size = mb(largest.metadata.len());
    row("plain zstd", &format!("reads the largest file ({size:.1} MB) from its backing file"))?;
    Ok(())
}

/// Stored by deflate: `fs cat` reads the file without a mount, and stock zstd refuses it.
fn check_deflate(largest: &Entry, stored: &Path) -> Result<(), Failure> {
    let stored = stored.join(&largest.path);
    let mut cat = Command::new(std::env::current_exe()?);
    cat.args(["fs", "cat"]).arg(&stored).stdout(Stdio::piped());
    let mut child = cat.spawn()?;
    let mut stdout = child.stdout.take().expect("piped");
    let same = same(&mut File::open(&largest.source)?, &mut stdout);
    drop(stdout);
    if !(child.wait()?.success() && same?) {
        return Err(format!("{}: `fs cat` gives something else", largest.path.display()).into());
    }
    let size = mb(largest.metadata.len());
    row("fs cat", &format!("reads the largest file ({size:.1} MB) from its backing file"))?;
    match zstd::Decoder::new(File::open(&stored)?)?.read_to_end(&mut Vec::new()) {
        Err(refused) if refused.to_string().contains("Dictionary mismatch") => {
            row("plain zstd", &format!("refuses it: {refused}"))?;
            Ok(())
        }
        other => Err(format!("{}: zstd should refuse it: {other:?}", stored.display()).into()),
    }
}

fn len(entry: &Entry) -> u64 {
    if entry.metadata.is_file() { entry.metadata.len() } else { 0 }
}

/// Bytes that the files below a directory take on the disk.
fn allocated(directory: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            sum += allocated(&entry.path())?;
        } else if metadata.is_file() {
            sum += metadata.blocks() * 512;
        }
    }
    Ok(sum)
}

/// `warpcore mount` in a process of its own, as a user would run it.
struct Mounted {
    /// None once it has ended.
    child: Option<Child>,
    /// What it says, read as it comes, so that it never waits for us.
    said: Option<JoinHandle<std::io::Result<String>>>,
}

impl Mounted {
    fn start(source: &Path, target: &Path, devices: &str) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        let devices = if devices.is_empty() { "software" } else { devices };
        command.arg("mount").arg(source).arg(target).args(["--devices", devices]);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        let mut warnings = String::new();
        while stderr.read_line(&mut line)? > 0 && !line.starts_with("mounted ") {
            warnings.push_str(&std::mem::take(&mut line));
        }
        let said = std::thread::spawn(move || std::io::read_to_string(stderr));
        let mounted = Self { child: Some(child), said: Some(said) };
        if line.starts_with("mounted ") {
            return Ok(mounted);
        }
        Err(format!("the mount was refused: {}", warnings.trim()).into())
    }

    /// Unmounts; returns what the mount said of itself.
    fn unmount(mut self) -> Result<Said, Failure> {
        let mut child = self.child.take().expect("held until ended");
        end(&child);
        let ended = child.wait()?;
        let said = self.said.take().expect("read until ended");
        let said = said.join().map_err(|_| "its words could not be read")??;
        if !ended.success() {
            return Err(format!("the mount ended badly: {}", said.trim()).into());
        }
        let after = |start: &str| said.lines().find_map(|line| Some(line.split_once(start)?.1));
        let counted = |kernel: Kernel| {
            let line = after(&format!("offload {}: ", kernel.name())).unwrap_or_default();
            let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
            let mut next = || numbers.next().unwrap_or(0);
            KernelStats {
                on_device: next(),
                redone: next(),
                spilled: next(),
                ..KernelStats::default()
            }
        };
        Ok(Said {
            transport: after("transport: ").unwrap_or("unknown").to_owned(),
            compress: counted(Kernel::Compress),
            decompress: counted(Kernel::Decompress),
        })
    }
}

/// The last words of a mount.
struct Said {
    transport: String,
    /// What devices did.
    compress: KernelStats,
    decompress: KernelStats,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        end(child);
        let _ = child.wait();
    }
}

/// Makes a mount flush and unmount by itself, as whoever made it can.
fn end(child: &Child) {
    if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}
