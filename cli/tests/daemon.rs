//! A mount in the background: it is there when the command returns, and nothing hangs when one of its
//! processes is killed.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use common::{MOUNT, Place, tool, warpcore};
use rustix::io::Errno;
use warpcore_need::{Need, need};

const PGREP: Need = Need::Tool("pgrep", "procps");

/// Mounts in the background; the server's process, and its supervisor's.
fn mount(place: &Place, command: &mut Command) -> (String, String) {
    let Output { status, stderr, .. } = command.output().expect("starts");
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success() && said.starts_with("mounted "), "{said}");
    assert!(is_mounted(place), "not there when the command returned");
    let target = place.target.to_str().expect("UTF-8");
    let ours = tool("pgrep", &["-f", target], Path::new("/"));
    let mut ours = ours.lines().map(str::to_owned);
    // Started in this order.
    let (supervisor, server) = (ours.next(), ours.next());
    (server.expect("a server"), supervisor.expect("a supervisor"))
}

fn daemon(place: &Place) -> (String, String) {
    mount(place, warpcore().args(["mount", "--daemon"]).arg(&place.source).arg(&place.target))
}

fn is_mounted(place: &Place) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    mounts.contains(place.target.to_str().expect("UTF-8"))
}

/// Until it is so, or it is clear that it will not be.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "never {what}");
        yield_now();
    }
}

fn kill(process: &str) {
    tool("kill", &["-9", process], Path::new("/"));
}

fn is_running(process: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Nobody may wait for it here: dead is gone.
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn a_killed_server_leaves_no_mount() {
    if !(need(&MOUNT) && need(&[PGREP])) {
        return;
    }
    let place = Place::new();
    let (server, supervisor) = daemon(&place);
    fs::write(place.target.join("file"), "closed").expect("writes");
    kill(&server);
    wait_until("unmounted", || !is_mounted(&place));
    wait_until("ended", || !is_running(&supervisor));
    let (_, supervisor) = daemon(&place);
    assert_eq!(fs::read(place.target.join("file")).expect("reads"), b"closed");
    tool("umount", &[place.target.to_str().expect("UTF-8")], Path::new("/"));
    wait_until("ended", || !is_running(&supervisor));
}

#[test]
fn a_server_without_its_supervisor_ends_in_order() {
    if !(need(&MOUNT) && need(&[PGREP])) {
        return;
    }
    let place = Place::new();
    let mut command = warpcore();
    // Nobody reads what it says of its end.
    command.args(["mount", "--daemon"]).env("WARPCORE_LOG", "info");
    let (server, supervisor) = mount(&place, command.arg(&place.source).arg(&place.target));
    fs::write(place.target.join("file"), "closed").expect("writes");
    kill(&supervisor);
    wait_until("unmounted", || !is_mounted(&place));
    wait_until("ended", || !is_running(&server));
    let checked = warpcore().args(["fs", "check"]).arg(&place.source).output().expect("runs");
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(said.contains("1 files verified, 0 damaged"), "{said}");
}

/// As mount(8) does for `mount -t fuse.warpcore`, and for a line of fstab.
#[test]
fn mount_calls_it_by_another_name() {
    if !(need(&MOUNT) && need(&[PGREP])) {
        return;
    }
    let place = Place::new();
    fs::write(place.source.join("plain"), "from before").expect("writes");
    let helper = place.directory.path().join("mount.fuse.warpcore");
    symlink(env!("CARGO_BIN_EXE_warpcore"), &helper).expect("links");
    let options = "rw,nofail,x-systemd.automount,noexec,ro";
    let mut command = Command::new(&helper);
    command.arg(&place.source).arg(&place.target).args(["-n", "-o", options]);
    let faked = Command::new(&helper).arg(&place.source).arg(&place.target).arg("-fv").status();
    assert!(faked.expect("runs").success());
    assert!(!place.target.join("plain").exists(), "mounted");
    let (_, supervisor) = mount(&place, &mut command);
    assert_eq!(fs::read(place.target.join("plain")).expect("reads"), b"from before");
    let refused = fs::write(place.target.join("new"), "x").expect_err("read-only");
    assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    tool("umount", &[place.target.to_str().expect("UTF-8")], Path::new("/"));
    wait_until("ended", || !is_running(&supervisor));
}

#[test]
fn what_cannot_be_mounted_is_told_to_the_caller() {
    if !(need(&MOUNT) && need(&[PGREP])) {
        return;
    }
    let place = Place::new();
    let nowhere = place.directory.path().join("nowhere");
    let mut command = warpcore();
    command.args(["mount", "--daemon"]).arg(&place.source).arg(&nowhere);
    let said = common::refused(&mut command, 1);
    assert!(said.contains("mount point") && said.contains("No such file"), "{said}");
}

/// As a service of systemd is (contrib/): it has started once it is mounted.
#[test]
fn a_service_manager_is_told_when_it_is_mounted() {
    if !need(&MOUNT) {
        return;
    }
    let place = Place::new();
    let path = place.directory.path().join("notify");
    let told = UnixDatagram::bind(&path).expect("binds");
    told.set_read_timeout(Some(Duration::from_secs(20))).expect("an option");
    let mut command = warpcore();
    command.env("NOTIFY_SOCKET", &path);
    let mounted = place.mount_by(command, &[]);
    let mut bytes = [0; 100];
    let len = told.recv(&mut bytes).expect("told");
    assert_eq!(&bytes[..len], b"READY=1");
    assert!(is_mounted(&place));
    mounted.unmount();
}
