//! Benchmarks against what a user would pick instead, in the same run, interleaved.
//!
//! ```text
//!   harness.rs   rounds, medians, tables, JSON        rivals/   who else does it
//!   hosts.rs     ours on the executors of others
//!   plot.rs      charts                               corpus.rs, keys.rs   what is worked on
//!   codec.rs, kx.rs, queue.rs, rsa.rs, timing.rs, fs/, handshake/: one for each question
//! ```

mod codec;
mod corpus;
mod fs;
mod handshake;
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
    /// Ten times the rounds; fs: larger trees and more rivals
    #[arg(long)]
    full: bool,
    /// fs: where the images of the filesystems are made [default: the system's temporary directory]
    #[arg(long, value_name = "PATH")]
    directory: Option<PathBuf>,
    /// Draw throughput and latency against batch size (rsa, kx, queue), or rivals beside ours
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Compression and checksums
    Codec,
    /// The filesystem, beside ext4, btrfs, gocryptfs and bindfs as root, else beside its directory's
    Fs,
    /// TLS handshakes, requests and bulk through the proxy, beside nginx, haproxy, hitch and Envoy
    Handshake,
    /// X25519: a fresh key, and what it shares with a peer's; signatures of P-256
    Kx,
    /// What the queue itself costs: of a device, and of software beside other ways to hand work over
    Queue,
    /// RSA signatures, complete: blinded and verified
    Rsa,
    /// Whether the proxy's memory grows while clients come and go: half a minute, --full a quarter hour
    Soak,
    /// Whether the time of a kernel tells of its secrets
    Timing,
}

fn main() -> ExitCode {
    // A process of the handshake bench.
    match handshake::serve_if_asked() {
        None => {}
        Some(Ok(())) => return ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("warpcore-bench: {error}");
            return ExitCode::FAILURE;
        }
    }
    let arguments = Arguments::parse();
    let effort = if arguments.full { Effort::Full } else { Effort::Quick };
    let name = arguments.name.to_possible_value().expect("none is skipped");
    let mut bench = Bench::new(name.get_name(), effort);
    let ran = match arguments.name {
        Name::Codec => codec::run(&mut bench),
        Name::Fs => fs::run(&mut bench, arguments.directory.as_deref()),
        Name::Handshake => handshake::run(&mut bench),
        Name::Kx => kx::run(&mut bench),
        Name::Queue => queue::run(&mut bench),
        Name::Rsa => rsa::run(&mut bench),
        Name::Soak => handshake::soak::run(&mut bench),
        Name::Timing => timing::run(&mut bench),
    };
    let ran = ran.and_then(|()| match &arguments.plot {
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
