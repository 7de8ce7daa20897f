//! A proxy in this process, an upstream of std threads, and clients.

#![allow(dead_code, unreachable_pub, unused_macros, reason = "each test binary uses its part")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use tempfile::TempDir;
use warpcore_offload::Devices;
use warpcore_runtime::net::Address;
use warpcore_runtime::{Builder, Stopper, stopper};
use warpcore_tls::{CertificateConfig, Config, Proxy, Signing, Stats};

/// A fresh RSA-2048 certificate for `localhost`, in files.
pub struct Identity {
    pub directory: TempDir,
    pub root: CertificateDer<'static>,
}

impl Identity {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let key = openssl(&[
            "genpkey",
            "-quiet",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
        ]);
        Self::with_key(directory, &key)
    }

    pub fn with_key(directory: TempDir, key: &[u8]) -> Self {
        let text = std::str::from_utf8(key).expect("PEM is ASCII");
        let pair = rcgen::KeyPair::from_pem(text).expect("a good key");
        let params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a good name");
        let certificate = params.self_signed(&pair).expect("signs itself");
        std::fs::write(directory.path().join("key.pem"), key).expect("written");
        std::fs::write(directory.path().join("cert.pem"), certificate.pem()).expect("written");
        Self { directory, root: certificate.der().clone() }
    }

    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    pub fn pair(&self) -> CertificateConfig {
        CertificateConfig { chain: self.certificate(), key: self.key() }
    }

    pub fn config(&self, upstream: SocketAddr, signing: Signing) -> Config {
        let config = Config::single(LOOPBACK.into(), self.pair(), &upstream.into());
        Config { signing, ..config }
    }
}

/// A free port.
pub const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = std::process::Command::new("openssl").args(arguments).output();
    let output = output.expect("checked by need");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Tests with each driver of handshakes.
macro_rules! both_ways {
    ($($name:ident => $test:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn offloaded() {
                if need(&NEEDS) { $test(Signing::Offloaded); }
            }

            #[test]
            fn in_place() {
                if need(&NEEDS) { $test(Signing::InPlace); }
            }
        }
    )*};
}

/// A proxy that runs until it is stopped.
pub struct Running {
    /// Of the first listener.
    pub address: SocketAddr,
    pub proxy: Arc<Proxy>,
    stopper: Stopper,
    thread: JoinHandle<Stats>,
}

impl Running {
    pub fn start(config: &Config, shards: usize) -> Self {
        Self::start_on(config, shards, Devices::none())
    }

    pub fn start_on(config: &Config, shards: usize, devices: Devices) -> Self {
        Self::run(Proxy::new(config).expect("a good configuration"), shards, devices)
    }

    pub fn run(proxy: Proxy, shards: usize, devices: Devices) -> Self {
        let proxy = Arc::new(proxy);
        let address = match proxy.addresses().remove(0) {
            Address::Tcp(address) => address,
            Address::Unix(_) => LOOPBACK,
        };
        let (send, receive) = mpsc::channel();
        let serving = Arc::clone(&proxy);
        let thread = thread::spawn(move || {
            let builder = Builder::new().shards(shards).devices(devices);
            let outputs = builder.run(move |_| {
                let (proxy, send) = (Arc::clone(&serving), send.clone());
                async move {
                    send.send(stopper()).expect("the test listens");
                    proxy.serve().await.expect("serves")
                }
            });
            let mut sum = Stats::default();
            for stats in outputs.expect("no shard panics") {
                sum.add(&stats);
            }
            sum
        });
        let stopper = receive.recv().expect("the first shard has started");
        for _ in 1..shards {
            receive.recv().expect("every shard has started");
        }
        Self { address, proxy, stopper, thread }
    }

    pub fn stop(self) -> Stats {
        self.stopper.stop();
        self.thread.join().expect("no panic")
    }
}

/// An upstream that runs `serve` on a thread for each connection.
pub fn upstream(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Sends back what it gets, then closes.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

pub fn client_config(
    identity: &Identity,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.root.clone()).expect("a good root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("supported")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every handshake a full one.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

pub fn connect(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
) -> StreamOwned<ClientConnection, TcpStream> {
    connect_to("localhost", config, address)
}

pub fn connect_to(
    name: &'static str,
    config: &Arc<ClientConfig>,
    address: SocketAddr,
) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from(name).expect("a good name");
    let connection = ClientConnection::new(Arc::clone(config), name).expect("a good config");
    let stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("an option");
    StreamOwned::new(connection, stream)
}

/// Sends `message`, closes its side, and returns all that comes back.
pub fn exchange(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    message: &[u8],
) -> std::io::Result<Vec<u8>> {
    talk(connect(config, address), message)
}

/// As [`exchange`], on a connection.
pub fn talk(
    mut stream: StreamOwned<ClientConnection, TcpStream>,
    message: &[u8],
) -> std::io::Result<Vec<u8>> {
    stream.write_all(message)?;
    stream.conn.send_close_notify();
    stream.flush()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
