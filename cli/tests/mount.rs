//! The mount as people use it, on both transports: tools, many at a time, killed, remounted.

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{MOUNT, Place, assert_same, noise, refused, tool, warpcore};
use warpcore_need::{Need, need};

/// Runs a test on `/dev/fuse` alone and over io_uring.
macro_rules! both_transports {
    ($($(#[$doc:meta])* fn $name:ident($place:ident, $options:ident) needs [$($need:expr),*] $body:block)*) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;

            fn run($place: &Place, $options: &[&str]) $body

            #[test]
            fn classic() {
                if need(&MOUNT) && need(&[$($need),*]) {
                    run(&Place::new(), &["no_uring"]);
                }
            }

            #[test]
            fn io_uring() {
                if need(&MOUNT) && need(&[Need::FuseUring, $($need),*]) {
                    run(&Place::new(), &[]);
                }
            }
        }
    )*};
}

const RSYNC: Need = Need::Tool("rsync", "rsync");
const SETFACL: Need = Need::Tool("setfacl", "acl");
const GIT: Need = Need::Tool("git", "git");
const SQLITE: Need = Need::Tool("sqlite3", "sqlite3");
const FUSERMOUNT: Need = Need::Tool("fusermount3", "fuse3");
const ZSTD: Need = Need::Tool("zstd", "zstd");

/// A real tree with files of every kind that fits a test: documentation of installed packages.
fn tree() -> &'static Path {
    Path::new("/usr/share/perl")
}

fn transport(options: &[&str]) -> &'static str {
    if options.is_empty() { "io_uring" } else { "/dev/fuse" }
}

both_transports! {
    fn a_tree_is_copied_and_is_the_same_after_remount(place, options) needs [RSYNC] {
        let mounted = place.mount(options);
        tool("cp", &["-a", tree().to_str().expect("UTF-8"), "copy"], &place.target);
        assert_same(tree(), &place.target.join("copy"));
        let said = mounted.unmount();
        assert!(said.contains(transport(options)), "{said}");
        let mounted = place.mount(options);
        assert_same(tree(), &place.target.join("copy"));
        mounted.unmount();
        let checked = warpcore().args(["fs", "check"]).arg(&place.source).output().expect("runs");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }

    fn tar_and_rsync_write_what_they_read(place, options) needs [RSYNC, SETFACL] {
        let mounted = place.mount(options);
        let archive = place.directory.path().join("tree.tar");
        let archive = archive.to_str().expect("UTF-8");
        tool("tar", &["-C", "/usr/share", "-cf", archive, "perl"], Path::new("/"));
        tool("tar", &["-xf", archive], &place.target);
        assert_same(tree(), &place.target.join("perl"));
        tool("rsync", &["-a", "/usr/share/perl/", "synced"], &place.target);
        assert_same(tree(), &place.target.join("synced"));
        // Reads as it writes; "file changed as we read it" would fail it.
        tool("tar", &["-cf", "again.tar", "synced"], &place.target);
        // Lists of access, attributes, links.
        let marked = place.directory.path().join("marked");
        fs::create_dir(&marked).expect("new");
        fs::write(marked.join("file"), [7; 10_000]).expect("writes");
        fs::hard_link(marked.join("file"), marked.join("link")).expect("links");
        let (name, flags) = ("user.mark", rustix::fs::XattrFlags::empty());
        rustix::fs::setxattr(marked.join("file"), name, b"of a user", flags).expect("set");
        tool("setfacl", &["-m", "u:65534:rx", "file"], &marked);
        tool("setfacl", &["-d", "-m", "g:65534:r", "."], &marked);
        let from = format!("{}/", marked.display());
        tool("rsync", &["-aHAX", &from, "marked"], &place.target);
        assert_same(&marked, &place.target.join("marked"));
        mounted.unmount();
    }

    fn git_clones_commits_and_verifies(place, options) needs [GIT] {
        let mounted = place.mount(options);
        let git = |arguments: &[&str], directory: &Path| {
            let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
            tool("git", &[&identity[..], arguments].concat(), directory)
        };
        let origin = place.directory.path().join("origin");
        fs::create_dir(&origin).expect("new");
        git(&["init", "-q"], &origin);
        tool("cp", &["-r", tree().to_str().expect("UTF-8"), "tree"], &origin);
        git(&["add", "."], &origin);
        git(&["commit", "-qm", "one"], &origin);
        git(&["clone", "-q", origin.to_str().expect("UTF-8"), "clone"], &place.target);
        let clone = place.target.join("clone");
        fs::write(clone.join("new"), "line\n").expect("writes");
        git(&["add", "."], &clone);
        git(&["commit", "-qm", "two"], &clone);
        git(&["gc", "-q"], &clone);
        git(&["fsck", "--strict"], &clone);
        assert_eq!(git(&["status", "--porcelain"], &clone), "");
        mounted.unmount();
        let mounted = place.mount(options);
        git(&["fsck", "--strict"], &clone);
        assert_eq!(git(&["status", "--porcelain"], &clone), "");
        mounted.unmount();
    }

    /// The compiler maps its files, the linker writes at random, the result is executed.
    fn cargo_builds_and_runs(place, options) needs [] {
        const MAIN: &str = "fn main() { println!(\"{}\", include_str!(\"text\").len()) }";
        let mounted = place.mount(options);
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let package = place.target.join("package");
        tool(&cargo, &["new", "--quiet", "--vcs", "none", "package"], &place.target);
        for len in [10, 100_000] {
            fs::write(package.join("src/main.rs"), MAIN).expect("writes");
            fs::write(package.join("src/text"), "x".repeat(len)).expect("writes");
            let said = tool(&cargo, &["run", "--quiet", "--offline"], &package);
            assert_eq!(said.trim(), len.to_string());
        }
        mounted.unmount();
    }

    fn sqlite_keeps_its_rows(place, options) needs [SQLITE] {
        let mounted = place.mount(options);
        for (name, mode) in [("rollback", "delete"), ("log", "wal")] {
            let path = place.target.join(name);
            let path = path.to_str().expect("UTF-8");
            let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 20000)";
            let script = format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(i INTEGER PRIMARY KEY, x TEXT);
                 INSERT INTO t {rows} SELECT i, hex(randomblob(20)) FROM n;
                 UPDATE t SET x = 'changed' WHERE i % 7 = 0; DELETE FROM t WHERE i % 5 = 0;"
            );
            tool("sqlite3", &[path, &script], Path::new("/"));
        }
        mounted.unmount();
        let mounted = place.mount(options);
        for name in ["rollback", "log"] {
            let path = place.target.join(name);
            let query = "PRAGMA integrity_check; SELECT count(*), sum(x = 'changed') FROM t;";
            let answer = tool("sqlite3", &[path.to_str().expect("UTF-8"), query], Path::new("/"));
            assert_eq!(answer, "ok\n16000|2286\n", "{name}");
        }
        mounted.unmount();
    }

    /// Locks and the shared memory of the log, by several processes.
    fn sqlite_has_several_writers(place, options) needs [SQLITE] {
        let mounted = place.mount(options);
        for mode in ["wal", "delete"] {
            let create = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(writer INT);");
            tool("sqlite3", &[mode, &create], &place.target);
            thread::scope(|scope| {
                for writer in 0..4 {
                    let insert = format!("INSERT INTO t VALUES ({writer});").repeat(25);
                    let target = &place.target;
                    scope.spawn(move || {
                        let wait = ["-cmd", ".timeout 60000", mode, &insert];
                        tool("sqlite3", &wait, target);
                    });
                }
            });
            let count = "PRAGMA integrity_check; SELECT count(*), sum(writer) FROM t;";
            assert_eq!(tool("sqlite3", &[mode, count], &place.target), "ok\n100|150\n", "{mode}");
        }
        mounted.unmount();
    }

    /// Write beside, sync, rename over: the way of editors; and in place.
    fn editors_replace_and_rewrite(place, options) needs [] {
        let mounted = place.mount(options);
        let path = place.target.join("text");
        fs::write(&path, "one\ntwo\n").expect("writes");
        tool("sed", &["-i", "s/two/three/", "text"], &place.target);
        let beside = place.target.join(".text.swp");
        let mut file = File::create(&beside).expect("creates");
        file.write_all(b"one\nthree\nfour\n").expect("writes");
        file.sync_all().expect("syncs");
        drop(file);
        fs::rename(&beside, &path).expect("renames");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "one\nthree\nfour\n");
        let file = File::options().write(true).truncate(true).open(&path).expect("opens");
        (&file).write_all(b"short").expect("writes");
        drop(file);
        assert_eq!(fs::read(&path).expect("reads"), b"short");
        mounted.unmount();
    }

    fn eight_write_and_read_at_once(place, options) needs [] {
        let mounted = place.mount(options);
        let threads: Vec<_> = (0..8_u64).map(|n| {
            let path = place.target.join(format!("file {n}"));
            thread::spawn(move || {
                let file = File::options().read(true).write(true).create_new(true).open(&path);
                let file = file.expect("creates");
                let mut model = vec![0_u8; 3 << 20];
                let mut x = n + 1;
                for round in 0..400 {
                    x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let offset = usize::try_from(x >> 33).expect("small") % (model.len() - 70_000);
                    let len = usize::try_from(x >> 20).expect("fits") % 70_000;
                    if round % 3 == 2 {
                        let mut bytes = vec![0; len];
                        file.read_at(&mut bytes, offset as u64).expect("reads");
                        let end = bytes.len();
                        // Behind the end of the file nothing is read.
                        assert!(bytes == model[offset..offset + end], "file {n}, round {round}");
                    } else {
                        let byte = u8::try_from(round % 251).expect("below 256");
                        let bytes: Vec<u8> = (0..len).map(|i| if i % 3 == 0 { byte } else {
                            u8::try_from(i % 256).expect("below 256") }).collect();
                        file.write_all_at(&bytes, offset as u64).expect("writes");
                        model[offset..offset + len].copy_from_slice(&bytes);
                    }
                    if round % 100 == 99 {
                        file.sync_data().expect("syncs");
                    }
                }
                file.set_len(model.len() as u64).expect("sets the length");
                drop(file);
                assert!(fs::read(&path).expect("reads") == model, "file {n}");
                (path, model)
            })
        }).collect();
        let all: Vec<_> = threads.into_iter().map(|t| t.join().expect("no panic")).collect();
        mounted.unmount();
        let mounted = place.mount(options);
        for (path, model) in all {
            assert!(fs::read(&path).expect("reads") == model, "{}", path.display());
        }
        mounted.unmount();
    }

    /// What fsync returned for is there after the daemon was killed; nothing else is hurt.
    fn killed_under_load_and_remounted(place, options) needs [] {
        let mounted = place.mount(options);
        let synced = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4).map(|n| {
            let (synced, stop) = (Arc::clone(&synced), Arc::clone(&stop));
            let target = place.target.clone();
            thread::spawn(move || {
                for round in 0.. {
                    let path = target.join(format!("{n}-{round}"));
                    let bytes = format!("writer {n} round {round} ").repeat(2000).into_bytes();
                    let write = || {
                        let mut file = File::create(&path)?;
                        file.write_all(&bytes)?;
                        file.sync_all()
                    };
                    match write() {
                        Ok(()) => synced.lock().expect("not poisoned").push((path, bytes)),
                        Err(_) => return,
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            })
        }).collect();
        while synced.lock().expect("not poisoned").len() < 200 {
            thread::yield_now();
        }
        mounted.kill();
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));

        let mounted = place.mount(options);
        let synced = synced.lock().expect("not poisoned");
        for (path, bytes) in &*synced {
            assert!(&fs::read(path).expect("opens") == bytes, "{}", path.display());
        }
        for entry in fs::read_dir(&place.target).expect("lists") {
            fs::read(entry.expect("an entry").path()).expect("every file opens");
        }
        mounted.unmount();
    }

    /// O_SYNC and O_DSYNC: what write(2) returned for is there after the daemon was killed.
    fn written_synchronously_and_killed(place, options) needs [] {
        for (name, flag) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC)] {
            let mounted = place.mount(options);
            let path = place.target.join(name);
            let mut file = File::options();
            file.write(true).create_new(true).custom_flags(flag);
            let mut file = file.open(&path).expect("creates");
            for line in 0..50 {
                writeln!(file, "line {line}").expect("writes");
            }
            mounted.kill();
            drop(file);
            let mounted = place.mount(options);
            let text = fs::read_to_string(&path).expect("reads");
            assert_eq!(text.lines().last(), Some("line 49"), "{name}");
            mounted.unmount();
        }
    }

    /// Somebody who reads a file that is being replaced sees one version or another, whole.
    fn replaced_while_it_is_read(place, options) needs [] {
        let mounted = place.mount(options);
        let path = place.target.join("name");
        let text = |version: usize| format!("version {version}\n").repeat(3000);
        fs::write(&path, text(0)).expect("writes");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for directory in ["a", "b"] {
                let directory = place.target.join(directory);
                fs::create_dir(&directory).expect("makes");
                let (stop, path) = (&stop, &path);
                scope.spawn(move || {
                    for version in 1.. {
                        let new = directory.join("new");
                        fs::write(&new, text(version)).expect("writes");
                        fs::rename(&new, path).expect("replaces");
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
            }
            for _ in 0..300 {
                let found = fs::read_to_string(&path).expect("always there");
                let line = found.lines().next().expect("never empty");
                assert!(found.lines().all(|other| other == line) && found.lines().count() == 3000);
            }
            stop.store(true, Ordering::Relaxed);
        });
        mounted.unmount();
        assert_eq!(fs::read_dir(&place.source).expect("lists").count(), 3);
    }

    fn plain_files_in_the_source_are_read_and_written_in_place(place, options) needs [] {
        let plain = place.source.join("plain");
        fs::write(&plain, "written before").expect("writes");
        let mounted = place.mount(options);
        let path = place.target.join("plain");
        assert_eq!(fs::read(&path).expect("reads"), b"written before");
        let mut file = File::options().write(true).open(&path).expect("opens");
        file.seek(SeekFrom::End(0)).expect("seeks");
        file.write_all(b" and after").expect("writes");
        file.write_all_at(b"W", 0).expect("writes");
        drop(file);
        let expected = b"Written before and after";
        assert_eq!(fs::read(&path).expect("reads"), expected);
        mounted.unmount();
        assert_eq!(fs::read(&plain).expect("reads"), expected, "in place");
        // Emptied, it is ours to store.
        let mounted = place.mount(options);
        fs::write(&path, "x".repeat(100_000)).expect("writes");
        assert_eq!(fs::read(&path).expect("reads").len(), 100_000);
        mounted.unmount();
        assert!(fs::metadata(&plain).expect("there").len() < 1000, "not compressed");
    }

    /// Whoever writes what looks like ours reads it again, wherever it is kept: in a file of ours, in a
    /// plain one, at its start or piece by piece.
    fn what_looks_like_ours_is_contents_like_any(place, options) needs [] {
        fs::write(place.source.join("plain"), "from before").expect("writes");
        let mounted = place.mount(options);
        fs::write(place.target.join("one"), "text ".repeat(50_000)).expect("writes");
        mounted.unmount();
        let ours = fs::read(place.source.join("one")).expect("reads");
        let (start, rest) = ours.split_at(ours.len() / 2);
        fs::write(place.source.join("half"), start).expect("writes");
        fs::write(place.source.join("long"), [&ours[..], b"more"].concat()).expect("writes");
        let mounted = place.mount(options);
        let mut half = File::options().append(true).open(place.target.join("half")).expect("opens");
        half.write_all(rest).expect("writes");
        let long = File::options().write(true).open(place.target.join("long")).expect("opens");
        long.set_len(ours.len() as u64).expect("cuts");
        drop((half, long));
        let open = |name| File::options().write(true).create(true).truncate(false)
            .open(place.target.join(name)).expect("opens");
        for name in ["plain", "new"] {
            for part in (0..ours.len()).step_by(1000) {
                let bytes = &ours[part..ours.len().min(part + 1000)];
                open(name).write_all_at(bytes, part as u64).expect("writes");
            }
        }
        mounted.unmount();
        assert_eq!(fs::read(place.source.join("plain")).expect("reads"), ours, "stays plain");
        let mounted = place.mount(options);
        for name in ["plain", "new", "half", "long"] {
            assert!(fs::read(place.target.join(name)).expect("reads") == ours, "{name}");
        }
        mounted.unmount();
    }

    /// By a tool that knows no attributes: a file that was closed is known by its head and its newest
    /// commit. The original and the copy are mounted at once.
    fn a_copy_without_attributes_is_the_same(place, options) needs [RSYNC] {
        let mounted = place.mount(options);
        tool("cp", &["-a", tree().to_str().expect("UTF-8"), "tree"], &place.target);
        mounted.unmount();
        let copy = Place::new();
        let (from, to) = (place.source.join("tree"), copy.source.join("tree"));
        let paths = [&from, &to].map(|path| path.to_str().expect("UTF-8"));
        tool("cp", &["-r", "--preserve=mode,ownership,timestamps,links", paths[0], paths[1]],
            Path::new("/"));
        let (mounted, second) = (place.mount(options), copy.mount(options));
        assert_same(&place.target, &copy.target);
        mounted.unmount();
        assert_same(tree(), &copy.target.join("tree"));
        second.unmount();
    }

    /// As those of SELinux and of capabilities may be: ours then lies in a block of its own.
    fn other_attributes_fill_the_inode(place, options) needs [] {
        use rustix::fs::{XattrFlags, setxattr};
        let mounted = place.mount(options);
        let path = place.target.join("file");
        fs::write(&path, "x".repeat(100_000)).expect("writes");
        mounted.unmount();
        for (name, len) in [("trusted.label", 60), ("user.long", 900)] {
            setxattr(place.source.join("file"), name, &vec![b'l'; len], XattrFlags::empty())
                .expect("sets");
            let mounted = place.mount(options);
            let file = File::options().append(true).open(&path).expect("opens");
            (&file).write_all(b"more").expect("writes");
            drop(file);
            mounted.unmount();
        }
        let mounted = place.mount(options);
        let expected = ["x".repeat(100_000), "more".repeat(2)].concat();
        assert!(fs::read(&path).expect("reads") == expected.as_bytes());
        mounted.unmount();
    }

    fn what_is_linear_is_a_zstd_stream(place, options) needs [ZSTD] {
        let mounted = place.mount(options);
        // What comes before its turn waits, up to 16 MiB.
        let mut bytes = fs::read("/proc/self/exe").expect("ourselves");
        bytes.truncate(16 << 20);
        fs::write(place.target.join("large"), &bytes).expect("writes");
        mounted.unmount();
        let output = Command::new("zstd").arg("-dc").stdin(File::open(place.source.join("large"))
            .expect("stored")).output().expect("checked by need");
        assert!(output.stdout == bytes, "{}", String::from_utf8_lossy(&output.stderr));

        let mounted = place.mount(options);
        let file = File::options().write(true).open(place.target.join("large")).expect("opens");
        file.write_all_at(b"changed", 5000).expect("writes");
        drop(file);
        mounted.unmount();
        let output = Command::new("zstd").arg("-dc").stdin(File::open(place.source.join("large"))
            .expect("stored")).output().expect("checked by need");
        assert!(!output.status.success(), "zstd must refuse rather than return old bytes");
    }

    /// The error is told for the damaged bytes, and for them only.
    fn a_damaged_chunk_is_eio_for_its_bytes(place, options) needs [] {
        let mounted = place.mount(options);
        let noise = noise(512 * 1024);
        fs::write(place.target.join("noise"), &noise).expect("writes");
        mounted.unmount();
        let stored = place.source.join("noise");
        let at = fs::read(&stored).expect("reads").windows(16)
            .position(|window| window == &noise[200_000..200_016]).expect("stored raw");
        let file = File::options().write(true).open(&stored).expect("opens");
        file.write_all_at(&[noise[200_000] ^ 1], at as u64).expect("writes");
        drop(file);
        let mounted = place.mount(options);
        let file = File::open(place.target.join("noise")).expect("opens");
        let mut page = vec![0; 4096];
        for offset in (0..noise.len()).step_by(4096) {
            let chunk = 65536 * (200_000 / 65536);
            let result = file.read_exact_at(&mut page, offset as u64);
            if (chunk..chunk + 65536).contains(&offset) {
                assert_eq!(result.expect_err("damaged").raw_os_error(), Some(5), "at {offset}");
            } else {
                result.expect("whole");
                assert!(page == noise[offset..offset + 4096], "at {offset}");
            }
        }
        drop(file);
        let said = mounted.unmount();
        assert!(said.contains("noise: damaged extent at byte "), "{said}");
        let checked = warpcore().args(["fs", "check"]).arg(&place.source).output().expect("runs");
        assert_eq!(checked.status.code(), Some(1));
    }

    fn links_modes_times_and_attributes(place, options) needs [] {
        let mounted = place.mount(options);
        let path = |name: &str| place.target.join(name);
        fs::write(path("a"), "text").expect("writes");
        fs::hard_link(path("a"), path("b")).expect("links");
        fs::write(path("b"), "changed text").expect("writes");
        assert_eq!(fs::read(path("a")).expect("reads"), b"changed text");
        assert_eq!(fs::metadata(path("a")).expect("there").nlink(), 2);
        fs::remove_file(path("a")).expect("removes");
        assert_eq!(fs::read(path("b")).expect("reads"), b"changed text");

        // Open and unlinked: there until closed.
        let mut file = File::options().read(true).write(true).open(path("b")).expect("opens");
        fs::remove_file(path("b")).expect("removes");
        file.write_all(b"CHANGED").expect("writes");
        let mut all = String::new();
        file.rewind().expect("seeks");
        file.read_to_string(&mut all).expect("reads");
        assert_eq!(all, "CHANGED text");
        drop(file);

        fs::write(path("m"), "x").expect("writes");
        fs::set_permissions(path("m"), fs::Permissions::from_mode(0o4755)).expect("chmod");
        fs::write(path("m"), "y").expect("writes");
        let mode = fs::metadata(path("m")).expect("there").permissions().mode();
        // Root keeps set-user-id on a write (CAP_FSETID).
        assert_eq!(mode & 0o777, 0o755);

        let file = File::options().write(true).open(path("m")).expect("opens");
        let past = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
        (&file).write_all(b"written before the time is set").expect("writes");
        file.set_modified(past).expect("utimens");
        drop(file);
        assert_eq!(fs::metadata(path("m")).expect("there").modified().expect("known"), past);

        // statx and poll, which a plain GETATTR has no room for.
        let born = fs::metadata(path("m")).expect("there").created().expect("ext4 and others know");
        let lower = fs::metadata(place.source.join("m")).expect("there").created();
        assert_eq!(born, lower.expect("known"));

        let mut names: Vec<_> = (0..3000).map(|n| format!("{n:0>200}")).collect();
        fs::create_dir(path("many")).expect("mkdir");
        for name in &names {
            File::create(path("many").join(name)).expect("creates");
        }
        let listed = fs::read_dir(path("many")).expect("lists");
        let mut listed: Vec<_> = listed.map(|entry| entry.expect("an entry").file_name()
            .into_string().expect("UTF-8")).collect();
        listed.sort();
        names.sort();
        assert_eq!(listed, names);
        mounted.unmount();
        let metadata = fs::metadata(place.source.join("m")).expect("there");
        assert_eq!(metadata.modified().expect("known"), past, "of the backing file");
    }

    /// A file with a damaged attribute can be seen and removed.
    fn what_is_damaged_can_be_removed(place, options) needs [] {
        let mounted = place.mount(options);
        fs::write(place.target.join("file"), "x".repeat(100_000)).expect("writes");
        mounted.unmount();
        let stored = File::options().write(true).open(place.source.join("file")).expect("opens");
        stored.write_all_at(&[0xff; 32], 0).expect("writes");
        stored.set_len(60).expect("cuts");
        drop(stored);
        let mounted = place.mount(options);
        let path = place.target.join("file");
        assert_eq!(fs::read(&path).expect_err("damaged").raw_os_error(), Some(5));
        fs::remove_file(&path).expect("removes");
        mounted.unmount();
    }

    fn sigterm_and_fusermount_flush_and_unmount(place, options) needs [FUSERMOUNT] {
        let mounted = place.mount(options);
        let file = File::create(place.target.join("open")).expect("creates");
        (&file).write_all(b"never closed").expect("writes");
        // The file is open: the mount goes out of sight, and the daemon ends all the same.
        mounted.signal("-TERM");
        let said = mounted.wait();
        assert!(!said.contains("leaking"), "{said}");
        drop(file);
        let mounted = place.mount(options);
        assert_eq!(fs::read(place.target.join("open")).expect("reads"), b"never closed");
        tool("fusermount3", &["-u", place.target.to_str().expect("UTF-8")], Path::new("/"));
        mounted.wait();
        let mounted = place.mount(options);
        mounted.signal("-INT");
        mounted.wait();
        // The model is a thread that was there before the signals were asked for.
        let mut with_model = warpcore();
        with_model.env("WARPCORE_DEVICES", "model");
        let mounted = place.mount_by(with_model, options);
        mounted.signal("-TERM");
        mounted.wait();
    }
}

#[test]
fn bad_directories_and_options_are_refused_with_their_reason() {
    if !need(&MOUNT) {
        return;
    }
    let place = Place::new();
    let (source, target) = (&place.source, &place.target);
    let mount = |source: &Path, target: &Path| {
        let mut command = warpcore();
        command.arg("mount").arg(source).arg(target);
        command
    };
    let file = place.directory.path().join("file");
    fs::write(&file, "x").expect("writes");
    let full = place.directory.path().join("full");
    fs::create_dir_all(full.join("something")).expect("mkdir");
    let inside = source.join("inside");
    fs::create_dir(&inside).expect("mkdir");

    for (source, target, words) in [
        (Path::new("/nonexistent"), target.as_path(), "source /nonexistent: No such file"),
        (&file, target, "Not a directory"),
        (source, Path::new("/nonexistent"), "mount point /nonexistent: No such file"),
        (source, &file, "Not a directory"),
        (source, &full, "is not empty"),
        (source, &inside, "lies inside"),
        (source, source, "lies inside"),
    ] {
        let said = refused(&mut mount(source, target), 1);
        assert!(said.contains(words), "wanted {words:?}: {said}");
    }
    let said = refused(mount(source, target).args(["-o", "frobnicate"]), 2);
    assert!(said.contains("there is no mount option `frobnicate`"), "{said}");
    let said = refused(mount(source, target).args(["-o", "level=99"]), 2);
    assert!(said.contains("-7 to 19"), "{said}");

    let mounted = place.mount(&[]);
    let second = place.directory.path().join("second");
    fs::create_dir(&second).expect("mkdir");
    let inner = source.join("inner");
    fs::create_dir(&inner).expect("mkdir");
    let outer = place.directory.path();
    let beside = tempfile::tempdir().expect("a temporary directory");
    for source in [source, &inner, outer] {
        let said = refused(&mut mount(source, beside.path()), 1);
        assert!(said.contains("something in it, is mounted"), "{said}");
        for command in ["compact", "compress", "check"] {
            let said = refused(warpcore().args(["fs", command]).arg(source), 1);
            assert!(said.contains("something in it, is mounted"), "{said}");
        }
    }
    for command in ["compact", "compress", "check"] {
        let said = refused(warpcore().args(["fs", command]).arg(target), 1);
        assert!(said.contains("which a mount shows"), "{said}");
    }
    fs::write(target.join("file"), "shown").expect("writes");
    for command in ["cat", "stat"] {
        let mut command = warpcore().args(["fs", command]).arg(target.join("file")).output();
        let output = command.as_mut().expect("runs");
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("which a mount shows") && !output.status.success(), "{said}");
    }
    let said = refused(&mut mount(target, &second), 1);
    assert!(said.contains("lies on a FUSE filesystem"), "{said}");
    mounted.unmount();
}

#[test]
fn a_later_version_is_refused_by_name() {
    if !need(&MOUNT) {
        return;
    }
    let place = Place::new();
    let mounted = place.mount(&[]);
    fs::write(place.target.join("file"), "x".repeat(1000)).expect("writes");
    mounted.unmount();
    let stored = place.source.join("file");
    // As a later version would mark it: the first byte of the attribute.
    let attribute = [9_u8; 24];
    rustix::fs::setxattr(&stored, "user.warpcore", &attribute, rustix::fs::XattrFlags::empty())
        .expect("sets");
    let mounted = place.mount(&[]);
    let error = fs::read(place.target.join("file")).expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(95), "{error}");
    let said = mounted.unmount();
    assert!(said.contains("format version 9"), "{said}");
}
