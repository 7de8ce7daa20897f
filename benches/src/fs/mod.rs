//! The filesystem that compresses on write, beside those that people have: on files of the same
//! directory, mounted as loop devices, in the same run.
//!
//! ```text
//!   corpus.rs    the trees and the file that are written        systems.rs   who is measured
//!   cases.rs     what is timed
//! ```
//!
//! A round is one pass of every system over a group of cases; the systems take turns case by case.
//! *Cold* means mounted anew, with the kernel's caches dropped. A *sync* of a stacked filesystem is
//! one of its own mount and then of what it is stacked on.

mod cases;
mod corpus;
mod systems;

use std::path::Path;

use crate::harness::{Bench, Effort};
use cases::Sizes;
use corpus::Corpora;
use systems::System;

/// Measures in `directory`, where the images of the filesystems are made.
pub(crate) fn run(bench: &mut Bench, directory: Option<&Path>) -> Result<(), String> {
    let full = bench.effort() == Effort::Full;
    let sizes = if full { Sizes::FULL } else { Sizes::QUICK };
    let mut builder = tempfile::Builder::new();
    let place = match builder
        .prefix("warpcore-bench-")
        .tempdir_in(directory.map_or_else(std::env::temp_dir, Path::to_owned))
    {
        Ok(place) => place,
        Err(error) => return Err(format!("the directory for the images: {error}")),
    };
    eprintln!("fs: reading what the machine has");
    let corpora = Corpora::build(&sizes)?;
    corpora.notes.iter().for_each(|note| bench.note(note.clone()));
    let mut systems = Vec::new();
    for kind in systems::Kind::all(full) {
        match System::start(kind, place.path(), sizes.image) {
            Ok(system) => systems.push(system),
            Err(error) if kind == systems::Kind::Warpcore => return Err(error),
            Err(error) => bench.note(format!("without {}: {error}", kind.name())),
        }
    }
    if !rustix::process::geteuid().is_root() {
        bench.note(
            "without root: on a directory, beside its own filesystem, of which the caches stay warm",
        );
    }
    if !full {
        bench
            .note("a short run on small trees; --full has the sizes, three rounds and more rivals");
    }
    bench.note(
        "MB are 10^6 plain bytes; CPU seconds are the whole machine's, the daemons and the \
         kernel's threads included",
    );
    cases::measure(bench, &corpora, &sizes, &mut systems)
}
