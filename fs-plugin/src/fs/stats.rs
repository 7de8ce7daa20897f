//! Statistics, as an extended attribute that no list shows: `getfattr --only-values -n
//! user.warpcore.stats PATH`. A line for each number.

use std::fmt::Write;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use super::file_in_use::InMemory;
use super::{Fs, Transport};

pub(crate) const STATS_NAME: &[u8] = b"user.warpcore.stats";

impl Fs {
    /// Of a file how it is stored, of a directory the state of the mount.
    pub(super) async fn stats(&self, nodeid: u64) -> Result<String, Errno> {
        let fd = self.path_fd(nodeid)?;
        let stat = fs::statat(fd.as_fd(), "", AtFlags::EMPTY_PATH)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file_stats(nodeid).await,
            FileType::Directory => Ok(self.mount_stats()),
            _ => Err(Errno::NODATA),
        }
    }

    fn mount_stats(&self) -> String {
        let transport = match self.transport.get() {
            Some(Transport::IoUring) => "io_uring",
            _ => "/dev/fuse",
        };
        let InMemory { dirty, dirty_max, index, index_max } = &*self.in_memory;
        format!(
            "transport {transport}\ninodes {}\nfiles_in_use {}\ndirty {}\ndirty_max {dirty_max}\n\
             index {}\nindex_max {index_max}\n",
            self.known_inodes(),
            self.files().len(),
            dirty.load(Ordering::Relaxed),
            index.load(Ordering::Relaxed),
        )
    }

    async fn file_stats(&self, nodeid: u64) -> Result<String, Errno> {
        let file = self.load(nodeid).await?;
        let report = match &*file.read().await {
            Some(contents) => contents.report().await.map(|report| (report, contents.dirty_len())),
            // The mount is being closed.
            None => Err(Errno::STALE.into()),
        };
        // An error of closing is logged; what was found holds all the same.
        let _ = self.put_file(nodeid, &file).await;
        let (report, dirty) = report.map_err(|error| self.errno(nodeid, "report", &error))?;
        let mut text = format!(
            "size {}\nbacking {}\nstored {}\ndirty {dirty}\nextents {}\nlinear {}\n",
            report.size, report.physical, report.stored, report.extents, report.linear
        );
        for share in &report.codecs {
            let name = share.codec.name();
            writeln!(text, "{name} {} as {}", share.len, share.stored).expect("a string grows");
        }
        Ok(text)
    }
}
