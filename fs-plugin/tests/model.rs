//! Contents against a plain vector of bytes: any sequence of reads, writes, truncations, commits
//! and reopenings gives what the vector gives. While the file is linear, stock zstd gives it too;
//! once it is not, or if it is stored with another codec, stock zstd refuses.

mod common;

use common::{Step, apply, codecs, long_steps, options, read, run, seeds, steps};
use proptest::prelude::*;
use std::rc::Rc;
use warpcore_fs::store::contents::{Contents, Options};
use warpcore_fs::store::medium::{CrashMedium, Medium};
use warpcore_offload::{Codec, Queue};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200 * seeds(), ..ProptestConfig::default() })]

    #[test]
    fn contents_are_what_was_written(steps in steps(), codec in codecs()) {
        are_what_was_written(steps, codec)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200 * seeds(), ..ProptestConfig::default() })]

    #[test]
    fn long_contents_are_what_was_written(steps in long_steps(), codec in codecs()) {
        are_what_was_written(steps, codec)?;
    }
}

fn are_what_was_written(steps: Vec<Step>, codec: Codec) -> Result<(), TestCaseError> {
    let options = || Options { codec, ..options() };
    let queue = Rc::new(Queue::new(32));
    let medium = Rc::new(CrashMedium::default());
    let create = Contents::create(Rc::clone(&medium), options());
    let mut contents = create.expect("creates");
    let mut model = Vec::new();
    for step in steps {
        if let Step::Reopen { orderly, keep_attribute } = step {
            let closed = if orderly { contents.close(&queue) } else { panic!("not generated") };
            run(&queue, closed).expect("closes");
            if !keep_attribute && medium.len().expect("in memory") > 0 {
                medium.lose_attribute();
            }
            let open = Contents::open(Rc::clone(&medium), options(), true);
            contents = run(&queue, open).expect("opens");
        } else {
            apply(&queue, &mut contents, &mut model, &step);
            if matches!(step, Step::Sync) {
                // As after a crash, to who changes nothing.
                let stored = Contents::open(Rc::clone(&medium), options(), false);
                let stored = run(&queue, stored).expect("opens");
                let all = read(&queue, &stored, 0, model.len() + 100).expect("reads");
                prop_assert!(all == model, "not what was synced");
            }
        }
        prop_assert_eq!(contents.size().expect("known"), model.len() as u64);
    }
    let all = read(&queue, &contents, 0, model.len() + 100).expect("reads");
    prop_assert!(all == model);
    run(&queue, contents.close(&queue)).expect("closes");
    run(&queue, contents.check(&queue)).expect("verifies");
    let bytes = medium.bytes();
    let linear = run(&queue, contents.report()).expect("known").linear;
    if codec != Codec::Zstd && !bytes.is_empty() {
        prop_assert!(!linear);
    }
    if linear {
        prop_assert!(bytes.is_empty() || zstd::decode_all(&bytes[..]).expect("a stream") == model);
    } else {
        // At the refusing frame, or before it where blocks were given back.
        zstd::decode_all(&bytes[..]).expect_err("must not lie");
    }
    Ok(())
}
