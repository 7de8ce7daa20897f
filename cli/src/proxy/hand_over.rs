//! From one process to the next: it is started with the listening sockets, says when it serves, and
//! only then the old one stops accepting.

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use warpcore_tls::{GivenSocket, Proxy};

use crate::systemd;

/// Numbers of the sockets, separated by commas; behind those that a service manager keeps, [`KEPT`].
const SOCKETS: &str = "WARPCORE_SOCKETS";

const KEPT: char = 'k';

/// Number of the descriptor that is written to when the next one serves.
const READY: &str = "WARPCORE_READY";

/// How far a proxy is with the process that takes over.
pub(super) struct HandOver {
    proxy: Arc<Proxy>,
    state: Mutex<State>,
}

enum State {
    /// This one does not serve yet itself.
    Arriving,
    /// There is none.
    Alone,
    /// It may take its time, or never serve: this one goes on until it does.
    Starting(Next),
    /// It serves.
    Done,
    /// This one has been asked to end, and starts nobody any more.
    Stopped,
}

impl HandOver {
    pub(super) fn new(proxy: Arc<Proxy>) -> Self {
        Self { proxy, state: Mutex::new(State::Arriving) }
    }

    /// All shards of this process serve.
    pub(super) fn serves(&self) {
        let mut state = self.state();
        if matches!(*state, State::Arriving) {
            *state = State::Alone;
        }
    }

    /// Starts the next process; instead of one that has not served until now. False: not before this one
    /// serves, for until then the sockets are those of the one before it.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.state();
        state.look(&self.proxy);
        match mem::replace(&mut *state, State::Alone) {
            State::Alone => {}
            State::Arriving => {
                *state = State::Arriving;
                return false;
            }
            State::Starting(next) => {
                tracing::warn!(
                    "process {}, which was to take over, does not serve yet: ended",
                    next.id()
                );
                next.end(&self.proxy);
            }
            over @ (State::Done | State::Stopped) => {
                *state = over;
                return true;
            }
        }
        match Next::start(&self.proxy) {
            Ok(next) => {
                tracing::info!("process {} is to take over once it serves", next.id());
                *state = State::Starting(next);
            }
            Err(error) => {
                tracing::error!("not handed over, this one goes on: {error}");
                self.proxy.take_back();
            }
        }
        true
    }

    /// Whether the next process serves by now.
    pub(super) fn is_done(&self) -> bool {
        let mut state = self.state();
        state.look(&self.proxy);
        matches!(*state, State::Done)
    }

    /// This process has been asked to end. False: for good, and so does one that was to take over.
    pub(super) fn stop(&self) -> bool {
        let mut state = self.state();
        state.look(&self.proxy);
        match mem::replace(&mut *state, State::Stopped) {
            State::Arriving | State::Alone | State::Stopped => false,
            State::Starting(next) => {
                tracing::warn!(
                    "process {}, which was to take over, does not serve yet: ended too",
                    next.id()
                );
                next.end(&self.proxy);
                false
            }
            State::Done => true,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What has become of a process that was starting.
    fn look(&mut self, proxy: &Proxy) {
        let Self::Starting(next) = self else { return };
        match next.serves() {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("handed over to process {}", next.id());
                *self = Self::Done;
            }
            Err(error) => {
                tracing::error!("not handed over, this one goes on: {error}");
                *self = Self::Alone;
                goes_on(proxy);
            }
        }
    }
}

/// It is this process again, also for a service manager that was told of another.
fn goes_on(proxy: &Proxy) {
    proxy.take_back();
    systemd::notify(&format!("MAINPID={}", std::process::id()));
}

/// A process that is to take over.
struct Next {
    child: Child,
    ready: PipeReader,
}

impl Next {
    /// Starts this program anew with the proxy's sockets.
    fn start(proxy: &Proxy) -> io::Result<Self> {
        let sockets = proxy.sockets()?;
        let (ready, tell) = io::pipe()?;
        fcntl_setfl(&ready, OFlags::NONBLOCK)?;
        let mut arguments = std::env::args_os();
        let program = arguments.next().ok_or_else(|| io::Error::other("its name is not known"))?;
        let mut command = Command::new(program);
        let number = |given: &GivenSocket| {
            let kept = if given.is_kept { KEPT.to_string() } else { String::new() };
            format!("{}{kept}", given.socket.as_raw_fd())
        };
        let numbers: Vec<_> = sockets.iter().map(number).collect();
        command.args(arguments).env(SOCKETS, numbers.join(","));
        command.env(READY, tell.as_raw_fd().to_string());
        // No other child is started meanwhile that would have them too: this is the only place.
        for given in &sockets {
            fcntl_setfd(&given.socket, FdFlags::empty())?;
        }
        fcntl_setfd(&tell, FdFlags::empty())?;
        // What is open for the child is closed here in the end.
        Ok(Self { child: command.spawn()?, ready })
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it serves by now; an error: it has ended.
    fn serves(&mut self) -> io::Result<bool> {
        let gone = |ended: ExitStatus| {
            io::Error::other(format!("it ended before it served: {ended}; see its log"))
        };
        match self.ready.read(&mut [0]) {
            Ok(0) => Err(gone(self.child.wait()?)),
            // It may have served for a moment only.
            Ok(_) => self.child.try_wait()?.map_or(Ok(true), |ended| Err(gone(ended))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The sockets are the proxy's alone again.
    fn end(mut self, proxy: &Proxy) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            tracing::error!("process {} cannot be ended: {error}", self.id());
        }
        goes_on(proxy);
    }
}

/// The sockets that were handed over to this process.
pub(super) fn sockets() -> Vec<GivenSocket> {
    let numbers = std::env::var(SOCKETS).unwrap_or_default();
    let given = |word: &str| {
        let number = word.trim_end_matches(KEPT);
        Some(GivenSocket { socket: take(number)?, is_kept: number != word })
    };
    numbers.split(',').filter_map(given).collect()
}

/// Tells the process that has started this one.
pub(super) fn ready() {
    if let Some(tell) = std::env::var(READY).ok().as_deref().and_then(take)
        && let Err(error) = File::from(tell).write_all(&[1])
    {
        tracing::warn!("the process before this one cannot be told that it serves: {error}");
    }
}

/// A descriptor of this number that [`Next::start`] has left open; children do not get it.
fn take(number: &str) -> Option<OwnedFd> {
    let number: RawFd = number.parse().ok().filter(|number| *number > 2)?;
    // SAFETY: the process that has started this one has opened it for us, named it in our environment,
    // and nobody else takes it: each variable is read once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}
