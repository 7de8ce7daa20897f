//! Streams cut at any length, both ways, against what other implementations read and write.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use warpcore_need::{Need, need};
use warpcore_offload::{
    Codec, Compress, Decompress, Devices, Error, Feed, Kernel, Model, ModelKind, Parts, Queue,
    Stream,
};

const CODECS: [Codec; 4] = [Codec::Deflate, Codec::Gzip, Codec::Zlib, Codec::Zstd];

fn contents() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![
        (any::<u8>(), 1..3000_usize).prop_map(|(byte, len)| vec![byte; len]),
        prop::collection::vec(any::<u8>(), 1..3000),
        (prop::collection::vec(any::<u8>(), 1..20), 1..200_usize)
            .prop_map(|(word, times)| word.repeat(times)),
    ];
    prop::collection::vec(run, 0..8).prop_map(|runs| runs.concat())
}

/// Feeds `bytes` in pieces of `source_len` through targets of `target_len`, until the stream ends.
fn feed(
    queue: &Queue,
    mut stream: Stream,
    bytes: &[u8],
    source_len: usize,
    target_len: usize,
) -> Result<(Vec<u8>, usize), Error> {
    let (mut output, mut start) = (Vec::new(), 0);
    loop {
        let piece = &bytes[start..(start + source_len).min(bytes.len())];
        let fed = queue.run(queue.submit(Feed {
            stream,
            source: piece.to_vec(),
            target: vec![0; target_len],
            end: start + piece.len() == bytes.len(),
        }));
        stream = fed.stream;
        let progress = fed.result?;
        output.extend_from_slice(&fed.target[..progress.produced]);
        start += progress.consumed;
        if progress.ended {
            return Ok((output, start));
        }
        assert!(progress.consumed + progress.produced > 0, "the stream stands still");
    }
}

fn reference(codec: Codec, stored: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match codec {
        Codec::Deflate => flate2::read::DeflateDecoder::new(stored).read_to_end(&mut plain),
        Codec::Gzip => flate2::read::GzDecoder::new(stored).read_to_end(&mut plain),
        Codec::Zlib => flate2::read::ZlibDecoder::new(stored).read_to_end(&mut plain),
        Codec::Zstd => zstd::Decoder::new(stored).and_then(|mut it| it.read_to_end(&mut plain)),
        other => panic!("no reference for {other}"),
    }
    .expect("the reference reads it");
    plain
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_pieces_make_the_same_stream(
        plain in contents(),
        source_len in 1..5000_usize,
        target_len in 1..5000_usize,
        back_len in 1..5000_usize,
    ) {
        let queue = Queue::new(2);
        for codec in CODECS {
            let stream = Stream::compress(codec, 6).expect("a stream");
            let (stored, _) = feed(&queue, stream, &plain, source_len, target_len).expect("compresses");
            prop_assert_eq!(&reference(codec, &stored), &plain);
            // What follows the end is left alone.
            let mut followed = stored.clone();
            followed.extend_from_slice(b"next member");
            let stream = Stream::decompress(codec).expect("a stream");
            let (back, end) = feed(&queue, stream, &followed, back_len, source_len).expect("reads");
            prop_assert_eq!(end, stored.len());
            prop_assert_eq!(back, plain.clone());
        }
    }

    #[test]
    fn what_was_consumed_can_be_read_by_the_other_side(plain in contents()) {
        let queue = Queue::new(2);
        for codec in CODECS {
        let (mut writer, mut reader) = (
            Stream::compress(codec, 1).expect("a stream"),
            Stream::decompress(codec).expect("a stream"),
        );
        for piece in plain.chunks(1000) {
            let target = vec![0; codec.bound(piece.len())];
            let fed = queue.run(queue.submit(Feed {
                stream: writer, source: piece.to_vec(), target, end: false,
            }));
            writer = fed.stream;
            let progress = fed.result.expect("compresses");
            prop_assert_eq!(progress.consumed, piece.len());
            let fed = queue.run(queue.submit(Feed {
                stream: reader,
                source: fed.target[..progress.produced].to_vec(),
                target: vec![0; 2000],
                end: false,
            }));
            reader = fed.stream;
            let progress = fed.result.expect("reads");
            prop_assert_eq!(&fed.target[..progress.produced], piece);
        }
        }
    }

    #[test]
    fn a_stream_that_is_cut_says_so(plain in contents(), at: prop::sample::Index) {
        let queue = Queue::new(2);
        for codec in CODECS {
            let stream = Stream::compress(codec, 6).expect("a stream");
            let (stored, _) = feed(&queue, stream, &plain, 4096, 4096).expect("compresses");
            let at = at.index(stored.len());
            let stream = Stream::decompress(codec).expect("a stream");
            let cut = feed(&queue, stream, &stored[..at], 1000, 1000);
            assert!(matches!(cut, Err(Error::Corrupt { .. })), "{codec}, {at}: {cut:?}");
        }
    }

    #[test]
    fn a_stream_that_is_damaged_is_refused(
        plain in contents(),
        at: prop::sample::Index,
        flip in 1..=255_u8,
    ) {
        let queue = Queue::new(2);
        let stream = Stream::compress(Codec::Gzip, 6).expect("a stream");
        let (stored, _) = feed(&queue, stream, &plain, 4096, 4096).expect("compresses");
        let at = at.index(stored.len());
        let mut damaged = stored.clone();
        damaged[at] ^= flip;
        let stream = Stream::decompress(Codec::Gzip).expect("a stream");
        match feed(&queue, stream, &damaged, 1000, 1000) {
            // The header has bytes that say nothing about the data, and the last byte of the data
            // bits that fill it up (RFC 1951, section 3.2.3).
            Ok((back, _)) => prop_assert!(back == plain, "flip at {at}"),
            Err(error) => assert!(matches!(error, Error::Corrupt { .. }), "{error:?}"),
        }
    }

    #[test]
    fn scattered_buffers_are_as_good_as_one(
        plain in contents(),
        cut in 1..2000_usize,
        room in 1..2000_usize,
    ) {
        let queue = Queue::new(2);
        for codec in Codec::ALL {
            let source = Parts(plain.chunks(cut).map(<[u8]>::to_vec).collect());
            let bound = codec.bound(plain.len());
            let target = Parts((0..bound).step_by(room).map(|at| vec![0; room.min(bound - at)]).collect());
            let done = queue.run(queue.submit(Compress { codec, level: 1, source, target }));
            let mut stored = done.target.0.concat();
            stored.truncate(done.result.expect("the bound holds"));
            let done = queue.run(queue.submit(Decompress {
                codec,
                source: Parts(stored.chunks(room).map(<[u8]>::to_vec).collect()),
                target: Parts(plain.chunks(cut).map(|piece| vec![0; piece.len()]).collect()),
            }));
            prop_assert_eq!(done.result, Ok(plain.len()));
            prop_assert_eq!(done.target.0.concat(), plain.clone());
        }
    }
}

#[test]
fn an_error_is_the_end_of_a_stream() {
    let queue = Queue::new(2);
    let mut stream = Stream::decompress(Codec::Zlib).expect("a stream");
    for _ in 0..2 {
        let source = b"neither zlib nor anything".to_vec();
        let request = Feed { stream, source, target: vec![0; 10], end: false };
        let fed = queue.run(queue.submit(request));
        assert!(matches!(fed.result, Err(Error::Corrupt { codec: Codec::Zlib, .. })));
        stream = fed.stream;
    }
    assert_eq!(
        Stream::compress(Codec::Store, 0).map(drop),
        Err(Error::NoStream { codec: Codec::Store })
    );
}

fn pipe(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("checked by need");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("runs");
    writer.join().expect("no panic").expect("written");
    assert!(output.status.success(), "{program} refuses it");
    output.stdout
}

#[test]
fn the_systems_tools_read_us_and_we_read_them() {
    if !need(&[Need::Tool("gzip", "gzip"), Need::Tool("python3", "python3")]) {
        return;
    }
    const PYTHON: [&str; 2] =
        ["-c", "import sys,zlib; b=sys.stdin.buffer.read(); sys.stdout.buffer.write("];
    let python = |call: &str, input: &[u8]| {
        pipe("python3", &[PYTHON[0], &format!("{}{call})", PYTHON[1])], input)
    };
    let plain: Vec<u8> = (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    for queue in [Queue::new(2), zip(2), zip(3)] {
        let compress = |codec| {
            let stream = Stream::compress(codec, 6).expect("a stream");
            feed(&queue, stream, &plain, 100_000, 65_536).expect("compresses").0
        };
        let decompress = |codec, stored: &[u8]| {
            let stream = Stream::decompress(codec).expect("a stream");
            feed(&queue, stream, stored, 50_000, 65_536).expect("reads").0
        };
        assert!(pipe("gzip", &["-dc"], &compress(Codec::Gzip)) == plain);
        assert!(python("zlib.decompress(b)", &compress(Codec::Zlib)) == plain);
        assert!(decompress(Codec::Gzip, &pipe("gzip", &["-c"], &plain)) == plain);
        assert!(decompress(Codec::Zlib, &python("zlib.compress(b)", &plain)) == plain);
        let stats = queue.stats();
        for kernel in [Kernel::Compress, Kernel::Decompress] {
            assert_eq!(stats.kernel(kernel).redone + stats.kernel(kernel).spilled, 0);
        }
    }
}

/// A queue on a model of ZIP, of this version.
fn zip(version: u8) -> Queue {
    let model = Model::new(ModelKind::Zip).version(version).start();
    Queue::with_devices(2, &Devices::models([&model])).expect("a queue")
}

/// The driver has limits of its own: small targets go by way of a store buffer (200 of 236 bytes),
/// compression is given eight ninths of the room.
#[test]
fn pieces_of_every_length_around_the_drivers_limits() {
    let plain: Vec<u8> = (0..1500_u32).map(|n| (n * n / 7).to_le_bytes()[0]).collect();
    for version in [2, 3] {
        let queue = zip(version);
        for codec in [Codec::Deflate, Codec::Gzip, Codec::Zlib] {
            for len in (1..12).chain(190..245) {
                for (source, target) in [(1500, len), (len, 1500), (len, len)] {
                    let stream = Stream::compress(codec, 6).expect("a stream");
                    let (stored, _) =
                        feed(&queue, stream, &plain, source, target).expect("compresses");
                    assert!(reference(codec, &stored) == plain, "{codec}, {source} to {target}");
                    let stream = Stream::decompress(codec).expect("a stream");
                    let (back, _) = feed(&queue, stream, &stored, source, target).expect("reads");
                    assert!(back == plain, "{codec}, {source} to {target}");
                }
            }
        }
        let stats = queue.stats();
        for kernel in [Kernel::Compress, Kernel::Decompress] {
            assert_eq!(stats.kernel(kernel).redone + stats.kernel(kernel).spilled, 0);
        }
    }
}
