//! What is written: trees of the machine's own files, drawn by a seed, so that two machines with
//! the same packages write the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::cases::Sizes;
use crate::corpus::Random;

/// A file to be written.
pub(super) struct Source {
    /// Relative: 64 directories of some dozen files or more.
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
}

/// Everything that is written in a run, in memory.
pub(super) struct Corpora {
    /// Files of all kinds, as a system has them.
    pub(super) mixed: Vec<Source>,
    /// Small ones only.
    pub(super) small: Vec<Source>,
    /// The contents of mixed files, one behind the other.
    pub(super) big: Vec<u8>,
    /// What they are made of.
    pub(super) notes: Vec<String>,
}

/// Where people's machines have files.
const ROOTS: [&str; 6] =
    ["/usr/include", "/usr/share", "/usr/lib", "/usr/bin", "/usr/local", "/var/lib/dpkg"];
/// Larger files would be most of a tree by themselves.
const FILE_LEN_MAX: u64 = 8 << 20;
const SMALL_LEN_MAX: u64 = 16 << 10;

/// How many files of how many bytes in all.
#[derive(Clone, Copy)]
pub(super) struct TreeSize {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

impl Corpora {
    pub(super) fn build(sizes: &Sizes) -> Result<Self, String> {
        let mut found = Vec::new();
        ROOTS.iter().for_each(|root| find(Path::new(root), &mut found));
        found.sort();
        let mut random = Random::new(5);
        for last in (1..found.len()).rev() {
            found.swap(last, random.below(last + 1));
        }
        let small: Vec<_> =
            found.iter().filter(|(_, len)| *len <= SMALL_LEN_MAX).cloned().collect();
        let mixed = draw(&found, sizes.mixed);
        let small = draw(&small, sizes.small);
        if mixed.is_empty() || small.is_empty() {
            return Err(format!("no readable files in {}", ROOTS.join(", ")));
        }
        let mut big = Vec::with_capacity(sizes.big);
        while big.len() < sizes.big {
            let before = big.len();
            for source in &mixed {
                let room = sizes.big - big.len();
                big.extend_from_slice(&source.bytes[..source.bytes.len().min(room)]);
            }
            assert!(big.len() > before, "files that are drawn are not empty");
        }
        let notes = vec![describe("mixed tree", &mixed), describe("small tree", &small)];
        Ok(Self { mixed, small, big, notes })
    }
}

/// Regular files with their lengths.
fn find(directory: &Path, found: &mut Vec<(PathBuf, u64)>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            find(&entry.path(), found);
        } else if metadata.is_file() && (1..=FILE_LEN_MAX).contains(&metadata.len()) {
            found.push((entry.path(), metadata.len()));
        }
    }
}

/// Files in the order found, until there are enough. While their mean is above what is wanted,
/// only shorter ones are taken.
fn draw(found: &[(PathBuf, u64)], size: TreeSize) -> Vec<Source> {
    let mean = size.bytes / size.files as u64;
    let mut drawn: Vec<Source> = Vec::new();
    let mut bytes = 0;
    for (path, len) in found {
        if drawn.len() == size.files || bytes >= size.bytes {
            break;
        }
        if bytes > mean * drawn.len() as u64 && *len > mean {
            continue;
        }
        let mut read = Vec::new();
        let file = File::open(path).and_then(|file| file.take(FILE_LEN_MAX).read_to_end(&mut read));
        if file.is_err() || read.is_empty() {
            continue;
        }
        bytes += read.len() as u64;
        let number = drawn.len();
        let extension = path
            .extension()
            .map_or_else(Default::default, |extension| format!(".{}", extension.to_string_lossy()));
        let path =
            PathBuf::from(format!("d{:02}/e{}/f{number}{extension}", number % 64, number / 64 % 8));
        drawn.push(Source { path, bytes: read });
    }
    drawn
}

/// What a tree is made of, by bytes.
fn describe(name: &str, sources: &[Source]) -> String {
    let mut kinds = BTreeMap::<_, u64>::new();
    let mut all = 0;
    for source in sources {
        let kind = kind_of(source);
        let len = source.bytes.len() as u64;
        *kinds.entry(kind).or_default() += len;
        all += len;
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, len)| std::cmp::Reverse(*len));
    let parts: Vec<_> =
        kinds.iter().map(|(kind, len)| format!("{kind} {} %", len * 100 / all)).collect();
    format!("{name}: {} files, {:.1} MB: {}", sources.len(), all as f64 / 1e6, parts.join(", "))
}

fn kind_of(source: &Source) -> &'static str {
    let compressed: [&[u8]; 6] =
        [b"\x1f\x8b", b"\xfd7zXZ", b"\x89PNG", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\xff\xd8\xff"];
    let starts = |magic: &[u8]| source.bytes.starts_with(magic);
    if starts(b"\x7fELF") || starts(b"!<arch>") {
        "machine code"
    } else if compressed.into_iter().any(starts) {
        "compressed"
    } else if source.bytes.iter().take(4096).all(|byte| *byte != 0) {
        "text"
    } else {
        "other binary"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_tree_is_the_same_again_and_about_as_wanted() {
        let sizes = Sizes {
            mixed: TreeSize { files: 50, bytes: 1_000_000 },
            small: TreeSize { files: 20, bytes: 80_000 },
            big: 300_000,
            ..Sizes::QUICK
        };
        let [one, two] = [(); 2].map(|()| Corpora::build(&sizes).expect("every machine has files"));
        assert!(one.mixed.len() >= 20 && one.mixed.len() <= 50, "{}", one.mixed.len());
        assert_eq!(one.big.len(), 300_000);
        assert!(one.big == two.big && one.notes == two.notes);
        assert!(one.small.iter().all(|source| source.bytes.len() as u64 <= SMALL_LEN_MAX));
    }
}
