//! FUSE over io_uring (Linux 6.14): entries on the shard's own ring, answer and next request in one
//! command.
//!
//! Each possible CPU has a queue, and the kernel uses the queue of the CPU that asks. All of them
//! must have an entry before the kernel sends anything, also those of CPUs that are offline or not
//! ours; one thread may serve several. A shard serves the queue of its own core, so that who asks and
//! who answers change places on one core and nobody has to be woken on another.
//!
//! An entry is a task: register, then for each request dispatch and commit. The kernel writes header
//! and payload from our own system calls (task work), never while we look at them: an entry is either
//! being fetched or being dispatched.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use warpcore_runtime::op::{self, RawSqe, opcode, types};
use warpcore_runtime::{sleep, spawn};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::abi::{
    FUSE_IO_URING_CMD_COMMIT_AND_FETCH, FUSE_IO_URING_CMD_REGISTER, UringCommand, UringHeader,
    args_len, fuse_in_header, opcode as fuse,
};
use super::reply::{Reply, header};
use super::request::Request;
use crate::fs::MAX_WRITE;
use crate::session::Session;

/// Entries of each queue.
const DEPTH: usize = 8;

/// Queues that the kernel expects: possible CPUs.
pub(crate) fn queues() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    // "0-3", or "0", or "0,2-3": the last number is the highest.
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u16>().ok());
    let last = last.ok_or_else(|| io::Error::other("unknown form of cpu/possible"))?;
    last.checked_add(1).ok_or_else(|| io::Error::other("too many CPUs"))
}

/// Registers the entries of this shard's queues: of its own core, and of cores that are nobody's.
/// The tasks end when the filesystem is unmounted.
pub(crate) fn start(session: &Rc<Session>, queues: u16) {
    let owner = |qid: &u16| {
        let core = usize::from(*qid);
        warpcore_runtime::shard_on(core).unwrap_or_else(|| core % warpcore_runtime::shards())
    };
    for qid in (0..queues).filter(|qid| owner(qid) == warpcore_runtime::shard()) {
        for _ in 0..DEPTH {
            let holder = session.entries.enter();
            let session = Rc::clone(session);
            drop(spawn(async move {
                let _holder = holder;
                if let Err(error) = serve_entry(&session, qid).await {
                    tracing::warn!("queue {qid}: {error}; the kernel goes on with /dev/fuse");
                }
            }));
        }
    }
}

/// What the kernel reads and writes for one entry. On the heap, where it stays.
struct Entry {
    header: Box<UringHeader>,
    payload: Vec<u8>,
    /// Named by the REGISTER command: header and payload.
    parts: Box<[libc::iovec; 2]>,
    /// Keeps the descriptor open that SQEs name.
    session: Rc<Session>,
}

async fn serve_entry(session: &Rc<Session>, qid: u16) -> io::Result<()> {
    let mut header = Box::new(UringHeader::new_zeroed());
    let mut payload = vec![0_u8; MAX_WRITE as usize];
    let parts = Box::new([
        libc::iovec { iov_base: (&raw mut *header).cast(), iov_len: size_of::<UringHeader>() },
        libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() },
    ]);
    let mut entry = Entry { header, payload, parts, session: Rc::clone(session) };
    let mut command = FUSE_IO_URING_CMD_REGISTER;
    let mut commit_id = 0;
    loop {
        let (result, back) = exchange(entry, command, commit_id, qid).await;
        entry = back;
        match result.map_err(|error| error.raw_os_error()) {
            Ok(_) => {}
            // Too early, or interrupted: the same once more.
            Err(Some(libc::EAGAIN | libc::EINTR)) => {
                sleep(Duration::from_millis(1)).await;
                continue;
            }
            // Unmounted, or the connection was aborted.
            Err(Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED)) => return Ok(()),
            Err(errno) => {
                return Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO)));
            }
        }
        let _request = session.requests.enter();
        session.uring_requests.set(session.uring_requests.get() + 1);
        let (in_header, _) = fuse_in_header::read_from_prefix(&entry.header.in_out)
            .expect("128 bytes hold a header");
        // Before the header is written again.
        commit_id = entry.header.entry.commit_id;
        command = FUSE_IO_URING_CMD_COMMIT_AND_FETCH;
        let payload_len = (entry.header.entry.payload_sz as usize).min(entry.payload.len());
        let args = args_len(in_header.opcode).min(entry.header.op_in.len());
        // Data stay where they are; names are copied, since the answer goes to the same place.
        let names = match in_header.opcode {
            fuse::WRITE => Bytes::new(),
            _ => Bytes::copy_from_slice(&entry.payload[..payload_len]),
        };
        let args = Bytes::copy_from_slice(&entry.header.op_in[..args]);
        let request = Request::new(&in_header, args, names);
        let answer = session.shared.fs.dispatch(&request, &mut entry.payload).await;
        let len = answer.map(|reply| match reply {
            Reply::None => 0,
            Reply::Payload(len) => len,
            Reply::Body(body) => {
                entry.payload[..body.len()].copy_from_slice(&body);
                body.len()
            }
        });
        let out = header_bytes(in_header.unique, &len);
        entry.header.in_out[..out.len()].copy_from_slice(&out);
        let len = u32::try_from(len.unwrap_or(0)).expect("at most the payload");
        entry.header.entry.payload_sz = len;
    }
}

fn header_bytes(unique: u64, len: &Result<usize, rustix::io::Errno>) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(header(unique, len).as_bytes());
    bytes
}

/// One command: the kernel has the entry until it completes.
async fn exchange(entry: Entry, cmd_op: u32, commit_id: u64, qid: u16) -> (io::Result<u32>, Entry) {
    let command = UringCommand { flags: 0, commit_id, qid, padding: [0; 6] };
    let mut bytes = [0; 80];
    bytes[..size_of::<UringCommand>()].copy_from_slice(command.as_bytes());
    let fd = types::Fd(std::os::fd::AsRawFd::as_raw_fd(&*entry.session.shared.device));
    let parts = entry.parts.as_ptr();
    let mut sqe =
        opcode::UringCmd80::new(fd, cmd_op).cmd(bytes).addr(Some(parts.addr() as u64)).build();
    // Byte 24 of an SQE is `len`, the number of parts; the crate has no setter for it here.
    const LEN_OFFSET: usize = 24;
    // SAFETY: an `Entry128` is an SQE of 128 bytes in the kernel's layout (`repr(C)`), so these
    // four bytes are inside it and plain data.
    unsafe { (&raw mut sqe).cast::<u8>().add(LEN_OFFSET).cast::<u32>().write_unaligned(2) };
    // SAFETY: header, payload and parts lie on the heap and are kept in `entry`, as is the
    // descriptor; a command makes one CQE.
    unsafe { op::submit(RawSqe::Wide(sqe), entry) }.await
}
