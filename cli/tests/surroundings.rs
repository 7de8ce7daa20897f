//! What happens around a mount: somebody renames, mounts or holds files where it is and what it is stacked
//! on. Nobody waits for that, and nothing of others is touched.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{MOUNT, Place, holding, tool, warpcore};
use warpcore_need::{Need, need};

/// A file that nobody has synced or closed.
fn write(directory: &Path) -> File {
    let mut file = File::create(directory.join("file")).expect("creates");
    file.write_all(&[7; 5000]).expect("writes");
    file
}

fn assert_stored(source: &Path) {
    let read = warpcore().args(["fs", "cat"]).arg(source.join("file")).output().expect("runs");
    assert!(read.stdout == [7; 5000], "{}", String::from_utf8_lossy(&read.stderr));
}

/// The first and the last that this process may use, which shards of their own serve.
fn cpus() -> [String; 2] {
    let allowed = rustix::thread::sched_getaffinity(None).expect("asked of ourselves");
    let mut cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = cpus.next().expect("one at least");
    [first, cpus.next_back().unwrap_or(first)].map(|cpu| cpu.to_string())
}

fn is_mounted(path: &Path) -> bool {
    Command::new("mountpoint").arg("-q").arg(path).status().expect("runs").success()
}

/// A mount is taken away where it is, not where it was: what is there by now is somebody else's.
#[test]
fn the_way_to_a_mount_is_renamed() {
    if !need(&MOUNT) {
        return;
    }
    let place = Place::new();
    let [old, new, victim] = ["old", "new", "victim"].map(|name| place.directory.path().join(name));
    fs::create_dir_all(old.join("mnt")).expect("made");
    fs::create_dir(&victim).expect("made");
    tool("mount", &["-t", "tmpfs", "none", victim.to_str().expect("UTF-8")], Path::new("/"));
    let place = Place { target: old.join("mnt"), ..place };
    let mounted = place.mount(&[]);
    let file = write(&place.target);
    fs::rename(&old, &new).expect("renames");
    fs::create_dir(&old).expect("made");
    symlink(&victim, old.join("mnt")).expect("links");
    mounted.signal("-TERM");
    mounted.wait();
    drop(file);
    let is_there = is_mounted(&victim);
    tool("umount", &[victim.to_str().expect("UTF-8")], Path::new("/"));
    assert!(is_there, "somebody else's mount is gone");
    assert!(!is_mounted(&new.join("mnt")));
    assert_stored(&place.source);
}

#[test]
fn a_terminal_goes() {
    if !need(&MOUNT) {
        return;
    }
    let place = Place::new();
    // Whoever runs the tests may have gone from theirs (nohup(1)).
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_warpcore")]);
    let mounted = place.mount_by(command, &[]);
    let file = write(&place.target);
    mounted.signal("-HUP");
    mounted.wait();
    drop(file);
    assert!(!is_mounted(&place.target));
    assert_stored(&place.source);
}

/// By a server that does not answer: it is not asked.
#[test]
fn something_is_mounted_below() {
    if !need(&MOUNT) {
        return;
    }
    let (place, other) = (Place::new(), Place::new());
    let below = place.source.join("below");
    fs::create_dir(&below).expect("made");
    let mounted = place.mount(&[]);
    write(&place.target);
    let served = other.mount(&["writethrough"]);
    let [target, below] = [&other.target, &below].map(|path| path.to_str().expect("UTF-8"));
    tool("mount", &["--bind", target, below], Path::new("/"));
    // The kernel does not know by itself any more when the directory was changed.
    write(&other.target);
    served.signal("-STOP");
    let listed = cpus().map(|cpu| {
        let script = "timeout 20 ls && timeout 20 ls -l file";
        let mut command = Command::new("taskset");
        command.args(["-c", &cpu, "sh", "-c", script]).current_dir(&place.target);
        command.output().expect("runs")
    });
    served.signal("-CONT");
    for listed in listed {
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    }
    tool("umount", &[below], Path::new("/"));
    served.unmount();
    mounted.unmount();
}

/// fcntl(2), F_SETLEASE: who opens the file waits for its holder.
#[test]
fn somebody_has_a_lease() {
    if !need(&MOUNT) || !need(&[Need::Tool("python3", "python3")]) {
        return;
    }
    let place = Place::new();
    let mounted = place.mount(&[]);
    write(&place.target);
    fs::write(place.target.join("other"), "text").expect("writes");
    mounted.unmount();
    let script = "import fcntl,os,signal,sys\n\
        signal.signal(signal.SIGIO,signal.SIG_IGN)\n\
        fd=os.open(sys.argv[1],os.O_RDWR)\n\
        fcntl.fcntl(fd,fcntl.F_SETLEASE,fcntl.F_WRLCK)\n\
        print('held',flush=True)\n\
        sys.stdin.readline()";
    let mut holder = Command::new("python3");
    let mut holder = holding(holder.args(["-c", script]).arg(place.source.join("file")));
    let mounted = place.mount(&[]);
    let waits = Command::new("cat")
        .arg(place.target.join("file"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    for cpu in cpus() {
        let read = Command::new("taskset")
            .args(["-c", &cpu, "timeout", "20", "cat", "other"])
            .current_dir(&place.target)
            .output()
            .expect("runs");
        assert_eq!((read.status.success(), &read.stdout[..]), (true, &b"text"[..]));
    }
    drop(holder.stdin.take());
    let read = waits.wait_with_output().expect("ends");
    assert!(read.stdout == [7; 5000], "{} bytes", read.stdout.len());
    holder.wait().expect("ends");
    mounted.unmount();
}

#[test]
fn reading_changes_no_time() {
    if !need(&MOUNT) {
        return;
    }
    let place = Place::new();
    fs::write(place.source.join("file"), "text").expect("writes");
    let names = ["file", "."].map(|name| place.source.join(name));
    let atimes = || names.each_ref().map(|path| path.metadata().expect("there").atime());
    for options in ["ro", "noatime"] {
        for path in &names {
            tool(
                "touch",
                &["-a", "-d", "2001-01-01", path.to_str().expect("UTF-8")],
                Path::new("/"),
            );
        }
        let before = atimes();
        let mounted = place.mount(&[options]);
        assert_eq!(fs::read_to_string(place.target.join("file")).expect("reads"), "text");
        assert_eq!(fs::read_dir(&place.target).expect("reads").count(), 1);
        mounted.unmount();
        assert_eq!(atimes(), before, "{options}");
    }
}
