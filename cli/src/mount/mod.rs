//! Mounts a directory that compresses what is written to it.

mod daemon;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_lock::OnceCell;
use warpcore_fs::store::contents::Options;
use warpcore_fs::{Cache, Config, Flag, Mount, Summary, Transport};
use warpcore_offload::{Codec, Devices, Stats};
use warpcore_runtime::Builder;

use crate::devices::{self, Selection};
use crate::storage;
use crate::{Failure, note, systemd};
use daemon::Role;

pub(crate) use daemon::arguments;

/// Mount a directory that compresses what is written to it
///
/// SRC holds the stored files, MNT shows them. Plain files already in SRC are read and written in
/// place. Runs in the foreground until MNT is unmounted; SIGTERM and Ctrl-C flush and unmount.
///
/// Example:
///   warpcore mount /srv/data.stored /srv/data -o allow_other,level=3
///   umount /srv/data
///
/// In /etc/fstab, once /sbin/mount.fuse.warpcore is a link to this program:
///   /srv/data.stored /srv/data fuse.warpcore allow_other,nofail 0 0
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Directory with the stored files
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Empty directory to mount on
    #[arg(value_name = "MNT")]
    target: PathBuf,
    /// Options, separated by commas:
    ///   allow_other   let other users in, as the modes say
    ///   codec=NAME    zstd or deflate; deflate if a device that does it is selected, else zstd
    ///   chunk=SIZE    chunk of new files: 4k to 128k, a power of two; 64k if not said
    ///   dirty=SIZE    what may be in memory only, of all files together: 1m or more; 128m if not said
    ///   index=SIZE    what open files may keep in memory of where their contents lie, all together:
    ///                 1m or more; 64m if not said
    ///   level=N       level of new contents: zstd -7 to 19, not 0; deflate 0 to 9; 1 if not said
    ///   no_uring      use /dev/fuse even if the kernel has FUSE over io_uring on
    ///   noatime, noexec, ro
    ///                 as for every filesystem; set-user-id and devices are never obeyed
    ///   writethrough  have each write(2) reach this program before it returns, instead of when the
    ///                 kernel sends what it gathered: files are shown with their holes
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',', verbatim_doc_comment)]
    #[arg(value_parser = parse)]
    options: Vec<MountOption>,
    /// Go to the background once it is mounted; messages go to syslog
    #[arg(long)]
    daemon: bool,
    /// Do nothing, as `mount -f` wants it
    #[arg(long, hide = true)]
    fake: bool,
    #[command(flatten)]
    selection: Selection,
}

#[derive(Clone, Copy)]
enum MountOption {
    AllowOther,
    ChunkLenLog2(u8),
    Codec(Codec),
    DirtyMax(u64),
    Flag(Flag),
    /// For mount(8) and systemd.
    ForOthers,
    IndexMax(u64),
    Level(i32),
    NoUring,
    WriteThrough,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.fake {
        return Ok(());
    }
    match daemon::role() {
        None if arguments.daemon => return daemon::start(),
        Some(Role::Supervisor) => return daemon::supervise(&arguments.target),
        Some(Role::Server { supervisor }) => daemon::follow_supervisor(supervisor)?,
        None => {}
    }
    let mut config = Config {
        source: arguments.source.clone(),
        target: arguments.target.clone(),
        contents: Options::default(),
        dirty_max: 128 << 20,
        index_max: 64 << 20,
        allow_other: false,
        io_uring: true,
        cache: Cache::WriteBack,
        flags: Vec::new(),
    };
    let devices = arguments.selection.select()?;
    if devices.compresses(Codec::Deflate) {
        config.contents.codec = Codec::Deflate;
    }
    for option in &arguments.options {
        match *option {
            MountOption::AllowOther => config.allow_other = true,
            MountOption::ChunkLenLog2(log2) => config.contents.chunk_len_log2 = log2,
            MountOption::Codec(codec) => config.contents.codec = codec,
            MountOption::DirtyMax(bytes) => config.dirty_max = bytes,
            MountOption::Flag(flag) => config.flags.push(flag),
            MountOption::ForOthers => {}
            MountOption::IndexMax(bytes) => config.index_max = bytes,
            MountOption::Level(level) => config.contents.level = level,
            MountOption::NoUring => config.io_uring = false,
            MountOption::WriteThrough => config.cache = Cache::WriteThrough,
        }
    }
    storage::check_level(config.contents.codec, config.contents.level)?;
    let summaries = serve(config, devices)?;
    let mut stats = Stats::default();
    summaries.iter().for_each(|summary| stats.add(&summary.queue));
    devices::report(&stats).iter().for_each(note);
    if !summaries.iter().all(|summary| summary.flushed) {
        return Err("not everything could be flushed; see above".into());
    }
    // What was agreed on, and what came of it: the kernel goes back to /dev/fuse by itself.
    let by_ring: u64 = summaries.iter().map(|summary| summary.uring_requests).sum();
    let way = match summaries[0].transport {
        Some(Transport::IoUring) if by_ring > 0 => "io_uring",
        Some(_) => "/dev/fuse",
        None => "none",
    };
    note(format_args!("unmounted; transport: {way}"));
    Ok(())
}

/// Mounts, and serves on every core, until unmounted or told to stop.
fn serve(config: Config, devices: Devices) -> Result<Vec<Summary>, Failure> {
    // The mount is made by a shard, once the rings stand and the signals are held: nothing can
    // fail or kill us between mount and service.
    let mount = Arc::new(OnceCell::new());
    let config = Arc::new(config);
    // Who waits for an answer waits on the same core: the sooner it is left, the better.
    let builder = Builder::new().sqe128(true).stop_on_signals(true).stop_on_hangup(true);
    let builder = builder.spin(Duration::ZERO);
    let outputs = builder.devices(devices).run(|_| {
        let (mount, config) = (Arc::clone(&mount), Arc::clone(&config));
        async move {
            let mounted = mount.get_or_init(async || {
                let mount = Mount::new(&config).map_err(|error| error.to_string())?;
                let (source, target) = (config.source.display(), config.target.display());
                note(format_args!("{}{source} on {target}", daemon::MOUNTED));
                systemd::notify("READY=1");
                daemon::leave_directory();
                Ok::<_, String>(mount)
            });
            let mount = mounted.await.as_ref().map_err(String::clone)?;
            mount.serve().await.map_err(|error| format!("the mount ended: {error}"))
        }
    })?;
    Ok(outputs.into_iter().collect::<Result<_, _>>()?)
}

fn parse(option: &str) -> Result<MountOption, String> {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    match (name, value) {
        ("allow_other", "") => Ok(MountOption::AllowOther),
        ("noatime", "") => Ok(MountOption::Flag(Flag::NoAtime)),
        ("noexec", "") => Ok(MountOption::Flag(Flag::NoExec)),
        ("ro", "") => Ok(MountOption::Flag(Flag::ReadOnly)),
        ("no_uring", "") => Ok(MountOption::NoUring),
        ("writethrough", "") => Ok(MountOption::WriteThrough),
        ("chunk", value) => Ok(MountOption::ChunkLenLog2(storage::chunk(value)?)),
        ("dirty", value) => Ok(MountOption::DirtyMax(mib(name, value)?)),
        ("index", value) => Ok(MountOption::IndexMax(mib(name, value)?)),
        ("codec", value) => Ok(MountOption::Codec(storage::codec(value)?)),
        ("level", value) => Ok(MountOption::Level(storage::level(value)?)),
        _ if is_for_others(option) => Ok(MountOption::ForOthers),
        _ => Err(format!("there is no mount option `{option}`; see `warpcore mount --help`")),
    }
}

/// mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS", as far as they change nothing for us.
fn is_for_others(option: &str) -> bool {
    const WORDS: [&str; 12] = [
        "", "async", "auto", "defaults", "exec", "noauto", "nodev", "nofail", "nosuid", "relatime",
        "rw", "_netdev",
    ];
    WORDS.contains(&option) || option.starts_with("x-") || option.starts_with("comment=")
}

/// As in `128m`, in bytes.
fn mib(name: &str, value: &str) -> Result<u64, String> {
    let mib = value.to_ascii_lowercase().strip_suffix('m').map(str::parse::<u32>);
    match mib {
        Some(Ok(mib @ 1..)) => Ok(u64::from(mib) << 20),
        _ => Err(format!("{name}={value}: a number of MiB, as in 128m")),
    }
}
