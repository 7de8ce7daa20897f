//! What accelerates what on this machine.

use std::io::Write;

use crate::Failure;

/// Show what accelerates what on this machine, and why something does not
///
/// Example: warpcore devices
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {}

pub(crate) fn run(_: &Arguments) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for device in warpcore_offload::devices()? {
        writeln!(out, "{:<10} {}", device.name, device.state)?;
        for line in &device.does {
            writeln!(out, "{:<10} {line}", "")?;
        }
    }
    Ok(())
}
