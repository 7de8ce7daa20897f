//! Work on stored files that are not mounted: compacting, compressing what was there before.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, fchown};
use std::path::Path;

use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, SeekFrom, Timespec, Timestamps, XattrFlags, fcntl_setfl,
    openat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use warpcore_fs::store::contents::{Contents, Options};
use warpcore_fs::store::format::{ATTRIBUTE_NAME, Kind};
use warpcore_fs::store::medium::FileMedium;
use warpcore_fs::{is_on_fuse, lock_tree};
use warpcore_runtime::queue;

use super::files;
use crate::progress::progress;
use crate::{Failure, print};

/// What became of a file.
enum Outcome {
    /// Written again; bytes of the lower filesystem before and after.
    Done(u64, u64),
    /// Nothing to gain.
    Left,
    /// Cannot be done, and why.
    Skipped(&'static str),
}

/// A file of a tree, by its directory: whoever may rename on the way leads us nowhere else meanwhile.
struct Place {
    directory: OwnedFd,
    name: OsString,
}

impl Place {
    /// `path`: of what was found in `tree`, which is open as `directory`.
    fn find(directory: &OwnedFd, tree: &Path, path: &Path) -> io::Result<Self> {
        let within = path.strip_prefix(tree).map_err(io::Error::other)?;
        let name = within.file_name().unwrap_or_default().to_owned();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let directory = openat2(directory, directory_of(within), flags, Mode::empty(), resolve)?;
        Ok(Self { directory, name })
    }

    /// The regular file of this name, to be read, and more by `flags`.
    fn open(&self, flags: OFlags) -> Result<File, Failure> {
        // A pipe would wait for somebody.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.directory, &self.name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err("no regular file any more".into());
        }
        fcntl_setfl(&file, OFlags::empty())?;
        Ok(file)
    }

    fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(file.into())
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.directory, name, AtFlags::empty())?)
    }

    /// Gives the place to the file called `other`, for good.
    fn replace_by(&self, other: &OsStr) -> io::Result<()> {
        renameat(&self.directory, other, &self.directory, &self.name)?;
        // The new name is on the disk before the next file is begun.
        Ok(rustix::fs::fsync(&self.directory)?)
    }
}

/// Writes every stored file below `path` front to back again.
pub(super) async fn compact(path: &Path) -> Result<(), Failure> {
    each(path, "compacting", compact_file).await
}

/// Stores every plain file below `path` in the format.
pub(super) async fn compress(path: &Path, options: Options) -> Result<(), Failure> {
    each(path, "compressing", async |file| compress_file(file, options).await).await
}

async fn each(
    path: &Path,
    what: &'static str,
    work: impl AsyncFn(&Place) -> Result<Outcome, Failure>,
) -> Result<(), Failure> {
    let locks = lock(path)?;
    if locks.iter().any(is_on_fuse) {
        let cause = "lies on a FUSE filesystem, of which nobody knows what a power cut takes";
        return Err(format!("{}: {cause}", path.display()).into());
    }
    let tree = path.canonicalize()?;
    let tree = if tree.is_dir() { &tree } else { directory_of(&tree) };
    let directory = OwnedFd::from(File::open(tree)?);
    let place = |path: &Path| Place::find(&directory, tree, path);
    let (all, leftovers): (Vec<_>, Vec<_>) =
        files(path)?.into_iter().partition(|path| !is_leftover(path));
    // Of a run that was interrupted: nobody else is at work here.
    for leftover in &leftovers {
        let removed = place(leftover).and_then(|place| place.remove(&place.name));
        removed.map_err(|error| format!("{}: {error}", leftover.display()))?;
    }
    let bytes = all.iter().map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
    let bar = progress(what, bytes.sum(), "bytes");
    let (mut done, mut left, mut skipped, mut failed) = (0_u64, 0_u64, 0_u64, 0_u64);
    let (mut before, mut after) = (0, 0);
    for path in all {
        let len = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let worked = match place(&path) {
            Ok(place) => work(&place).await,
            Err(error) => Err(error.into()),
        };
        match worked {
            Ok(Outcome::Done(from, to)) => {
                done += 1;
                (before, after) = (before + from, after + to);
            }
            Ok(Outcome::Left) => left += 1,
            Ok(Outcome::Skipped(why)) => {
                skipped += 1;
                bar.suspend(|| print(format_args!("{}: skipped: {why}", path.display())))?;
            }
            Err(failure) => {
                failed += 1;
                bar.suspend(|| print(format_args!("{}: {failure}", path.display())))?;
            }
        }
        bar.inc(len);
    }
    bar.finish_and_clear();
    print(format_args!("{done} files written again, {left} left as they are, {skipped} skipped"))?;
    print(format_args!("{before} bytes on disk before, {after} now"))?;
    if failed > 0 {
        Err(format!("{failed} files failed; they are as they were").into())
    } else {
        Ok(())
    }
}

async fn compact_file(place: &Place) -> Result<Outcome, Failure> {
    let file = place.open(OFlags::RDWR)?;
    let before = file.metadata()?;
    let capability = attribute(&file, CAPABILITY.as_bytes())?;
    if capability.is_some() && !geteuid().is_root() {
        return Ok(Outcome::Skipped("it has capabilities, which only root can put back"));
    }
    let open = async || -> Result<_, Failure> {
        let medium = FileMedium::new(file.try_clone()?.into());
        let mut contents = Contents::open(medium, Options::default(), true).await?;
        contents.set_modified(modified(&before)?);
        Ok(contents)
    };
    let mut contents = open().await?;
    let mut compacted = contents.compact(&queue()).await;
    if let Err(warpcore_fs::Error::Cut) = compacted {
        // Nobody else has it open, and knew it longer.
        contents = open().await?;
        compacted = contents.compact(&queue()).await;
    }
    let closed = match &compacted {
        Ok(false) if is_as_it_was(&file, &before)? => return Ok(Outcome::Left),
        Ok(_) => contents.close(&queue()).await,
        Err(_) => {
            // What it has written of the copy is cut, as after a crash.
            drop(contents);
            match open().await {
                Ok(mut contents) => contents.close(&queue()).await,
                // The first error tells more.
                Err(_) => Ok(()),
            }
        }
    };
    // Whoever writes to a file takes these away from it.
    if let Some(capability) = capability {
        rustix::fs::fsetxattr(&file, CAPABILITY, &capability, XattrFlags::empty())?;
    }
    if file.metadata()?.permissions() != before.permissions() {
        file.set_permissions(before.permissions())?;
    }
    let is_compacted = compacted?;
    closed?;
    match is_compacted {
        true => Ok(Outcome::Done(on_disk(&before), on_disk(&file.metadata()?))),
        false => Ok(Outcome::Left),
    }
}

/// To open a file to which something has happened may have cut it.
fn is_as_it_was(file: &File, before: &fs::Metadata) -> Result<bool, Failure> {
    let now = file.metadata()?;
    Ok(now.len() == before.len() && modified(&now)? == modified(before)?)
}

/// capabilities(7) of a program.
const CAPABILITY: &str = "security.capability";

async fn compress_file(place: &Place, options: Options) -> Result<Outcome, Failure> {
    let source = place.open(OFlags::RDONLY)?;
    let before = source.metadata()?;
    let medium = FileMedium::new(source.try_clone()?.into());
    let stored = Contents::open(medium, options, false).await?.report().await?;
    if stored.kind == Kind::Container || before.len() == 0 {
        return Ok(Outcome::Left);
    }
    if before.nlink() > 1 {
        return Ok(Outcome::Skipped("it has other names, which would keep the plain file"));
    }
    let temporary = OsString::from(format!("{LEFTOVER}{}", before.ino()));
    let file = place.create(&temporary)?;
    let result = write_compressed(&source, &before, &file, options).await;
    let replaced = match result {
        Ok(after) if after < on_disk(&before) => {
            place.replace_by(&temporary)?;
            return Ok(Outcome::Done(on_disk(&before), after));
        }
        Ok(_) => Ok(Outcome::Left),
        Err(failure) => Err(failure),
    };
    // What happened before tells more.
    let _ = place.remove(&temporary);
    replaced
}

/// Writes the contents of a plain file, and all that belongs to it, to another; how much that takes
/// on disk.
async fn write_compressed(
    source: &File,
    before: &fs::Metadata,
    file: &File,
    options: Options,
) -> Result<u64, Failure> {
    const PART: usize = 1 << 20;
    const COMMIT_LEN: u64 = 256 << 20;
    let mut contents = Contents::create(FileMedium::new(file.try_clone()?.into()), options)?;
    let mut part = vec![0; PART];
    let (mut at, mut uncommitted) = (0, 0);
    // Holes stay holes.
    while let Some(data) = seek(source, SeekFrom::Data(at))? {
        let end = seek(source, SeekFrom::Hole(data))?.unwrap_or(before.len());
        at = data;
        while at < end {
            let room = usize::try_from(end - at).map_or(PART, |left| left.min(PART));
            let read = source.read_at(&mut part[..room], at)?;
            if read == 0 {
                return Err("became shorter meanwhile".into());
            }
            contents.write(&queue(), at, &part[..read]).await?;
            at += read as u64;
            uncommitted += read as u64;
            if uncommitted >= COMMIT_LEN {
                // What is known of where it lies can be dropped then.
                contents.commit(&queue()).await?;
                uncommitted = 0;
            }
        }
    }
    contents.set_size(before.len()).await?;
    contents.sync(&queue()).await?;
    contents.close(&queue()).await?;
    // Whoever writes to a file takes away what is set by mode and attributes, and so does a new owner.
    fchown(file, Some(before.uid()), Some(before.gid()))?;
    file.set_permissions(before.permissions())?;
    copy_attributes(source, file)?;
    let time = |tv_sec, nanoseconds: i64| Timespec { tv_sec, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(before.atime(), before.atime_nsec()),
        last_modification: time(before.mtime(), before.mtime_nsec()),
    };
    rustix::fs::futimens(file, &times)?;
    file.sync_all()?;
    if !is_as_it_was(source, before)? {
        return Err("was changed meanwhile".into());
    }
    Ok(on_disk(&file.metadata()?))
}

fn copy_attributes(source: &File, target: &File) -> Result<(), Failure> {
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::flistxattr(source, &mut names[..])?;
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name != ATTRIBUTE_NAME.to_bytes()
            && let Some(value) = attribute(source, name)?
        {
            rustix::fs::fsetxattr(target, name, &value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn attribute(file: &File, name: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    let mut value = vec![0; 1 << 16];
    match rustix::fs::fgetxattr(file, name, &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Where data, or a hole, begins. None: nowhere any more.
fn seek(file: &File, from: SeekFrom) -> Result<Option<u64>, Failure> {
    match rustix::fs::seek(file, from) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Keeps the tree, or the file, from being mounted, or worked on by another of us, meanwhile.
pub(super) fn lock(path: &Path) -> Result<Vec<OwnedFd>, Failure> {
    let locks = lock_tree(path).map_err(|error| format!("{}: {error}", path.display()));
    Ok(locks?)
}

/// Where a file lies.
fn directory_of(path: &Path) -> &Path {
    let named = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    named.unwrap_or_else(|| Path::new("."))
}

/// Name of the file that a plain one is compressed to, before its inode number.
const LEFTOVER: &str = ".warpcore-compress.";

/// Whether this is what a plain file beside it was being compressed to.
fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(Ok(number)) = name.strip_prefix(LEFTOVER).map(str::parse::<u64>) else { return false };
    let beside = fs::read_dir(directory_of(path)).ok();
    beside.into_iter().flatten().flatten().any(|entry| entry.ino() == number)
}

fn modified(metadata: &fs::Metadata) -> Result<(i64, u32), Failure> {
    Ok((metadata.mtime(), u32::try_from(metadata.mtime_nsec())?))
}

fn on_disk(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Root works on trees in which others may rename.
    #[test]
    fn nobody_is_led_elsewhere() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (tree, other) = (place.path().join("tree"), place.path().join("other"));
        for directory in [&tree, &other] {
            fs::create_dir_all(directory.join("sub")).expect("made");
            fs::write(directory.join("sub/file"), "text").expect("written");
        }
        let path = tree.join("sub/file");
        let directory = OwnedFd::from(File::open(&tree).expect("opens"));
        let found = Place::find(&directory, &tree, &path).expect("found");
        found.open(OFlags::RDWR).expect("opens");
        fs::remove_file(&path).expect("ours");
        symlink(other.join("sub/file"), &path).expect("links");
        assert!(found.open(OFlags::RDWR).is_err(), "a link");
        fs::remove_file(&path).expect("ours");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .expect("made");
        assert!(found.open(OFlags::RDONLY).is_err(), "a pipe");
        fs::remove_dir_all(tree.join("sub")).expect("ours");
        symlink(other.join("sub"), tree.join("sub")).expect("links");
        assert!(Place::find(&directory, &tree, &path).is_err(), "a link on the way");
    }
}
