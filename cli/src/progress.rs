//! How far something is that takes long.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal, nothing in a pipe.
pub(crate) fn progress(what: &'static str, len: u64, unit: &str) -> ProgressBar {
    let template = format!("  {what:<10} [{{bar:40}}] {{pos}}/{{len}} {unit}");
    let style = ProgressStyle::with_template(&template).expect("a good template");
    ProgressBar::new(len).with_style(style.progress_chars("=> "))
}
