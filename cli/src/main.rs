//! `warpcore`: one binary, one file per command.
//!
//! Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage.

// They panic where nobody reads any more.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod demo;
mod devices;
mod fs;
mod mount;
mod proxy;
mod storage;
mod systemd;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;

/// An accelerator queue per core, and two products on it: a TLS proxy and a compressing mount.
#[derive(Parser)]
#[command(name = "warpcore", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Devices(devices::Arguments),
    Fs(fs::Arguments),
    Mount(mount::Arguments),
    Proxy(proxy::Arguments),
}

/// Why a command failed, for people.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(mount::arguments());
    log();
    let result = match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Devices(arguments) => devices::run(&arguments),
        Command::Fs(arguments) => fs::run(arguments),
        Command::Mount(arguments) => mount::run(&arguments),
        Command::Proxy(arguments) => proxy::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            note(format_args!("warpcore: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// A line of what was asked for.
fn print(line: impl Display) -> Result<(), Failure> {
    let written = writeln!(io::stdout(), "{line}");
    written.map_err(|error| format!("standard output: {error}").into())
}

/// A line about what goes on. Whoever read them may have gone, which ends nothing.
fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Events go to stderr, from the level in `WARPCORE_LOG` on (error, warn, info, debug, trace).
fn log() {
    let level = std::env::var("WARPCORE_LOG").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(LevelFilter::WARN))
        .with_writer(io::stderr)
        // It would be told on stderr, by a panic if that is what is gone.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}
