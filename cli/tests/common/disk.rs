//! A lower filesystem of its own, on a file.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

use super::{Place, tool, unmount};

/// A place whose `src` is another filesystem.
pub struct Disk {
    pub place: Place,
    image: PathBuf,
}

impl Disk {
    /// `mkfs`: the program that makes it, with its arguments. `len`: of the disk, in bytes.
    pub fn new(mkfs: &[&str], len: u64) -> Self {
        let place = Place::new();
        let image = place.directory.path().join("image");
        File::create(&image).and_then(|file| file.set_len(len)).expect("a sparse file");
        let path = image.to_str().expect("UTF-8");
        tool(mkfs[0], &[&mkfs[1..], &[path]].concat(), Path::new("/"));
        let disk = Self { place, image };
        disk.mount();
        disk
    }

    fn mount(&self) {
        let [image, source] = [&self.image, &self.place.source].map(|path| path.to_str());
        let arguments = ["-o", "loop", image.expect("UTF-8"), source.expect("UTF-8")];
        tool("mount", &arguments, Path::new("/"));
    }

    /// From here on nothing reaches the disk any more, as if its power were cut: neither pages nor
    /// what is in the journal's memory.
    pub fn cut_power(&self) {
        /// `EXT4_IOC_SHUTDOWN` and `EXT4_GOING_FLAGS_NOLOGFLUSH` of fs/ext4/ext4.h,
        /// `XFS_IOC_GOINGDOWN` of fs/xfs/libxfs/xfs_fs.h: a number that is read from us, whatever the
        /// name of the macro says.
        const SHUTDOWN: Opcode = opcode::read::<u32>(b'X', 125);
        const NO_FLUSH: u32 = 2;
        let root = File::open(&self.place.source).expect("mounted");
        // SAFETY: the kernel reads 32 bits for this opcode, which `Setter` has.
        let shut = unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(NO_FLUSH)) };
        shut.expect("a filesystem that can be shut down");
    }

    /// Mounted again, by its journal.
    pub fn restore_power(&self) {
        unmount(&self.place.source);
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.place.source).output();
        } else {
            unmount(&self.place.source);
        }
    }
}
