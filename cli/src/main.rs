//! `warpcore`: one binary, one file per command.
//!
//! Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage.

// They panic where nobody reads any more.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod demo;
mod devices;
mod fs;
mod mount;
mod progress;
mod proxy;
mod storage;
mod systemd;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;

/// An accelerator queue per core, and two products on it: a TLS proxy and a compressing mount
///
/// Environment:
///   WARPCORE_DEVICES  the accelerators to use, where --devices does not say it
///   WARPCORE_LOG      events to tell on stderr: error, warn (if not said), info, debug or trace
#[derive(Parser)]
#[command(name = "warpcore", version, arg_required_else_help = true, verbatim_doc_comment)]
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
    if let Err(failure) = log() {
        note(format_args!("warpcore: {failure}"));
        return ExitCode::from(2);
    }
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
    writeln!(io::stdout(), "{line}").map_err(unwritten)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unwritten(error: io::Error) -> Failure {
    format!("standard output: {error}").into()
}

/// A line about what goes on. Whoever read them may have gone, which ends nothing.
fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Events go to stderr, from the level in `WARPCORE_LOG` on.
fn log() -> Result<(), Failure> {
    let level = match std::env::var("WARPCORE_LOG") {
        Ok(level) => level.parse().map_err(|_| {
            format!("WARPCORE_LOG={level}: it is error, warn, info, debug, trace or off")
        })?,
        Err(_) => LevelFilter::WARN,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        // It would be told on stderr, by a panic if that is what is gone.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}
