//! From one process to the next: it is started with the listening sockets, says when it serves, and
//! only then the old one stops accepting.

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, ExitStatus};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use warpcore_tls::{Proxy, Sockets};

/// Numbers of the sockets, separated by commas, and [`KEPT`].
const SOCKETS: &str = "WARPCORE_SOCKETS";

/// A service manager keeps them too.
const KEPT: &str = "kept";

/// Number of the descriptor that is written to when the next one serves.
const READY: &str = "WARPCORE_READY";

/// A process that is to take over. It may take its time, or never serve: this one goes on until it does.
pub(super) struct Next {
    child: Child,
    ready: PipeReader,
}

/// Starts this program anew with the proxy's sockets.
pub(super) fn start(proxy: &Proxy) -> io::Result<Next> {
    let Sockets { sockets, are_kept } = proxy.sockets()?;
    let (ready, tell) = io::pipe()?;
    fcntl_setfl(&ready, OFlags::NONBLOCK)?;
    let mut arguments = std::env::args_os();
    let program = arguments.next().ok_or_else(|| io::Error::other("its name is not known"))?;
    let mut command = Command::new(program);
    let numbers = sockets.iter().map(|socket| socket.as_raw_fd().to_string());
    let numbers: Vec<_> = numbers.chain(are_kept.then(|| KEPT.to_owned())).collect();
    command.args(arguments).env(SOCKETS, numbers.join(","));
    command.env(READY, tell.as_raw_fd().to_string());
    // No other child is started meanwhile that would have them too: this is the only place.
    for socket in &sockets {
        fcntl_setfd(socket, FdFlags::empty())?;
    }
    fcntl_setfd(&tell, FdFlags::empty())?;
    // What is open for the child is closed here in the end.
    Ok(Next { child: command.spawn()?, ready })
}

impl Next {
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it serves by now; an error: it has ended.
    pub(super) fn serves(&mut self) -> io::Result<bool> {
        match self.ready.read(&mut [0]) {
            Ok(0) => Err(Self::gone(self.child.wait()?)),
            // It may have served for a moment only.
            Ok(_) => self.child.try_wait()?.map_or(Ok(true), |ended| Err(Self::gone(ended))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn gone(ended: ExitStatus) -> io::Error {
        io::Error::other(format!("it ended before it served: {ended}; see its log"))
    }

    /// Another is to try.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

/// The sockets that were handed over to this process.
pub(super) fn sockets() -> Sockets {
    let numbers = std::env::var(SOCKETS).unwrap_or_default();
    let are_kept = numbers.split(',').any(|word| word == KEPT);
    Sockets { sockets: numbers.split(',').filter_map(take).collect(), are_kept }
}

/// Tells the process that has started this one.
pub(super) fn ready() {
    if let Some(tell) = std::env::var(READY).ok().as_deref().and_then(take)
        && let Err(error) = File::from(tell).write_all(&[1])
    {
        tracing::warn!("the process before this one cannot be told that it serves: {error}");
    }
}

/// A descriptor of this number that [`start`] has left open; children do not get it.
fn take(number: &str) -> Option<OwnedFd> {
    let number: RawFd = number.parse().ok().filter(|number| *number > 2)?;
    // SAFETY: the process that has started this one has opened it for us, named it in our environment,
    // and nobody else takes it: each variable is read once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}
