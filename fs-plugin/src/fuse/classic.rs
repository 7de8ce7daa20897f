//! `/dev/fuse`, read and written: INIT, FORGET and INTERRUPT always, everything where the kernel
//! has no io_uring for it.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::BytesMut;
use rustix::io::Errno;
use warpcore_runtime::{op, spawn};
use zerocopy::IntoBytes;

use super::abi::{fuse_in_header, fuse_write_in};
use super::reply::{Answer, header};
use super::request::Request;
use crate::fs::{Fs, MAX_WRITE};
use crate::session::Session;

/// Room for the largest request.
const REQUEST_LEN_MAX: usize =
    MAX_WRITE as usize + size_of::<fuse_in_header>() + size_of::<fuse_write_in>() + 4096;

/// Reads requests and makes a task of each, until the filesystem is unmounted.
pub(crate) async fn serve(session: Rc<Session>) -> io::Result<()> {
    loop {
        op::readable(&session.device).await?;
        loop {
            let mut bytes = BytesMut::zeroed(REQUEST_LEN_MAX);
            match rustix::io::read(&*session.device, &mut bytes[..]) {
                Ok(len) => {
                    bytes.truncate(len);
                    accept(&session, bytes);
                }
                Err(Errno::AGAIN) => break,
                // A request that was interrupted before we had it: the next.
                Err(Errno::INTR | Errno::NOENT) => {}
                // Unmounted.
                Err(Errno::NODEV) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn accept(session: &Rc<Session>, bytes: BytesMut) {
    // A short request must not hold the room of the largest.
    let bytes =
        if bytes.len() < 4096 { bytes::Bytes::copy_from_slice(&bytes) } else { bytes.freeze() };
    let Some(request) = Request::parse(bytes) else {
        tracing::error!("the kernel sent something that is not a request");
        return;
    };
    let holder = session.requests.enter();
    let session = Rc::clone(session);
    drop(spawn(async move {
        let _holder = holder;
        let unique = request.unique;
        let answer = Fs::dispatch(&session.fs, request).await;
        send(&session.device, unique, &answer);
        session.answered();
    }));
}

fn send(device: &OwnedFd, unique: u64, answer: &Answer) {
    let body: &[u8] = match answer {
        Ok(None) => return,
        Ok(Some(body)) => body,
        Err(_) => &[],
    };
    let header = header(unique, &answer.as_ref().map(|_| body.len()).map_err(|errno| *errno));
    let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
    match rustix::io::writev(device, &parts) {
        // The caller was interrupted, or the filesystem unmounted: nobody waits.
        Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
        Err(errno) => tracing::error!("an answer was refused by the kernel: {errno}"),
    }
}
