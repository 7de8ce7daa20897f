//! A mount in the background: `warpcore mount --daemon`, and what mount(8) calls.
//!
//! ```text
//!   caller ── starts ──> supervisor ── starts ──> server (as in the foreground)
//!     ends when the server has mounted       its words go to syslog
//! ```
//!
//! The supervisor has no descriptor of the connection: when the server dies, whatever the reason, the
//! kernel ends it, and nobody hangs. What is left is a mount point that answers "not connected"; the
//! supervisor takes it away, says so, and ends with an error. A server whose supervisor dies unmounts
//! in order.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal, setsid};

use crate::{Failure, note};

/// Tells the two processes of a daemon what they are.
const ROLE: &str = "WARPCORE_MOUNT_ROLE";

const SUPERVISOR: &str = "supervisor";

/// With its process behind it.
const SERVER_OF: &str = "server-of";

/// What this process is of a mount in the background.
pub(super) enum Role {
    Supervisor,
    Server {
        /// The process that it follows.
        supervisor: i32,
    },
}

/// None: it was started by a user.
pub(super) fn role() -> Option<Role> {
    let role = std::env::var(ROLE).ok()?;
    match role.split_once(' ') {
        None if role == SUPERVISOR => Some(Role::Supervisor),
        Some((SERVER_OF, supervisor)) => {
            Some(Role::Server { supervisor: supervisor.parse().ok()? })
        }
        _ => None,
    }
}

/// Starts the supervisor, and waits until the directory is mounted, or cannot be.
pub(super) fn start() -> Result<(), Failure> {
    let mut command = this_program(SUPERVISOR)?;
    let mut supervisor = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let words = BufReader::new(supervisor.stderr.take().expect("piped"));
    // Warnings may come first. Names in it may be any bytes.
    for line in words.split(b'\n') {
        let line = line?;
        note(String::from_utf8_lossy(&line));
        if line.starts_with(MOUNTED.as_bytes()) {
            return Ok(());
        }
    }
    Err(format!("the daemon ended: {}", supervisor.wait()?).into())
}

/// How what a server says begins once it has mounted.
pub(super) const MOUNTED: &str = "mounted ";

/// Runs the server, and clears away after it.
pub(super) fn supervise(target: &Path) -> Result<(), Failure> {
    setsid()?;
    let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    let below = warpcore_fs::mount_id(&target).ok();
    let mut server = this_program(&format!("{SERVER_OF} {}", std::process::id()))?.spawn()?;
    std::env::set_current_dir("/")?;
    let words = BufReader::new(server.stderr.take().expect("piped"));
    let mut has_mounted = false;
    let mut ours = None;
    for line in words.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if has_mounted {
            to_syslog(&line);
            continue;
        }
        has_mounted = line.starts_with(MOUNTED);
        if has_mounted {
            // Unless it is unmounted already.
            ours = warpcore_fs::mount_id(&target).ok().filter(|id| Some(*id) != below);
        }
        // Who waits for it may have gone.
        note(line);
    }
    let ended = server.wait()?;
    if ended.success() {
        // Also if the connection was ended under it (`umount -f`); not another that has got its number.
        if let Some(id) = ours
            && warpcore_fs::are_mount_ids_unique(&target)
        {
            let _ = warpcore_fs::unmount_dead(&target, id);
        }
        return Ok(());
    }
    if !has_mounted {
        return Err(format!("the server ended: {ended}").into());
    }
    let cleared = match ours.map_or(Ok(()), |id| warpcore_fs::unmount_dead(&target, id)) {
        Ok(()) => "unmounted".to_owned(),
        Err(error) => format!("and cannot be unmounted: {error}"),
    };
    to_syslog(&format!("the server of {} died ({ended}); {cleared}", target.display()));
    // Nobody reads what would be said of an error now: it would only fail.
    std::process::exit(1)
}

/// In the server: it ends when the supervisor does.
pub(super) fn follow_supervisor(supervisor: i32) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have died before it would have been told.
    if getppid().map(Pid::as_raw_pid) == Some(supervisor) {
        Ok(())
    } else {
        Err("the supervisor of this mount has died".into())
    }
}

/// In the server, once it has mounted: where its caller stood may be unmounted.
pub(super) fn leave_directory() {
    if role().is_some() {
        // There is always a root.
        let _ = std::env::set_current_dir("/");
    }
}

/// This program with the same arguments.
fn this_program(role: &str) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(ROLE, role).args(&arguments()[1..]).stderr(Stdio::piped());
    Ok(command)
}

/// The arguments of this program, also where mount(8) has called it.
pub(crate) fn arguments() -> Vec<OsString> {
    let words: Vec<_> = std::env::args_os().collect();
    // Paths that are not UTF-8 come from a user: mount(8) has read ours from fstab, escaped.
    let plain: Option<Vec<_>> = words.iter().map(|word| word.to_str()).collect();
    match plain.and_then(|plain| called_by_mount(&plain)) {
        Some(translated) => translated.into_iter().map(OsString::from).collect(),
        None => words,
    }
}

/// One line, as a daemon's warning (RFC 3164). Without a syslog it is lost, and with one that stands still: its
/// files may be in the mount, whose server waits until this is read.
fn to_syslog(line: &str) {
    const DAEMON_WARNING: u8 = 3 << 3 | 4;
    let pid = std::process::id();
    let message = format!("<{DAEMON_WARNING}>warpcore[{pid}]: {line}");
    let _ = UnixDatagram::unbound().and_then(|log| {
        log.set_nonblocking(true)?;
        log.send_to(message.as_bytes(), "/dev/log")
    });
}

/// The arguments with which mount(8) calls `mount.fuse.warpcore`, as those of `warpcore mount`; None
/// if this program was not called by that name.
///
/// `mount.fuse.warpcore SRC MNT [-sfnv] [-o OPTIONS] [-t TYPE]`
fn called_by_mount(arguments: &[&str]) -> Option<Vec<String>> {
    let name = PathBuf::from(arguments.first()?);
    if name.file_name()? != "mount.fuse.warpcore" {
        return None;
    }
    let mut translated = ["warpcore", "mount", "--daemon"].map(str::to_owned).to_vec();
    let mut rest = arguments[1..].iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "-o" => translated.extend(["-o".to_owned(), (*rest.next()?).to_owned()]),
            "-t" | "-N" => drop(rest.next()),
            flags if flags.starts_with('-') => {
                if flags.contains('f') {
                    translated.push("--fake".to_owned());
                }
            }
            path => translated.push(path.to_owned()),
        }
    }
    Some(translated)
}
