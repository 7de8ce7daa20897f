//! Public suites of POSIX behaviour on the mount, on both transports, with the kernel's write-back cache
//! and without: pjdfstest, fsx with mappings, holes and copies, and what stress-ng has for filesystems.
//! `.ci/full` runs them longer.

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{MOUNT, Place, SETPRIV, seeds, warpcore, warpcore_without_handles};
use warpcore_need::{Need, need};

const PJDFSTEST: Need = Need::Crate("pjdfstest");
const STRESS: Need = Need::Tool("stress-ng", "stress-ng");
const FSX: Need = Need::Crate("fsx");

/// Options of every kind of mount in long campaigns; else of the default one.
fn kinds() -> &'static [&'static [&'static str]] {
    const KINDS: [&[&str]; 4] =
        [&[], &["no_uring"], &["writethrough"], &["no_uring", "writethrough"]];
    if seeds() == 1 { &KINDS[..1] } else { &KINDS }
}

/// What other users may do is a part of it, so that every directory on the way lets them in.
fn open_place() -> Place {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    for path in [place.directory.path(), &place.source, &place.target] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
    }
    place
}

fn pjdfstest(program: Command, options: &[&str]) {
    // Remounting needs an idle filesystem, which earlier tests of the suite do not leave.
    const CONFIGURATION: &str = r#"
        [features]
        posix_fallocate = {}
        rename_ctime = {}
        stat_st_birthtime = {}
        utime_now = {}
        utimensat = {}
        [settings]
        naptime = 0.01
        allow_remount = false
        [dummy_auth]
        entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
    "#;
    let place = open_place();
    let configuration = place.directory.path().join("pjdfstest.toml");
    fs::write(&configuration, CONFIGURATION).expect("writes");
    let mounted = place.mount_by(program, &[options, &["allow_other"]].concat());
    let output = Command::new("pjdfstest")
        .arg("-c")
        .arg(&configuration)
        .arg("-p")
        .arg(&place.target)
        .output()
        .expect("checked by need");
    let said = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<_> = said.lines().filter(|line| line.ends_with("FAILED")).collect();
    assert!(
        output.status.success() && failed.is_empty(),
        "{failed:#?}\n{}",
        said.lines().rev().take(30).collect::<Vec<_>>().join("\n")
    );
    assert!(said.contains("Summary: 0 failed"), "{said}");
    mounted.unmount();
}

/// Each a configuration of fsx: lengths, alignment, and how often each operation is picked. Where room is
/// reserved, it is of a byte at least: for none, POSIX wants EINVAL, and fsx takes that for no support.
const EXERCISES: [(&str, &str); 3] = [
    (
        "mapped, copied, sent",
        "flen = 262144\n[opsize]\nmax = 65536\nalign = 1\n[weights]\nclose_open = 1\nread = 10\n\
         write = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\ntruncate = 5\nfsync = 1\n\
         fdatasync = 1\nsendfile = 5\nposix_fadvise = 1\ncopy_file_range = 5\n",
    ),
    (
        "with holes",
        "flen = 262144\n[opsize]\nmin = 1\nmax = 65536\nalign = 1\n[weights]\nclose_open = 1\nread = 10\n\
         write = 10\nmapread = 10\nmapwrite = 10\ntruncate = 5\nfsync = 1\npunch_hole = 5\n\
         posix_fallocate = 5\n",
    ),
    (
        "larger",
        "flen = 4194304\n[opsize]\nmax = 524288\nalign = 1\n[weights]\nclose_open = 2\nread = 10\n\
         write = 10\nmapread = 0\nmapwrite = 0\ntruncate = 3\nfsync = 1\nsendfile = 2\n\
         punch_hole = 2\ncopy_file_range = 2\n",
    ),
];

fn fsx(options: &[&str]) {
    let place = Place::new();
    let configuration = place.directory.path().join("fsx.toml");
    for (name, exercise) in EXERCISES {
        fs::write(&configuration, exercise).expect("writes");
        for seed in 1..=2 * seeds() {
            let mounted = place.mount(options);
            let file = place.target.join(format!("fsx {seed}"));
            let output = Command::new("fsx")
                .args(["-N", "4000", "-S", &seed.to_string(), "-f"])
                .arg(&configuration)
                .args(["-P".as_ref(), place.directory.path()])
                .arg(&file)
                .output()
                .expect("checked by need");
            assert!(
                output.status.success(),
                "{name}, seed {seed}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let seen = fs::read(&file).expect("reads");
            mounted.unmount();
            let mounted = place.mount(options);
            assert!(fs::read(&file).expect("reads") == seen, "{name}, seed {seed}: after remount");
            fs::remove_file(&file).expect("removes");
            mounted.unmount();
        }
    }
}

/// Each of its stressors by two processes, which verify what they do. A second for each takes three
/// quarters of a minute; long campaigns take five, on every kind of mount.
#[test]
fn stress_ng() {
    // What is not about files on a mount; FIEMAP and fs-verity are not FUSE's.
    const NOT_OURS: &str = "bind-mount,binderfs,eventfd,fiemap,ioprio,procfs,verity";
    if !(need(&MOUNT) && need(&[Need::FuseUring, STRESS])) {
        return;
    }
    let seconds = if seeds() == 1 { "1" } else { "5" };
    for kind in kinds() {
        let place = Place::new();
        let mounted = place.mount(kind);
        let output = Command::new("stress-ng")
            .args(["--class", "filesystem", "--sequential", "2", "--verify", "--exclude", NOT_OURS])
            .args(["--timeout", seconds, "--temp-path"])
            .arg(&place.target)
            .output()
            .expect("checked by need");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("fail:"), "{kind:?}: {said}");
        mounted.unmount();
        let mut left = fs::read_dir(&place.source).expect("lists");
        assert!(left.next().is_none(), "{kind:?}: something was left");
    }
}

#[test]
fn pjdfstest_classic() {
    if need(&MOUNT) && need(&[PJDFSTEST]) {
        pjdfstest(warpcore(), &["no_uring"]);
    }
}

#[test]
fn pjdfstest_io_uring() {
    if need(&MOUNT) && need(&[Need::FuseUring, PJDFSTEST]) {
        pjdfstest(warpcore(), &[]);
    }
}

#[test]
fn pjdfstest_writethrough() {
    if need(&MOUNT) && need(&[Need::FuseUring, PJDFSTEST]) {
        pjdfstest(warpcore(), &["writethrough"]);
    }
}

#[test]
fn pjdfstest_classic_writethrough() {
    if need(&MOUNT) && need(&[PJDFSTEST]) {
        pjdfstest(warpcore(), &["no_uring", "writethrough"]);
    }
}

#[test]
fn pjdfstest_without_handles() {
    if need(&MOUNT) && need(&[Need::FuseUring, PJDFSTEST, SETPRIV]) {
        pjdfstest(warpcore_without_handles(), &[]);
    }
}

#[test]
fn fsx_classic_writethrough() {
    if need(&MOUNT) && need(&[FSX]) {
        fsx(&["no_uring", "writethrough"]);
    }
}

#[test]
fn fsx_writethrough() {
    if need(&MOUNT) && need(&[Need::FuseUring, FSX]) {
        fsx(&["writethrough"]);
    }
}

#[test]
fn fsx_classic() {
    if need(&MOUNT) && need(&[FSX]) {
        fsx(&["no_uring"]);
    }
}

#[test]
fn fsx_io_uring() {
    if need(&MOUNT) && need(&[Need::FuseUring, FSX]) {
        fsx(&["chunk=16k"]);
    }
}

/// Its files open after the daemon was killed, and hold what verifies.
#[test]
fn fsx_and_a_killed_daemon() {
    if !(need(&MOUNT) && need(&[FSX])) {
        return;
    }
    for (round, (_, exercise)) in (0..20 * seeds().min(10)).zip(EXERCISES.iter().cycle()) {
        let place = Place::new();
        let configuration = place.directory.path().join("fsx.toml");
        fs::write(&configuration, exercise).expect("writes");
        let options: &[&str] = if round % 2 == 0 { &[] } else { &["no_uring", "writethrough"] };
        let mounted = place.mount(options);
        let mut fsx = Command::new("fsx")
            .args(["-N", "1000000", "-S", &round.to_string(), "-f"])
            .arg(&configuration)
            .args(["-P".as_ref(), place.directory.path()])
            .arg(place.target.join("file"))
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("checked by need");
        // So much has reached the lower filesystem.
        let enough = 10_000 * (round % 20 + 1);
        while fs::metadata(place.source.join("file")).map_or(0, |file| file.len()) < enough {
            assert!(fsx.try_wait().expect("ours").is_none(), "round {round}: ended by itself");
            std::thread::yield_now();
        }
        mounted.kill();
        // By itself it waits for ever if its sendfile(2), in a thread, was what failed.
        fsx.kill().expect("ours");
        assert!(!fsx.wait().expect("ours").success(), "round {round}: ended by itself");
        let mounted = place.mount(options);
        fs::read(place.target.join("file"))
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        mounted.unmount();
        let checked = warpcore().args(["fs", "check"]).arg(&place.source).output().expect("runs");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }
}

/// fio writes what it can verify, with and without the page cache, through the ring of its own.
#[test]
fn fio_verifies_what_it_wrote() {
    const FIO: Need = Need::Tool("fio", "fio");
    if !(need(&MOUNT) && need(&[FIO])) {
        return;
    }
    for kind in kinds() {
        fio(kind);
    }
}

fn fio(options: &[&str]) {
    let place = Place::new();
    let mounted = place.mount(options);
    let common = "--name=job --size=16m --verify=crc32c --verify_fatal=1 --do_verify=1 \
                  --verify_state_save=0 --buffer_compress_percentage=50 --refill_buffers \
                  --output-format=terse";
    for job in [
        "--ioengine=psync --rw=randwrite --bs=4k",
        "--ioengine=psync --rw=randwrite --bsrange=512-128k --bs_unaligned=1",
        "--ioengine=psync --rw=randwrite --bs=4k --direct=1",
        "--ioengine=io_uring --iodepth=8 --rw=randwrite --bs=16k",
        "--ioengine=io_uring --iodepth=8 --rw=randwrite --bs=16k --direct=1",
        "--ioengine=mmap --rw=randwrite --bs=4k",
        "--ioengine=psync --rw=write --bs=1m --fsync=4",
    ] {
        let words = common.split_whitespace().chain(job.split_whitespace());
        let output = Command::new("fio").args(words).current_dir(&place.target).output();
        let output = output.expect("checked by need");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{options:?}, {job}: {said}");
        fs::remove_file(place.target.join("job.0.0")).expect("fio's file");
    }
    // Nothing was left open.
    drop(File::open(&place.target).expect("there"));
    assert!(Path::new(&place.target).read_dir().expect("lists").next().is_none());
    mounted.unmount();
}
