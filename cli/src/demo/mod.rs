//! All of it on real input, verified: a compressed mount, then the proxy.

mod handshakes;
mod mounted;
mod tree;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use warpcore_offload::KernelStats;

use crate::devices::Selection;
use crate::{Failure, print};

/// Run everything on real input in a temporary directory, verified, with a table
///
/// Copies a real tree into a compressed mount, remounts it and compares every byte, name, mode and
/// time; then makes 2,000 full TLS handshakes through the proxy. Needs no network. The exit code
/// says whether everything was verified.
///
/// Example: warpcore demo --from ~/src
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// The tree to copy, up to 400 MB of it; if not said, parts of /usr, the Rust toolchain and crates
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    #[command(flatten)]
    selection: Selection,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupted = Interrupted::listen()?;
    let devices = arguments.selection.select()?;
    let names: Vec<_> = devices.list().into_iter().map(|device| device.name).collect();
    let mounted = mounted::run(arguments.from.as_deref(), &devices, &names.join(","), &interrupted);
    report("filesystem", &mounted)?;
    if interrupted.is_set() {
        return Err("interrupted; everything is cleaned up".into());
    }
    let handshakes = handshakes::run(&devices, &interrupted);
    report("handshakes", &handshakes)?;
    if interrupted.is_set() {
        return Err("interrupted; everything is cleaned up".into());
    }
    match (&mounted, &handshakes) {
        (Ok(files), Ok(count)) => {
            print(format_args!("VERIFIED: {files} files and {count} handshakes, every one of them"))
        }
        _ => {
            let verdict = |what: &str, good: bool| {
                format!("{what} {}", if good { "verified" } else { "NOT verified" })
            };
            let mounted = verdict("filesystem", mounted.is_ok());
            let handshakes = verdict("handshakes", handshakes.is_ok());
            print(format_args!("FAILED: {mounted}, {handshakes}"))?;
            Err("the demo could not verify everything".into())
        }
    }
}

fn report<T>(part: &str, result: &Result<T, Failure>) -> Result<(), Failure> {
    if let Err(failure) = result {
        print(format_args!("  {part}: {failure}"))?;
    }
    print("")
}

/// Prints what devices did of something, and fails if it was not all that they could have done.
fn on_device(what: &str, stats: &KernelStats) -> Result<(), Failure> {
    let KernelStats { on_device, redone, spilled, .. } = *stats;
    row("on device", &format!("{on_device} {what}, {redone} redone in software"))?;
    if on_device == 0 || redone + spilled > 0 {
        return Err(format!(
            "the device did {on_device} {what}; software redid {redone}, and did {spilled} that \
             the device had no queue for"
        )
        .into());
    }
    Ok(())
}

/// Ctrl-C or SIGTERM was received: loops end, and what they have made is dropped.
struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    fn listen() -> Result<Self, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.is_set() { Err("interrupted".into()) } else { Ok(()) }
    }
}

/// One line of the table.
fn row(name: &str, value: &str) -> Result<(), Failure> {
    print(format_args!("  {name:<12} {value}"))
}

/// For people: a double is exact enough.
fn per_second(count: u64, elapsed: std::time::Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(1e-9)
}

/// Millions of bytes.
fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
