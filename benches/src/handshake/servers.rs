//! Who is measured: each a process group of its own on the first core.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use warpcore_runtime::Builder;
use warpcore_tls::{CertificateConfig, Config, Proxy, Signing};

/// A proxy for TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Warpcore,
    /// Ours, signing where it is.
    InPlace,
    Nginx,
    Haproxy,
    Hitch,
    Envoy,
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::Warpcore, Self::InPlace, Self::Nginx, Self::Haproxy, Self::Hitch, Self::Envoy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Warpcore => crate::harness::OURS,
            Self::InPlace => "warpcore in place",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Hitch => "hitch",
            Self::Envoy => "envoy",
        }
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Warpcore | Self::InPlace)
    }
}

/// A certificate for `localhost` and its key, in files.
pub(super) struct Identity {
    pub(super) root: CertificateDer<'static>,
    chain: PathBuf,
    key: PathBuf,
    /// Both in one file, as some want them.
    both: PathBuf,
    bits: usize,
}

impl Identity {
    pub(super) fn new(place: &Path, bits: usize) -> Result<Self, String> {
        let [chain, key, both] =
            ["chain", "key", "both"].map(|name| place.join(format!("{name}-{bits}.pem")));
        let algorithm = format!("rsa:{bits}");
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
        openssl.args(["-addext", "subjectAltName=DNS:localhost", "-newkey", &algorithm]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl.arg("-keyout").arg(&key).arg("-out").arg(&chain);
        let output = openssl.output().map_err(|error| format!("openssl: {error}"))?;
        if !output.status.success() {
            return Err(format!("openssl: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let read = |path: &Path| fs::read(path).map_err(|error| error.to_string());
        let pem = read(&chain)?;
        fs::write(&both, [read(&key)?, pem.clone()].concat()).map_err(|error| error.to_string())?;
        let root = CertificateDer::from_pem_slice(&pem).map_err(|error| error.to_string())?;
        Ok(Self { root, chain, key, both, bits })
    }
}

/// One that runs. Ended when it is dropped.
pub(super) struct Server {
    kind: Kind,
    pub(super) address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts it and waits until it listens.
    pub(super) fn start(
        kind: Kind,
        identity: &Identity,
        upstream: SocketAddr,
        place: &Path,
    ) -> Result<Self, String> {
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr());
        let address = free.map_err(|error| error.to_string())?;
        let file = place.join(format!("{}-{}.yaml", kind.name().replace(' ', "-"), identity.bits));
        // Envoy goes by the ending; the others do not care.
        let log = file.with_extension("log");
        let mut command = command(kind, identity, address, upstream, &file)?;
        // The first core: a child has its parent's affinity, and the clients' shards set their own.
        let core = first_core();
        // SAFETY: one system call between fork and exec, on a set that was made before.
        unsafe {
            command.pre_exec(move || Ok(rustix::thread::sched_setaffinity(None, &core)?));
        }
        let stderr = fs::File::create(&log).map_err(|error| error.to_string())?;
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = command.spawn().map_err(|error| format!("it is not installed: {error}"))?;
        let mut server = Self { kind, address, child };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || started.elapsed() > Duration::from_secs(10) {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let last = said.trim().lines().next_back().unwrap_or_default();
                return Err(format!("it does not listen: {last}"));
            }
            std::thread::yield_now();
        }
        Ok(server)
    }

    pub(super) fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// What its processes have spent.
    pub(super) fn cpu(&self) -> Result<Duration, String> {
        let mut ns = 0;
        for process in self.processes()? {
            // A thread that ends meanwhile has spent nothing worth mentioning.
            for task in fs::read_dir(process.join("task")).into_iter().flatten().flatten() {
                // Of proc(5): nanoseconds on a processor come first.
                let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                ns += text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0_u64);
            }
        }
        Ok(Duration::from_nanos(ns))
    }

    /// Memory of its processes in bytes, what they share counted once.
    pub(super) fn memory(&self) -> Result<u64, String> {
        let mut kib = 0;
        for process in self.processes()? {
            let text = fs::read_to_string(process.join("smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            kib += number.unwrap_or(0_u64);
        }
        Ok(kib * 1024)
    }

    /// Directories of proc(5) of its process group.
    fn processes(&self) -> Result<Vec<PathBuf>, String> {
        let group = self.child.id().to_string();
        let all = fs::read_dir("/proc").map_err(|error| format!("/proc: {error}"))?;
        let is_of_group = |path: &PathBuf| {
            let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
            // Behind the name, which may hold anything: state, parent, group.
            let words = stat.rsplit_once(") ").map(|(_, words)| words.to_owned());
            words.is_some_and(|words| words.split(' ').nth(2) == Some(&group))
        };
        Ok(all.flatten().map(|entry| entry.path()).filter(is_of_group).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id())
            && let Some(group) = Pid::from_raw(group)
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn first_core() -> rustix::thread::CpuSet {
    let mut core = rustix::thread::CpuSet::new();
    core.set(0);
    core
}

/// How each is told the same: one certificate, X25519, one worker, one upstream.
fn command(
    kind: Kind,
    identity: &Identity,
    address: SocketAddr,
    upstream: SocketAddr,
    file: &Path,
) -> Result<Command, String> {
    let (chain, key, both) =
        (identity.chain.display(), identity.key.display(), identity.both.display());
    let (port, upstream_port) = (address.port(), upstream.port());
    let write = |text: String| fs::write(file, text).map_err(|error| error.to_string());
    Ok(match kind {
        Kind::Warpcore | Kind::InPlace => {
            let own = std::env::current_exe().map_err(|error| error.to_string())?;
            let mut command = Command::new(own);
            let way = if kind == Kind::InPlace { "in place" } else { "offloaded" };
            command.env(SERVE, way).env(format!("{SERVE}_LISTEN"), address.to_string());
            command.env(format!("{SERVE}_UPSTREAM"), upstream.to_string());
            command.env(format!("{SERVE}_CHAIN"), &identity.chain);
            command.env(format!("{SERVE}_KEY"), &identity.key);
            command
        }
        Kind::Nginx => {
            let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
            let load = match Path::new(module).exists() {
                true => format!("load_module {module};"),
                false => String::new(),
            };
            write(format!(
                "{load} daemon off; worker_processes 1; pid {}; error_log stderr error;\n\
                 events {{ worker_connections 40000; }}\n\
                 stream {{ server {{ listen 127.0.0.1:{port} ssl backlog=4096;\n\
                 ssl_certificate {chain}; ssl_certificate_key {key};\n\
                 ssl_protocols TLSv1.2 TLSv1.3; ssl_ecdh_curve X25519; ssl_session_tickets on;\n\
                 proxy_pass 127.0.0.1:{upstream_port}; }} }}\n",
                file.with_extension("pid").display()
            ))?;
            let mut command = Command::new("nginx");
            command.arg("-e").arg("stderr").arg("-c").arg(file);
            command
        }
        Kind::Haproxy => {
            write(format!(
                "global\n nbthread 1\n maxconn 9000\n\
                 defaults\n mode tcp\n timeout connect 5s\n timeout client 300s\n\
                 timeout server 300s\n\
                 frontend front\n bind 127.0.0.1:{port} ssl crt {both} curves X25519 backlog 4096\n\
                 default_backend back\n\
                 backend back\n server one 127.0.0.1:{upstream_port}\n"
            ))?;
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(file);
            command
        }
        Kind::Hitch => {
            write(format!(
                "frontend = \"[127.0.0.1]:{port}\"\nbackend = \"[127.0.0.1]:{upstream_port}\"\n\
                 pem-file = \"{both}\"\nworkers = 1\ndaemon = off\nuser = \"nobody\"\n\
                 tls-protos = TLSv1.2 TLSv1.3\nbacklog = 4096\necdh-curve = \"X25519\"\n\
                 ocsp-dir = \"\"\n"
            ))?;
            let mut command = Command::new("hitch");
            command.arg(format!("--config={}", file.display()));
            command
        }
        Kind::Envoy => {
            write(envoy(&identity.chain, &identity.key, port, upstream_port))?;
            let mut command = Command::new("envoy");
            command.args(["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"]);
            command.arg("-c").arg(file);
            command
        }
    })
}

fn envoy(chain: &Path, key: &Path, port: u16, upstream_port: u16) -> String {
    let address =
        |port: u16| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    let (front, back) = (address(port), address(upstream_port));
    format!(
        "static_resources:\n\
         \x20 listeners:\n\
         \x20 - address: {front}\n\
         \x20   filter_chains:\n\
         \x20   - filters:\n\
         \x20     - name: envoy.filters.network.tcp_proxy\n\
         \x20       typed_config:\n\
         \x20         '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n\
         \x20         stat_prefix: tcp\n\
         \x20         cluster: back\n\
         \x20     transport_socket:\n\
         \x20       name: envoy.transport_sockets.tls\n\
         \x20       typed_config:\n\
         \x20         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n\
         \x20         common_tls_context:\n\
         \x20           tls_params: {{tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3, ecdh_curves: [X25519]}}\n\
         \x20           tls_certificates:\n\
         \x20           - certificate_chain: {{filename: '{}'}}\n\
         \x20             private_key: {{filename: '{}'}}\n\
         \x20 clusters:\n\
         \x20 - name: back\n\
         \x20   load_assignment:\n\
         \x20     cluster_name: back\n\
         \x20     endpoints: [{{lb_endpoints: [{{endpoint: {{address: {back}}}}}]}}]\n",
        chain.display(),
        key.display()
    )
}

/// Set for a process that is to be one of our servers.
const SERVE: &str = "WARPCORE_BENCH_SERVE";

/// Serves until it is killed, if this process was started for that.
pub(crate) fn serve_if_asked() -> Option<Result<(), String>> {
    let way = std::env::var(SERVE).ok()?;
    Some(serve(&way))
}

fn serve(way: &str) -> Result<(), String> {
    let said = |name: &str| {
        std::env::var(format!("{SERVE}_{name}")).map_err(|error| format!("{name}: {error}"))
    };
    let parse = |text: String| text.parse().map_err(|error| format!("{text}: {error}"));
    let certificate = CertificateConfig { chain: said("CHAIN")?.into(), key: said("KEY")?.into() };
    let (listen, upstream) = (parse(said("LISTEN")?)?, parse(said("UPSTREAM")?)?);
    let signing = if way == "in place" { Signing::InPlace } else { Signing::Offloaded };
    let config = Config { signing, ..Config::single(listen, certificate, &upstream) };
    let proxy = Arc::new(Proxy::new(&config).map_err(|error| error.to_string())?);
    let outputs = Builder::new().shards(1).run(move |_| {
        let proxy = Arc::clone(&proxy);
        async move { proxy.serve().await.map_err(|error| error.to_string()) }
    });
    let outputs = outputs.map_err(|error| error.to_string())?;
    outputs.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
}
