//! Who is measured: as root each on an image of its own, mounted through a loop device; else we on a
//! directory, beside that directory's filesystem.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::OURS;

/// A filesystem under measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bindfs,
    Btrfs,
    /// What is there already.
    Directory,
    Ext4,
    Gocryptfs,
    Warpcore,
}

/// One that stands, mounted or not.
pub(super) struct System {
    pub(super) kind: Kind,
    /// None: `lower` is a directory of a filesystem that is there already.
    image: Option<PathBuf>,
    /// Where the image is mounted.
    lower: PathBuf,
    /// Where a stacked one is mounted.
    upper: PathBuf,
    daemon: Option<Child>,
    mounted: bool,
}

impl Kind {
    /// The kernel's, and in a full run those that are stacked as we are; without root the directory.
    pub(super) fn all(full: bool) -> Vec<Self> {
        if !is_root() {
            return vec![Self::Warpcore, Self::Directory];
        }
        let mut all = vec![Self::Warpcore, Self::Ext4, Self::Btrfs];
        if full {
            all.extend([Self::Gocryptfs, Self::Bindfs]);
        }
        all
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bindfs => "bindfs",
            Self::Btrfs => "btrfs zstd:1",
            Self::Directory => "directory",
            Self::Ext4 => "ext4",
            Self::Gocryptfs => "gocryptfs",
            Self::Warpcore => OURS,
        }
    }

    fn is_stacked(self) -> bool {
        matches!(self, Self::Bindfs | Self::Gocryptfs | Self::Warpcore)
    }
}

impl System {
    pub(super) fn start(kind: Kind, place: &Path, image_len: u64) -> Result<Self, String> {
        let own = place.join(kind.name().split(' ').next().expect("never empty"));
        let [image, lower, upper] = ["image", "lower", "upper"].map(|name| own.join(name));
        for directory in [&lower, &upper] {
            fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", own.display()))?;
        }
        let image = is_root().then_some(image);
        if let Some(image) = &image {
            let file = File::create(image).and_then(|file| file.set_len(image_len));
            file.map_err(|error| format!("{}: {error}", image.display()))?;
            const EXT4: &[&str] = &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
            let mut mkfs = match kind {
                Kind::Btrfs => command("mkfs.btrfs", &["-q"]),
                _ => command("mkfs.ext4", EXT4),
            };
            succeed(mkfs.arg(image))?;
        }
        let mut system = Self { kind, image, lower, upper, daemon: None, mounted: false };
        system.mount_lower()?;
        if kind.is_stacked() {
            let stored = system.stored();
            fs::create_dir(&stored).map_err(|error| format!("{}: {error}", stored.display()))?;
            if kind == Kind::Gocryptfs {
                let mut init = command("gocryptfs", &["-q", "-init", "-extpass", "echo bench"]);
                succeed(init.arg(&stored))?;
            }
            system.mount_upper()?;
        }
        Ok(system)
    }

    /// Where it is written and read.
    pub(super) fn root(&self) -> &Path {
        if self.kind.is_stacked() { &self.upper } else { &self.lower }
    }

    /// Bytes in use on the image, or below the directory.
    pub(super) fn used(&self) -> u64 {
        if self.image.is_none() {
            return allocated(&self.lower);
        }
        let stat = rustix::fs::statvfs(&self.lower).expect("it is mounted");
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }

    /// Everything is on the image.
    pub(super) fn sync(&self) {
        for directory in [self.root(), &self.lower] {
            let synced = File::open(directory).and_then(|file| Ok(rustix::fs::syncfs(file)?));
            synced.unwrap_or_else(|error| panic!("syncfs of {}: {error}", directory.display()));
        }
    }

    /// Mounted anew, with nothing in memory; without root the lower filesystem's caches stay.
    pub(super) fn make_cold(&mut self) -> Result<(), String> {
        self.unmount()?;
        rustix::fs::sync();
        if is_root() {
            fs::write("/proc/sys/vm/drop_caches", "3")
                .map_err(|error| format!("drop_caches: {error}"))?;
        }
        self.mount_lower()?;
        if self.kind.is_stacked() { self.mount_upper() } else { Ok(()) }
    }

    fn stored(&self) -> PathBuf {
        self.lower.join("stored")
    }

    fn mount_lower(&mut self) -> Result<(), String> {
        let Some(image) = &self.image else {
            self.mounted = true;
            return Ok(());
        };
        // Reads and writes of the image go to its disk as the kernel's own would.
        let options = match self.kind {
            Kind::Btrfs => "loop,compress=zstd:1",
            _ => "loop",
        };
        succeed(command("mount", &["-o", options]).args([image, &self.lower]))?;
        self.mounted = true;
        Ok(())
    }

    fn mount_upper(&mut self) -> Result<(), String> {
        let stored = self.stored();
        match self.kind {
            Kind::Warpcore => {
                let mut child = Command::new(beside_us()?)
                    .arg("mount")
                    .args([&stored, &self.upper])
                    .stderr(Stdio::piped())
                    .spawn()
                    .map_err(|error| format!("warpcore mount: {error}"))?;
                let mut said = String::new();
                let stderr = child.stderr.take().expect("piped");
                let mut stderr = BufReader::new(stderr);
                stderr.read_line(&mut said).map_err(|error| error.to_string())?;
                if !said.starts_with("mounted ") {
                    return Err(said);
                }
                // What it says later must find a reader.
                std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
                self.daemon = Some(child);
                Ok(())
            }
            Kind::Gocryptfs => {
                let mut mount = command("gocryptfs", &["-q", "-extpass", "echo bench"]);
                succeed(mount.args([&stored, &self.upper]))
            }
            Kind::Bindfs => succeed(Command::new("bindfs").args([&stored, &self.upper])),
            Kind::Btrfs | Kind::Directory | Kind::Ext4 => unreachable!("not stacked"),
        }
    }

    fn unmount(&mut self) -> Result<(), String> {
        if self.kind.is_stacked() {
            let mut unmount = match is_root() {
                true => command("umount", &[]),
                false => command("fusermount3", &["-u"]),
            };
            succeed(unmount.arg(&self.upper))?;
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait().map_err(|error| error.to_string())?;
        }
        if self.image.is_none() {
            self.mounted = false;
            return Ok(());
        }
        // The daemons of others end some time after their mount.
        let unmount = || succeed(Command::new("umount").arg(&self.lower));
        let mut result = unmount();
        for _ in 0..100 {
            if result.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            result = unmount();
        }
        self.mounted = result.is_err();
        result
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = self.unmount()
        {
            eprintln!("fs: {error}");
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Bytes that everything below a directory takes on its disk. What cannot be read counts nothing.
fn allocated(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        let below = if metadata.is_dir() { allocated(&entry.path()) } else { 0 };
        Some(metadata.blocks() * 512 + below)
    });
    sizes.sum()
}

/// The `warpcore` that was built with this program.
fn beside_us() -> Result<PathBuf, String> {
    let path =
        std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("warpcore");
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is missing: `cargo build --release -p warpcore`", path.display()))
    }
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs it; what it says is the error.
pub(super) fn succeed(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return Err(format!("{program}: {error}")),
    };
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program}: {} {}", output.status, said.trim()))
    }
}
