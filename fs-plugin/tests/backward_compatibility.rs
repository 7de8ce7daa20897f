//! Files that earlier builds have written, by version of the format: they are read for ever.
//!
//! `WARPCORE_WRITE_IMAGES=DIR` writes those of this build instead: once for each version.

mod common;

use std::fs;
use std::path::Path;
use std::rc::Rc;

use common::{Data, File, read, run};
use warpcore_fs::store::contents::{Contents, Options};
use warpcore_fs::store::medium::{CrashMedium, Medium};
use warpcore_offload::{Codec, Queue};

/// Writes a file, and returns what is in it.
type Write = fn(&Queue, &mut File) -> Vec<u8>;

struct Image {
    name: &'static str,
    options: fn() -> Options,
    write: Write,
    /// Whether it is closed; else it is left as by a daemon that was killed.
    closed: bool,
}

fn small_chunks() -> Options {
    Options { chunk_len_log2: 12, records_max: 8, ..Options::default() }
}

const IMAGES: [Image; 6] = [
    Image { name: "linear", options: Options::default, write: linear, closed: true },
    Image { name: "rewritten", options: small_chunks, write: rewritten, closed: true },
    Image { name: "killed-in-a-zone", options: small_chunks, write: rewritten, closed: false },
    Image { name: "high-tree", options: small_chunks, write: high_tree, closed: true },
    Image { name: "compacted", options: small_chunks, write: compacted, closed: true },
    Image {
        name: "deflate",
        options: || Options { codec: Codec::Deflate, ..small_chunks() },
        write: rewritten,
        closed: true,
    },
];

/// Text, noise, zeros, and a hole.
fn linear(queue: &Queue, file: &mut File) -> Vec<u8> {
    let parts = [Data::Text(1).bytes(70_000), Data::Noise(2).bytes(5000), vec![0; 200_000]];
    let mut all = parts.concat();
    run(queue, file.write(queue, 0, &all)).expect("writes");
    all.resize(all.len() + 300_000, 0);
    let end = Data::Text(3).bytes(500);
    run(queue, file.write(queue, all.len() as u64, &end)).expect("writes");
    all.extend(end);
    all
}

/// Synced changes, more of them than a tree waits for, and a zone.
fn rewritten(queue: &Queue, file: &mut File) -> Vec<u8> {
    let mut all = Data::Text(1).bytes(20_000);
    run(queue, file.write(queue, 0, &all)).expect("writes");
    for n in 0..30 {
        let at = n * 641;
        let bytes = Data::Noise(n as u64).bytes(50);
        run(queue, file.write(queue, at as u64, &bytes)).expect("writes");
        run(queue, file.sync(queue)).expect("syncs");
        all[at..at + 50].copy_from_slice(&bytes);
    }
    all
}

/// Data at far ends: the highest tree there is. What is in it: the first bytes.
fn high_tree(queue: &Queue, file: &mut File) -> Vec<u8> {
    let end = FAR[FAR.len() - 1];
    for at in FAR {
        run(queue, file.write(queue, at, b"far apart")).expect("writes");
        run(queue, file.commit(queue)).expect("commits");
        run(queue, file.write(queue, at, b"F")).expect("writes");
        run(queue, file.commit(queue)).expect("commits");
    }
    assert!(end > 1 << 62);
    b"Far apart".to_vec()
}

const FAR: [u64; 6] = [0, 1 << 18, 1 << 27, 1 << 40, 1 << 50, i64::MAX as u64 - 100];

fn compacted(queue: &Queue, file: &mut File) -> Vec<u8> {
    let all = rewritten(queue, file);
    assert!(run(queue, file.compact(queue)).expect("compacts"));
    all
}

#[test]
fn files_of_every_version_are_read() {
    let queue = Rc::new(Queue::new(32));
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/v1");
    for image in IMAGES {
        let writing = std::env::var_os("WARPCORE_WRITE_IMAGES");
        let medium = Rc::new(CrashMedium::default());
        let options = (image.options)();
        let mut file = Contents::create(Rc::clone(&medium), options).expect("creates");
        let expected = (image.write)(&queue, &mut file);
        if image.closed {
            run(&queue, file.close(&queue)).expect("closes");
        }
        if let Some(directory) = writing {
            let path = Path::new(&directory).join(image.name);
            let attribute = medium.attribute().expect("in memory").expect("set");
            fs::write(path, [attribute, medium.bytes()].concat()).expect("writes");
            continue;
        }
        // The attribute, which is 24 bytes, and the backing file.
        let bytes = fs::read(directory.join(image.name)).expect("an image for each");
        let (attribute, stored) = bytes.split_at(24);
        let medium = Rc::new(CrashMedium::default());
        medium.damage(|all| *all = stored.to_vec());
        medium.set_attribute(attribute).expect("in memory");
        let open = Contents::open(Rc::clone(&medium), options, true);
        let mut file = run(&queue, open).expect("opens");
        let found = read(&queue, &file, 0, expected.len()).expect("reads");
        assert!(found == expected, "{}: other contents", image.name);
        if image.name == "high-tree" {
            for at in FAR {
                assert_eq!(read(&queue, &file, at, 9).expect("reads"), expected);
            }
        } else {
            assert_eq!(file.size().expect("known"), expected.len() as u64);
        }
        // And goes on being written.
        run(&queue, file.write(&queue, 3, b"now")).expect("writes");
        run(&queue, file.close(&queue)).expect("closes");
        let open = Contents::open(Rc::clone(&medium), options, true);
        let file = run(&queue, open).expect("opens");
        assert_eq!(read(&queue, &file, 3, 3).expect("reads"), b"now");
    }
}
