//! Looks at stored files without a mount, and keeps them in order.

mod upkeep;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use warpcore_fs::store::contents::{Contents, Options};
use warpcore_fs::store::format::Kind;
use warpcore_fs::store::medium::FileMedium;
use warpcore_fs::{LockError, is_shown};
use warpcore_offload::Codec;
use warpcore_runtime::{Builder, queue};

use crate::progress::progress;
use crate::storage;
use crate::{Failure, print, unwritten};

/// Look at stored files without a mount, and keep them in order
///
/// PATH is a file or a directory in SRC, not in MNT (but of `scrub`).
///
/// Examples:
///   warpcore fs stat /srv/data.stored
///   warpcore fs compress /srv/data.stored    # what was there before the first mount
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Subcommand)]
enum Command {
    /// Write the contents of a stored file to standard output
    Cat {
        /// A stored file
        path: PathBuf,
    },
    /// Read and verify everything; damaged files are named, and the exit code is 1. SRC must not be
    /// mounted: see `scrub`
    Check {
        /// A stored file, or a directory of them
        path: PathBuf,
    },
    /// Write files front to back again, without what was replaced: they take less room, and
    /// `zstd -dc` reads them. SRC must not be mounted. May be interrupted at any time
    Compact {
        /// A stored file, or a directory of them
        path: PathBuf,
    },
    /// Store plain files compressed, each as a new file that takes the name of the old one. SRC must
    /// not be mounted. May be interrupted, and goes on where it was
    Compress {
        /// A file, or a directory of them
        path: PathBuf,
        /// 4k to 128k, a power of two: what is compressed at a time
        #[arg(long, value_name = "SIZE", default_value = "64k", value_parser = storage::chunk)]
        chunk: u8,
        /// zstd or deflate
        #[arg(long, value_name = "NAME", default_value = "zstd", value_parser = storage::codec)]
        codec: Codec,
        /// zstd -7 to 19, not 0; deflate 0 to 9. More than a mount's: nobody waits for it
        #[arg(long, value_name = "N", default_value = "3", allow_hyphen_values = true)]
        #[arg(value_parser = storage::level)]
        level: i32,
    },
    /// Read everything through the mount, past the page cache; what cannot be read is named, and the
    /// exit code is 1
    Scrub {
        /// A file or directory in MNT
        path: PathBuf,
    },
    /// Show how files are stored: lengths, ratio, extents, what is dead
    Stat {
        /// A stored file, or a directory of them
        path: PathBuf,
    },
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Command::Compress { codec, level, .. } = arguments.command {
        storage::check_level(codec, level)?;
    }
    let mut outputs = Builder::new().shards(1).run(move |_| {
        let command = arguments.command.clone();
        async move {
            let result = match command {
                Command::Cat { path } => cat(&path).await,
                Command::Check { path } => check(&path).await,
                Command::Compact { path } => upkeep::compact(&path).await,
                Command::Compress { path, chunk, codec, level } => {
                    let options =
                        Options { chunk_len_log2: chunk, codec, level, ..Options::default() };
                    upkeep::compress(&path, options).await
                }
                Command::Scrub { path } => scrub(&path),
                Command::Stat { path } => stat(&path).await,
            };
            result.map_err(|failure| failure.to_string())
        }
    })?;
    Ok(outputs.pop().expect("one shard")?)
}

async fn open(path: &Path) -> Result<Contents<FileMedium>, Failure> {
    let named = |error: &dyn std::error::Error| format!("{}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(|error| named(&error))?;
    if !file.metadata()?.is_file() {
        return Err(format!("{}: not a regular file", path.display()).into());
    }
    if is_shown(&file) {
        return Err(format!("{}: {}", path.display(), LockError::Shown).into());
    }
    let medium = FileMedium::new(file.into());
    let contents = Contents::open(medium, Options::default(), false).await;
    Ok(contents.map_err(|error| named(&error))?)
}

async fn cat(path: &Path) -> Result<(), Failure> {
    const PART: usize = 1 << 20;
    let contents = open(path).await?;
    let mut out = std::io::stdout().lock();
    let mut part = vec![0; PART];
    let mut offset = 0;
    loop {
        let len = contents.read(&queue(), offset, &mut part).await;
        let len = len.map_err(|error| format!("{}: {error}", path.display()))?;
        if len == 0 {
            return out.flush().map_err(unwritten);
        }
        out.write_all(&part[..len]).map_err(unwritten)?;
        offset += len as u64;
    }
}

async fn check(path: &Path) -> Result<(), Failure> {
    let (mut good, mut bad) = (0_u64, 0_u64);
    // What is being written may look damaged.
    let _locks = upkeep::lock(path)?;
    for path in files(path)? {
        let checked = match open(&path).await {
            Ok(contents) => contents
                .check(&queue())
                .await
                .map_err(|error| Failure::from(format!("{}: {error}", path.display()))),
            Err(failure) => Err(failure),
        };
        match checked {
            Ok(()) => good += 1,
            Err(failure) => {
                bad += 1;
                print(failure)?;
            }
        }
    }
    print(format_args!("{good} files verified, {bad} damaged"))?;
    if bad > 0 { Err(format!("{bad} damaged files").into()) } else { Ok(()) }
}

fn scrub(path: &Path) -> Result<(), Failure> {
    const PART: usize = 1 << 20;
    let (mut good, mut bad) = (0_u64, 0_u64);
    let root = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if !is_shown(root) {
        let cause = "no mount of warpcore shows it; `warpcore fs check` reads what is stored";
        return Err(format!("{}: {cause}", path.display()).into());
    }
    let all = files(path)?;
    let bar = progress("scrubbing", all.len() as u64, "files");
    let mut part = vec![0; PART];
    for path in all {
        // What the kernel has in its cache would tell nothing of what is stored.
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let read = file.and_then(|mut file| {
            while file.read(&mut part)? > 0 {}
            Ok(())
        });
        match read {
            Ok(()) => good += 1,
            Err(error) => {
                bad += 1;
                bar.suspend(|| print(format_args!("{}: {error}", path.display())))?;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    print(format_args!("{good} files read, {bad} damaged"))?;
    if bad > 0 { Err(format!("{bad} damaged files").into()) } else { Ok(()) }
}

async fn stat(path: &Path) -> Result<(), Failure> {
    let (mut files_count, mut plain, mut size, mut physical, mut stored) = (0, 0, 0, 0, 0);
    let (mut allocated, mut dead) = (0, 0);
    let mut codecs = BTreeMap::<_, (u64, u64)>::new();
    let single = path.is_file();
    let mut bad = 0_u64;
    for path in files(path)? {
        let on_disk = std::fs::metadata(&path).map_or(0, |metadata| metadata.blocks()) * 512;
        let report = match open(&path).await {
            Ok(contents) => {
                let report = contents.report().await;
                report.map_err(|error| format!("{}: {error}", path.display()).into())
            }
            Err(failure) => Err(failure),
        };
        let report = match report {
            Ok(report) => report,
            Err(failure) => {
                bad += 1;
                print(failure)?;
                continue;
            }
        };
        allocated += on_disk;
        if report.kind == Kind::Container && !report.linear {
            dead += on_disk.saturating_sub(report.stored);
        }
        for share in &report.codecs {
            let sum = codecs.entry(share.codec.name()).or_default();
            *sum = (sum.0 + share.len, sum.1 + share.stored);
        }
        files_count += 1;
        plain += u64::from(report.kind == Kind::Plain);
        size += report.size;
        physical += report.physical;
        stored += report.stored;
        if single {
            print(format_args!("kind      {:?}", report.kind))?;
            print(format_args!("extents   {}", report.extents))?;
            print(format_args!("linear    {}", report.linear))?;
        }
    }
    print(format_args!("files     {files_count} ({plain} plain)"))?;
    print(format_args!("contents  {size} bytes"))?;
    print(format_args!("backing   {physical} bytes, {stored} of them contents"))?;
    print(format_args!("on disk   {allocated} bytes"))?;
    print(format_args!("dead      {dead} bytes, about, which compact gives back"))?;
    for (name, (len, stored)) in codecs {
        print(format_args!("{name:<9} {len} bytes as {stored}"))?;
    }
    if allocated > 0 {
        print(format_args!("ratio     {:.2}", ratio(size, allocated)))?;
    }
    if bad > 0 { Err(format!("{bad} damaged files are not counted").into()) } else { Ok(()) }
}

/// Every regular file at or below `path`, which may be a link to it, in order, on its filesystem.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let named = |error: &dyn Display| format!("{}: {error}", path.display());
    let path = path.canonicalize().map_err(|error| named(&error))?;
    if !path.is_dir() && !path.is_file() {
        return Err(named(&"neither a file nor a directory").into());
    }
    files_on(None, &path)
}

/// `device`: of the filesystem; None: of `path`.
fn files_on(device: Option<u64>, path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let named = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let metadata = std::fs::symlink_metadata(path).map_err(|error| named(path, error))?;
    if device.is_some_and(|device| device != metadata.dev()) {
        print(format_args!("{}: on another filesystem; left out", path.display()))?;
        return Ok(Vec::new());
    }
    if !metadata.is_dir() {
        return Ok(if metadata.is_file() { vec![path.to_owned()] } else { Vec::new() });
    }
    let entries = std::fs::read_dir(path).map_err(|error| named(path, error))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(|error| named(path, error))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let mut found = Vec::new();
    for entry in entries {
        found.extend(files_on(Some(metadata.dev()), &entry.path())?);
    }
    Ok(found)
}

/// For people: a double is exact enough.
fn ratio(whole: u64, part: u64) -> f64 {
    whole as f64 / part as f64
}
