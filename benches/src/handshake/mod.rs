//! Full handshakes, requests and bulk through TLS proxies: ours, its synchronous twin, and those that
//! people have, in the same run.
//!
//! ```text
//!   client.rs    one connection, and what it asks for    load.rs       many of them, for a while
//!   servers.rs   who is measured: started, charged, ended    soak.rs    for a long time
//! ```
//!
//! A server has the first core for itself, clients and the upstream the second. Each server is charged
//! what all of its processes have spent, in user and system mode, as the scheduler counts it.

mod client;
mod load;
mod servers;
pub(crate) mod soak;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use rustls::version::{TLS12, TLS13};
use warpcore_tls::LIBRARY;

use crate::harness::{Bench, Effort, Gathered, Unit};
use client::ClientKind;
use load::{Ask, Load};
use servers::{Identity, Kind, Server};

pub(crate) use servers::serve_if_asked;

/// A case of which the first number is what is counted for each CPU second.
struct Case {
    name: &'static str,
    bits: usize,
    client: ClientKind,
    ask: Ask,
}

const FULL_13: &str = "tls1.3 rsa-2048 full";

fn cases() -> Vec<Case> {
    let handshakes = |name, bits, version, resumes| Case {
        name,
        bits,
        client: ClientKind { version, resumes },
        ask: Ask::Connections,
    };
    let on = |name, ask| Case {
        name,
        bits: 2048,
        client: ClientKind { version: &TLS13, resumes: false },
        ask,
    };
    vec![
        handshakes(FULL_13, 2048, &TLS13, false),
        handshakes("tls1.2 rsa-2048 full", 2048, &TLS12, false),
        handshakes("tls1.3 rsa-4096 full", 4096, &TLS13, false),
        handshakes("tls1.3 resumed", 2048, &TLS13, true),
        on("keepalive 1k", Ask::Requests),
        on("bulk", Ask::Bulk),
    ]
}

/// Measures in turns: every server once in a case, then the next case, and all of it again.
pub(crate) fn run(bench: &mut Bench) -> Result<(), String> {
    let full = bench.effort() == Effort::Full;
    let (rounds, span) = match full {
        true => (5, Duration::from_secs(2)),
        false => (1, Duration::from_millis(500)),
    };
    let place = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Err("two cores are needed: one for the servers, one for the clients".to_owned());
    }
    // Two for each idle connection, of the servers too.
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: limit, maximum: limit };
    rustix::process::setrlimit(Resource::Nofile, limit).map_err(|error| error.to_string())?;
    let upstream = load::start_upstream()?;
    let mut all = Vec::new();
    for bits in [2048, 4096] {
        let identity = Identity::new(place.path(), bits)?;
        all.push((bits, start(bench, &identity, upstream, place.path())?, identity));
    }
    // By case, what each server came to.
    let mut samples = Gathered::default();
    for round in 1..=rounds {
        for case in cases() {
            eprintln!("handshake: round {round} of {rounds}, {}", case.name);
            let (_, servers, identity) =
                all.iter().find(|(bits, ..)| *bits == case.bits).expect("one of two");
            let clients = client::clients(&identity.root, case.client)?;
            for server in servers {
                let load = Load { clients: &clients, address: server.address, ask: case.ask, span };
                let before = server.cpu()?;
                let done = load.run().map_err(|error| format!("{}: {error}", server.name()))?;
                let cpu = (server.cpu()? - before).as_secs_f64();
                let per_second = done.count / done.elapsed.as_secs_f64();
                samples.add(case.name, case.ask.per_cpu(), server.name(), done.count / cpu);
                samples.add(
                    &format!("{} rate", case.name),
                    case.ask.rate(),
                    server.name(),
                    per_second,
                );
            }
        }
    }
    if full {
        let (_, servers, identity) = &all[0];
        latencies(&mut samples, servers, identity, span)?;
        memory(&mut samples, servers, identity)?;
    }
    samples.file(bench);
    bench.note("a server has one core, clients and upstream the other; RSA certificates, X25519");
    bench.note(format!("ours has {LIBRARY} for records, and for what is done in place"));
    bench.note("per CPU second: all that a server's processes have spent, user and system");
    if !full {
        bench.note("a short run; --full has five rounds, latency at a given load, and memory");
    }
    Ok(())
}

fn start(
    bench: &mut Bench,
    identity: &Identity,
    upstream: SocketAddr,
    place: &Path,
) -> Result<Vec<Server>, String> {
    let mut servers = Vec::new();
    for kind in Kind::ALL {
        match Server::start(kind, identity, upstream, place) {
            Ok(server) => servers.push(server),
            Err(error) if kind.is_ours() => return Err(error),
            Err(error) => bench.note(format!("without {}: {error}", kind.name())),
        }
    }
    Ok(servers)
}

/// From the moment a client wants to connect until it has shaken hands, when so many come as nginx, or
/// else the twin, could just serve.
fn latencies(
    samples: &mut Gathered,
    servers: &[Server],
    identity: &Identity,
    span: Duration,
) -> Result<(), String> {
    let client = ClientKind { version: &TLS13, resumes: false };
    let clients = client::clients(&identity.root, client)?;
    let rate = format!("{FULL_13} rate");
    let most = ["nginx", "warpcore in place"].iter().find_map(|name| samples.median(&rate, name));
    let most = most.ok_or("no rate to go by")?;
    for percent in [1, 10, 50, 70, 90] {
        eprintln!("handshake: latency at {percent} %");
        for server in servers {
            let load =
                Load { clients: &clients, address: server.address, ask: Ask::Connections, span };
            let mut took = load
                .arrivals(most * f64::from(percent) / 100.0)
                .map_err(|error| format!("{}: {error}", server.name()))?;
            took.sort_unstable();
            for (name, part) in [("p50", 50), ("p99", 99)] {
                let at = (took.len() * part / 100).min(took.len().saturating_sub(1));
                let us = took.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1e6);
                samples.add(&format!("{name} at {percent} %"), Unit::Us, server.name(), us);
            }
        }
    }
    Ok(())
}

/// Of connections that are open and idle.
fn memory(samples: &mut Gathered, servers: &[Server], identity: &Identity) -> Result<(), String> {
    const CONNECTIONS: usize = 8000;
    let client = ClientKind { version: &TLS13, resumes: false };
    let clients = client::clients(&identity.root, client)?;
    for server in servers {
        eprintln!("handshake: {CONNECTIONS} idle connections of {}", server.name());
        let before = server.memory()?;
        let span = Duration::ZERO;
        let load = Load { clients: &clients, address: server.address, ask: Ask::Connections, span };
        let during = load.idle(CONNECTIONS, || server.memory());
        let during = during.map_err(|error| format!("{}: {error}", server.name()))??;
        let each = during.saturating_sub(before) as f64 / CONNECTIONS as f64;
        samples.add("idle connection", Unit::Bytes, server.name(), each);
    }
    Ok(())
}
