//! A line of JSON for each connection that has ended.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchown, fstat, openat2};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use warpcore_runtime::fs::File;

use crate::connection::{Failure, Visit, suite_name, version_name};
use crate::error::Error;
use crate::listener::lock;

/// Lines gather in memory and are written many at a time: nobody waits for the disk.
#[derive(Debug)]
pub(crate) struct AccessLog {
    path: PathBuf,
    file: Mutex<File>,
    lines: Mutex<Lines>,
    /// Held from taking lines until they are written: they stay whole. True: but for the last, which was cut.
    writing: async_lock::Mutex<bool>,
}

#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Lines for which there was no room.
    left_out: u64,
}

/// What may wait to be written.
const WAITING_MAX: usize = 4 << 20;

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    listener: &'a str,
    client: Option<String>,
    server_name: Option<&'a str>,
    version: &'a str,
    suite: Option<&'a str>,
    alpn: Option<Cow<'a, str>>,
    resumed: bool,
    handshake_ms: Option<f64>,
    upstream: Option<String>,
    received: u64,
    sent: u64,
    duration_ms: f64,
    error: Option<String>,
}

impl AccessLog {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = Mutex::new(open(path)?);
        let path = path.to_owned();
        Ok(Self { path, file, lines: Mutex::default(), writing: async_lock::Mutex::default() })
    }

    /// Whether it could be opened, or made.
    pub(crate) fn check(path: &Path) -> Result<(), Error> {
        let there = match open_without_links(path, OFlags::empty()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::read_dir(directory_of(path)).map(drop)
            }
            opened => opened.map(drop),
        };
        there.map_err(|error| cannot_write(path, &error))
    }

    /// After the file was moved away: goes on in a new one.
    pub(crate) fn reopen(&self) -> Result<(), Error> {
        *lock(&self.file) = open(&self.path)?;
        Ok(())
    }

    /// Makes it somebody's, unless it has another name, which might be one that matters.
    pub(crate) fn give(&self, uid: u32, gid: u32) -> io::Result<()> {
        let file = lock(&self.file).clone();
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1 {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        Ok(())
    }

    pub(crate) fn ended(&self, listener: &str, visit: &Visit, failure: Option<&Failure>) {
        let now = OffsetDateTime::now_utc().format(&Rfc3339);
        // Three digits behind the point.
        let milliseconds = |duration: Duration| duration.as_micros() as f64 / 1000.0;
        let line = Line {
            time: now.expect("a date of this age"),
            listener,
            client: visit.endpoints.map(|endpoints| endpoints.source.to_string()),
            server_name: visit.server_name.as_deref(),
            version: version_name(visit.version),
            suite: visit.suite.and_then(suite_name),
            alpn: visit.alpn.as_deref().map(String::from_utf8_lossy),
            resumed: visit.resumed,
            handshake_ms: visit.handshake.map(milliseconds),
            upstream: visit.upstream.as_ref().map(ToString::to_string),
            received: visit.traffic.received.get(),
            sent: visit.traffic.sent.get(),
            duration_ms: milliseconds(visit.accepted_at.elapsed()),
            error: failure.map(ToString::to_string),
        };
        let mut line = serde_json::to_vec(&line).expect("text and numbers");
        line.push(b'\n');
        let mut lines = lock(&self.lines);
        if lines.bytes.len() + line.len() > WAITING_MAX {
            lines.left_out += 1;
            return;
        }
        lines.bytes.append(&mut line);
    }

    /// Writes what waits.
    pub(crate) async fn write(&self) {
        let mut is_cut = self.writing.lock().await;
        let Lines { mut bytes, left_out } = std::mem::take(&mut *lock(&self.lines));
        if left_out > 0 {
            tracing::warn!("access log: {left_out} lines left out: they came faster than the disk");
        }
        if bytes.is_empty() {
            return;
        }
        if std::mem::take(&mut *is_cut) {
            bytes.insert(0, b'\n');
        }
        let file = lock(&self.file).clone();
        // Opened for appending: wherever the end is.
        let (result, _) = file.write_all_at(bytes, 0).await;
        if let Err(error) = result {
            tracing::error!("access log {}: {error}", self.path.display());
            *is_cut = true;
        }
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let file = open_without_links(path, OFlags::CREATE);
    file.map(File::from).map_err(|error| cannot_write(path, &error))
}

/// For appending; as root not by a link that somebody else may have put there: it might lead anywhere.
fn open_without_links(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let trusts = !geteuid().is_root() || is_reached_by_root_alone(path)?;
    let resolve = if trusts { ResolveFlags::empty() } else { ResolveFlags::NO_SYMLINKS };
    let flags = flags | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
    // A mode is for what is made.
    let mode = if flags.contains(OFlags::CREATE) { 0o666 } else { 0 };
    openat2(CWD, path, flags, Mode::from_raw_mode(mode), resolve).map_err(|errno| match errno {
        Errno::LOOP if !trusts => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "a link leads there, past directories that are not root's alone",
        ),
        errno => errno.into(),
    })
}

/// Whether nobody but root makes names in any directory on the way, whether links are followed or not.
fn is_reached_by_root_alone(path: &Path) -> io::Result<bool> {
    let path = std::path::absolute(path)?;
    let directory = directory_of(&path);
    // What is not there will be said by who opens it.
    let Ok(followed) = directory.canonicalize() else { return Ok(false) };
    let on_the_way = directory.ancestors().chain(followed.ancestors());
    Ok(on_the_way.map(Path::metadata).all(|one| one.is_ok_and(|one| is_roots(&one))))
}

fn directory_of(path: &Path) -> &Path {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    directory.unwrap_or_else(|| Path::new("."))
}

/// Whether nobody but root makes names in a directory.
fn is_roots(directory: &fs::Metadata) -> bool {
    directory.uid() == 0 && directory.mode() & 0o022 == 0
}

fn cannot_write(path: &Path, error: &io::Error) -> Error {
    Error::config(format!("cannot write to {}: {error}", path.display()))
}
