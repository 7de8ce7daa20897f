//! A request of the kernel, in pieces that cannot be read past their end.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::abi::{args_len, fuse_in_header, fuse_read_in, opcode};
use crate::fs::MAX_WRITE;

/// One request, whichever way it came.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) opcode: u32,
    /// Number of the request, for the answer.
    pub(crate) unique: u64,
    /// The inode it is about.
    pub(crate) nodeid: u64,
    /// On whose behalf.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The operation's own struct.
    args: Bytes,
    /// What follows it, but for a WRITE's data: names.
    pub(crate) payload: Bytes,
}

impl Request {
    /// A request from its pieces, as io_uring delivers them.
    pub(crate) fn new(header: &fuse_in_header, args: Bytes, payload: Bytes) -> Self {
        let fuse_in_header { opcode, unique, nodeid, uid, gid, .. } = *header;
        Self { opcode, unique, nodeid, uid, gid, args, payload }
    }

    /// A request as read from `/dev/fuse`, and the data that a WRITE brings. None: not one.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, _) = fuse_in_header::read_from_prefix(bytes).ok()?;
        if header.len as usize != bytes.len() {
            return None;
        }
        let rest = &bytes[size_of::<fuse_in_header>()..];
        // Extensions stand at the end, in units of 8 bytes; we asked for none.
        let extensions = usize::from(header.total_extlen) * 8;
        let rest = &rest[..rest.len().checked_sub(extensions)?];
        let (args, payload) = rest.split_at(args_len(header.opcode).min(rest.len()));
        let (names, data) = match header.opcode {
            opcode::WRITE => (&[][..], payload),
            _ => (payload, &[][..]),
        };
        let [args, names] = [args, names].map(Bytes::copy_from_slice);
        Some((Self::new(&header, args, names), data))
    }

    /// Length of the longest answer that goes to the payload.
    pub(crate) fn answer_len_max(&self) -> usize {
        match self.opcode {
            opcode::READ => {
                self.args::<fuse_read_in>().map_or(0, |args| args.size.min(MAX_WRITE) as usize)
            }
            _ => 0,
        }
    }

    /// The operation's struct.
    pub(crate) fn args<T: FromBytes>(&self) -> Result<T, Errno> {
        T::read_from_prefix(&self.args).map(|(args, _)| args).map_err(|_| Errno::INVAL)
    }

    /// The payload as one name.
    pub(crate) fn name(&self) -> Result<&OsStr, Errno> {
        self.names::<1>().map(|[name]| name)
    }

    /// The payload as names, each ended by a zero byte.
    pub(crate) fn names<const N: usize>(&self) -> Result<[&OsStr; N], Errno> {
        let mut names = self.payload.split(|byte| *byte == 0);
        let mut found = [OsStr::new(""); N];
        for name in &mut found {
            *name = OsStr::from_bytes(names.next().ok_or(Errno::INVAL)?);
            // A path would lead out of the directory it is looked up in.
            if name.is_empty() || name.as_bytes().contains(&b'/') {
                return Err(Errno::INVAL);
            }
        }
        // The last one has its zero too: something empty follows.
        names.next().map(|_| found).ok_or(Errno::INVAL)
    }

    /// The payload as a name, and the bytes behind its zero.
    pub(crate) fn name_and_rest(&self) -> Result<(&OsStr, &[u8]), Errno> {
        let end = self.payload.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        Ok((OsStr::from_bytes(&self.payload[..end]), &self.payload[end + 1..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn bytes(opcode: u32, rest: &[u8]) -> Vec<u8> {
        let len = u32::try_from(40 + rest.len()).expect("short");
        let header = fuse_in_header { len, opcode, unique: 2, nodeid: 1, ..Default::default() };
        [header.as_bytes(), rest].concat()
    }

    #[test]
    fn names_end_with_a_zero_and_are_no_paths() {
        let lookup =
            |rest: &[u8]| Request::parse(&bytes(opcode::LOOKUP, rest)).expect("a request").0;
        assert_eq!(lookup(b"name\0").name(), Ok(OsStr::new("name")));
        for bad in [&b""[..], b"\0", b"name", b"../x\0", b"a/b\0"] {
            assert_eq!(lookup(bad).name(), Err(Errno::INVAL), "{bad:?}");
        }
        let two = lookup(b"one\0two\0");
        assert_eq!(two.names(), Ok([OsStr::new("one"), OsStr::new("two")]));
        assert_eq!(two.names::<3>(), Err(Errno::INVAL));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(
            opcode in 0..60_u32,
            rest in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0..250_usize,
        ) {
            let mut bytes = bytes(opcode, &rest);
            bytes.truncate(cut);
            if let Some((request, _)) = Request::parse(&bytes) {
                let _ = request.answer_len_max();
                let _ = request.name();
                let _ = request.names::<2>();
                let _ = request.name_and_rest();
                let _ = request.args::<[u8; 16]>();
            }
        }
    }
}
