//! `warpcore proxy` from the command line: what it refuses, and how it ends.

mod common;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{refused, tool, warpcore};
use rustix::net::sockopt::set_socket_linger;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;
use warpcore_need::{Need, need};

const NEEDS: [Need; 2] = [Need::Tool("openssl", "openssl"), Need::IoUring];

fn identity() -> TempDir {
    let place = tempfile::tempdir().expect("a temporary directory");
    let arguments = "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 1 \
                     -subj /CN=localhost -addext subjectAltName=DNS:localhost \
                     -addext basicConstraints=critical,CA:FALSE";
    tool("openssl", &arguments.split_whitespace().collect::<Vec<_>>(), place.path());
    place
}

fn proxy(place: &Path, key: &Path, listen: &str, upstream: &str) -> Command {
    let mut command = warpcore();
    command.args(["proxy", "--listen", listen, "--upstream", upstream, "--cert"]);
    command.arg(place.join("cert.pem")).arg("--key").arg(key);
    command
}

/// What the child says, line by line: the next one that contains what is asked for.
fn sayings(child: &mut Child) -> impl FnMut(&str) -> String + use<> {
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    move |what| {
        let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains(what));
        line.unwrap_or_else(|| panic!("never said `{what}`"))
    }
}

/// A proxy in front of an echo, what it says, and where it is.
fn serving(place: &Path) -> (Child, impl FnMut(&str) -> String, SocketAddr) {
    let upstream = echoes().to_string();
    let mut command = proxy(place, &place.join("key.pem"), "127.0.0.1:0", &upstream);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
    let mut said = sayings(&mut child);
    let address = address_in(&said("listening on "));
    (child, said, address)
}

fn address_in(line: &str) -> SocketAddr {
    line.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("an address")
}

#[test]
fn bad_input_is_refused_with_its_reason_and_code() {
    if !need(&NEEDS) {
        return;
    }
    let (one, other) = (identity(), identity());
    let key = one.path().join("key.pem");
    let listen = "127.0.0.1:0";

    let mut command = proxy(one.path(), &other.path().join("key.pem"), listen, "127.0.0.1:9");
    let said = refused(&mut command, 1);
    assert!(said.contains("their public keys differ"), "{said}");

    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let address = taken.local_addr().expect("bound").to_string();
    let said = refused(&mut proxy(one.path(), &key, &address, "127.0.0.1:9"), 1);
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");

    let said = refused(&mut proxy(one.path(), &key, "nowhere", "127.0.0.1:9"), 2);
    assert!(said.contains("--listen"), "{said}");
    let said = refused(warpcore().args(["proxy", "--frobnicate"]), 2);
    assert!(said.contains("--frobnicate"), "{said}");
}

#[test]
fn sigterm_drains_and_ends_well() {
    if !need(&NEEDS) {
        return;
    }
    let place = identity();
    let upstream = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let address = upstream.local_addr().expect("bound").to_string();
    let mut command = proxy(place.path(), &place.path().join("key.pem"), "127.0.0.1:0", &address);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    stderr.read_line(&mut line).expect("readable");
    assert!(line.starts_with("listening on 127.0.0.1:"), "{line}");
    tool("kill", &["-TERM", &child.id().to_string()], Path::new("/"));
    assert!(child.wait().expect("ours").success());
    let mut said = String::new();
    stderr.read_to_string(&mut said).expect("readable");
    assert_eq!(said, "0 connections, 0 handshakes, 0 failed, 0 cut off\n");
}

/// As where a journal has been restarted.
#[test]
fn it_ends_well_if_nobody_reads_what_it_says() {
    if !need(&NEEDS) {
        return;
    }
    let place = identity();
    let mut command =
        proxy(place.path(), &place.path().join("key.pem"), "127.0.0.1:0", "127.0.0.1:9");
    let mut child =
        command.env("WARPCORE_LOG", "info").stderr(Stdio::piped()).spawn().expect("starts");
    let mut said = sayings(&mut child);
    said("listening on ");
    drop(said);
    tool("kill", &["-TERM", &child.id().to_string()], Path::new("/"));
    assert!(child.wait().expect("ours").success());
}

/// Two sites, and what `--check` says of them.
fn write_config(place: &Path, pool: &str) -> PathBuf {
    let path = place.join("proxy.toml");
    let text = format!(
        "[pool.web]\nupstreams = [\"127.0.0.1:9\"]\n\n[[listener]]\naddress = \"127.0.0.1:0\"\n\n\
         [[listener.site]]\ncertificates = [{{ chain = \"cert.pem\", key = \"key.pem\" }}]\n\
         pool = \"{pool}\"\n"
    );
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn a_configuration_is_checked_without_listening() {
    if !need(&NEEDS) {
        return;
    }
    let place = identity();
    let config = write_config(place.path(), "web");
    let check = |config: &Path| {
        let mut command = warpcore();
        command.args(["proxy", "--check", "--config"]).arg(config);
        command
    };
    let output = check(&config).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    write_config(place.path(), "wev");
    let said = refused(&mut check(&config), 1);
    let expected = format!(
        "{}:9: listener.0.site.0.pool: no pool is called `wev`; there is web",
        config.display()
    );
    assert!(said.contains(&expected), "{said}");
    write_config(place.path(), "web");
    let good = std::fs::read_to_string(&config).expect("there");
    let (_, listener) = good.split_once("[[listener]]").expect("one");
    let twice = format!("{good}\n[[listener]]{listener}").replace("127.0.0.1:0", "127.0.0.1:1");
    for (text, why) in [
        (&twice, ":12: listener.1.address: 127.0.0.1:1 is listener.0.address too"),
        (&format!("user = \"nobody at all\"\n{good}"), "no user is called `nobody at all`"),
        (&format!("access_log = \"/nowhere/log\"\n{good}"), ":1: access_log: cannot"),
    ] {
        std::fs::write(&config, text).expect("written");
        let said = refused(&mut check(&config), 1);
        assert!(said.contains(why), "{said}");
    }
    std::fs::remove_file(place.path().join("key.pem")).expect("removed");
    write_config(place.path(), "web");
    let said = refused(&mut check(&config), 1);
    assert!(said.contains(":8: listener.0.site.0.certificates.0: cannot read"), "{said}");
    let said = refused(&mut check(Path::new("/nonexistent")), 1);
    assert!(said.contains("cannot read /nonexistent"), "{said}");
}

/// By SIGHUP, and when the files change; a pair that does not fit changes nothing.
#[test]
fn certificates_are_read_again() {
    if !need(&NEEDS) {
        return;
    }
    let (place, other) = (identity(), identity());
    let config = write_config(place.path(), "web");
    let mut command = warpcore();
    let mut child = command.args(["proxy", "--config"]).arg(&config);
    child = child.env("WARPCORE_LOG", "info").stderr(Stdio::piped());
    let mut child = child.spawn().expect("starts");
    let mut said = sayings(&mut child);
    let listening = said("listening on ");
    let address = listening.rsplit(' ').next().expect("an address");
    let shown = || {
        let arguments = ["s_client", "-connect", address, "-servername", "localhost"];
        let mut command = Command::new("openssl");
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let pem = String::from_utf8(output.expect("checked by need").stdout).expect("text");
        let start = pem.find("-----BEGIN").expect("a certificate is shown");
        let end = pem.find("-----END").expect("a whole one");
        pem[start..end].to_owned()
    };
    let file = |place: &TempDir| {
        let pem = std::fs::read_to_string(place.path().join("cert.pem")).expect("there");
        pem[..pem.find("-----END").expect("whole")].to_owned()
    };
    let (old, new) = (file(&place), file(&other));
    assert_eq!(shown(), old);
    tool("kill", &["-HUP", &child.id().to_string()], Path::new("/"));
    said("reloaded");
    // Only half of the pair.
    let copy = |name: &str| {
        let (from, to) = (other.path().join(name), place.path().join(name));
        std::fs::copy(from, to).expect("copied");
    };
    copy("cert.pem");
    said("their public keys differ");
    assert_eq!(shown(), old);
    copy("key.pem");
    said("reloaded");
    assert_eq!(shown(), new);
    tool("kill", &["-TERM", &child.id().to_string()], Path::new("/"));
    assert!(child.wait().expect("ours").success());
}

/// Under load nobody is refused or cut off, and the new process serves when the old one has ended; also
/// on a listener that the old one could not add.
#[test]
fn a_new_process_takes_over() {
    if !need(&NEEDS) {
        return;
    }
    let place = identity();
    let (mut child, mut said, address, config) = to_be_handed_over(place.path());
    let client = client(place.path());
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let next = thread::scope(|scope| {
        let (client, stop, served) = (&client, &stop, &served);
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        echoed(client, address).expect("served");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let wait = || {
            let until = served.load(Ordering::Relaxed) + 50;
            while served.load(Ordering::Relaxed) < until {
                assert!(clients.iter().all(|client| !client.is_finished()), "a client failed");
                thread::yield_now();
            }
        };
        wait();
        let text = std::fs::read_to_string(&config).expect("there");
        let (_, listener) = text.split_once("[[listener]]").expect("one");
        let more = listener.replace(&address.to_string(), "127.0.0.1:0");
        std::fs::write(&config, format!("{text}\n[[listener]]{more}")).expect("written");
        tool("kill", &["-HUP", &child.id().to_string()], Path::new("/"));
        said("listener: not what it was");
        tool("kill", &["-USR2", &child.id().to_string()], Path::new("/"));
        assert!(said("listening on ").ends_with(&address.to_string()));
        let added = said("listening on ");
        let next = said("handed over to process ");
        assert!(child.wait().expect("ours").success());
        said("connections, ");
        wait();
        let added = added.rsplit(' ').next().expect("an address");
        echoed(client, added.parse().expect("an address")).expect("served");
        stop.store(true, Ordering::Relaxed);
        next.rsplit(' ').next().expect("a number").to_owned()
    });
    tool("kill", &["-TERM", &next], Path::new("/"));
    said("connections, ");
}

/// A proxy in front of an echo on a port that stays the same, so that another one asks for it again: with
/// what it says, where it is, and its configuration.
fn to_be_handed_over(
    place: &Path,
) -> (Child, impl FnMut(&str) -> String + use<>, SocketAddr, PathBuf) {
    let config = write_config(place, "web");
    let text = std::fs::read_to_string(&config).expect("there");
    let free = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let address = free.local_addr().expect("bound");
    drop(free);
    let text = text.replace("127.0.0.1:9", &echoes().to_string());
    std::fs::write(&config, text.replace("127.0.0.1:0", &address.to_string())).expect("written");
    let mut command = warpcore();
    command.args(["proxy", "--config"]).arg(&config).env("WARPCORE_LOG", "info");
    let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
    let mut said = sayings(&mut child);
    said("listening on ");
    (child, said, address, config)
}

/// Who has connected when it is told to end is served; who comes later is refused at once.
#[test]
fn draining_under_load_fails_nobody() {
    if need(&NEEDS) {
        drain_under_load(false);
    }
}

/// Nor by the process that took over.
#[test]
fn draining_after_a_hand_over_fails_nobody() {
    if need(&NEEDS) {
        drain_under_load(true);
    }
}

fn drain_under_load(hands_over: bool) {
    let place = identity();
    let (mut child, mut said, address, _) = to_be_handed_over(place.path());
    let mut last = child.id().to_string();
    let client = client(place.path());
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    while let Ok(stream) = TcpStream::connect(address) {
                        echoed_on(&client, stream).expect("who gets in is served");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let wait = || {
            let until = served.load(Ordering::Relaxed) + 100;
            while served.load(Ordering::Relaxed) < until {
                assert!(clients.iter().all(|client| !client.is_finished()), "a client failed");
                thread::yield_now();
            }
        };
        wait();
        if hands_over {
            tool("kill", &["-USR2", &last], Path::new("/"));
            let next = said("handed over to process ");
            next.rsplit(' ').next().expect("a number").clone_into(&mut last);
            assert!(child.wait().expect("ours").success());
            wait();
        }
        tool("kill", &["-TERM", &last], Path::new("/"));
    });
    let mut all = 0;
    for _ in 0..=usize::from(hands_over) {
        let line = said("connections, ");
        let count: u64 = line.split(' ').next().and_then(|word| word.parse().ok()).expect("many");
        assert_eq!(line, format!("{count} connections, {count} handshakes, 0 failed, 0 cut off"));
        all += count;
    }
    assert_eq!(all, served.load(Ordering::Relaxed));
    if !hands_over {
        assert!(child.wait().expect("ours").success());
    }
}

/// Clients that end in every way, at every stage: no descriptor is left of them.
#[test]
fn whoever_hangs_up_leaves_no_descriptor() {
    if !need(&NEEDS) {
        return;
    }
    let place = identity();
    let (mut child, _said, address) = serving(place.path());
    let client = client(place.path());
    let name = || ServerName::try_from("localhost").expect("a good name");
    let descriptors = || {
        let path = format!("/proc/{}/fd", child.id());
        std::fs::read_dir(path).expect("it runs").count()
    };
    echoed(&client, address).expect("served");
    let hang_up = |round: usize| {
        let mut tls = ClientConnection::new(Arc::clone(&client), name()).expect("a good config");
        let mut stream = TcpStream::connect(address).expect("listens");
        if round.is_multiple_of(2) {
            // A reset instead of an end.
            set_socket_linger(&stream, Some(Duration::ZERO)).expect("an option");
        }
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).expect("to memory");
        match round % 5 {
            0 => {}
            1 => stream.write_all(&hello[..round]).expect("sends"),
            // Its signature is in flight, or its answer.
            2 => stream.write_all(&hello).expect("sends"),
            3 => {
                stream.write_all(&hello).expect("sends");
                while tls.is_handshaking() {
                    tls.complete_io(&mut stream).expect("shakes hands");
                }
            }
            _ => {
                stream.write_all(&hello).expect("sends");
                let mut stream = StreamOwned::new(tls, stream);
                stream.write_all(b"he").expect("sends");
                stream.flush().expect("sends");
            }
        }
    };
    let before = descriptors();
    (0..200).for_each(hang_up);
    echoed(&client, address).expect("served");
    let deadline = Instant::now() + Duration::from_secs(20);
    while descriptors() > before {
        assert!(Instant::now() < deadline, "{before} descriptors before, {} now", descriptors());
        thread::yield_now();
    }
    tool("kill", &["-TERM", &child.id().to_string()], Path::new("/"));
    assert!(child.wait().expect("ours").success());
}

/// One that has not served when this one is told to end ends with it.
#[test]
fn a_new_process_that_never_serves_ends_too() {
    if !need(&NEEDS) {
        return;
    }
    let place = identity();
    let (mut child, mut said) = with_a_log_to_read(place.path());
    tool("kill", &["-USR2", &child.id().to_string()], Path::new("/"));
    let next = said(" is to take over");
    let next = next.split("process ").nth(1).and_then(|rest| rest.split(' ').next());
    tool("kill", &["-TERM", &child.id().to_string()], Path::new("/"));
    said("does not serve yet: ended too");
    assert!(child.wait().expect("ours").success());
    assert!(!Path::new("/proc").join(next.expect("a number")).exists(), "it goes on");
}

/// One that serves is not ended with this one, however soon that is told to end.
#[test]
fn a_new_process_that_serves_goes_on() {
    if !need(&NEEDS) {
        return;
    }
    let place = identity();
    let config = write_config(place.path(), "web");
    let mut command = warpcore();
    command.args(["proxy", "--config"]).arg(&config).env("WARPCORE_LOG", "info");
    command.env("NOTIFY_SOCKET", place.path().join("notify"));
    let told = UnixDatagram::bind(place.path().join("notify")).expect("binds");
    told.set_read_timeout(Some(Duration::from_secs(20))).expect("an option");
    let state = || {
        let mut bytes = [0; 100];
        let len = told.recv(&mut bytes).expect("told");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
    let mut said = sayings(&mut child);
    let ready = state();
    assert!(ready.starts_with("READY=1"), "{ready}");
    let pipes = |process: &str| {
        let open = std::fs::read_dir(format!("/proc/{process}/fd")).expect("it runs");
        let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("pipe:")).count()
    };
    let before = pipes(&child.id().to_string());
    tool("kill", &["-USR2", &child.id().to_string()], Path::new("/"));
    let next = state();
    let (_, next) = next.split_once("MAINPID=").expect("the next one's");
    // Until it has told the one before, too.
    while pipes(next) > before {
        thread::yield_now();
    }
    tool("kill", &["-TERM", &child.id().to_string()], Path::new("/"));
    assert!(child.wait().expect("ours").success());
    said("connections, ");
    // It would be killed.
    assert!(Path::new("/proc").join(next).join("exe").exists(), "it is gone");
    tool("kill", &["-TERM", next], Path::new("/"));
    said("connections, ");
}

/// A proxy that has begun to write to a log that nobody reads any more: the next one waits for a reader.
fn with_a_log_to_read(place: &Path) -> (Child, impl FnMut(&str) -> String + use<>) {
    let config = write_config(place, "web");
    let text = std::fs::read_to_string(&config).expect("there");
    std::fs::write(&config, format!("access_log = \"log\"\n{text}")).expect("written");
    tool("mkfifo", &["log"], place);
    let mut command = warpcore();
    command.args(["proxy", "--config"]).arg(&config).env("WARPCORE_LOG", "info");
    let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
    let mut said = sayings(&mut child);
    drop(std::fs::File::open(place.join("log")).expect("opens"));
    said("listening on ");
    (child, said)
}

/// One that never serves, here since nobody reads its log, keeps nothing from going on; another is tried.
#[test]
fn a_new_process_that_never_serves_is_replaced() {
    if !need(&NEEDS) {
        return;
    }
    let place = identity();
    let (mut child, mut said) = with_a_log_to_read(place.path());
    let kill = |signal: &str| tool("kill", &[signal, &child.id().to_string()], Path::new("/"));
    kill("-USR2");
    let first = said(" is to take over");
    let first = first.split("process ").nth(1).and_then(|rest| rest.split(' ').next());
    let first = first.expect("a number").to_owned();
    kill("-USR2");
    said(&format!("process {first}, which was to take over, does not serve yet"));
    said(" is to take over");
    assert!(!Path::new("/proc").join(first).exists(), "it goes on");
    let log = std::fs::File::open(place.path().join("log")).expect("opens");
    let next = said("handed over to process ");
    assert!(child.wait().expect("ours").success());
    said("connections, ");
    tool("kill", &["-TERM", next.rsplit(' ').next().expect("a number")], Path::new("/"));
    said("connections, ");
    drop(log);
}

/// As systemd does it: the socket listens before there is a process, whose every state is told.
#[test]
fn a_service_manager_gives_the_socket_and_is_told() {
    if !need(&NEEDS) {
        return;
    }
    let place = identity();
    let config = write_config(place.path(), "web");
    let socket = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let address = socket.local_addr().expect("bound");
    let text = std::fs::read_to_string(&config).expect("there");
    let text = text.replace("127.0.0.1:9", &echoes().to_string());
    let text = text.replace("127.0.0.1:0", &address.to_string());
    std::fs::write(&config, text).expect("written");
    let told = UnixDatagram::bind(place.path().join("notify")).expect("binds");
    let state = || {
        let mut bytes = [0; 100];
        let len = told.recv(&mut bytes).expect("told");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let early = thread::spawn({
        let client = client(place.path());
        move || echoed(&client, address)
    });
    // What is for one process names it: the shell's number is the program's.
    let script = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_warpcore"), "proxy", "--config"]);
    command.arg(&config).env("NOTIFY_SOCKET", place.path().join("notify"));
    let mut child = command.stdin(OwnedFd::from(socket)).spawn().expect("starts");
    // Else the socket lives on in it.
    drop(command);
    let ready = format!("READY=1\nMAINPID={}", child.id());
    assert_eq!(state(), ready);
    early.join().expect("no panic").expect("served");
    tool("kill", &["-HUP", &child.id().to_string()], Path::new("/"));
    assert_eq!([state(), state()], ["RELOADING=1", "READY=1"]);
    tool("kill", &["-USR2", &child.id().to_string()], Path::new("/"));
    let ready = state();
    let next = ready.strip_prefix("READY=1\nMAINPID=").expect("told by the next one").to_owned();
    assert_ne!(next, child.id().to_string());
    assert!(child.wait().expect("ours").success());
    // That the old one stops was nothing to tell: the manager would stop the whole service.
    let own = UnixDatagram::unbound().expect("a socket");
    own.send_to(b"nothing before this", place.path().join("notify")).expect("sent");
    assert_eq!(state(), "nothing before this");
    echoed(&client(place.path()), address).expect("served");
    tool("kill", &["-TERM", &next], Path::new("/"));
    assert_eq!(state(), "STOPPING=1");
}

/// An upstream that sends five bytes back.
fn echoes() -> SocketAddr {
    let upstream = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let address = upstream.local_addr().expect("bound");
    thread::spawn(move || {
        for mut stream in upstream.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut bytes = [0; 5];
                if stream.read_exact(&mut bytes).is_ok() {
                    let _ = stream.write_all(&bytes);
                }
            });
        }
    });
    address
}

fn client(place: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(place.join("cert.pem")).expect("readable");
    roots.add(root).expect("a good root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("supported")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn echoed(client: &Arc<ClientConfig>, address: SocketAddr) -> io::Result<()> {
    echoed_on(client, TcpStream::connect(address)?)
}

fn echoed_on(client: &Arc<ClientConfig>, stream: TcpStream) -> io::Result<()> {
    let name = ServerName::try_from("localhost").expect("a good name");
    let tls = ClientConnection::new(Arc::clone(client), name).expect("a good config");
    let mut stream = StreamOwned::new(tls, stream);
    stream.write_all(b"hello")?;
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes)?;
    assert_eq!(&bytes, b"hello");
    stream.conn.send_close_notify();
    stream.flush()
}

/// Who comes when no descriptor is left waits until there is one.
#[test]
fn without_descriptors_clients_wait() {
    if !(need(&NEEDS) && need(&[Need::Tool("prlimit", "util-linux")])) {
        return;
    }
    let place = identity();
    let upstream_address = echoes().to_string();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=80:80").arg(env!("CARGO_BIN_EXE_warpcore"));
    command.args(["proxy", "--listen", "127.0.0.1:0", "--upstream", &upstream_address]);
    command.arg("--cert").arg(place.path().join("cert.pem"));
    command.arg("--key").arg(place.path().join("key.pem"));
    let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
    let mut said = sayings(&mut child);
    let address = address_in(&said("listening on "));
    let silent: Vec<_> =
        (0..100).map(|_| TcpStream::connect(address).expect("a backlog takes it")).collect();
    said("cannot accept on ");
    let waiting = thread::spawn({
        let client = client(place.path());
        move || echoed(&client, address)
    });
    drop(silent);
    waiting.join().expect("no panic").expect("served at last");
    tool("kill", &["-TERM", &child.id().to_string()], Path::new("/"));
    assert!(child.wait().expect("ours").success());
}

/// Where others make names, a link of theirs might lead to any file.
#[test]
fn roots_log_goes_by_nobodys_link() {
    if !(need(&NEEDS) && need(&[Need::Root])) {
        return;
    }
    let place = identity();
    let config = write_config(place.path(), "web");
    let text = std::fs::read_to_string(&config).expect("there");
    std::fs::write(&config, format!("access_log = \"logs/access.json\"\n{text}")).expect("written");
    let (logs, other) = (place.path().join("logs"), place.path().join("other"));
    std::fs::create_dir(&logs).expect("made");
    std::fs::set_permissions(&logs, std::fs::Permissions::from_mode(0o777)).expect("ours");
    symlink(&other, logs.join("access.json")).expect("links");
    let said = refused(warpcore().args(["proxy", "--config"]).arg(&config), 1);
    assert!(said.contains("a link leads there") && !other.exists(), "{said}");
    // Nor by one on the way, to a directory that is root's.
    std::fs::remove_dir_all(&logs).expect("ours");
    std::fs::create_dir(&other).expect("made");
    symlink(&other, &logs).expect("links");
    let said = refused(warpcore().args(["proxy", "--config"]).arg(&config), 1);
    assert!(said.contains("a link leads there"), "{said}");
    assert_eq!(std::fs::read_dir(&other).expect("there").count(), 0);
}

/// Keys are read and ports taken as root; then it is somebody else, on every thread, who reads
/// everything again and hands over.
#[test]
fn root_becomes_somebody_else() {
    if !(need(&NEEDS) && need(&[Need::Root])) {
        return;
    }
    let place = identity();
    let config = write_config(place.path(), "web");
    let text = std::fs::read_to_string(&config).expect("there");
    let more = "user = \"nobody\"\naccess_log = \"access.json\"\n";
    std::fs::write(&config, format!("{more}{text}")).expect("written");
    tool("chmod", &["-R", "a+rX", "."], place.path());
    let mut command = warpcore();
    command.args(["proxy", "--config"]).arg(&config).env("WARPCORE_LOG", "info");
    let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
    let mut said = sayings(&mut child);
    said("listening on ");
    let nobody = tool("id", &["-u", "nobody"], Path::new("/"));
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("it runs");
    for task in tasks.map_while(Result::ok) {
        let status = std::fs::read_to_string(task.path().join("status")).expect("it runs");
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("proc(5)");
        assert!(ids.split_whitespace().all(|id| id == nobody.trim()), "{ids}");
    }
    tool("kill", &["-HUP", &child.id().to_string()], Path::new("/"));
    said("reloaded");
    let before = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("it runs").count();
    tool("kill", &["-USR2", &child.id().to_string()], Path::new("/"));
    let next = said("handed over to process ");
    assert!(child.wait().expect("ours").success());
    said("connections, ");
    let next = next.rsplit(' ').next().expect("a number");
    // It has as many cores, not the one of the shard that has started it: a thread for each.
    let tasks = std::fs::read_dir(format!("/proc/{next}/task")).expect("it runs").count();
    assert_eq!(tasks, before);
    tool("kill", &["-TERM", next], Path::new("/"));
    said("connections, ");
}
