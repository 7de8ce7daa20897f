//! Benchmarks against what a user would pick instead, in the same run, interleaved.
//!
//! ```text
//!   harness.rs   rounds, medians, tables, JSON        rivals/   who else does it
//!   hosts.rs     ours on the executors of others
//!   plot.rs      charts                               corpus.rs, keys.rs   what is worked on
//!   codec.rs, kx.rs, queue.rs, rsa.rs, timing.rs: one file for each question
//! ```

mod codec;
mod corpus;
mod harness;
#[cfg(feature = "rivals")]
mod hosts;
mod keys;
mod kx;
mod plot;
mod queue;
#[cfg(feature = "rivals")]
mod rivals;
mod rsa;
mod timing;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use harness::{Bench, Effort};

/// Measures Warpcore beside its rivals, in one interleaved run
///
/// Example: warpcore-bench queue --json
#[derive(Parser)]
#[command(name = "warpcore-bench", verbatim_doc_comment)]
struct Arguments {
    /// What to measure
    name: Name,
    /// One object on standard output instead of a table
    #[arg(long)]
    json: bool,
    /// Ten times the rounds
    #[arg(long)]
    full: bool,
    /// Draw throughput and latency against batch size: rsa, kx, queue
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Compression and checksums
    Codec,
    /// X25519: a fresh key, and what it shares with a peer's; signatures of P-256
    Kx,
    /// What the queue itself costs: of a device, and of software beside other ways to hand work over
    Queue,
    /// RSA signatures, complete: blinded and verified
    Rsa,
    /// Whether the time of a kernel tells of its secrets
    Timing,
}

/// Measures, and files what it found.
type Run = fn(&mut Bench) -> Result<(), String>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let effort = if arguments.full { Effort::Full } else { Effort::Quick };
    let (name, run): (_, Run) = match arguments.name {
        Name::Codec => ("codec", codec::run),
        Name::Kx => ("kx", kx::run),
        Name::Queue => ("queue", queue::run),
        Name::Rsa => ("rsa", rsa::run),
        Name::Timing => ("timing", timing::run),
    };
    let mut bench = Bench::new(name, effort);
    let ran = run(&mut bench).and_then(|()| match &arguments.plot {
        Some(path) => plot::draw(&bench, path),
        None => Ok(()),
    });
    if let Err(error) = ran {
        eprintln!("warpcore-bench: {error}");
        return ExitCode::FAILURE;
    }
    if arguments.json {
        println!("{}", bench.to_json());
    } else {
        print!("{bench}");
    }
    ExitCode::SUCCESS
}
