//! Picks real files to copy, copies them, and compares them.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Interrupted;
use crate::Failure;

/// Enough of a tree: both are reached, or there is no more.
const ENOUGH_BYTES: u64 = 200_000_000;
const ENOUGH_FILES: usize = 5_000;
/// Never more than this.
const BYTES_MAX: u64 = 400_000_000;

/// What will be copied.
pub(super) struct Tree {
    /// In the order of copying: a directory before what is in it.
    pub(super) entries: Vec<Entry>,
    /// Where they come from.
    pub(super) roots: Vec<PathBuf>,
    pub(super) files: usize,
    pub(super) bytes: u64,
    /// Could not be read, and left out.
    pub(super) skipped: usize,
    /// Copied up to the limit: more would have been there.
    full: bool,
}

/// One file, directory or symbolic link.
pub(super) struct Entry {
    pub(super) source: PathBuf,
    /// Where it goes, from the top of the copy.
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
}

impl Tree {
    /// `from`, or what every machine that can build this has.
    pub(super) fn pick(from: Option<&Path>) -> Result<Self, Failure> {
        let roots = match from {
            Some(from) => vec![from.to_owned()],
            None => usual_roots(),
        };
        let mut tree = Self {
            entries: Vec::new(),
            roots: Vec::new(),
            files: 0,
            bytes: 0,
            skipped: 0,
            full: false,
        };
        for (n, root) in roots.iter().enumerate() {
            if tree.is_enough() {
                break;
            }
            let before = tree.files;
            tree.add(root, &PathBuf::from(n.to_string()));
            if tree.files > before {
                tree.roots.push(root.clone());
            }
        }
        if tree.files == 0 {
            let roots: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
            return Err(format!("no readable file in {}", roots.join(", ")).into());
        }
        Ok(tree)
    }

    /// Whether the tree is as large as the demo wants it.
    pub(super) fn is_enough(&self) -> bool {
        self.full || self.bytes >= ENOUGH_BYTES && self.files >= ENOUGH_FILES
    }

    fn add(&mut self, source: &Path, path: &Path) {
        let Ok(metadata) = fs::symlink_metadata(source) else {
            self.skipped += 1;
            return;
        };
        if metadata.is_file() {
            if self.bytes + metadata.len() > BYTES_MAX {
                self.full = self.files >= ENOUGH_FILES;
                return;
            }
            if File::open(source).is_err() {
                self.skipped += 1;
                return;
            }
            self.files += 1;
            self.bytes += metadata.len();
        } else if metadata.is_dir() {
            let Ok(children) = fs::read_dir(source) else {
                self.skipped += 1;
                return;
            };
            let mut children: Vec<_> = children.filter_map(Result::ok).collect();
            children.sort_by_key(fs::DirEntry::file_name);
            self.push(source, path, metadata);
            for child in children {
                if self.is_enough() {
                    return;
                }
                self.add(&child.path(), &path.join(child.file_name()));
            }
            return;
        } else if !metadata.is_symlink() {
            // Sockets and devices are no contents.
            return;
        }
        self.push(source, path, metadata);
    }

    fn push(&mut self, source: &Path, path: &Path, metadata: Metadata) {
        self.entries.push(Entry { source: source.to_owned(), path: path.to_owned(), metadata });
    }

    /// Copies everything below `target`, with modes and times.
    pub(super) fn copy(
        &self,
        target: &Path,
        interrupted: &Interrupted,
        mut progress: impl FnMut(&Entry),
    ) -> Result<(), Failure> {
        for entry in &self.entries {
            interrupted.check()?;
            entry
                .copy(target)
                .map_err(|error| format!("copying {} failed: {error}", entry.source.display()))?;
            progress(entry);
        }
        // Times of directories last: creating something in one changes them. Deepest first.
        for entry in self.entries.iter().rev().filter(|entry| entry.metadata.is_dir()) {
            let directory = File::open(target.join(&entry.path))?;
            directory
                .set_permissions(fs::Permissions::from_mode(entry.metadata.mode() & 0o7777))?;
            directory.set_modified(entry.metadata.modified()?)?;
        }
        Ok(())
    }

    /// Makes every file durable.
    pub(super) fn sync(&self, target: &Path, interrupted: &Interrupted) -> Result<(), Failure> {
        for entry in self.entries.iter().filter(|entry| entry.metadata.is_file()) {
            interrupted.check()?;
            File::open(target.join(&entry.path))?.sync_all()?;
        }
        Ok(())
    }

    /// Compares everything below `target` with where it came from.
    pub(super) fn compare(
        &self,
        target: &Path,
        interrupted: &Interrupted,
        mut progress: impl FnMut(&Entry),
    ) -> Result<(), Failure> {
        for entry in &self.entries {
            interrupted.check()?;
            entry.compare(target)?;
            progress(entry);
        }
        let mut wanted: BTreeSet<_> = self.entries.iter().map(|entry| entry.path.clone()).collect();
        for path in list(target)? {
            if !wanted.remove(path.strip_prefix(target)?) {
                return Err(format!("{} is there and was never copied", path.display()).into());
            }
        }
        match wanted.first() {
            Some(path) => Err(format!("{} is not listed", path.display()).into()),
            None => Ok(()),
        }
    }

    /// The largest file.
    pub(super) fn largest(&self) -> &Entry {
        let files = self.entries.iter().filter(|entry| entry.metadata.is_file());
        files.max_by_key(|entry| entry.metadata.len()).expect("a tree has a file")
    }
}

impl Entry {
    fn copy(&self, target: &Path) -> io::Result<()> {
        let path = target.join(&self.path);
        if self.metadata.is_dir() {
            fs::create_dir(path)
        } else if self.metadata.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&self.source)?, path)
        } else {
            let mut source = File::open(&self.source)?;
            let mut copy = File::options().write(true).create_new(true).open(path)?;
            io::copy(&mut source, &mut copy)?;
            copy.set_permissions(fs::Permissions::from_mode(self.metadata.mode() & 0o7777))?;
            copy.set_modified(self.metadata.modified()?)
        }
    }

    fn compare(&self, target: &Path) -> Result<(), Failure> {
        let path = target.join(&self.path);
        let differs = |what: &str| Failure::from(format!("{}: {what} differs", path.display()));
        let metadata =
            fs::symlink_metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if metadata.file_type() != self.metadata.file_type() {
            return Err(differs("the type"));
        }
        if metadata.is_symlink() {
            let same = fs::read_link(&path)? == fs::read_link(&self.source)?;
            return if same { Ok(()) } else { Err(differs("the target")) };
        }
        if metadata.mode() != self.metadata.mode() {
            return Err(differs("the mode"));
        }
        if metadata.modified()? != self.metadata.modified()? {
            return Err(differs("the time"));
        }
        if metadata.is_file() && !same(&mut File::open(&self.source)?, &mut File::open(&path)?)? {
            return Err(differs("the contents"));
        }
        Ok(())
    }
}

/// Whether two readers give the same bytes.
pub(super) fn same(one: &mut impl Read, other: &mut impl Read) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; 1 << 18], vec![0; 1 << 18]);
    loop {
        let len = one.read(&mut left)?;
        if len == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        match other.read_exact(&mut right[..len]) {
            Ok(()) if left[..len] == right[..len] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

fn usual_roots() -> Vec<PathBuf> {
    let home = std::env::home_dir().unwrap_or_default();
    let variable = |name: &str, usual: &str| {
        std::env::var_os(name).map_or_else(|| home.join(usual), PathBuf::from)
    };
    vec![
        "/usr/share".into(),
        "/usr/lib".into(),
        variable("RUSTUP_HOME", ".rustup").join("toolchains"),
        variable("CARGO_HOME", ".cargo").join("registry/src"),
    ]
}

/// Everything below a directory, without itself.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        found.push(entry.path());
        if entry.file_type()?.is_dir() {
            found.extend(list(&entry.path())?);
        }
    }
    Ok(found)
}
