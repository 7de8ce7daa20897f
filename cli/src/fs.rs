//! Looks at stored files without a mount.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use warpcore_fs::store::contents::{Contents, Options};
use warpcore_fs::store::format::Kind;
use warpcore_fs::store::medium::FileMedium;
use warpcore_runtime::{Builder, queue};

use crate::Failure;

/// Look at stored files without a mount
///
/// PATH is a file or a directory in SRC, not in MNT. Nothing is changed.
///
/// Example: warpcore fs stat /srv/data.stored
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the contents of a stored file to standard output
    Cat {
        /// A stored file
        path: PathBuf,
    },
    /// Read and verify everything; damaged files are named, and the exit code is 1
    Check {
        /// A stored file, or a directory of them
        path: PathBuf,
    },
    /// Show how files are stored: lengths, ratio, extents
    Stat {
        /// A stored file, or a directory of them
        path: PathBuf,
    },
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut outputs = Builder::new().shards(1).run(move |_| {
        let command = match &arguments.command {
            Command::Cat { path } => Command::Cat { path: path.clone() },
            Command::Check { path } => Command::Check { path: path.clone() },
            Command::Stat { path } => Command::Stat { path: path.clone() },
        };
        async move {
            let result = match command {
                Command::Cat { path } => cat(&path).await,
                Command::Check { path } => check(&path).await,
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
            return Ok(out.flush()?);
        }
        out.write_all(&part[..len])?;
        offset += len as u64;
    }
}

async fn check(path: &Path) -> Result<(), Failure> {
    let (mut good, mut bad) = (0_u64, 0_u64);
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
                println!("{failure}");
            }
        }
    }
    println!("{good} files verified, {bad} damaged");
    if bad > 0 { Err(format!("{bad} damaged files").into()) } else { Ok(()) }
}

async fn stat(path: &Path) -> Result<(), Failure> {
    let (mut files_count, mut plain, mut size, mut physical, mut stored) = (0, 0, 0, 0, 0);
    let single = path.is_file();
    for path in files(path)? {
        let report = open(&path).await?.report().await?;
        files_count += 1;
        plain += u64::from(report.kind == Kind::Plain);
        size += report.size;
        physical += report.physical;
        stored += report.stored;
        if single {
            println!("kind      {:?}", report.kind);
            println!("extents   {}", report.extents);
            println!("linear    {}", report.linear);
        }
    }
    println!("files     {files_count} ({plain} plain)");
    println!("contents  {size} bytes");
    println!("backing   {physical} bytes, {stored} of them in use");
    if physical > 0 {
        println!("ratio     {:.2}", ratio(size, physical));
    }
    Ok(())
}

/// Every regular file at or below `path`, in order.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let named = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let metadata = std::fs::symlink_metadata(path).map_err(|error| named(path, error))?;
    if !metadata.is_dir() {
        return Ok(if metadata.is_file() { vec![path.to_owned()] } else { Vec::new() });
    }
    let entries = std::fs::read_dir(path).map_err(|error| named(path, error))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let mut found = Vec::new();
    for entry in entries {
        found.extend(files(&entry.path())?);
    }
    Ok(found)
}

/// For people: a double is exact enough.
fn ratio(whole: u64, part: u64) -> f64 {
    whole as f64 / part as f64
}
