//! A mount by somebody without privileges: fusermount3 makes it, inodes are found by their names, and
//! files that nobody may write to have no attribute of ours.

mod common;

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{MOUNT, Place, SETPRIV, holding, refused, tool, warpcore};
use warpcore_need::{Need, need};

const NOBODY: u32 = 65534;

/// `/dev/fuse` as udev makes it, for everybody; as it was once dropped. One test at a time.
struct FuseForEverybody(Permissions, #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl FuseForEverybody {
    fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let before = fs::metadata("/dev/fuse").expect("needed").permissions();
        fs::set_permissions("/dev/fuse", Permissions::from_mode(0o666)).expect("as root");
        Self(before, turn)
    }
}

impl Drop for FuseForEverybody {
    fn drop(&mut self) {
        let _ = fs::set_permissions("/dev/fuse", self.0.clone());
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

fn as_nobody(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    command
}

/// A mount of nobody's.
struct Server {
    child: Child,
    words: BufReader<std::process::ChildStderr>,
}

impl Server {
    fn start(place: &Place) -> Self {
        let program = place.directory.path().join("warpcore");
        let mut command = as_nobody(program);
        command.arg("mount").arg(&place.source).arg(&place.target).stderr(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).spawn().expect("starts");
        let words = BufReader::new(child.stderr.take().expect("piped"));
        let mut server = Self { child, words };
        let mut line = String::new();
        server.words.read_line(&mut line).expect("readable");
        assert!(line.starts_with("mounted "), "{line}");
        server
    }

    /// Waits for it to end well.
    fn ended(mut self) {
        let mut said = String::new();
        self.words.read_to_string(&mut said).expect("readable");
        assert!(self.child.wait().expect("ours").success(), "{said}");
        assert!(said.contains("unmounted; transport:"), "{said}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test has failed: nothing is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A place of nobody's, with the program.
fn place_of_nobody() -> Place {
    let place = Place::new();
    fs::set_permissions(place.directory.path(), Permissions::from_mode(0o755)).expect("ours");
    for path in [&place.source, &place.target] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("as root");
    }
    let program = place.directory.path().join("warpcore");
    fs::copy(env!("CARGO_BIN_EXE_warpcore"), &program).expect("copies");
    place
}

/// In the mount, which nobody else may enter.
fn in_mount(place: &Place, program: &str, arguments: &[&str]) {
    let mut command = as_nobody("env");
    command.arg("-C").arg(&place.target).arg(program).args(arguments);
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn unmount(place: &Place) {
    tool("fusermount3", &["-u", place.target.to_str().expect("UTF-8")], Path::new("/"));
}

const FUSERMOUNT: Need = Need::Tool("fusermount3", "fuse3");

/// Who may write to a file that is another's may not set its times: they are those of the last write then.
#[test]
fn a_file_of_somebody_elses_is_written_to() {
    if !(need(&MOUNT) && need(&[FUSERMOUNT, SETPRIV])) {
        return;
    }
    let _device = FuseForEverybody::new();
    let place = place_of_nobody();
    let stored = place.source.join("name");
    fs::write(&stored, "").expect("written");
    fs::set_permissions(&stored, Permissions::from_mode(0o666)).expect("ours");
    let server = Server::start(&place);
    let script = "import os\n\
        for text in b'one', b'two'*100000:\n \
        f=os.open('name',os.O_WRONLY|os.O_APPEND); os.write(f,text); os.fsync(f); os.close(f)\n\
        os.truncate('name', 4)\n\
        assert open('name').read()=='onet'";
    in_mount(&place, "python3", &["-c", script]);
    unmount(&place);
    server.ended();
    let read = warpcore().args(["fs", "cat"]).arg(&stored).output().expect("runs");
    assert_eq!(read.stdout, b"onet");
}

/// A power cut has taken the end of a file to which nobody may write, so that its mark cannot say it. Once it
/// has been written again its length is the new one.
#[test]
fn a_mark_that_was_wrong_is_right_again() {
    if !(need(&MOUNT) && need(&[FUSERMOUNT, SETPRIV])) {
        return;
    }
    let _device = FuseForEverybody::new();
    let place = place_of_nobody();
    let server = Server::start(&place);
    let script = "import os\n\
        f=os.open('name',os.O_WRONLY|os.O_CREAT,0o444); os.write(f,os.urandom(100000)); os.close(f)";
    in_mount(&place, "python3", &["-c", script]);
    unmount(&place);
    server.ended();
    let stored = File::options().write(true).open(place.source.join("name")).expect("opens");
    let len = stored.metadata().expect("there").len();
    stored.write_all_at(&[0; 50_000], len - 50_000).expect("as root");
    let server = Server::start(&place);
    let script = "import os\n\
        assert os.stat('name').st_size==100000\n\
        left=len(open('name','rb').read()); assert left<100000\n\
        assert os.stat('name').st_size==left\n\
        os.chmod('name',0o644); open('name','wb').write(b'new'*1000)";
    in_mount(&place, "python3", &["-c", script]);
    // The kernel forgets what it knows of the file.
    fs::write("/proc/sys/vm/drop_caches", "2").expect("as root");
    let script = "import os\n\
        assert os.stat('name').st_size==3000\n\
        assert open('name','rb').read()==b'new'*1000";
    in_mount(&place, "python3", &["-c", script]);
    unmount(&place);
    server.ended();
}

#[test]
fn a_user_mounts_what_is_theirs() {
    let tools = [FUSERMOUNT, Need::Tool("rsync", "rsync"), SETPRIV];
    if !(need(&MOUNT) && need(&tools)) {
        return;
    }
    let _device = FuseForEverybody::new();
    let place = place_of_nobody();
    let server = Server::start(&place);
    let script = "import os\n\
        text=b'nobody may write to this, as to the objects of git\\n'*500\n\
        f=os.open('read-only',os.O_WRONLY|os.O_CREAT|os.O_EXCL,0o444); os.write(f,text)\n\
        os.fsync(f); os.close(f)\n\
        assert os.stat('read-only').st_size==len(text)\n\
        os.rename('read-only','moved'); os.link('moved','linked')\n\
        assert open('linked','rb').read()==text and os.stat('moved').st_mode&0o777==0o444\n\
        os.chmod('moved',0o600); open('moved','ab').write(b'end'); os.chmod('moved',0o444)\n\
        assert open('linked','rb').read()==text+b'end'\n\
        f=open('unlinked','w+'); f.write('x'*100000); f.flush(); os.unlink('unlinked')\n\
        f.seek(0); assert f.read()=='x'*100000";
    in_mount(&place, "python3", &["-c", script]);
    in_mount(&place, "rsync", &["-rlptH", "/usr/share/perl/", "perl"]);
    in_mount(&place, "diff", &["-r", "/usr/share/perl", "perl"]);
    in_mount(&place, "rm", &["-r", "perl/5.36.0"]);
    unmount(&place);
    server.ended();

    // Marked as ours and closed, though nobody may write to it.
    let mut mark = [0; 24];
    let stored = place.source.join("moved");
    rustix::fs::getxattr(&stored, "user.warpcore", &mut mark).expect("set");
    assert_eq!((&mark[1..3], mode(&stored)), (&b"cc"[..], 0o444));

    let checked = warpcore().args(["fs", "check"]).arg(&place.source).output().expect("runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let server = Server::start(&place);
    in_mount(
        &place,
        "sh",
        &["-c", "test $(stat -c %s linked) = 25503 && tail -c 3 moved | grep -q end"],
    );
    // Somebody reads it, from when nobody could write to it.
    in_mount(&place, "sh", &["-c", "exec 3<moved && chmod 600 moved && printf more >>moved"]);
    tool("kill", &["-TERM", &server.child.id().to_string()], Path::new("/"));
    server.ended();
    let read = warpcore().args(["fs", "cat"]).arg(&stored).output().expect("runs");
    assert!(read.stdout.ends_with(b"endmore"), "{}", String::from_utf8_lossy(&read.stderr));
}

/// The kernel would keep the length that it was told when nothing could be read.
#[test]
fn a_length_that_was_guessed_is_not_kept() {
    if !(need(&MOUNT) && need(&[FUSERMOUNT, SETPRIV])) {
        return;
    }
    let _device = FuseForEverybody::new();
    let place = place_of_nobody();
    let server = Server::start(&place);
    let script = "import os\n\
        open('secret','wb').write(b'nobody reads this, not even its owner\\n'*9000)\n\
        os.chmod('secret',0)";
    in_mount(&place, "python3", &["-c", script]);
    unmount(&place);
    server.ended();
    let server = Server::start(&place);
    let script = "import os\n\
        text=b'nobody reads this, not even its owner\\n'*9000\n\
        assert os.stat('secret').st_size!=len(text)\n\
        os.chmod('secret',0o600)\n\
        assert open('secret','rb').read()==text\n\
        open('secret','ab').write(b'end')\n\
        assert open('secret','rb').read()==text+b'end'\n\
        assert os.stat('secret').st_size==len(text)+3";
    in_mount(&place, "python3", &["-c", script]);
    unmount(&place);
    server.ended();
}

/// Who cannot change anything there keeps nobody from mounting.
#[test]
fn a_stranger_locks_the_way_to_the_source() {
    if !(need(&MOUNT) && need(&[SETPRIV])) {
        return;
    }
    let place = Place::new();
    let outer = place.directory.path();
    fs::set_permissions(outer, Permissions::from_mode(0o755)).expect("ours");
    let mut holder = Command::new("setpriv");
    holder.args(["--reuid=65534", "--regid=65534", "--clear-groups", "flock", "--exclusive"]);
    let mut holder = holding(holder.arg(outer).args(["sh", "-c", "echo held; read line"]));
    place.mount(&[]).unmount();
    // But the owner does.
    chown(outer, Some(NOBODY), None).expect("as root");
    let mut command = warpcore();
    let said = refused(command.arg("mount").arg(&place.source).arg(&place.target), 1);
    assert!(said.contains("is mounted, or being worked on"), "{said}");
    drop(holder.stdin.take());
    holder.wait().expect("ends");
}
