//! Benchmarks against what a user would pick instead, in the same run, interleaved.
//!
//! ```text
//!   harness.rs   rounds, medians, tables, JSON        rivals/   who else does it
//!   queue.rs     and one file for each question
//! ```

mod harness;
mod queue;
#[cfg(feature = "rivals")]
mod rivals;

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
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// What the queue itself costs: of a device, and of software beside other ways to hand work over
    Queue,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let effort = if arguments.full { Effort::Full } else { Effort::Quick };
    let mut bench = match arguments.name {
        Name::Queue => Bench::new("queue", effort),
    };
    let ran = match arguments.name {
        Name::Queue => queue::run(&mut bench),
    };
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
