//! tokio's pool for work that blocks.

use std::hint::black_box;
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};

use crate::queue::{batches, per_operation};

pub(super) struct Blocking(Runtime);

impl Blocking {
    pub(super) fn new() -> Result<Self, String> {
        let runtime = Builder::new_current_thread().max_blocking_threads(1).build();
        runtime.map(Self).map_err(|error| format!("no runtime: {error}"))
    }

    pub(super) fn sample(&self, depth: usize) -> f64 {
        let mut answers = Vec::with_capacity(depth);
        let started = Instant::now();
        self.0.block_on(async {
            for batch in 0..batches(depth) {
                for _ in 0..depth {
                    answers.push(tokio::task::spawn_blocking(move || black_box(batch)));
                }
                for answer in answers.drain(..) {
                    black_box(answer.await.expect("does not panic"));
                }
            }
        });
        per_operation(started.elapsed())
    }
}
