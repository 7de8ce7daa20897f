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
