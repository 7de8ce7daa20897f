//! What the system has too little of: descriptors, room on the disk.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use common::{MOUNT, Place};
use rustix::io::Errno;
use warpcore_need::{Need, need};

const PRLIMIT: Need = Need::Tool("prlimit", "util-linux");

/// The caller hears that the system has no more (ENFILE), not that it has itself too many (EMFILE);
/// what is open works on, and what is closed makes room.
#[test]
fn too_few_descriptors_are_not_the_callers() {
    if !(need(&MOUNT) && need(&[PRLIMIT])) {
        return;
    }
    let place = Place::new();
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=100:100").arg(env!("CARGO_BIN_EXE_warpcore"));
    let mounted = place.mount_by(limited, &[]);
    let mut open = Vec::new();
    let refused = loop {
        let path = place.target.join(open.len().to_string());
        match File::create_new(path) {
            Ok(file) => open.push(file),
            Err(error) => break error,
        }
        assert!(open.len() < 100, "more than there are");
    };
    assert_eq!(refused.raw_os_error(), Some(Errno::NFILE.raw_os_error()), "{refused}");
    let refused = place.source.join(open.len().to_string());
    assert!(!refused.exists(), "made all the same");
    for file in &mut open {
        file.write_all(b"open").expect("writes");
        file.sync_all().expect("syncs");
    }
    let names = open.len();
    drop(open);
    for name in 0..names {
        let read = fs::read(place.target.join(name.to_string())).expect("reads again");
        assert_eq!(read, b"open");
    }
    mounted.unmount();
}
