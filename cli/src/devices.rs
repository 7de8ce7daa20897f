//! What accelerates what on this machine, and which of it a command uses.

use std::io::Write;

use warpcore_offload::{Device, Devices, Kernel, Stats};

use crate::Failure;

/// Show what accelerates what on this machine, and why something does not
///
/// Example: warpcore devices
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    #[command(flatten)]
    selection: Selection,
}

/// The devices of a command.
#[derive(clap::Args)]
pub(crate) struct Selection {
    /// Accelerators to use, separated by commas: names from `warpcore devices`, uacce (every
    /// Kunpeng device), model:zip, model:hpre or model (devices modelled in software), or software
    /// (none). If not said: WARPCORE_DEVICES, or else what the machine has
    #[arg(long, value_name = "NAMES")]
    pub(crate) devices: Option<String>,
}

impl Selection {
    /// Opens what was asked for.
    pub(crate) fn select(&self) -> Result<Devices, Failure> {
        Ok(match &self.devices {
            Some(names) => Devices::select(names)?,
            None => Devices::from_environment()?,
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let selected = arguments.selection.select()?.list();
    let mut devices = warpcore_offload::devices()?;
    let is_new = |device: &&Device| devices.iter().all(|other| other.name != device.name);
    let models: Vec<_> = selected.iter().filter(is_new).cloned().collect();
    devices.extend(models);
    let mut out = std::io::stdout().lock();
    for device in devices {
        let used =
            if selected.iter().any(|other| other.name == device.name) { "used; " } else { "" };
        writeln!(out, "{:<12} {used}{}", device.name, device.state)?;
        for line in &device.does {
            writeln!(out, "{:<12} {line}", "")?;
        }
    }
    Ok(())
}

/// What devices did of each kernel, for the end of a command that used some.
pub(crate) fn report(stats: &Stats) -> Vec<String> {
    Kernel::ALL
        .into_iter()
        .filter_map(|kernel| {
            let counted = stats.kernel(kernel);
            (counted.on_device + counted.redone + counted.spilled > 0).then(|| {
                format!(
                    "offload {}: {} on devices, {} redone in software, {} for want of a device",
                    kernel.name(),
                    counted.on_device,
                    counted.redone,
                    counted.spilled
                )
            })
        })
        .collect()
}
