//! Power cuts: random runs are cut after every change of the backing file, with later writes lost
//! or torn, and opened again. What a sync returned for is there; the file opens; what it holds is
//! some state that it went through since; nothing else is hurt.

mod common;

use std::ops::Range;
use std::rc::Rc;

use common::{
    CHUNK, Data, File, Step, apply, codecs, long_steps, options, read, run, seeds, steps, try_apply,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use warpcore_fs::Error;
use warpcore_fs::store::contents::{AHEAD_MAX, Contents, Options};
use warpcore_fs::store::format::{Extent, Form, Head, Kind, Record};
use warpcore_fs::store::medium::{CrashMedium, CrashPoint, Medium};
use warpcore_offload::{Codec, Queue};

/// A state that a crash may leave.
struct State {
    bytes: Vec<u8>,
    /// What was written since the one before, maybe with the same bytes.
    written: Range<usize>,
}

/// States that a crash may leave, in their order.
struct History {
    states: Vec<State>,
    /// Index of the state that the last sync made durable, with the changes it took.
    durable: Vec<(usize, usize)>,
}

fn create() -> (Rc<CrashMedium>, File) {
    let medium = Rc::new(CrashMedium::default());
    let contents = Contents::create(Rc::clone(&medium), options());
    (medium, contents.expect("creates"))
}

fn open(queue: &Rc<Queue>, medium: &Rc<CrashMedium>) -> File {
    let open = Contents::open(Rc::clone(medium), options(), true);
    run(queue, open).expect("a file opens after a crash")
}

fn read_all(queue: &Queue, contents: &mut File) -> Vec<u8> {
    let size = usize::try_from(contents.size().expect("known")).expect("small");
    read(queue, contents, 0, size).expect("what is found is whole")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40 * seeds(), ..ProptestConfig::default() })]

    #[test]
    fn what_was_synced_is_there_and_nothing_is_torn(
        steps in steps(),
        seed: u64,
        codec in codecs(),
    ) {
        is_there_after_cuts(steps, seed, codec, 1)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4 * seeds(), ..ProptestConfig::default() })]

    /// Cut after some of the changes.
    #[test]
    fn what_was_synced_of_long_contents_is_there(
        steps in long_steps(),
        seed: u64,
        codec in codecs(),
        every in 10..30_usize,
    ) {
        is_there_after_cuts(steps, seed, codec, every)?;
    }
}

/// Cuts the power after one change of so many, three times each, with other losses.
fn is_there_after_cuts(
    steps: Vec<Step>,
    seed: u64,
    codec: Codec,
    every: usize,
) -> Result<(), TestCaseError> {
    let queue = Rc::new(Queue::new(32));
    let medium = Rc::new(CrashMedium::default());
    let store = Options { codec, ..options() };
    let create = Contents::create(Rc::clone(&medium), store);
    let mut contents = create.expect("creates");
    let mut model = Vec::new();
    let empty = State { bytes: Vec::new(), written: 0..0 };
    let mut history = History { states: vec![empty], durable: vec![(0, 0)] };
    for step in steps {
        let written = step.writes(model.len());
        match step {
            Step::Reopen { .. } => {
                run(&queue, contents.close(&queue)).expect("closes");
                let open = Contents::open(Rc::clone(&medium), store, true);
                contents = run(&queue, open).expect("opens");
            }
            ref step => apply(&queue, &mut contents, &mut model, step),
        }
        history.states.push(State { bytes: model.clone(), written });
        if matches!(step, Step::Sync) {
            history.durable.push((medium.changes(), history.states.len() - 1));
        }
    }
    for changes in (0..=medium.changes()).step_by(every) {
        let durable = history.durable.iter().rfind(|(at, _)| *at <= changes);
        let durable = durable.expect("the empty file at least").1;
        for round in 0..3 {
            let point = CrashPoint { changes, seed: seed.wrapping_add(round) };
            let crashed = Rc::new(medium.crashed(point));
            let recovers_from = crashed.changes();
            let mut after = open(&queue, &crashed);
            let Some(found) = read_whole(&queue, &mut after) else {
                // The mark of an orderly close came through and some bytes before it did not.
                // They are refused, one by one; none of them was ever synced.
                check_damaged(&queue, &mut after, &history.states[durable..]);
                continue;
            };
            // Between two commits contents are written early, chunk by chunk, so a crash may
            // show a part of a later step: then every chunk is one that was there at some time.
            let whole = history.states[durable..].iter().any(|state| state.bytes == found);
            prop_assert!(
                whole || is_mixture(&found, &history.states[durable..]),
                "after {changes} changes: {} bytes that never were",
                found.len()
            );
            // Recovery that is cut short is made again.
            for changes in recovers_from..=crashed.changes() {
                let point = CrashPoint { changes, seed: seed.wrapping_add(round) };
                let mut again = open(&queue, &Rc::new(crashed.crashed(point)));
                prop_assert!(read_all(&queue, &mut again) == found, "recovered otherwise");
            }
            // It can be written, closed and read again.
            let end = found.len() as u64;
            run(&queue, after.write(&queue, end, b"after the crash")).expect("writes");
            run(&queue, after.close(&queue)).expect("closes");
            let mut again = open(&queue, &crashed);
            let mut expected = found;
            expected.extend(b"after the crash");
            prop_assert!(read_all(&queue, &mut again) == expected);
        }
    }
    Ok(())
}

fn read_whole(queue: &Queue, contents: &mut File) -> Option<Vec<u8>> {
    let size = usize::try_from(contents.size().expect("known")).expect("small");
    read(queue, contents, 0, size).ok()
}

/// What cannot be read must have been written since the last sync; what can be read was there.
fn check_damaged(queue: &Queue, contents: &mut File, states: &[State]) {
    let size = usize::try_from(contents.size().expect("known")).expect("small");
    for start in (0..size).step_by(CHUNK) {
        let end = size.min(start + CHUNK);
        let part = |state: &State| {
            let mut part =
                state.bytes.get(start..end.min(state.bytes.len())).unwrap_or_default().to_vec();
            part.resize(end - start, 0);
            part
        };
        match read(queue, contents, start as u64, end - start) {
            Ok(found) => assert!(
                found
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| states.iter().any(|state| part(state)[at] == *byte)),
                "bytes that never were at {start}"
            ),
            Err(error) => {
                assert_eq!(error.errno(), libc::EIO);
                let is_written = |state: &State| {
                    let written = &state.written;
                    written.start < end && written.end > start
                };
                assert!(states[1..].iter().any(is_written), "synced bytes are lost at {start}");
            }
        }
    }
}

/// Whether every byte is one that some state has there, or zero where a state is shorter.
fn is_mixture(found: &[u8], states: &[State]) -> bool {
    found.iter().enumerate().all(|(at, byte)| {
        states.iter().any(|state| state.bytes.get(at).copied().unwrap_or(0) == *byte)
    })
}

/// The old file's records are of another life: equal lengths prove nothing.
#[test]
fn truncated_and_rewritten_to_the_same_length() {
    let queue = Rc::new(Queue::new(32));
    for seed in 0..200 {
        let (medium, mut contents) = create();
        let old = Data::Noise(7).bytes(10_000);
        run(&queue, contents.write(&queue, 0, &old)).expect("writes");
        run(&queue, contents.sync(&queue)).expect("syncs");
        run(&queue, contents.close(&queue)).expect("closes");
        let length = medium.bytes().len();

        let mut contents = open(&queue, &medium);
        run(&queue, contents.set_size(0)).expect("truncates");
        // Half the bytes in the same room: a trusted old size would cut or invent.
        let new = Data::Noise(8).bytes(10_000);
        run(&queue, contents.write(&queue, 0, &new)).expect("writes");
        run(&queue, contents.sync(&queue)).expect("syncs");
        assert_eq!(medium.bytes().len(), length, "the case needs equal lengths");
        let synced = medium.changes();
        run(&queue, contents.close(&queue)).expect("closes");

        let crashed = Rc::new(medium.crashed(CrashPoint { changes: synced, seed }));
        assert!(read_all(&queue, &mut open(&queue, &crashed)) == new);
        for changes in 0..medium.changes() {
            let crashed = Rc::new(medium.crashed(CrashPoint { changes, seed }));
            let found = read_all(&queue, &mut open(&queue, &crashed));
            let known = found.is_empty() || found == old || found == new;
            assert!(known, "{} bytes that never were, after {changes}", found.len());
        }
    }
}

/// A user stores a copy of the backing file in the file itself: its commit records are contents,
/// wherever they lie.
#[test]
fn a_raw_chunk_that_holds_this_files_own_commit_records() {
    let queue = Rc::new(Queue::new(32));
    let medium = Rc::new(CrashMedium::default());
    // Nothing is compressed, so that the copy of head, frames and records lies there as it is.
    let store = Options { codec: Codec::Store, ..options() };
    let create = Contents::create(Rc::clone(&medium), store);
    let mut contents = create.expect("creates");
    let first = Data::Noise(1).bytes(1000);
    run(&queue, contents.write(&queue, 0, &first)).expect("writes");
    run(&queue, contents.sync(&queue)).expect("syncs");
    let copy = medium.bytes();
    run(&queue, contents.write(&queue, 1000, &copy)).expect("writes");
    run(&queue, contents.commit(&queue)).expect("commits");
    let mut expected = first;
    expected.extend(&copy);
    let stored = medium.bytes();
    assert!(stored.windows(copy.len()).skip(1).any(|window| window == copy), "not stored raw");
    // The last commit is torn off, so that the search goes through the copy.
    for cut in 1..200 {
        let crashed = Rc::new(medium.crashed(CrashPoint { changes: medium.changes(), seed: 3 }));
        crashed.damage(|bytes| {
            *bytes = stored.clone();
            bytes.truncate(stored.len() - cut);
        });
        let found = read_all(&queue, &mut open(&queue, &crashed));
        assert!(found == expected[..1000], "{} bytes after a cut of {cut}", found.len());
    }
}

#[test]
fn a_daemon_that_dies_loses_only_what_was_not_committed() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    run(&queue, contents.write(&queue, 0, b"committed")).expect("writes");
    run(&queue, contents.commit(&queue)).expect("commits");
    run(&queue, contents.write(&queue, 9, b" and lost")).expect("writes");
    drop(contents);
    assert_eq!(read_all(&queue, &mut open(&queue, &medium)), b"committed");
}

#[test]
fn a_full_disk_loses_nothing_and_can_be_written_again() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    let first = Data::Noise(1).bytes(20_000);
    run(&queue, contents.write(&queue, 0, &first)).expect("writes");
    run(&queue, contents.sync(&queue)).expect("syncs");
    let full = medium.bytes().len() as u64;
    medium.fill_up_at(Some(full + 5000));
    let second = Data::Noise(2).bytes(20_000);
    run(&queue, contents.write(&queue, 20_000, &second)).expect("to memory");
    let error = run(&queue, contents.sync(&queue)).expect_err("the disk is full");
    assert_eq!(error.errno(), libc::ENOSPC);
    assert_eq!(medium.bytes().len() as u64, full, "half an append was left");
    let mut both = first.clone();
    both.extend(&second);
    assert!(read_all(&queue, &mut contents) == both, "accepted bytes are still readable");
    assert!(read_all(&queue, &mut open(&queue, &medium)) == first);
    // Somebody makes room.
    medium.fill_up_at(None);
    run(&queue, contents.sync(&queue)).expect("syncs");
    run(&queue, contents.close(&queue)).expect("closes");
    assert!(read_all(&queue, &mut open(&queue, &medium)) == both);
}

#[test]
fn a_failed_sync_is_never_simply_repeated() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    run(&queue, contents.write(&queue, 0, b"bytes")).expect("writes");
    medium.fail_syncs(1);
    assert_eq!(run(&queue, contents.sync(&queue)).expect_err("fails").errno(), libc::EIO);
    assert_eq!(run(&queue, contents.sync(&queue)).expect_err("still unknown").errno(), libc::EIO);
    run(&queue, contents.close(&queue)).expect_err("must not be called clean");
}

/// The cache says afterwards that it is clean, and is all that has those bytes: who opens the file again
/// goes by the disk, and what is synced then is there whatever comes.
#[test]
fn what_a_failed_sync_has_lost_is_not_built_on() {
    let queue = Rc::new(Queue::new(32));
    for seed in 0..50 {
        let (medium, mut contents) = create();
        let durable = Data::Text(1).bytes(3 * CHUNK);
        run(&queue, contents.write(&queue, 0, &durable)).expect("writes");
        run(&queue, contents.sync(&queue)).expect("syncs");
        run(&queue, contents.write(&queue, 9000, &Data::Text(2).bytes(CHUNK))).expect("writes");
        medium.fail_syncs(1);
        run(&queue, contents.sync(&queue)).expect_err("fails");
        drop(contents);
        let mut contents = open(&queue, &medium);
        assert!(read_all(&queue, &mut contents) == durable, "by the cache");
        run(&queue, contents.write(&queue, 100, b"acknowledged")).expect("writes");
        run(&queue, contents.sync(&queue)).expect("syncs");
        let expected = read_all(&queue, &mut contents);
        let crashed = Rc::new(medium.crashed(CrashPoint { changes: medium.changes(), seed }));
        assert!(read_all(&queue, &mut open(&queue, &crashed)) == expected, "seed {seed}");
    }
}

/// Where there are no attributes, nothing else says whose a file is after the daemon was killed.
#[test]
fn a_head_is_enough_where_there_are_no_attributes() {
    let queue = Rc::new(Queue::new(256));
    // With a record at the end, and without.
    for chunks in 100..140 {
        let medium = Rc::new(CrashMedium::default());
        medium.have_no_attributes();
        let mut contents = Contents::create(Rc::clone(&medium), options()).expect("creates");
        let bytes = Data::Noise(1).bytes(chunks * CHUNK);
        for (part, bytes) in bytes.chunks(CHUNK).enumerate() {
            let at = (part * CHUNK) as u64;
            run(&queue, contents.write(&queue, at, bytes)).expect("writes");
        }
        drop(contents);
        let mut contents = open(&queue, &medium);
        let report = run(&queue, contents.report()).expect("reads");
        assert_eq!(report.kind, Kind::Container, "{chunks} chunks");
        let found = read_all(&queue, &mut contents);
        assert!(bytes.starts_with(&found) && found.len() >= 64 * CHUNK, "{} bytes", found.len());
        let before = medium.bytes();
        drop(contents);
        assert!(medium.bytes() == before, "changed by being looked at");
        let mut contents = open(&queue, &medium);
        run(&queue, contents.write(&queue, 0, b"new")).expect("writes");
        run(&queue, contents.close(&queue)).expect("closes");
        drop(contents);
        assert!(read_all(&queue, &mut open(&queue, &medium)).starts_with(b"new"));
    }
    // With no record at all, or its only one damaged, there is nothing to show, and nothing is cut.
    for (closed, damaged_from_end) in [(false, None), (true, Some(40))] {
        let medium = Rc::new(CrashMedium::default());
        medium.have_no_attributes();
        let mut contents = Contents::create(Rc::clone(&medium), options()).expect("creates");
        for part in 0..40 {
            let bytes = Data::Noise(part as u64).bytes(CHUNK);
            run(&queue, contents.write(&queue, (part * CHUNK) as u64, &bytes)).expect("writes");
        }
        if closed {
            run(&queue, contents.close(&queue)).expect("closes");
        }
        drop(contents);
        if let Some(from_end) = damaged_from_end {
            medium.damage(|bytes| {
                let at = bytes.len() - from_end;
                bytes[at] ^= 1;
            });
        }
        let before = medium.bytes();
        let opened = run(&queue, Contents::open(Rc::clone(&medium), options(), true));
        assert_eq!(opened.map(drop).expect_err("nothing holds").errno(), libc::EIO);
        assert!(medium.bytes() == before);
    }
}

#[test]
fn a_damaged_chunk_is_an_error_for_its_bytes_only() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    let plain = Data::Noise(5).bytes(3 * CHUNK);
    run(&queue, contents.write(&queue, 0, &plain)).expect("writes");
    run(&queue, contents.close(&queue)).expect("closes");
    // In the middle of the second chunk, which is stored raw.
    let middle = &plain[CHUNK + 1000..CHUNK + 1100];
    let at = medium.bytes().windows(100).position(|window| window == middle).expect("raw");
    medium.damage(|bytes| bytes[at] ^= 1);

    let contents = open(&queue, &medium);
    let chunk = |n: usize| (n * CHUNK) as u64;
    for n in [0, 2] {
        let bytes = read(&queue, &contents, chunk(n), CHUNK).expect("whole");
        assert!(bytes == plain[n * CHUNK..][..CHUNK]);
    }
    let error = read(&queue, &contents, chunk(1), 10).expect_err("damaged");
    assert_eq!(error.errno(), libc::EIO);
    assert!(error.to_string().starts_with("damaged extent at byte "), "{error}");
    run(&queue, contents.check(&queue)).expect_err("damaged");
}

#[test]
fn a_commit_of_many_extents_is_valid_as_a_whole_or_not_at_all() {
    let queue = Rc::new(Queue::new(256));
    let (medium, mut contents) = create();
    let base = Data::Text(1).bytes(200 * CHUNK);
    run(&queue, contents.write(&queue, 0, &base)).expect("writes");
    run(&queue, contents.sync(&queue)).expect("syncs");
    let before = medium.changes();
    // Fewer dirty chunks than are stored early, each with many ranges: one commit of more than one
    // record.
    let mut changed = base.clone();
    for chunk in 0..10 {
        for n in 0..10 {
            let at = chunk * CHUNK + n * 300;
            changed[at..at + 10].copy_from_slice(&[0xee; 10]);
            run(&queue, contents.write(&queue, at as u64, &[0xee; 10])).expect("writes");
        }
    }
    run(&queue, contents.sync(&queue)).expect("syncs");
    for changes in before..=medium.changes() {
        for seed in 0..50 {
            let crashed = Rc::new(medium.crashed(CrashPoint { changes, seed }));
            let found = read_all(&queue, &mut open(&queue, &crashed));
            assert!(found == base || found == changed, "a part of a commit was taken for it");
        }
    }
}

/// ext4 makes a length that grows within an allocated block durable before the bytes: closed in
/// order, by its mark, with zeros for a tail. What was synced before is still there.
#[test]
fn a_mark_of_closing_without_the_last_bytes() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    run(&queue, contents.write(&queue, 0, b"synced")).expect("writes");
    run(&queue, contents.sync(&queue)).expect("syncs");
    run(&queue, contents.close(&queue)).expect("closes");
    let synced = medium.bytes().len();
    let mut contents = open(&queue, &medium);
    run(&queue, contents.write(&queue, 6, b" and more")).expect("writes");
    run(&queue, contents.close(&queue)).expect("closes");
    drop(contents);
    medium.damage(|bytes| bytes[synced..].fill(0));
    assert_eq!(read_all(&queue, &mut open(&queue, &medium)), b"synced");
}

/// A time that was set is durable once it is synced, whatever came before it.
#[test]
fn a_time_that_was_synced_is_that_of_the_record() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    run(&queue, contents.write(&queue, 0, b"text")).expect("writes");
    run(&queue, contents.sync(&queue)).expect("syncs");
    contents.set_modified((1_000_000_000, 7));
    run(&queue, contents.sync(&queue)).expect("syncs");
    // Killed: never closed.
    drop(contents);
    assert_eq!(open(&queue, &medium).modified(), Some((1_000_000_000, 7)));
}

/// Recovery cuts what a crash left, not what a disk has lost.
#[test]
fn a_bad_bit_in_what_was_durable_is_an_error_and_nothing_is_cut() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    for n in 0..20_u64 {
        run(&queue, contents.write(&queue, n * 100, &[1; 100])).expect("writes");
        run(&queue, contents.sync(&queue)).expect("syncs");
    }
    let stored = medium.bytes();
    let stored = &stored[..];
    let find = |tag: &'static [u8]| {
        (0..stored.len()).rev().filter(move |at| stored[*at..].starts_with(tag))
    };
    let before = find(b"WCR").nth(1).expect("a record for each sync");
    let node = find(b"WCN").next().expect("a checkpoint now and then");
    // Killed: never closed. Then one bit of the head, of the last record but one, of the tree.
    drop(contents);
    for at in [20, before + 30, node + 30] {
        let length = medium.bytes().len();
        medium.damage(|bytes| bytes[at] ^= 1);
        let open = Contents::open(Rc::clone(&medium), options(), true);
        let error = run(&queue, open).expect_err("damaged");
        assert_eq!(error.errno(), libc::EIO, "{error}");
        assert_eq!(medium.bytes().len(), length, "cut");
        medium.damage(|bytes| bytes[at] ^= 1);
    }
    assert_eq!(read_all(&queue, &mut open(&queue, &medium)), [1; 2000]);
}

#[test]
fn what_a_full_disk_cannot_store_is_not_accepted() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    medium.fill_up_at(Some(1000));
    let (mut accepted, mut refused) = (0, 0);
    for n in 0..100_u64 {
        let chunk = Data::Noise(n).bytes(CHUNK);
        match run(&queue, contents.write(&queue, n * CHUNK as u64, &chunk)) {
            Ok(()) => accepted += 1,
            Err(error) => {
                assert_eq!(error.errno(), libc::ENOSPC);
                refused += 1;
            }
        }
        assert_eq!(contents.size().expect("known"), accepted * CHUNK as u64);
        assert!(contents.dirty_len() <= 20 * CHUNK as u64, "memory grows");
        if refused > 5 {
            return;
        }
    }
    panic!("a full disk was never noticed");
}

#[test]
fn a_damaged_extent_does_not_stop_later_commits() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    run(&queue, contents.write(&queue, 0, &Data::Noise(1).bytes(CHUNK))).expect("writes");
    for n in 0..20_u64 {
        run(&queue, contents.write(&queue, n * 50, &[9; 10])).expect("writes");
        run(&queue, contents.commit(&queue)).expect("commits");
        if n == 2 {
            // The base of the chunk, stored raw behind the head of its frame.
            medium.damage(|bytes| bytes[60] ^= 1);
        }
    }
    run(&queue, contents.write(&queue, CHUNK as u64, b"elsewhere")).expect("writes");
    run(&queue, contents.close(&queue)).expect("closes");
    // Nor after a restart, when what was never synced is looked at before it is built upon.
    let medium = Rc::new(medium.rebooted());
    let mut contents = open(&queue, &medium);
    run(&queue, contents.write(&queue, CHUNK as u64 + 9, b", later")).expect("writes");
    run(&queue, contents.close(&queue)).expect("closes");
    let contents = open(&queue, &medium);
    let found = read(&queue, &contents, CHUNK as u64, 16).expect("whole");
    assert_eq!(found, b"elsewhere, later");
    read(&queue, &contents, 0, 1).expect_err("damaged");
}

/// Its nodes are looked at as it is opened: as many as there are, however long it is.
#[test]
fn the_longest_sparse_file_opens_after_a_restart() {
    const END: u64 = i64::MAX as u64;
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    run(&queue, contents.write(&queue, 0, b"first")).expect("writes");
    run(&queue, contents.write(&queue, END - 4, b"last")).expect("writes");
    run(&queue, contents.commit(&queue)).expect("commits");
    run(&queue, contents.store_index(&queue)).expect("stores");
    run(&queue, contents.close(&queue)).expect("closes");
    let contents = open(&queue, &Rc::new(medium.rebooted()));
    assert_eq!(read(&queue, &contents, 0, 5).expect("reads"), b"first");
    assert_eq!(read(&queue, &contents, END - 4, 4).expect("reads"), b"last");
}

/// What it leads to is refused, and all else goes on; if nothing was ever synced, it is read at least.
#[test]
fn a_damaged_leaf_stops_nothing_else() {
    // FORMAT.md: 64 chunks.
    const LEAF: usize = 64 * CHUNK;
    let queue = Rc::new(Queue::new(32));
    for is_synced in [true, false] {
        let (medium, mut contents) = create();
        let bytes = Data::Noise(1).bytes(4 * LEAF);
        run(&queue, contents.write(&queue, 0, &bytes)).expect("writes");
        run(&queue, contents.commit(&queue)).expect("commits");
        run(&queue, contents.store_index(&queue)).expect("stores");
        if is_synced {
            run(&queue, contents.sync(&queue)).expect("syncs");
        }
        run(&queue, contents.close(&queue)).expect("closes");
        let medium = Rc::new(medium.rebooted());
        medium.damage(|bytes| {
            let is_second = |at: &usize| {
                bytes[*at..].starts_with(b"WCN\x01\0")
                    && bytes[at + 8..at + 16] == [1, 0, 0, 0, 0, 0, 0, 0]
            };
            let at = (0..bytes.len() - 16).rfind(is_second).expect("a leaf");
            bytes[at + 30] ^= 1;
        });
        let mut contents = open(&queue, &medium);
        let mut first = bytes[..LEAF].to_vec();
        assert!(read(&queue, &contents, 0, LEAF).expect("reads") == first);
        assert!(
            read(&queue, &contents, 2 * LEAF as u64, LEAF).expect("reads")
                == bytes[2 * LEAF..3 * LEAF]
        );
        let refused = read(&queue, &contents, LEAF as u64, 1).expect_err("damaged");
        assert_eq!(refused.errno(), libc::EIO);
        if !is_synced {
            continue;
        }
        let write = contents.write(&queue, LEAF as u64 + 5, b"refused");
        assert_eq!(run(&queue, write).expect_err("over what nobody knows").errno(), libc::EIO);
        run(&queue, contents.write(&queue, 5, b"written")).expect("writes");
        first[5..12].copy_from_slice(b"written");
        run(&queue, contents.sync(&queue)).expect("syncs");
        run(&queue, contents.close(&queue)).expect("closes");
        let contents = open(&queue, &medium);
        assert!(read(&queue, &contents, 0, LEAF).expect("reads") == first);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300 * seeds(), ..ProptestConfig::default() })]

    /// A byte of a closed file goes bad, whether it was ever synced or not, before a restart or after it:
    /// contents are what they were, or are refused, also when something is written behind them.
    #[test]
    fn rot_is_never_returned_as_contents(
        steps in steps(),
        is_synced: bool,
        is_restarted: bool,
        at: prop::sample::Index,
        flip in 1..=255_u8,
    ) {
        let queue = Rc::new(Queue::new(32));
        let (medium, mut contents) = create();
        let mut model = Vec::new();
        for step in steps {
            let syncs = matches!(step, Step::Sync);
            if !matches!(step, Step::Reopen { .. }) && (is_synced || !syncs) {
                apply(&queue, &mut contents, &mut model, &step);
            }
        }
        if is_synced {
            run(&queue, contents.sync(&queue)).expect("syncs");
        }
        run(&queue, contents.close(&queue)).expect("closes");
        drop(contents);
        let medium = if is_restarted { Rc::new(medium.rebooted()) } else { medium };
        let len = medium.bytes().len();
        if len == 0 {
            // An empty file has nothing to rot.
            return Ok(());
        }
        medium.damage(|bytes| bytes[at.index(len)] ^= flip);
        let mut lost = false;
        for writes in [false, true] {
            let open = Contents::open(Rc::clone(&medium), options(), true);
            let Ok(mut contents) = run(&queue, open) else {
                lost = true;
                break;
            };
            if writes {
                let size = contents.size().expect("known");
                if run(&queue, contents.write(&queue, size, b"behind")).is_err() {
                    lost = true;
                    break;
                }
                model.extend_from_slice(b"behind");
            }
            prop_assert_eq!(contents.size().expect("known"), model.len() as u64);
            for start in (0..model.len()).step_by(CHUNK) {
                let end = model.len().min(start + CHUNK);
                match read(&queue, &contents, start as u64, end - start) {
                    Ok(found) => prop_assert!(found == model[start..end], "other bytes at {start}"),
                    Err(_) => lost = true,
                }
            }
        }
        // A checkpoint that was never synced may go, and takes nothing with it.
        prop_assert!(!lost || medium.bytes().len() >= len, "cut");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500 * seeds(), ..ProptestConfig::default() })]

    /// One change of the backing file fails, whichever: whoever asked is told, or nothing depended on
    /// it; what was accepted is there before and after, unless a sync failed.
    #[test]
    fn a_failed_change_is_told_and_loses_nothing(
        steps in steps(),
        count in 0..60_usize,
        errno in prop_oneof![Just(libc::ENOSPC), Just(libc::EDQUOT), Just(libc::EIO)],
    ) {
        fail_change(&steps, count, errno)?;
    }
}

/// Runs steps while the change after `count` fails. False: there are not so many.
fn fail_change(steps: &[Step], count: usize, errno: i32) -> Result<bool, TestCaseError> {
    let queue = Rc::new(Queue::new(32));
    let medium = Rc::new(CrashMedium::default());
    medium.fail_change_after(count, errno);
    let Ok(mut contents) = Contents::create(Rc::clone(&medium), options()) else {
        prop_assert!(!medium.is_failing());
        return Ok(true);
    };
    let mut model = Vec::new();
    let mut told = 0;
    for step in steps {
        let result = match step {
            Step::Reopen { .. } => match run(&queue, contents.close(&queue)) {
                Ok(()) => {
                    let open = Contents::open(Rc::clone(&medium), options(), true);
                    contents = run(&queue, open).expect("opens");
                    Ok(())
                }
                Err(error) => Err(error),
            },
            step => try_apply(&queue, &mut contents, &mut model, step),
        };
        if let Err(error) = result {
            told += 1;
            prop_assert!(!medium.is_failing(), "told before it failed: {}", error);
            prop_assert!([errno, libc::EIO].contains(&error.errno()), "{}", error);
        }
    }
    let all = read(&queue, &contents, 0, model.len() + 1);
    prop_assert!(all.expect("accepted bytes are readable") == model);
    let mut closed = run(&queue, contents.close(&queue));
    if closed.is_err() && told == 0 {
        closed = run(&queue, contents.close(&queue));
    }
    match closed {
        Ok(()) => prop_assert!(read_all(&queue, &mut open(&queue, &medium)) == model),
        // A sync had failed: never called clean.
        Err(error) => prop_assert_eq!(error.errno(), libc::EIO),
    }
    Ok(!medium.is_failing())
}

/// Every one of them, in a life that has all there is.
#[test]
fn each_change_may_fail() {
    let write = |offset, len, data| Step::Write { offset, len, data };
    let steps = [
        Step::Append { len: 3 * CHUNK, data: Data::Text(1) },
        Step::Commit,
        Step::Append { len: 100, data: Data::Noise(2) },
        Step::Sync,
        write(CHUNK, 50, Data::Noise(3)),
        Step::Sync,
        write(CHUNK + 60, 50, Data::Noise(4)),
        Step::Sync,
        write(2 * CHUNK - 10, 20, Data::Text(5)),
        Step::Sync,
        Step::PunchHole { offset: 100, len: CHUNK },
        Step::SetSize(2 * CHUNK + 5),
        Step::Reopen { orderly: true, keep_attribute: true },
        write(0, 2 * CHUNK, Data::Noise(6)),
        Step::CommitInOrder,
        Step::Compact,
        Step::Append { len: CHUNK, data: Data::Zeros },
        Step::SetSize(0),
        Step::Append { len: 2 * CHUNK, data: Data::Text(7) },
    ];
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EIO] {
        let counts = (0..).take_while(|count| {
            let went_on = fail_change(&steps, *count, errno);
            went_on.unwrap_or_else(|error| panic!("change {count}, errno {errno}: {error}"))
        });
        assert!(counts.count() > 25);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500 * seeds(), ..ProptestConfig::default() })]

    /// One read of the backing file fails, whichever: whoever needed it is told, and nothing is taken for
    /// lost that could not be read for a moment.
    #[test]
    fn a_failed_read_is_told_and_hurts_nothing(steps in steps(), count in 0..100_usize) {
        let queue = Rc::new(Queue::new(32));
        let (medium, mut contents) = create();
        medium.fail_read_after(count);
        let mut model = Vec::new();
        for step in steps {
            let result = match step {
                Step::Reopen { .. } => {
                    run(&queue, contents.close(&queue)).map(|()| contents = reopen(&queue, &medium))
                }
                ref step => try_apply(&queue, &mut contents, &mut model, step),
            };
            if let Err(error) = result {
                prop_assert_eq!(error.errno(), libc::EIO);
            }
        }
        if let Ok(all) = read(&queue, &contents, 0, model.len() + 1) {
            prop_assert!(all == model);
        }
        medium.stop_failing_reads();
        prop_assert!(read_all(&queue, &mut contents) == model);
        run(&queue, contents.commit(&queue)).expect("commits");
        // Killed: whichever read of what it finds then fails, it is found the next time.
        drop(contents);
        prop_assert!(read_all(&queue, &mut reopen(&queue, &medium)) == model);
    }
}

/// Opens a file, and again for each read that fails on the way: that changes nothing.
fn reopen(queue: &Rc<Queue>, medium: &Rc<CrashMedium>) -> File {
    let before = (medium.bytes(), medium.attribute().expect("in memory"));
    medium.stop_failing_reads();
    for count in 0.. {
        medium.fail_read_after(count);
        let opened = run(queue, Contents::open(Rc::clone(medium), options(), true));
        let is_over = medium.stop_failing_reads();
        match opened {
            Ok(contents) => {
                assert!(is_over, "opened without what it needs");
                return contents;
            }
            Err(error) => assert_eq!(error.errno(), libc::EIO),
        }
        assert!((medium.bytes(), medium.attribute().expect("in memory")) == before, "changed");
    }
    unreachable!("reads end")
}

/// A part of an unsynced commit is lost under a mark of orderly closing; the file is opened, written
/// and synced; the power goes again. What was synced the second time is there.
#[test]
fn nothing_is_built_on_what_an_earlier_crash_took() {
    let queue = Rc::new(Queue::new(32));
    let mut cut = 0;
    for seed in 0..300 {
        let (medium, mut contents) = create();
        run(&queue, contents.write(&queue, 0, b"first")).expect("writes");
        run(&queue, contents.sync(&queue)).expect("syncs");
        let second = Data::Noise(3).bytes(2 * CHUNK);
        run(&queue, contents.write(&queue, 5, &second)).expect("writes");
        run(&queue, contents.close(&queue)).expect("closes");
        let point = CrashPoint { changes: medium.changes(), seed };
        let crashed = Rc::new(medium.crashed(point));

        let mut contents = open(&queue, &crashed);
        let end = contents.size().expect("known");
        // What is left of the second write is verified now, and cut if it does not hold: who knows it longer
        // does not write behind that.
        if let Err(error) = run(&queue, contents.write(&queue, end.max(5), b"third")) {
            assert!(matches!(error, Error::Cut) && contents.was_cut(), "seed {seed}: {error}");
            let again = run(&queue, contents.write(&queue, 0, b"again")).expect_err("as before");
            assert!(matches!(again, Error::Cut), "seed {seed}: {again}");
            assert!(read_all(&queue, &mut contents).starts_with(b"first"), "seed {seed}");
            run(&queue, contents.close(&queue)).expect("closes");
            contents = open(&queue, &crashed);
            let end = contents.size().expect("known");
            run(&queue, contents.write(&queue, end, b"third")).expect("writes");
            cut += 1;
        }
        run(&queue, contents.sync(&queue)).expect("syncs");
        let synced = crashed.changes();
        let point = CrashPoint { changes: synced, seed: seed + 1 };
        let mut after = open(&queue, &Rc::new(crashed.crashed(point)));
        let found = read_all(&queue, &mut after);
        assert!(found.starts_with(b"first") && found.ends_with(b"third"), "seed {seed}");
    }
    assert!((1..300).contains(&cut), "{cut} were cut as they were written");
}

/// Small commits go into a zone that was written ahead: cut at every change, what was synced is
/// there, and after the last one the zone is gone.
#[test]
fn small_syncs_into_a_zone_are_each_durable() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    let mut model = Data::Text(3).bytes(3 * CHUNK);
    run(&queue, contents.write(&queue, 0, &model)).expect("writes");
    run(&queue, contents.sync(&queue)).expect("syncs");
    let mut synced = vec![(medium.changes(), model.clone())];
    let mut lengths = Vec::new();
    for n in 0..120_usize {
        let at = n * 997 % (2 * CHUNK);
        let bytes = Data::Noise(n as u64).bytes(1500);
        run(&queue, contents.write(&queue, at as u64, &bytes)).expect("writes");
        run(&queue, contents.sync(&queue)).expect("syncs");
        model[at..at + 1500].copy_from_slice(&bytes);
        synced.push((medium.changes(), model.clone()));
        lengths.push(medium.bytes().len());
    }
    let grown = lengths.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(grown <= 5, "{grown} of {} syncs made the file longer", lengths.len());
    for changes in synced[0].0..=medium.changes() {
        let durable = synced.iter().rposition(|(at, _)| *at <= changes).expect("the first");
        let crashed = Rc::new(medium.crashed(CrashPoint { changes, seed: changes as u64 }));
        let found = read_all(&queue, &mut open(&queue, &crashed));
        let expected = &synced[durable..synced.len().min(durable + 2)];
        assert!(expected.iter().any(|(_, state)| *state == found), "after {changes} changes");
    }
    run(&queue, contents.close(&queue)).expect("closes");
    assert!(!medium.bytes().ends_with(&[0; 16]), "the rest of the zone was left");
    assert!(read_all(&queue, &mut open(&queue, &medium)) == model);
}

/// Small synced writes for ever: data, records, nodes that were replaced are given back, and a crash
/// finds what was synced all the same.
#[test]
fn what_was_replaced_is_given_back() {
    let queue = Rc::new(Queue::new(32));
    let medium = Rc::new(CrashMedium::default());
    let options = Options { records_max: 64, ..options() };
    let mut contents = Contents::create(Rc::clone(&medium), options).expect("creates");
    let mut model = Data::Text(1).bytes(8 * CHUNK);
    run(&queue, contents.write(&queue, 0, &model)).expect("writes");
    for n in 0..3000_usize {
        let at = n * 997 % (model.len() - 100);
        let bytes = Data::Noise(n as u64).bytes(100);
        run(&queue, contents.write(&queue, at as u64, &bytes)).expect("writes");
        run(&queue, contents.sync(&queue)).expect("syncs");
        model[at..at + 100].copy_from_slice(&bytes);
    }
    let bytes = medium.bytes();
    let kept = bytes.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count();
    // As many blocks as there are commits, and 1 MiB of them before any is given back.
    assert!(bytes.len() / 4096 > 3000 && kept < 600, "{kept} of {} blocks", bytes.len() / 4096);
    for seed in 0..20 {
        let crashed = medium.crashed(CrashPoint { changes: medium.changes(), seed });
        assert!(read_all(&queue, &mut open(&queue, &Rc::new(crashed))) == model);
    }
}

/// Whatever its length, also less than a block: once compacted it is a zstd stream, takes no more
/// room than before, and there is nothing more to do.
#[test]
fn compaction_makes_any_file_linear_at_once() {
    let queue = Rc::new(Queue::new(256));
    for len in [10, 300, 5000, 70_000, 1 << 20] {
        let (medium, mut contents) = create();
        let mut model = Data::Noise(1).bytes(len);
        run(&queue, contents.write(&queue, 0, &model)).expect("writes");
        for n in 0..3 {
            run(&queue, contents.write(&queue, n * 5 % len as u64, &[7])).expect("writes");
            // Not synced, so that no zone makes it longer than its image by itself.
            run(&queue, contents.commit(&queue)).expect("commits");
            model[usize::try_from(n).expect("small") * 5 % len] = 7;
        }
        run(&queue, contents.close(&queue)).expect("closes");
        let before = medium.bytes().len();
        let mut contents = open(&queue, &medium);
        assert!(run(&queue, contents.compact(&queue)).expect("compacts"), "{len} bytes");
        assert!(run(&queue, contents.report()).expect("known").linear, "{len} bytes");
        assert!(!run(&queue, contents.compact(&queue)).expect("looks"), "{len} bytes: again");
        run(&queue, contents.close(&queue)).expect("closes");
        assert!(medium.bytes().len() <= before, "{len} bytes: grown");
        assert!(zstd::decode_all(&medium.bytes()[..]).expect("a stream") == model);
        assert!(read_all(&queue, &mut open(&queue, &medium)) == model);
    }
}

/// Its tree is one empty leaf, which lies where the image goes.
#[test]
fn compaction_of_zeros_survives_a_crash() {
    let queue = Rc::new(Queue::new(32));
    let medium = Rc::new(CrashMedium::default());
    // Not linear, so that there is something to do.
    let store = Options { codec: Codec::Deflate, records_max: 0, ..options() };
    let mut contents = Contents::create(Rc::clone(&medium), store).expect("creates");
    run(&queue, contents.write(&queue, 0, &[0; 10])).expect("writes");
    run(&queue, contents.close(&queue)).expect("closes");
    for _ in 0..3 {
        contents = run(&queue, Contents::open(Rc::clone(&medium), store, true)).expect("opens");
        run(&queue, contents.set_size(10)).expect("sets");
        run(&queue, contents.close(&queue)).expect("closes");
    }
    contents = run(&queue, Contents::open(Rc::clone(&medium), store, true)).expect("opens");
    run(&queue, contents.sync(&queue)).expect("syncs");
    let before = medium.changes();
    assert!(run(&queue, contents.compact(&queue)).expect("compacts"));
    for changes in before..=medium.changes() {
        for seed in 0..50 {
            let crashed = Rc::new(medium.crashed(CrashPoint { changes, seed }));
            assert_eq!(read_all(&queue, &mut open(&queue, &crashed)), [0; 10]);
        }
    }
}

/// As the kernel sends what it has gathered: several requests at once, of which any may be first, with
/// commits in between that nobody has asked for.
#[test]
fn what_comes_in_any_order_is_stored_front_to_back() {
    let queue = Rc::new(Queue::new(256));
    let (medium, mut contents) = create();
    let model = Data::Text(1).bytes(400 * CHUNK);
    let parts: Vec<_> = model.chunks(4 * CHUNK).enumerate().collect();
    for window in parts.chunks(16) {
        // 7 and 16 have no divisor in common.
        for nth in 0..window.len() {
            let (place, bytes) = window[nth * 7 % window.len()];
            let offset = (place * 4 * CHUNK) as u64;
            run(&queue, contents.write(&queue, offset, bytes)).expect("writes");
            if nth == window.len() / 2 {
                run(&queue, contents.commit_in_order(&queue)).expect("commits");
            }
        }
    }
    run(&queue, contents.close(&queue)).expect("closes");
    assert!(run(&queue, contents.report()).expect("known").linear);
    assert!(zstd::decode_all(&medium.bytes()[..]).expect("a stream") == model);
}

/// Nor is what comes slowly.
#[test]
fn what_lies_far_behind_waits_for_one_commit() {
    let queue = Rc::new(Queue::new(256));
    let (_, mut contents) = create();
    run(&queue, contents.write(&queue, 1 << 20, b"behind")).expect("writes");
    for chunk in 0..3 {
        let offset = chunk * CHUNK as u64;
        run(&queue, contents.write(&queue, offset, &[1; CHUNK])).expect("writes");
        run(&queue, contents.commit_in_order(&queue)).expect("commits");
        assert_eq!(contents.is_dirty(), chunk == 0, "chunk {chunk}");
    }
}

/// What never comes is not waited for.
#[test]
fn what_lies_behind_a_hole_is_committed_all_the_same() {
    let queue = Rc::new(Queue::new(256));
    let (_, mut contents) = create();
    run(&queue, contents.write(&queue, 1 << 20, b"behind")).expect("writes");
    run(&queue, contents.commit_in_order(&queue)).expect("commits");
    assert!(!contents.is_dirty());
    for chunk in 0..2 * (AHEAD_MAX / CHUNK as u64) {
        let offset = (2 * chunk + 1) * CHUNK as u64;
        run(&queue, contents.write(&queue, offset, &[1; CHUNK])).expect("writes");
        assert!(contents.dirty_len() <= AHEAD_MAX + CHUNK as u64);
    }
}

/// A flush that is cancelled half way has taken nothing: the bytes are still there, and the next one
/// stores them.
#[test]
fn a_cancelled_commit_loses_nothing() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    let bytes = Data::Text(2).bytes(5 * CHUNK);
    run(&queue, contents.write(&queue, 0, &bytes)).expect("writes");
    {
        let mut commit = std::pin::pin!(contents.commit(&queue));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(commit.as_mut().poll(&mut context).is_pending(), "compressing takes a turn");
    }
    assert!(read_all(&queue, &mut contents) == bytes);
    run(&queue, contents.close(&queue)).expect("closes");
    assert!(read_all(&queue, &mut open(&queue, &medium)) == bytes);
}

/// The chunks of the source are of another length than those that are dirty already.
#[test]
fn a_copy_from_a_file_of_other_chunks() {
    let queue = Rc::new(Queue::new(256));
    for (from, to, before) in [(12, 16, 10_000), (12, 16, 200_000), (17, 16, 200_000), (17, 12, 0)]
    {
        let file = |chunk_len_log2| {
            let medium = Rc::new(CrashMedium::default());
            let options = Options { chunk_len_log2, ..options() };
            (Rc::clone(&medium), Contents::create(medium, options).expect("creates"))
        };
        let ((_, mut source), (medium, mut contents)) = (file(from), file(to));
        let bytes = Data::Noise(1).bytes(1 << 18);
        run(&queue, source.write(&queue, 0, &bytes)).expect("writes");
        let mut model = Data::Text(1).bytes(before);
        run(&queue, contents.write(&queue, 0, &model)).expect("writes");
        let at = model.len().next_multiple_of(1 << 12);
        let copy = contents.copy_from(&queue, &mut source, 0, at as u64, 1 << 17);
        assert_eq!(run(&queue, copy).expect("copies"), 1 << 17);
        model.resize(at, 0);
        model.extend(&bytes[..1 << 17]);
        assert!(read_all(&queue, &mut contents) == model);
        run(&queue, contents.sync(&queue)).expect("syncs");
        run(&queue, contents.close(&queue)).expect("closes");
        assert!(read_all(&queue, &mut open(&queue, &medium)) == model);
    }
}

/// Of more chunks than a record has extents: one is written in the middle of the copy.
#[test]
fn a_long_copy_with_holes() {
    const CHUNK: usize = 1 << 12;
    let queue = Rc::new(Queue::new(256));
    let file = || {
        let medium = Rc::new(CrashMedium::default());
        let options = Options { chunk_len_log2: 12, ..options() };
        (Rc::clone(&medium), Contents::create(medium, options).expect("creates"))
    };
    let ((_, mut source), (medium, mut contents)) = (file(), file());
    let mut bytes = Data::Noise(1).bytes(80 * CHUNK);
    run(&queue, source.write(&queue, 0, &bytes)).expect("writes");
    for hole in [8 * CHUNK..16 * CHUNK, 72 * CHUNK..80 * CHUNK] {
        run(&queue, source.punch_hole(hole.start as u64..hole.end as u64)).expect("punches");
        bytes[hole].fill(0);
    }
    let before = Data::Noise(2).bytes(80 * CHUNK);
    run(&queue, contents.write(&queue, 0, &before)).expect("writes");
    run(&queue, contents.sync(&queue)).expect("syncs");
    let copy = contents.copy_from(&queue, &mut source, 0, 0, bytes.len() as u64);
    assert_eq!(run(&queue, copy).expect("copies"), bytes.len() as u64);
    assert!(read_all(&queue, &mut contents) == bytes);
    run(&queue, contents.sync(&queue)).expect("syncs");
    assert!(read_all(&queue, &mut open(&queue, &medium)) == bytes, "synced, and cut");
    run(&queue, contents.close(&queue)).expect("closes");
    assert!(read_all(&queue, &mut open(&queue, &medium)) == bytes);
}

/// To punch where nothing is stored any more leaves nothing to be stored.
#[test]
fn what_is_a_hole_is_punched_for_nothing() {
    let queue = Rc::new(Queue::new(32));
    let medium = Rc::new(CrashMedium::default());
    let mut contents = Contents::create(Rc::clone(&medium), options()).expect("creates");
    run(&queue, contents.write(&queue, 0, &[7; 100_000])).expect("writes");
    run(&queue, contents.sync(&queue)).expect("syncs");
    run(&queue, contents.punch_hole(0..90_000)).expect("punches");
    run(&queue, contents.close(&queue)).expect("closes");
    let before = medium.len().expect("in memory");
    for at in 0..1000 {
        run(&queue, contents.punch_hole(10_000 + at..20_000 + at)).expect("punches");
    }
    run(&queue, contents.close(&queue)).expect("closes");
    // A record for the time, and no extent.
    let more = medium.len().expect("in memory") - before;
    assert!(more < 1000, "{more} bytes");
}

/// A file that somebody made to hurt: two extents of one place with different lengths, and one that
/// stores nothing.
#[test]
fn extents_that_we_never_write_are_read_or_refused() {
    let queue = Rc::new(Queue::new(32));
    let head = Head { chunk_len_log2: 12, id: [7; 12] };
    let stored = zstd::encode_all(&[65; 4096][..], 1).expect("in memory");
    let physical = Head::LEN as u64;
    let open = |extents: Vec<Extent>, size| {
        let mut bytes = [&head.encode()[..], &stored].concat();
        let record = Record {
            extents,
            last: true,
            linear: false,
            seq: 1,
            previous: 0,
            checkpoint: None,
            since: 1,
            durable_end: 0,
            size,
            modified: (0, 0),
        };
        bytes.extend(record.encode(&head.id, bytes.len() as u64));
        let medium = Rc::new(CrashMedium::default());
        medium.damage(|all| *all = bytes);
        // Without an attribute: a container if it verifies, else plain.
        run(&queue, Contents::open(Rc::clone(&medium), options(), true)).expect("opens")
    };
    let part = u32::try_from(stored.len()).expect("short");
    let whole = Extent {
        logical: 0,
        len: 4096,
        physical,
        stored_len: part,
        form: Form::Codec(Codec::Zstd),
        checksum: crc32c::crc32c(&stored),
    };
    let ten = Extent {
        logical: 4096,
        len: 10,
        stored_len: 10,
        form: Form::Codec(Codec::Store),
        checksum: crc32c::crc32c(&stored[..10]),
        ..whole
    };
    let contents = open(vec![whole, ten], 4106);
    assert_eq!(read(&queue, &contents, 4096, 10).expect("reads"), stored[..10]);
    assert_eq!(read(&queue, &contents, 0, 4096).expect("reads"), [65; 4096]);
    let nothing = Extent { stored_len: 0, checksum: 0, ..ten };
    let contents = open(vec![nothing], 4106);
    let report = run(&queue, contents.report()).expect("known");
    assert_eq!(report.kind, Kind::Plain, "such a record is none");
}

/// fsync of what nobody has changed writes nothing, and leaves a clean file clean.
#[test]
fn syncing_an_unchanged_file_leaves_it_as_it_is() {
    let queue = Rc::new(Queue::new(32));
    let (medium, mut contents) = create();
    run(&queue, contents.write(&queue, 0, b"closed, and never synced")).expect("writes");
    run(&queue, contents.close(&queue)).expect("closes");
    let before = (medium.bytes(), medium.attribute().expect("in memory"));
    for writable in [true, false] {
        let open = Contents::open(Rc::clone(&medium), options(), writable);
        let mut contents = run(&queue, open).expect("opens");
        for _ in 0..5 {
            run(&queue, contents.sync(&queue)).expect("syncs");
        }
        assert!((medium.bytes(), medium.attribute().expect("in memory")) == before);
    }
}
