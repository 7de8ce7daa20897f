//! A thread that takes work from a crossbeam channel and answers each by a oneshot of tokio's.

use std::hint::{black_box, spin_loop};
use std::time::Instant;

use crossbeam_channel::{Sender, TryRecvError, bounded};
use tokio::sync::oneshot;

use crate::queue::{batches, per_operation};

/// How both sides wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Parking,
    Spinning,
}

type Work = (u64, oneshot::Sender<u64>);

pub(super) struct Worker {
    work: Sender<Work>,
    wait: Wait,
    answers: Vec<oneshot::Receiver<u64>>,
}

impl Worker {
    /// The thread ends with the worker.
    pub(super) fn start(wait: Wait) -> Result<Self, String> {
        let (work, incoming) = bounded::<Work>(1024);
        let serve = move || {
            loop {
                let received = match wait {
                    Wait::Parking => incoming.recv().map_err(|_| TryRecvError::Disconnected),
                    Wait::Spinning => incoming.try_recv(),
                };
                match received {
                    Ok((number, answer)) => drop(answer.send(black_box(number))),
                    Err(TryRecvError::Empty) => spin_loop(),
                    Err(TryRecvError::Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().spawn(serve);
        thread.map_err(|error| format!("no thread: {error}"))?;
        Ok(Self { work, wait, answers: Vec::with_capacity(64) })
    }

    pub(super) fn sample(&mut self, depth: usize) -> f64 {
        let started = Instant::now();
        for batch in 0..batches(depth) {
            for _ in 0..depth {
                let (answer, receiver) = oneshot::channel();
                self.work.send((batch as u64, answer)).expect("the thread runs");
                self.answers.push(receiver);
            }
            for mut answer in self.answers.drain(..) {
                let number = match self.wait {
                    Wait::Parking => answer.blocking_recv().expect("the thread answers"),
                    Wait::Spinning => loop {
                        match answer.try_recv() {
                            Ok(number) => break number,
                            Err(_) => spin_loop(),
                        }
                    },
                };
                black_box(number);
            }
        }
        per_operation(started.elapsed())
    }
}
