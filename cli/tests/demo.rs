//! The README's first command, on a small tree; and what is left of it after Ctrl-C: nothing.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use common::{MOUNT, refused, tool, warpcore};
use warpcore_need::need;

#[test]
fn the_demo_verifies_everything_and_cleans_up() {
    if !need(&MOUNT) {
        return;
    }
    let place = tempfile::tempdir().expect("a temporary directory");
    let mut demo = warpcore();
    demo.args(["demo", "--from", "/usr/share/perl"]).env("TMPDIR", place.path());
    let output = demo.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let last = said.lines().last().expect("a verdict");
    assert!(last.starts_with("VERIFIED: ") && last.contains("4000 handshakes"), "{said}");
    for wanted in ["MB/s", "ratio", "files/s", "transport", "largest batch", "plain zstd"] {
        assert!(said.contains(wanted), "no {wanted}: {said}");
    }
    assert_nothing_left(place.path());
}

/// The device did every compression that it could take and every signature, or this fails.
#[test]
fn the_demo_verifies_on_a_model_of_the_device() {
    if !need(&MOUNT) {
        return;
    }
    let place = tempfile::tempdir().expect("a temporary directory");
    let mut demo = warpcore();
    demo.args(["demo", "--from", "/usr/share/perl", "--devices", "model"]);
    let output = demo.env("TMPDIR", place.path()).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for wanted in [
        "chunks compressed, 0 redone in software",
        "chunks decompressed, 0 redone in software",
        "2000 signatures, 0 redone in software",
        "fs cat       reads the largest file",
        "plain zstd   refuses it",
        "VERIFIED: ",
    ] {
        assert!(said.contains(wanted), "no {wanted}: {said}");
    }
    assert_nothing_left(place.path());
}

#[test]
fn devices_says_what_is_used_and_why_not() {
    let said = |names: Option<&str>| {
        let mut devices = warpcore();
        devices.arg("devices").envs(names.map(|names| ("WARPCORE_DEVICES", names)));
        let output = devices.output().expect("runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let (code, plain) = said(None);
    assert_eq!(code, Some(0), "{plain}");
    assert!(plain.starts_with("software     used\n"), "{plain}");
    if !Path::new("/sys/class/uacce").exists() {
        assert!(plain.contains("uacce        not used: the kernel lists no device"), "{plain}");
    }
    let (code, model) = said(Some("model:zip"));
    assert_eq!(code, Some(0), "{model}");
    assert!(model.contains("model:zip    used; usable; hisi_qm_v3, 64 free queues"), "{model}");
    assert!(!model.contains("model:hpre"), "{model}");
    let (code, wrong) = said(Some("model:zap"));
    assert!(code == Some(1) && wrong.contains("'model:zap'"), "{wrong}");
    let (code, nothing) = said(Some(""));
    assert!(code == Some(1) && nothing.contains("is called ''"), "{nothing}");
    if !Path::new("/sys/class/uacce").exists() {
        let (code, none) = said(Some("uacce"));
        assert!(code == Some(1) && none.contains("uacce cannot be used: no device"), "{none}");
    }
    let said = refused(warpcore().arg("devices").env("WARPCORE_LOG", "loud"), 2);
    assert!(said.contains("WARPCORE_LOG=loud"), "{said}");
}

#[test]
fn ctrl_c_leaves_no_mount_and_no_files() {
    if !need(&MOUNT) {
        return;
    }
    let place = tempfile::tempdir().expect("a temporary directory");
    let mut demo = warpcore();
    demo.args(["demo", "--from", "/usr/share"]).env("TMPDIR", place.path());
    let mut child = demo.stdout(Stdio::piped()).spawn().expect("starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("tree ") {
        line.clear();
        assert!(stdout.read_line(&mut line).expect("readable") > 0, "ended early");
    }
    // Somewhere in the copy, once the mount stands.
    while !std::fs::read_to_string("/proc/self/mounts")
        .expect("procfs")
        .contains(place.path().to_str().expect("UTF-8"))
    {
        assert!(child.try_wait().expect("ours").is_none(), "ended early");
        std::thread::yield_now();
    }
    tool("kill", &["-INT", &child.id().to_string()], Path::new("/"));
    assert_eq!(child.wait().expect("ours").code(), Some(1));
    assert_nothing_left(place.path());
}

fn assert_nothing_left(place: &Path) {
    let left: Vec<_> = std::fs::read_dir(place).expect("lists").collect();
    assert!(left.is_empty(), "{left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("procfs");
    assert!(!mounts.contains(place.to_str().expect("UTF-8")), "{mounts}");
}
