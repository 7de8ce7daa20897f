//! The binary as a user runs it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod disk;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use tempfile::TempDir;
use warpcore_need::Need;

pub const MOUNT: [Need; 3] = [Need::Root, Need::Fuse, Need::IoUring];

/// How many times as much is done in a long campaign; else 1.
pub fn seeds() -> u64 {
    std::env::var("WARPCORE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1)
}

pub fn warpcore() -> Command {
    Command::new(env!("CARGO_BIN_EXE_warpcore"))
}

pub const SETPRIV: Need = Need::Tool("setpriv", "util-linux");

/// As [`warpcore`], without the privilege to open by file handle: inodes are found by their names, as on
/// mounts of users who have none.
pub fn warpcore_without_handles() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search"]);
    command.arg(env!("CARGO_BIN_EXE_warpcore"));
    command
}

/// Starts a program that says `held`, and ends with its standard input.
pub fn holding(command: &mut Command) -> Child {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("checked by need");
    let mut said = String::new();
    let words = child.stdout.take().expect("piped");
    BufReader::new(words).read_line(&mut said).expect("reads");
    assert_eq!(said, "held\n");
    child
}

/// Runs a tool and fails with its words if it fails.
pub fn tool(program: impl AsRef<OsStr>, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(&program).args(arguments).current_dir(directory).output();
    let output = output.expect("checked by need");
    assert!(
        output.status.success(),
        "{:?} {arguments:?}: {}{}",
        program.as_ref(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A directory with `src` and `mnt` in it.
pub struct Place {
    pub directory: TempDir,
    pub source: PathBuf,
    pub target: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (source, target) = (directory.path().join("src"), directory.path().join("mnt"));
        for path in [&source, &target] {
            std::fs::create_dir(path).expect("a new directory");
        }
        Self { directory, source, target }
    }

    pub fn mount(&self, options: &[&str]) -> Mounted {
        self.mount_by(warpcore(), options)
    }

    /// As [`Place::mount`], by a command that runs the program.
    pub fn mount_by(&self, mut command: Command, options: &[&str]) -> Mounted {
        command.arg("mount").arg(&self.source).arg(&self.target);
        for option in options {
            command.args(["-o", option]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("readable");
        assert!(line.starts_with("mounted "), "{line}");
        Mounted { child, stderr, target: self.target.clone(), unmounted: false }
    }
}

/// By umount(8), which does not wait, but a mount may be busy for a moment: a child that another test
/// has just forked holds our descriptors until it executes its program, and those of a daemon that was
/// killed are closed when the kernel has taken its rings apart.
pub fn unmount(target: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let output = Command::new("umount").arg(target).output().expect("starts");
        if output.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("busy") && Instant::now() < deadline, "{said}");
        std::thread::yield_now();
    }
}

/// A mount that is served by a process of its own.
pub struct Mounted {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    target: PathBuf,
    unmounted: bool,
}

impl Mounted {
    /// Unmounts with `umount`; returns what the daemon said since.
    pub fn unmount(self) -> String {
        unmount(&self.target);
        self.wait()
    }

    /// Memory of the daemon, in bytes.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("a number of kB") << 10
    }

    /// Waits for the daemon to end well.
    pub fn wait(mut self) -> String {
        self.unmounted = true;
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).expect("readable");
        let status = self.child.wait().expect("ours");
        assert!(status.success(), "{status}: {said}");
        said
    }

    pub fn signal(&self, signal: &str) {
        tool("kill", &[signal, &self.child.id().to_string()], Path::new("/"));
    }

    /// Kills the daemon without a chance to flush, and clears the dead mount away.
    pub fn kill(mut self) -> ExitStatus {
        self.child.kill().expect("ours");
        let status = self.child.wait().expect("ours");
        self.unmounted = true;
        tool("umount", &["-l", self.target.to_str().expect("UTF-8")], Path::new("/"));
        status
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.unmounted {
            // A test has failed: leave nothing behind.
            let _ = Command::new("umount").arg("-l").arg(&self.target).output();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The files of two trees differ in nothing: contents, names, modes, owners, times, links.
pub fn assert_same(one: &Path, other: &Path) {
    let trees = [one, other].map(|path| format!("{}/", path.display()));
    let arguments =
        ["-aHAXcn", "--delete", "--itemize-changes", "--omit-dir-times", &trees[0], &trees[1]];
    let differences = tool("rsync", &arguments, Path::new("/"));
    assert_eq!(differences, "", "of {} and {}", trees[0], trees[1]);
}

/// Fails as a command that cannot do what it was asked; returns its words.
pub fn refused(command: &mut Command, code: i32) -> String {
    let Output { status, stderr, .. } = command.output().expect("starts");
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert_eq!(status.code(), Some(code), "{stderr}");
    stderr
}

/// Bytes that do not compress.
pub fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let urandom = File::open("/dev/urandom");
    urandom.and_then(|mut file| file.read_exact(&mut bytes)).expect("there");
    bytes
}

/// RELEASE follows close(2), which does not wait for it, and the next request may overtake it on
/// another core's queue.
pub fn wait_until_unused(place: &Place) {
    while number(&stats(place, "."), "files_in_use") > 0 {
        std::thread::yield_now();
    }
}

/// Not by getfattr(1): a child that is started closes its copies of our descriptors, and what was
/// written on them is committed.
pub fn stats(place: &Place, path: &str) -> String {
    let mut value = [0; 1024];
    let path = place.target.join(path);
    let len = rustix::fs::getxattr(path, "user.warpcore.stats", &mut value[..]).expect("known");
    String::from_utf8_lossy(&value[..len]).into_owned()
}

pub fn number(stats: &str, name: &str) -> u64 {
    let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{name} of {stats}"))
}

/// A power cut takes a sector or more of a stored file that was closed before the system started.
pub fn take_by_power_cut(stored: &Path, at: u64, len: usize) {
    let file = File::options().read(true).write(true).open(stored).expect("opens");
    file.write_all_at(&vec![0; len], at / 512 * 512).expect("written");
    let mut mark = [0; 24];
    rustix::fs::fgetxattr(&file, "user.warpcore", &mut mark[..]).expect("has it");
    // Another boot (FORMAT.md).
    mark[4] ^= 1;
    rustix::fs::fsetxattr(&file, "user.warpcore", &mark, XattrFlags::REPLACE).expect("set");
}
