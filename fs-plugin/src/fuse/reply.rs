//! Answers.

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::abi::fuse_out_header;

/// What the answer of a request is, or the errno.
pub(crate) type Answer = Result<Reply, Errno>;

/// What follows the header of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The request has no answer.
    None,
    Body(Vec<u8>),
    /// So many bytes, which lie in the payload already.
    Payload(usize),
}

/// An answer without anything in it.
pub(crate) const DONE: Answer = Ok(Reply::Payload(0));

/// An answer that is one struct.
pub(crate) fn with(body: &(impl IntoBytes + Immutable)) -> Answer {
    Ok(Reply::Body(body.as_bytes().to_vec()))
}

/// The header of an answer with `len` bytes behind it.
pub(crate) fn header(unique: u64, answer: &Result<usize, Errno>) -> fuse_out_header {
    let (len, error) = match answer {
        Ok(len) => (*len, 0),
        Err(errno) => (0, -errno.raw_os_error()),
    };
    let len = u32::try_from(size_of::<fuse_out_header>() + len).expect("bounded by max_write");
    fuse_out_header { len, error, unique }
}
