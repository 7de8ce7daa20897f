//! `warpcore proxy` from the command line: what it refuses, and how it ends.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{refused, tool, warpcore};
use tempfile::TempDir;
use warpcore_need::{Need, need};

const NEEDS: [Need; 2] = [Need::Tool("openssl", "openssl"), Need::IoUring];

fn identity() -> TempDir {
    let place = tempfile::tempdir().expect("a temporary directory");
    let arguments = "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 1 \
                     -subj /CN=localhost -addext subjectAltName=DNS:localhost";
    tool("openssl", &arguments.split_whitespace().collect::<Vec<_>>(), place.path());
    place
}

fn proxy(place: &Path, key: &Path, listen: &str, upstream: &str) -> Command {
    let mut command = warpcore();
    command.args(["proxy", "--listen", listen, "--upstream", upstream, "--cert"]);
    command.arg(place.join("cert.pem")).arg("--key").arg(key);
    command
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

/// Two sites, and what `--check` says of them.
fn write_config(place: &Path, pool: &str) -> std::path::PathBuf {
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
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut said = |what: &str| {
        let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains(what));
        line.unwrap_or_else(|| panic!("never said `{what}`"))
    };
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
