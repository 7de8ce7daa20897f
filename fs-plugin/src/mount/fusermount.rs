//! Mounting without privileges: `fusermount3`, which has them, mounts what its caller owns, and hands
//! the descriptor over.
//!
//! Protocol: `doc/fusermount3.1` and `util/fusermount.c` of libfuse: a socket whose number is in
//! `_FUSE_COMMFD` brings one byte with the descriptor.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Mounts with these options, and returns the open `/dev/fuse`.
pub(crate) fn mount(target: &Path, options: &str) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    // Inherited by whatever is started meanwhile, too: it is of no use to anybody else.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let output = Command::new("fusermount3")
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .args(["-o", options, "--"])
        .arg(target)
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("fusermount3: {error}")))?;
    drop(theirs);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, said.trim().to_owned()));
    }
    receive(&ours)
}

/// Takes a mount away that [`mount`] has made; also from under those who use it, if `lazy`.
pub(crate) fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { "-uqz" } else { "-uq" };
    let status = Command::new("fusermount3").args([flags, "--"]).arg(target).status()?;
    if status.success() { Ok(()) } else { Err(io::ErrorKind::ResourceBusy.into()) }
}

fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    rights.ok_or_else(|| io::Error::other("fusermount3 sent no descriptor"))
}
