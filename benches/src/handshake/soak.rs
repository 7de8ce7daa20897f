//! Clients that come, stay for a while, and go in every way they can: whether the proxy's memory grows.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};

use super::client::{self, ClientKind};
use super::load::{self, Ask, Load};
use super::servers::{Identity, Kind, Server};
use crate::harness::{Bench, Effort, OURS, Unit};

/// Half a minute of churn; a quarter of an hour in a full run.
pub(crate) fn run(bench: &mut Bench) -> Result<(), String> {
    let span = match bench.effort() {
        Effort::Full => Duration::from_secs(15 * 60),
        Effort::Quick => Duration::from_secs(30),
    };
    let place = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
    let upstream = load::start_upstream()?;
    let identity = Identity::new(place.path(), 2048)?;
    let server = Server::start(Kind::Warpcore, &identity, upstream, place.path())?;
    let started = Instant::now();
    let mut connections = 0.0;
    let mut first = None;
    let mut last = 0;
    let mut memory = Vec::new();
    while started.elapsed() < span || first.is_none() {
        for (version, resumes) in [(&TLS12, false), (&TLS13, true), (&TLS13, false)] {
            let clients = client::clients(&identity.root, ClientKind { version, resumes })?;
            for ask in [Ask::Connections, Ask::Requests, Ask::Bulk] {
                let span = Duration::from_millis(500);
                let load = Load { clients: &clients, address: server.address, ask, span };
                let done = load.run()?;
                if ask == Ask::Connections {
                    connections += done.count;
                }
            }
        }
        leave_early(&server)?;
        last = server.memory()?;
        // Once everything has been done once, what is kept for the next time is there.
        let at_first = *first.get_or_insert(last);
        let seconds = started.elapsed().as_secs();
        eprintln!("soak: {seconds} s, {connections} connections, {} KiB", last / 1024);
        memory.push(last as f64);
        if last > 2 * at_first {
            return Err(format!("memory has doubled: {at_first} B at first, {last} B now"));
        }
    }
    let first = first.expect("one round");
    bench.record("memory", Unit::Bytes, OURS, memory);
    let percent = (last as f64 / first as f64 - 1.0) * 100.0;
    bench.file("growth since the first round", Unit::Percent, percent);
    Ok(())
}

/// Connections that end before they are anything: at once, in a record, after nonsense.
fn leave_early(server: &Server) -> Result<(), String> {
    for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        for _ in 0..100 {
            let stream = TcpStream::connect(server.address).and_then(|mut stream| {
                stream.write_all(said)?;
                Ok(stream)
            });
            drop(stream.map_err(|error| format!("a client that leaves early: {error}"))?);
        }
    }
    Ok(())
}
