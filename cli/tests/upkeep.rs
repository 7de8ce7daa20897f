//! Compressing what was there before, compacting what was rewritten, finding what is damaged.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{MOUNT, Place, assert_same, noise, refused, take_by_power_cut, tool, warpcore};
use warpcore_need::{Need, need};

/// Runs `warpcore fs`, and returns what it prints.
fn upkeep(command: &str, path: &Path) -> String {
    let output = warpcore().args(["fs", command]).arg(path).output().expect("runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// capabilities(7) of a program that may bind ports below 1024, as Python writes it.
const CAPABILITY: &str =
    r"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

fn set_capability(path: &Path) {
    let script =
        format!("import os,sys; os.setxattr(sys.argv[1],'security.capability',b'{CAPABILITY}')");
    tool("python3", &["-c", &script, path.to_str().expect("UTF-8")], Path::new("/"));
}

fn capability_of(path: &Path) -> String {
    let script = "import os,sys; print(os.getxattr(sys.argv[1],'security.capability'))";
    let shown = tool("python3", &["-c", script, path.to_str().expect("UTF-8")], Path::new("/"));
    shown.trim_end().to_owned()
}

#[test]
fn what_was_there_before_is_compressed_and_the_same() {
    if !(need(&MOUNT) && need(&[Need::Tool("rsync", "rsync")])) {
        return;
    }
    let place = Place::new();
    let tree = Path::new("/usr/share/perl");
    tool("cp", &["-a", "/usr/share/perl", "perl"], &place.source);
    let text = "a line of text that is long enough to be found again\n".repeat(1000);
    let name = |name: &str| place.source.join(name);
    for file in ["one", "attributes"] {
        fs::write(name(file), &text).expect("writes");
    }
    fs::hard_link(name("one"), name("two")).expect("links");
    let sparse = File::create(name("sparse")).expect("new");
    sparse.write_all_at(text.as_bytes(), 1 << 30).expect("writes");
    let script = "import os; os.setxattr('attributes','user.x',b'1'); os.utime('attributes',(5,7)); \
                  os.chmod('attributes',0o4711); os.chown('attributes',3,4); \
                  os.chmod('attributes',0o4711)";
    tool("python3", &["-c", script], &place.source);
    set_capability(&name("attributes"));
    // Of a run that was killed; and somebody's own.
    let number = fs::metadata(name("attributes")).expect("there").ino();
    let leftover = name(&format!(".warpcore-compress.{number}"));
    fs::write(&leftover, "half").expect("writes");
    fs::write(name(".warpcore-compress.0"), "mine").expect("writes");

    let said = upkeep("compress", &place.source);
    assert!(said.contains("one: skipped: it has other names"), "{said}");
    assert!(!leftover.exists() && name(".warpcore-compress.0").exists());
    let stat = upkeep("stat", &name("attributes"));
    assert!(stat.contains("Container"), "{stat}");
    let metadata = fs::metadata(name("attributes")).expect("there");
    let kept = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid(), metadata.mtime());
    assert_eq!(kept, (0o4711, 3, 4, 7));
    assert!(fs::metadata(name("sparse")).expect("there").blocks() < 64, "the hole was filled");
    let again = upkeep("compress", &place.source);
    assert!(again.contains("0 files written again"), "{again}");
    let capability = format!("b'{CAPABILITY}'");
    assert_eq!(capability_of(&name("attributes")), capability);
    // By its name alone.
    fs::write(name("alone"), &text).expect("writes");
    let mut command = warpcore();
    let output = command.args(["fs", "compress", "alone"]).current_dir(&place.source).output();
    assert!(output.expect("runs").status.success());

    let mounted = place.mount(&[]);
    for command in ["compress", "check"] {
        let refused = refused(warpcore().args(["fs", command]).arg(&place.source), 1);
        assert!(refused.contains("is mounted, or being worked on"), "{refused}");
    }
    assert_same(tree, &place.target.join("perl"));
    let shown = |name: &str| fs::read(place.target.join(name)).expect("reads");
    assert!(shown("attributes") == text.as_bytes() && shown("two") == text.as_bytes());
    let file = File::open(place.target.join("sparse")).expect("opens");
    let mut found = vec![0; text.len()];
    file.read_exact_at(&mut found, 1 << 30).expect("reads");
    assert!(found == text.as_bytes());
    let value = tool(
        "python3",
        &["-c", "import os; print(os.getxattr('attributes','user.x'))"],
        &place.target,
    );
    assert_eq!(value, "b'1'\n");
    drop(file);
    mounted.unmount();
}

/// With another codec, in other chunks; what a codec does not have is refused.
#[test]
fn what_was_there_before_is_compressed_as_is_said() {
    let place = Place::new();
    let text = "a line of text that is long enough to be found again\n".repeat(10_000);
    fs::write(place.source.join("file"), &text).expect("writes");
    let compress = |arguments: &[&str]| {
        let mut command = warpcore();
        command.args(["fs", "compress"]).arg(&place.source).args(arguments);
        command
    };
    let said = refused(&mut compress(&["--codec", "deflate", "--level", "12"]), 1);
    assert!(said.contains("deflate has no level 12"), "{said}");
    let said = refused(&mut compress(&["--chunk", "5k"]), 2);
    assert!(said.contains("4k, 8k"), "{said}");
    let output = compress(&["--codec", "deflate", "--level", "9", "--chunk", "16k"]).output();
    assert!(output.expect("runs").status.success());
    let stat = upkeep("stat", &place.source.join("file"));
    let stored = format!("deflate   {} bytes as ", text.len());
    let extents = format!("extents   {}", text.len().div_ceil(16 << 10));
    assert!(stat.contains(&stored) && stat.contains(&extents), "{stat}");
    // What cannot be told is not passed over.
    let full = File::options().write(true).open("/dev/full").expect("there");
    let said = refused(warpcore().args(["fs", "stat"]).arg(&place.source).stdout(full), 1);
    assert!(said.contains("standard output: No space left"), "{said}");
}

#[test]
fn what_was_rewritten_is_compacted_and_linear_again() {
    if !(need(&MOUNT) && need(&[Need::Tool("zstd", "zstd")])) {
        return;
    }
    let place = Place::new();
    let mounted = place.mount(&[]);
    let mut contents = fs::read("/proc/self/exe").expect("ourselves")[..2 << 20].to_vec();
    let path = place.target.join("file");
    fs::write(&path, &contents).expect("writes");
    let file = File::options().write(true).open(&path).expect("opens");
    for n in 0..300 {
        let at = n * 6_007;
        contents[at..at + 100].fill(7);
        file.write_all_at(&[7; 100], at as u64).expect("writes");
        file.sync_data().expect("syncs");
    }
    drop(file);
    let modified = fs::metadata(&path).expect("there").mtime();
    mounted.unmount();
    let stored = place.source.join("file");
    let before = fs::metadata(&stored).expect("there").len();
    let dead = |stat: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix("dead"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("{stat}"))
    };
    let stat = upkeep("stat", &stored);
    assert!(stat.contains("linear    false") && dead(&stat) > 10_000, "{stat}");
    set_capability(&stored);
    upkeep("compact", &place.source);
    assert_eq!(capability_of(&stored), format!("b'{CAPABILITY}'"));
    let stat = upkeep("stat", &stored);
    assert!(stat.contains("linear    true"), "{stat}");
    assert_eq!(dead(&stat), 0);
    let after = fs::metadata(&stored).expect("there");
    assert!(after.len() < before / 2, "{} of {before}", after.len());
    assert_eq!(after.mtime(), modified);
    tool("sh", &["-c", "zstd -dcq file > plain"], &place.source);
    assert!(fs::read(place.source.join("plain")).expect("reads") == contents);
    let again = upkeep("compact", &place.source);
    assert!(again.contains("0 files written again"), "{again}");
    let mounted = place.mount(&[]);
    assert!(fs::read(&path).expect("reads") == contents);
    mounted.unmount();
}

/// Its lost part is found as it is compacted: that is cut, as by whoever writes to it.
#[test]
fn what_a_power_cut_has_left_is_compacted() {
    const SYNCED: usize = 100_000;
    if !need(&MOUNT) {
        return;
    }
    let place = Place::new();
    let [path, stored] = [&place.target, &place.source].map(|directory| directory.join("file"));
    let bytes = noise(300_000);
    let mounted = place.mount(&[]);
    let mut file = File::create(&path).expect("created");
    file.write_all(&bytes[..SYNCED]).expect("written");
    file.sync_all().expect("synced");
    file.write_all_at(&bytes[..100], 0).expect("written again");
    file.sync_all().expect("synced");
    file.write_all(&bytes[SYNCED..]).expect("written");
    drop(file);
    mounted.unmount();
    take_by_power_cut(&stored, 200_000, 4096);
    let printed = upkeep("compact", &stored);
    assert!(printed.contains("1 files written again"), "{printed}");
    let mounted = place.mount(&[]);
    let left = fs::read(&path).expect("opens");
    assert!((SYNCED..bytes.len()).contains(&left.len()) && bytes.starts_with(&left));
    mounted.unmount();
}

/// Of a copy for which there is no room nothing is left.
#[test]
fn compacting_on_a_full_disk_takes_nothing_of_it() {
    if !need(&MOUNT) {
        return;
    }
    struct Tmpfs<'a>(&'a Place);
    impl Drop for Tmpfs<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0.source).output();
        }
    }
    let place = Place::new();
    let source = place.source.to_str().expect("UTF-8");
    tool("mount", &["-t", "tmpfs", "-o", "size=15m", "none", source], Path::new("/"));
    let _lower = Tmpfs(&place);
    let mounted = place.mount(&[]);
    // More chunks than a record has extents.
    let mut contents = noise(8 << 20);
    let path = place.target.join("file");
    fs::write(&path, &contents).expect("writes");
    let file = File::options().write(true).open(&path).expect("opens");
    for at in [1 << 20, 2 << 20] {
        contents[at..at + 100].fill(7);
        file.write_all_at(&[7; 100], at as u64).expect("writes");
        file.sync_data().expect("syncs");
    }
    drop(file);
    mounted.unmount();
    let stored = place.source.join("file");
    let before = fs::metadata(&stored).expect("there").blocks();
    let output = warpcore().args(["fs", "compact"]).arg(&place.source).output().expect("runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && printed.contains("No space left"), "{printed}");
    let after = fs::metadata(&stored).expect("there").blocks();
    assert!(after <= before + 16, "{before} blocks before, {after} now");
    let mounted = place.mount(&[]);
    assert!(fs::read(&path).expect("reads") == contents);
    mounted.unmount();
}

/// By its own name or by that of a link.
#[test]
fn a_link_is_what_it_leads_to() {
    let place = Place::new();
    let [directory, link, fifo] = ["files", "link", "fifo"].map(|name| place.source.join(name));
    fs::create_dir(&directory).expect("made");
    fs::write(directory.join("plain"), "plain").expect("writes");
    symlink(&directory, &link).expect("links");
    for path in [&directory, &link, &directory.join("plain")] {
        assert!(upkeep("check", path).contains("1 files verified, 0 damaged"), "{path:?}");
        assert!(upkeep("stat", path).contains("files     1 (1 plain)"), "{path:?}");
    }
    tool("mkfifo", &[fifo.to_str().expect("UTF-8")], Path::new("/"));
    let said = refused(warpcore().args(["fs", "stat"]).arg(&fifo), 1);
    assert!(said.contains("neither a file nor a directory"), "{said}");
}

#[test]
fn scrub_names_what_cannot_be_read() {
    if !need(&MOUNT) {
        return;
    }
    let place = Place::new();
    let mounted = place.mount(&[]);
    for name in ["good", "bad"] {
        fs::write(place.target.join(name), "text ".repeat(10_000)).expect("writes");
    }
    mounted.unmount();
    let stored = File::options().write(true).open(place.source.join("bad")).expect("opens");
    stored.write_all_at(b"?", 40).expect("writes");
    let mounted = place.mount(&[]);
    let output = warpcore().args(["fs", "scrub"]).arg(&place.target).output().expect("runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(printed.contains("/bad: ") && printed.contains("1 files read, 1 damaged"), "{printed}");
    // What is stored reads well, whatever it is.
    let said = refused(warpcore().args(["fs", "scrub"]).arg(&place.source), 1);
    assert!(said.contains("no mount of warpcore shows it"), "{said}");
    mounted.unmount();
}
