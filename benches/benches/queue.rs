//! What does the queue cost? One byte is copied by the store codec: all that is measured is
//! submission, turn, completion and waking.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warpcore_offload::{Codec, Compress, Queue};

fn request() -> Compress<&'static [u8], Vec<u8>> {
    Compress { codec: Codec::Store, level: 0, source: b"x", target: vec![0; 1] }
}

fn queue(c: &mut Criterion) {
    let mut group = c.benchmark_group("noop");
    for depth in [1_usize, 64] {
        let queue = Queue::new(depth);
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(format!("depth {depth}"), |b| {
            b.iter(|| {
                queue.run(async {
                    let mut ops = [const { None }; 64];
                    for op in &mut ops[..depth] {
                        *op = Some(queue.submit(request()));
                    }
                    for op in ops.iter_mut().filter_map(Option::take) {
                        black_box(op.await.result).expect("one byte fits");
                    }
                });
            });
        });
    }
    group.bench_function("direct", |b| {
        b.iter(|| {
            let mut target = vec![0_u8; 1];
            target.copy_from_slice(black_box(b"x"));
            black_box(target)
        });
    });
    group.finish();
}

criterion_group!(benches, queue);
criterion_main!(benches);
