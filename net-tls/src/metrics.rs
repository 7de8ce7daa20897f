//! What the proxy does, for Prometheus: its text format, version 0.0.4, at `/metrics` of a listener of
//! its own.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use warpcore_offload::Kernel;
use warpcore_runtime::net::{Listener, Stream};
use warpcore_runtime::{spawn, timeout, until_stopped};

use crate::connection::suite_name;
use crate::listener::{Proxy, lock};
use crate::stats::{ASKED, CLASSES_US, Counter, Durations, SUITES};
use crate::upstream::{Upstream, now_ms};

/// Answers whoever asks, until the machine is asked to stop: who has the socket then may be another
/// process.
pub(crate) async fn serve(proxy: Arc<Proxy>, mut listener: Listener) {
    while let Some(accepted) = until_stopped(listener.accept()).await {
        match accepted {
            Ok(stream) => {
                let proxy = Arc::clone(&proxy);
                drop(spawn(async move {
                    const PATIENCE: Duration = Duration::from_secs(5);
                    let _ = timeout(PATIENCE, answer(&proxy, &stream)).await;
                }));
            }
            Err(error) => {
                tracing::warn!("metrics: cannot accept: {error}; pausing");
                warpcore_runtime::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(proxy: &Proxy, stream: &Stream) {
    const REQUEST_LEN_MAX: usize = 8192;
    let mut request = BytesMut::with_capacity(REQUEST_LEN_MAX);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let (result, buffer) = stream.recv(request).await;
        request = buffer;
        if !matches!(result, Ok(1..)) {
            return;
        }
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") {
        ("200 OK", proxy.metrics())
    } else {
        ("404 Not Found", "see /metrics\n".to_owned())
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.send_all(answer.into_bytes()).await;
}

/// Lines of one name.
struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl<'a> Family<'a> {
    fn new(text: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        write(text, format_args!("# HELP warpcore_{name} {help}\n# TYPE warpcore_{name} {kind}\n"));
        Self { text, name }
    }

    /// `end`: what follows the name.
    fn line(&mut self, end: &str, labels: &str, value: impl std::fmt::Display) {
        let Self { text, name } = self;
        let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
        write(text, format_args!("warpcore_{name}{end}{open}{labels}{close} {value}\n"));
    }
}

fn write(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string grows");
}

/// All that is known now; of the queues and of panics, as it was within the last second.
pub(crate) fn text(proxy: &Proxy) -> String {
    let mut text = String::new();
    counters(proxy, &mut text);
    handshakes(proxy, &mut text);
    queues(proxy, &mut text);
    let active = proxy.active();
    let mut open = Family::new(&mut text, "connections", "gauge", "Open connections.");
    for listening in &proxy.listening {
        let labels = format!("listener=\"{}\"", escape(&listening.address.to_string()));
        open.line("", &labels, listening.usage.connections());
    }
    let help = "Handshakes that have not ended.";
    let mut pending = Family::new(&mut text, "handshakes_pending", "gauge", help);
    for listening in &proxy.listening {
        let labels = format!("listener=\"{}\"", escape(&listening.address.to_string()));
        pending.line("", &labels, listening.usage.handshakes());
    }
    let help = "Whether connections are sent to an upstream.";
    let mut up = Family::new(&mut text, "upstream_up", "gauge", help);
    for (name, pool) in &active.pools {
        for of_address in by_address(&pool.upstreams) {
            let is_up = of_address.iter().any(|upstream| upstream.is_up(now_ms()));
            up.line("", &of_upstream(name, of_address[0]), u8::from(is_up));
        }
    }
    let help = "Connections to an upstream.";
    let mut open = Family::new(&mut text, "upstream_connections", "gauge", help);
    for (name, pool) in &active.pools {
        for of_address in by_address(&pool.upstreams) {
            let sum: usize = of_address.iter().map(|upstream| upstream.connections()).sum();
            open.line("", &of_upstream(name, of_address[0]), sum);
        }
    }
    let sites = || active.sites.iter().flat_map(|sites| sites.all());
    let help = "Until when a certificate is valid, in seconds since 1970.";
    let family = Family::new(&mut text, "certificate_expires_seconds", "gauge", help);
    let certificates = sites().flat_map(|site| site.certificates());
    let chains = certificates.map(|certificate| (certificate.chain.as_path(), certificate.expires));
    of_files(family, "chain", chains);
    let help = "When a newer list of the revoked is due, in seconds since 1970.";
    let family = Family::new(&mut text, "revocation_list_expires_seconds", "gauge", help);
    let lists = sites().flat_map(|site| site.revoked());
    of_files(family, "list", lists.filter_map(|list| Some((list.path.as_path(), list.expires?))));
    text
}

/// One may be there twice, for twice as many connections.
fn by_address(upstreams: &[Arc<Upstream>]) -> Vec<Vec<&Upstream>> {
    let mut all: Vec<Vec<&Upstream>> = Vec::new();
    for upstream in upstreams {
        match all.iter_mut().find(|others| others[0].address == upstream.address) {
            Some(others) => others.push(upstream),
            None => all.push(vec![upstream]),
        }
    }
    all
}

/// A line for each file, of what is over first.
fn of_files<'a>(mut family: Family<'_>, label: &str, files: impl Iterator<Item = (&'a Path, i64)>) {
    let mut files: Vec<_> = files.collect();
    files.sort_unstable();
    files.dedup_by_key(|(path, _)| *path);
    for (path, seconds) in files {
        family.line("", &format!("{label}=\"{}\"", escape(&path.to_string_lossy())), seconds);
    }
}

fn counters(proxy: &Proxy, text: &mut String) {
    let shards = lock(&proxy.counters);
    let mut last = "";
    for counter in Counter::ALL {
        let (name, labels) = counter.name();
        if name != last {
            let kind = format!("# TYPE warpcore_{name}_total counter\n");
            text.push_str(&kind);
            last = name;
        }
        let sum: u64 = shards.iter().map(|counters| counters.get(counter)).sum();
        Family { text, name }.line("_total", labels, sum);
    }
    let help = "Handshakes that ended well, by cipher suite.";
    let mut family = Family::new(text, "handshakes_by_suite_total", "counter", help);
    for suite in SUITES {
        let sum: u64 = shards.iter().map(|counters| counters.with_suite(suite)).sum();
        let labels = format!("suite=\"{}\"", suite_name(suite).expect("known ones"));
        family.line("", &labels, sum);
    }
}

fn handshakes(proxy: &Proxy, text: &mut String) {
    let shards = lock(&proxy.counters);
    let help = "From accept to the end of the handshake.";
    let mut family = Family::new(text, "handshake_seconds", "histogram", help);
    histogram(&mut family, "", shards.iter().map(|counters| &counters.handshakes));
    let help = "From a request of a handshake to an offload queue to its answer.";
    let mut family = Family::new(text, "offload_seconds", "histogram", help);
    for kernel in ASKED {
        let of_shards = shards.iter().map(|counters| counters.asked(kernel));
        histogram(&mut family, &of_kernel(kernel), of_shards);
    }
}

/// Durations of all shards.
fn histogram<'a>(
    family: &mut Family<'_>,
    labels: &str,
    shards: impl Iterator<Item = &'a Durations>,
) {
    let (mut classes, mut us) = ([0; CLASSES_US.len() + 1], 0);
    for (of_shard, of_shard_us) in shards.map(Durations::get) {
        classes.iter_mut().zip(of_shard).for_each(|(sum, class)| *sum += class);
        us += of_shard_us;
    }
    let comma = if labels.is_empty() { "" } else { "," };
    let mut sum = 0;
    for (class, bound) in classes.iter().zip(CLASSES_US) {
        sum += class;
        let bound = bound as f64 / 1e6;
        family.line("_bucket", &format!("{labels}{comma}le=\"{bound}\""), sum);
    }
    sum += classes[CLASSES_US.len()];
    family.line("_bucket", &format!("{labels}{comma}le=\"+Inf\""), sum);
    family.line("_sum", labels, us as f64 / 1e6);
    family.line("_count", labels, sum);
}

fn of_kernel(kernel: Kernel) -> String {
    format!("kernel=\"{}\"", kernel.name())
}

fn queues(proxy: &Proxy, text: &mut String) {
    let (mut queue, mut panics) = (warpcore_offload::Stats::default(), 0);
    for snapshot in lock(&proxy.counters).iter().map(|counters| counters.snapshot()) {
        queue.add(&snapshot.queue);
        panics += snapshot.panics;
    }
    let help = "Tasks that panicked, which is a defect of the proxy's: its log tells where.";
    Family::new(text, "panics_total", "counter", help).line("", "", panics);
    let help = "Requests in the offload queues.";
    Family::new(text, "offload_in_flight", "gauge", help).line("", "", queue.in_flight());
    let help = "Times that an offload queue had no room.";
    Family::new(text, "offload_full_total", "counter", help).line("", "", queue.full);
    let help = "Batches of the offload queues, by their number of requests.";
    let mut family = Family::new(text, "offload_batch_requests", "histogram", help);
    for kernel in ASKED {
        let stats = queue.kernel(kernel);
        let mut sum = 0;
        for (class, bound) in stats.batch_classes.iter().zip(["1", "3", "7", "15", "+Inf"]) {
            sum += class;
            family.line("_bucket", &format!("{},le=\"{bound}\"", of_kernel(kernel)), sum);
        }
        family.line("_sum", &of_kernel(kernel), stats.requests);
        family.line("_count", &of_kernel(kernel), stats.batches);
    }
    let help = "Requests that a device should have done, and software did.";
    let mut family = Family::new(text, "offload_fallbacks_total", "counter", help);
    for kernel in ASKED {
        let stats = queue.kernel(kernel);
        family.line("", &of_kernel(kernel), stats.redone + stats.spilled);
    }
}

fn of_upstream(pool: &str, upstream: &Upstream) -> String {
    let address = escape(&upstream.address.to_string());
    format!("pool=\"{}\",upstream=\"{address}\"", escape(pool))
}

/// As a label's value.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
