//! The port to real devices: `/sys/class/uacce`, `/dev`, ioctl and mmap.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::{NoArg, Updater, ioctl, opcode};

use super::port::{Attributes, Port, QueueFile};
use super::qm::{CQE_LEN_BYTES, DEPTH_DEFAULT, QueueInfo, Version};
use crate::doorbell::Mmio;
use crate::region::Region;

/// Where the kernel lists devices.
pub(crate) const CLASS: &str = "/sys/class/uacce";

/// `UACCE_CMD_START_Q`, `UACCE_CMD_PUT_Q` (linux `include/uapi/misc/uacce/uacce.h`).
pub(crate) const START_Q: rustix::ioctl::Opcode = opcode::none(b'W', 0);
pub(crate) const PUT_Q: rustix::ioctl::Opcode = opcode::none(b'W', 1);
/// `UACCE_CMD_QM_SET_QP_CTX`, `UACCE_CMD_QM_SET_QP_INFO` (`hisi_qm.h`).
pub(crate) const SET_QP_CTX: rustix::ioctl::Opcode = opcode::read_write::<QpContext>(b'H', 10);
pub(crate) const SET_QP_INFO: rustix::ioctl::Opcode = opcode::read_write::<QpInfo>(b'H', 11);

/// `struct hisi_qp_ctx`.
#[repr(C)]
pub(crate) struct QpContext {
    pub(crate) id: u16,
    pub(crate) kind: u16,
}

/// `struct hisi_qp_info`.
#[repr(C)]
pub(crate) struct QpInfo {
    pub(crate) sqe_size: u32,
    pub(crate) sq_depth: u16,
    pub(crate) cq_depth: u16,
    pub(crate) reserved: u64,
}

const _: () = assert!(START_Q == 0x5700 && PUT_Q == 0x5701);
const _: () = assert!(SET_QP_CTX == 0xc004_480a && SET_QP_INFO == 0xc010_480b);

/// A device of this machine.
#[derive(Debug)]
pub(crate) struct Kernel {
    name: String,
    /// Its folder in sysfs.
    class: PathBuf,
    node: PathBuf,
}

impl Kernel {
    /// Every device that the kernel lists; none where it has no uacce at all.
    pub(crate) fn list(class: &Path, dev: &Path) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(class) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut devices = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            devices.push(Self { class: class.join(&name), node: dev.join(&name), name });
        }
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(devices)
    }

    /// An attribute without its line end; none if this kernel does not have it (`ENODEV` where
    /// the driver does not fill it).
    fn attribute(&self, name: &str) -> io::Result<Option<String>> {
        match fs::read_to_string(self.class.join(name)) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> io::Result<Option<T>> {
        let Some(text) = self.attribute(name)? else { return Ok(None) };
        let number = text.parse().map_err(|_| {
            let message = format!("{}/{name} says '{text}'", self.class.display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        });
        number.map(Some)
    }
}

impl Port for Kernel {
    type File = KernelFile;

    fn name(&self) -> &str {
        &self.name
    }

    fn attributes(&self) -> io::Result<Attributes> {
        let algorithms = self.attribute("algorithms")?.unwrap_or_default();
        let page = rustix::param::page_size();
        Ok(Attributes {
            api: self.attribute("api")?.unwrap_or_default(),
            shared_addresses: self.number::<u32>("flags")?.unwrap_or(0) & 1 == 1,
            algorithms: algorithms.lines().map(|line| line.trim().to_owned()).collect(),
            instances: self.number("available_instances")?,
            // Pages of the doorbells (linux `QM_QP_DB_INTERVAL` is for isolated ones only).
            mmio_len_bytes: self.number("region_mmio_size")?.unwrap_or(page + 0x1000),
            // Kernels without the attribute have queues of the default depth, and SQEs of 128 B
            // at most; the status words lie at the end of one more page (`hisi_qm_uacce_init`).
            dus_len_bytes: self.number("region_dus_size")?.unwrap_or_else(|| {
                let len = usize::from(DEPTH_DEFAULT) * (128 + CQE_LEN_BYTES) + page;
                len.next_multiple_of(page)
            }),
            // -1: the machine has no nodes.
            node: self.number::<i32>("device/numa_node")?.and_then(|node| u32::try_from(node).ok()),
            isolated: self.number::<u32>("isolate")?.unwrap_or(0) == 1,
        })
    }

    fn open(&self) -> io::Result<KernelFile> {
        // The standard library sets O_CLOEXEC.
        File::options().read(true).write(true).open(&self.node).map(KernelFile)
    }
}

/// An open queue of the kernel's.
#[derive(Debug)]
pub(crate) struct KernelFile(File);

impl QueueFile for KernelFile {
    type Doorbell = Mmio;

    fn set_context(&self, kind: u16) -> io::Result<u16> {
        let mut context = QpContext { id: 0, kind };
        // SAFETY: the code and the structure are those of `hisi_qm.h`, sizes asserted above.
        unsafe { ioctl(&self.0, Updater::<SET_QP_CTX, _>::new(&mut context))? };
        Ok(context.id)
    }

    fn info(&self) -> io::Result<QueueInfo> {
        let mut info = QpInfo { sqe_size: 0, sq_depth: 0, cq_depth: 0, reserved: 0 };
        // SAFETY: as above.
        unsafe { ioctl(&self.0, Updater::<SET_QP_INFO, _>::new(&mut info))? };
        let sqe_len_bytes = usize::try_from(info.sqe_size).map_err(io::Error::other)?;
        Ok(QueueInfo { sqe_len_bytes, sq_depth: info.sq_depth, cq_depth: info.cq_depth })
    }

    fn map_queues(&self, len_bytes: usize) -> io::Result<Region> {
        // The offset is the number of the region in pages: 1 is DUS (`UACCE_QFRT_DUS`).
        Region::map(self.0.as_fd(), rustix::param::page_size() as u64, len_bytes)
    }

    fn map_doorbell(&self, len_bytes: usize, version: Version) -> io::Result<Mmio> {
        // Region 0 is MMIO (`UACCE_QFRT_MMIO`).
        let region = Region::map(self.0.as_fd(), 0, len_bytes)?;
        Ok(Mmio::new(region, version.doorbell_offset()))
    }

    fn start(&self) -> io::Result<()> {
        // SAFETY: no argument.
        unsafe { ioctl(&self.0, NoArg::<START_Q>::new()) }.map_err(io::Error::from)
    }

    fn put(&self) -> io::Result<()> {
        // SAFETY: no argument.
        unsafe { ioctl(&self.0, NoArg::<PUT_Q>::new()) }.map_err(io::Error::from)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The kernel moves its own head when it is polled (`hisi_qm_is_q_updated`).
    fn woken(&self) {}

    fn catch_up(&self) {
        let mut fds = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
        // It may fail for want of memory, and is tried again half a queue later.
        let _ = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_and_each_may_be_absent() {
        let class = tempfile::tempdir().expect("a temporary directory");
        let dev = tempfile::tempdir().expect("a temporary directory");
        let device = class.path().join("hisi_zip-0");
        fs::create_dir_all(device.join("device")).expect("made");
        let list = || Kernel::list(class.path(), dev.path()).expect("listed");
        assert_eq!(list().len(), 1);
        assert_eq!(list()[0].name(), "hisi_zip-0");
        let bare = list()[0].attributes().expect("read");
        assert_eq!((bare.api.as_str(), bare.shared_addresses, bare.isolated), ("", false, false));
        assert_eq!((bare.instances, bare.node), (None, None));
        assert_eq!((bare.mmio_len_bytes, bare.dus_len_bytes), (8192, 151_552));
        for (name, text) in [
            ("api", "hisi_qm_v3\n"),
            ("flags", "1\n"),
            ("algorithms", "zlib\ngzip\ndeflate\nlz77_zstd\n"),
            ("available_instances", "17\n"),
            ("region_mmio_size", "65536\n"),
            ("region_dus_size", "155648\n"),
            ("isolate", "1\n"),
            ("device/numa_node", "-1\n"),
        ] {
            fs::write(device.join(name), text).expect("written");
        }
        let full = list()[0].attributes().expect("read");
        assert_eq!(
            full,
            Attributes {
                api: "hisi_qm_v3".into(),
                shared_addresses: true,
                algorithms: ["zlib", "gzip", "deflate", "lz77_zstd"].map(String::from).into(),
                instances: Some(17),
                mmio_len_bytes: 65_536,
                dus_len_bytes: 155_648,
                node: None,
                isolated: true,
            }
        );
        fs::write(device.join("device/numa_node"), "1\n").expect("written");
        assert_eq!(list()[0].attributes().expect("read").node, Some(1));
        fs::write(device.join("flags"), "yes\n").expect("written");
        let error = list()[0].attributes().expect_err("not a number").to_string();
        assert!(error.ends_with("/flags says 'yes'"), "{error}");
        assert_eq!(list()[0].open().expect_err("no node").kind(), io::ErrorKind::NotFound);
        assert!(Kernel::list(Path::new("/nowhere"), dev.path()).expect("none").is_empty());
    }
}
