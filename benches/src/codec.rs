//! Codecs and checksums, in chunks of 64 KiB through the queue, beside other libraries and a plain
//! copy of the same bytes on the same thread.
//!
//! *two cores* is one queue that an engine thread helps, beside a plain loop on one core. *probe* is
//! what it costs to see that random bytes are random, in per cent of the compression that it saves.
//! *wait* is how long a signature waits behind compression on a core that never rests.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warpcore_offload::{
    Check, Checksum, Codec, Compress, Decompress, Devices, PrivateKey, Queue, Scheme, Sign, Team,
};

use crate::corpus::{self, CHUNK, Corpus};
use crate::harness::{Bench, OURS, System, Unit};
use crate::keys::generate;
#[cfg(feature = "rivals")]
use crate::rivals::codecs as rivals;

const ROUNDS: usize = 10;
/// Chunks of a sample.
const CHUNKS: usize = 16;
/// Over the corpus, in a sample of both cores.
const PASSES: usize = 8;

pub(crate) fn run(bench: &mut Bench) -> Result<(), String> {
    let corpora = [corpus::binary(CHUNKS)?, corpus::log(CHUNKS)];
    for corpus in &corpora {
        compress(bench, corpus);
        decompress(bench, corpus);
    }
    check(bench, &corpora[0]);
    two_cores(bench, &corpora[0])?;
    probe(bench);
    wait(bench, &corpora[0])?;
    bench.note("corpora: 1 MiB each of this program (binary), and of a log made from a seed (log)");
    if cfg!(not(feature = "rivals")) {
        bench.note("without rivals: build with `--features rivals` to measure them too");
    }
    #[cfg(feature = "rivals")]
    rivals::missing().into_iter().for_each(|note| bench.note(note));
    Ok(())
}

fn compress(bench: &mut Bench, corpus: &Corpus) {
    let levels = [
        (Codec::Zstd, -5),
        (Codec::Zstd, 1),
        (Codec::Zstd, 3),
        (Codec::Zstd, 9),
        (Codec::Gzip, 1),
        (Codec::Gzip, 6),
        (Codec::Lz4, 1),
    ];
    for (codec, level) in levels {
        let queue = Queue::new(8);
        let mut pass = Pass::new(&queue, corpus, codec, level);
        let stored = pass.run();
        let ours = System::new(OURS, || {
            megabytes(corpus, || {
                black_box(pass.run());
            })
        });
        #[allow(unused_mut, reason = "with rivals it is")]
        let mut systems = vec![ours, memcpy(corpus)];
        #[cfg(feature = "rivals")]
        systems.extend(rivals::compress(codec, level, corpus));
        let case = format!("{codec}:{level} {}", corpus.name);
        bench.measure(&case, Unit::Mbps, ROUNDS, systems);
        let ratio = (corpus.chunks.len() * CHUNK) as f64 / stored as f64;
        bench.note(format!("{case}: {ratio:.2} times smaller"));
    }
}

fn decompress(bench: &mut Bench, corpus: &Corpus) {
    for (codec, level) in [(Codec::Zstd, 1), (Codec::Gzip, 6), (Codec::Lz4, 1)] {
        let queue = Queue::new(8);
        let mut pass = Pass::new(&queue, corpus, codec, level);
        pass.run();
        let mut stored = pass.stored();
        #[cfg(feature = "rivals")]
        let rivals = rivals::decompress(codec, corpus, &stored);
        let mut target = vec![0; CHUNK];
        let ours = System::new(OURS, || {
            megabytes(corpus, || {
                for place in &mut stored {
                    let (source, target_back) =
                        (std::mem::take(place), std::mem::take(&mut target));
                    let request = Decompress { codec, source, target: target_back };
                    let done = queue.run(queue.submit(request));
                    assert_eq!(done.result, Ok(CHUNK));
                    (*place, target) = (done.source, done.target);
                }
            })
        });
        #[allow(unused_mut, reason = "with rivals it is")]
        let mut systems = vec![ours, memcpy(corpus)];
        #[cfg(feature = "rivals")]
        systems.extend(rivals);
        let case = format!("{codec} decompress {}", corpus.name);
        bench.measure(&case, Unit::Mbps, ROUNDS, systems);
    }
}

fn check(bench: &mut Bench, corpus: &Corpus) {
    for checksum in Checksum::ALL {
        let queue = Queue::new(8);
        let chunks: Vec<Arc<[u8]>> =
            corpus.chunks.iter().map(|chunk| chunk.as_slice().into()).collect();
        let ours = System::new(OURS, move || {
            megabytes(corpus, || {
                for chunk in &chunks {
                    let source = bytes::Bytes::from_owner(Arc::clone(chunk));
                    let checked = queue.run(queue.submit(Check::new(checksum, source)));
                    black_box(checked.result).expect("every chunk has one");
                }
            })
        });
        let case = format!("{checksum} {}", corpus.name);
        bench.measure(&case, Unit::Mbps, ROUNDS, vec![ours, memcpy(corpus)]);
    }
}

fn two_cores(bench: &mut Bench, corpus: &Corpus) -> Result<(), String> {
    let team = Team::with_engine_threads(1);
    let queue = Queue::in_team(CHUNKS * PASSES, &Devices::none(), &team)
        .map_err(|error| format!("no queue: {error}"))?;
    let alone = Queue::new(1);
    // Enough of it to be more than a start and an end.
    let chunks = corpus.chunks.iter().cycle().take(CHUNKS * PASSES).cloned().collect();
    let long = Corpus { name: corpus.name, chunks };
    let mut helped = Pass::new(&queue, &long, Codec::Zstd, 1);
    let mut plain = Pass::new(&alone, &long, Codec::Zstd, 1);
    let sample = |pass: &mut Pass<'_>| {
        megabytes(&long, || {
            black_box(pass.run());
        })
    };
    let ours = System::new(OURS, || sample(&mut helped));
    let plain = System::new("one core, plain loop", || sample(&mut plain));
    let case = format!("zstd:1 {} two cores", corpus.name);
    bench.measure(&case, Unit::Mbps, ROUNDS, vec![ours, plain]);
    Ok(())
}

fn probe(bench: &mut Bench) {
    let corpus = corpus::random(CHUNKS);
    let queue = Queue::new(1);
    let mut sources = corpus.chunks.clone();
    let mut target = vec![0; Codec::Zstd.bound(CHUNK)];
    let mut time = |target_len: usize, source_len: usize| {
        target.resize(target_len, 0);
        let started = Instant::now();
        for _ in 0..8 {
            for place in &mut sources {
                let source = bytes::Bytes::from(std::mem::take(place));
                let target_back = std::mem::take(&mut target);
                let request = Compress {
                    codec: Codec::Zstd,
                    level: 1,
                    source: source.slice(..source_len),
                    target: target_back,
                };
                let done = queue.run(queue.submit(request));
                target = done.target;
                drop(done.source);
                *place = source.try_into_mut().expect("nobody else has it").into();
            }
        }
        started.elapsed().as_secs_f64()
    };
    let ours = System::new(OURS, || {
        // Whatever is not the probe: too small a target for anything, and a source for no probe.
        let idle = time(0, 1);
        let probe = time(CHUNK - 1, CHUNK) - idle;
        probe / (time(Codec::Zstd.bound(CHUNK), CHUNK) - idle) * 100.0
    });
    bench.measure("probe of zstd:1 random", Unit::Percent, 3 * ROUNDS, vec![ours]);
}

/// Signatures one after the other, while the core always has chunks to compress.
fn wait(bench: &mut Bench, corpus: &Corpus) -> Result<(), String> {
    let der = generate("RSA", "rsa_keygen_bits:2048")?;
    let key = PrivateKey::from_der(&der.into()).map_err(|error| error.to_string())?;
    let key = Arc::new(key);
    let queue = Queue::new(64);
    let mut units = Vec::new();
    let mut waits = Vec::new();
    let sign = || queue.submit(Sign::new(Arc::clone(&key), Scheme::Pkcs1Sha256, &b"a message"[..]));
    // What a signature takes when nothing else is to do, after the first, which draws blinding.
    queue.run(sign()).result.map_err(|error| error.to_string())?;
    let alone = Instant::now();
    queue.run(sign()).result.map_err(|error| error.to_string())?;
    let alone = alone.elapsed();
    for at in 0..400 {
        let chunks: Vec<_> =
            (0..8).map(|n| submit(&queue, &corpus.chunks[(at + n) % CHUNKS])).collect();
        let mut op = sign();
        let submitted = Instant::now();
        let mut steps = 0;
        let waker = std::task::Waker::noop();
        let mut cx = std::task::Context::from_waker(waker);
        let mut refill = Vec::new();
        loop {
            let started = Instant::now();
            queue.turn(started, Duration::ZERO);
            steps += 1;
            units.push(started.elapsed());
            if std::pin::Pin::new(&mut op).poll(&mut cx).is_ready() {
                break;
            }
            refill.push(submit(&queue, &corpus.chunks[steps % CHUNKS]));
        }
        waits.push(submitted.elapsed().saturating_sub(alone));
        queue.run(async {
            for op in chunks.into_iter().chain(refill) {
                drop(op.await);
            }
        });
    }
    let us = |samples: &mut Vec<Duration>, per_mille: usize| {
        samples.sort();
        samples[(samples.len() * per_mille / 1000).min(samples.len() - 1)].as_secs_f64() * 1e6
    };
    let [p50, p99] = [500, 990].map(|per_mille| us(&mut waits, per_mille));
    let unit = us(&mut units, 990);
    bench.file("wait of a signature, p50", Unit::Us, p50);
    bench.file("wait of a signature, p99", Unit::Us, p99);
    bench.note(format!(
        "wait: beyond the {:.0} us of a lone signature, behind zstd:1 without end; 99 of 100 units \
         of a turn take less than {unit:.0} us",
        alone.as_secs_f64() * 1e6,
    ));
    Ok(())
}

fn submit(queue: &Queue, chunk: &[u8]) -> warpcore_offload::Op<Compress<Vec<u8>, Vec<u8>>> {
    let target = vec![0; Codec::Zstd.bound(CHUNK)];
    queue.submit(Compress { codec: Codec::Zstd, level: 1, source: chunk.to_vec(), target })
}

/// Passes over a corpus, with buffers that come back each time.
struct Pass<'a> {
    queue: &'a Queue,
    codec: Codec,
    level: i32,
    /// Plain bytes, room for the stored ones, and their length the last time.
    buffers: Vec<(Vec<u8>, Vec<u8>, usize)>,
}

impl<'a> Pass<'a> {
    fn new(queue: &'a Queue, corpus: &Corpus, codec: Codec, level: i32) -> Self {
        let buffers = |chunk: &Vec<u8>| (chunk.clone(), vec![0; codec.bound(CHUNK)], 0);
        Self { queue, codec, level, buffers: corpus.chunks.iter().map(buffers).collect() }
    }

    /// Compresses all chunks, as many at a time as the queue holds; returns the stored length.
    fn run(&mut self) -> usize {
        let Self { queue, codec, level, buffers } = self;
        let ops: Vec<_> = buffers
            .drain(..)
            .map(|(source, target, _)| {
                queue.submit(Compress { codec: *codec, level: *level, source, target })
            })
            .collect();
        queue.run(async {
            for op in ops {
                let done = op.await;
                let len = done.result.expect("the bound holds");
                buffers.push((done.source, done.target, len));
            }
        });
        buffers.iter().map(|(_, _, len)| len).sum()
    }

    fn stored(&self) -> Vec<Vec<u8>> {
        self.buffers.iter().map(|(_, target, len)| target[..*len].to_vec()).collect()
    }
}

/// A plain copy.
fn memcpy(corpus: &Corpus) -> System<'_> {
    let mut target = vec![0_u8; CHUNK];
    System::new("memcpy", move || {
        megabytes(corpus, || {
            for chunk in &corpus.chunks {
                target.copy_from_slice(black_box(chunk));
                black_box(&target);
            }
        })
    })
}

/// Plain megabytes a second of one pass over the corpus.
pub(crate) fn megabytes(corpus: &Corpus, pass: impl FnOnce()) -> f64 {
    let started = Instant::now();
    pass();
    (corpus.chunks.len() * CHUNK) as f64 / 1e6 / started.elapsed().as_secs_f64()
}
