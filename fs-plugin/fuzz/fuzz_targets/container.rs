//! Backing files of any bytes under any attribute: they open or are refused; what can be read is read
//! twice the same; they are changed, compacted, closed and opened again, and nothing panics.
//!
//! Checksums do not stop the fuzzer (`format::verifies`).

#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use warpcore_fs::store::contents::{Contents, Options};
use warpcore_fs::store::format::Attribute;
use warpcore_fs::store::medium::{CrashMedium, Medium};
use warpcore_offload::{Codec, Queue};

thread_local! {
    static QUEUE: Queue = Queue::new(32);
}

/// As Default, which is not const, but for few records before a tree, of which little stays in memory.
const OPTIONS: Options = Options {
    chunk_len_log2: 12,
    codec: Codec::Zstd,
    level: 1,
    records_max: 8,
    pieces_max: 16,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((attribute, stored)) = bytes.split_at_checked(Attribute::LEN) else { return };
    QUEUE.with(|queue| {
        let medium = Rc::new(CrashMedium::default());
        medium.damage(|all| *all = stored.to_vec());
        // No attribute, as of a copy, where it begins with a zero.
        if attribute[0] != 0 {
            medium.set_attribute(attribute).expect("in memory");
        }
        let open = || Contents::open(Rc::clone(&medium), OPTIONS, true);
        let Ok(mut contents) = queue.run(open()) else { return };
        let mut first = [0; 10_000];
        let mut again = [0; 10_000];
        let read = queue.run(contents.read(queue, 0, &mut first)).ok();
        assert_eq!(read, queue.run(contents.read(queue, 0, &mut again)).ok());
        assert!(read.is_none() || first == again);
        let _ = queue.run(contents.check(queue));
        let _ = queue.run(contents.report());
        let _ = queue.run(contents.seek(0, true));
        let end = contents.size().unwrap_or(0);
        let _ = queue.run(contents.write(queue, end.min(5000), b"written"));
        let _ = queue.run(contents.compact(queue));
        let _ = queue.run(contents.punch_hole(4000..9000));
        if queue.run(contents.close(queue)).is_ok()
            && let Ok(contents) = queue.run(open())
        {
            let _ = queue.run(contents.read(queue, 0, &mut again));
        }
    });
});
