//! `/dev/fuse`, read and written: INIT, FORGET and INTERRUPT always, everything where the kernel
//! has no io_uring for it.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;
use warpcore_runtime::{op, spawn};
use zerocopy::IntoBytes;

use super::abi::{fuse_in_header, fuse_write_in};
use super::reply::{Answer, Reply, header};
use super::request::Request;
use crate::fs::MAX_WRITE;
use crate::session::Session;

/// Room for the largest request.
const REQUEST_LEN_MAX: usize =
    MAX_WRITE as usize + size_of::<fuse_in_header>() + size_of::<fuse_write_in>() + 4096;

/// Reads requests and makes a task of each, until the filesystem is unmounted.
pub(crate) async fn serve(session: Rc<Session>) -> io::Result<()> {
    let mut room = vec![0; REQUEST_LEN_MAX];
    loop {
        op::readable(&session.shared.device).await?;
        loop {
            match rustix::io::read(&*session.shared.device, &mut room[..]) {
                Ok(len) => accept(&session, &room[..len]),
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

fn accept(session: &Rc<Session>, bytes: &[u8]) {
    let Some((request, data)) = Request::parse(bytes) else {
        tracing::error!("the kernel sent something that is not a request");
        return;
    };
    // What a WRITE brings, or room for what a READ gets.
    let mut payload = data.to_vec();
    payload.resize(payload.len().max(request.answer_len_max()), 0);
    let holder = session.requests.enter();
    let session = Rc::clone(session);
    drop(spawn(async move {
        let _holder = holder;
        let answer = session.shared.fs.dispatch(&request, &mut payload).await;
        send(&session.shared.device, request.unique, &answer, &payload);
        session.answered();
    }));
}

fn send(device: &OwnedFd, unique: u64, answer: &Answer, payload: &[u8]) {
    let body: &[u8] = match answer {
        Ok(Reply::None) => return,
        Ok(Reply::Body(body)) => body,
        Ok(Reply::Payload(len)) => &payload[..*len],
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
