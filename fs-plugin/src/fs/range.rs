//! Ranges of files: data and holes, allocating and punching, copying.

use rustix::io::Errno;
use warpcore_runtime::queue;

use super::{Answer, Fs, reply};
use crate::error::Error;
use crate::fuse::abi::*;
use crate::fuse::reply::DONE;
use crate::fuse::request::Request;

/// Bytes that are copied for one request: the caller asks again for the rest.
const COPY_LEN_MAX: u64 = 16 << 20;

impl Fs {
    pub(crate) async fn lseek(&self, request: &Request) -> Answer {
        let args: fuse_lseek_in = request.args()?;
        let hole = match i32::try_from(args.whence) {
            Ok(libc::SEEK_DATA) => false,
            Ok(libc::SEEK_HOLE) => true,
            _ => return Err(Errno::INVAL),
        };
        let file = self.in_use(request.nodeid)?;
        let contents = file.read().await;
        let contents = contents.as_ref().ok_or(Errno::STALE)?;
        match contents.seek(args.offset, hole).await {
            Ok(Some(offset)) => reply::with(&fuse_lseek_out { offset }),
            Ok(None) => Err(Errno::NXIO),
            Err(error) => Err(self.errno(request.nodeid, "lseek", &error)),
        }
    }

    /// fallocate(2). Room is not promised: what it will take is known once it is compressed.
    pub(crate) async fn fallocate(&self, request: &Request) -> Answer {
        const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE.cast_unsigned();
        const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE.cast_unsigned();
        const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE.cast_unsigned();
        const PUNCH: u32 = PUNCH_HOLE | KEEP_SIZE;
        const ZERO_KEEPING: u32 = ZERO_RANGE | KEEP_SIZE;
        let args: fuse_fallocate_in = request.args()?;
        let end = args.offset.checked_add(args.length).ok_or(Errno::FBIG)?;
        let (zero, grow) = match args.mode {
            0 => (false, true),
            KEEP_SIZE => (false, false),
            PUNCH | ZERO_KEEPING => (true, false),
            ZERO_RANGE => (true, true),
            _ => return Err(Errno::OPNOTSUPP),
        };
        let file = self.in_use(request.nodeid)?;
        let mut contents = file.write().await;
        let contents = contents.as_mut().ok_or(Errno::STALE)?;
        let done = async {
            if zero {
                contents.punch_hole(args.offset..end).await?;
            }
            // Also where it is long enough: contents count as changed.
            let size = contents.size()?;
            contents.set_size(if grow { size.max(end) } else { size }).await
        };
        done.await.map_err(|error: Error| self.errno(request.nodeid, "fallocate", &error))?;
        self.kill_privileges_for(request, request.nodeid)?;
        DONE
    }

    pub(crate) async fn copy_file_range(&self, request: &Request) -> Answer {
        let copied = self.copy(request).await?;
        if request.opcode == opcode::COPY_FILE_RANGE_64 {
            return reply::with(&fuse_copy_file_range_out { bytes_copied: copied });
        }
        let size = u32::try_from(copied).expect("at most the maximum");
        reply::with(&fuse_write_out { size, padding: 0 })
    }

    async fn copy(&self, request: &Request) -> Result<u64, Errno> {
        let args: fuse_copy_file_range_in = request.args()?;
        let (from, to) = (request.nodeid, args.nodeid_out);
        let len = args.len.min(COPY_LEN_MAX);
        let (source, target) = (self.in_use(from)?, self.in_use(to)?);
        let copied = if from == to {
            let mut contents = target.write().await;
            let contents = contents.as_mut().ok_or(Errno::STALE)?;
            // The kernel has refused ranges that overlap.
            contents.copy_within(&queue(), args.off_in, args.off_out, len).await
        } else {
            // In the order of their numbers, so that two copies the other way round do not wait for
            // each other.
            let (first, second) = if from < to { (&source, &target) } else { (&target, &source) };
            let (mut first, mut second) = (first.write().await, second.write().await);
            let (source, target) =
                if from < to { (&mut *first, &mut *second) } else { (&mut *second, &mut *first) };
            let source = source.as_mut().ok_or(Errno::STALE)?;
            let target = target.as_mut().ok_or(Errno::STALE)?;
            target.copy_from(&queue(), source, args.off_in, args.off_out, len).await
        };
        let copied = copied.map_err(|error| self.errno(to, "copy_file_range", &error))?;
        self.kill_privileges_for(request, to)?;
        Ok(copied)
    }

    /// Where the kernel does not say whether a change of contents ends set-user-id: root's does not
    /// (CAP_FSETID).
    fn kill_privileges_for(&self, request: &Request, nodeid: u64) -> Result<(), Errno> {
        if request.uid == 0 { Ok(()) } else { self.kill_privileges(nodeid) }
    }
}
