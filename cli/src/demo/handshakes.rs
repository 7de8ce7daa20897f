//! The proxy's part: full handshakes through the proxy, offloaded and in place in turns.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use warpcore_offload::{Devices, Kernel, together};
use warpcore_runtime::net::{Address, Listener, Stream};
use warpcore_runtime::{Builder, Stopper, spawn, stopper, stopping};
use warpcore_tls::{CertificateConfig, Config, Proxy, Signing, Stats};

use super::{Interrupted, on_device, per_second, row};
use crate::progress::progress;
use crate::{Failure, print};

/// Full handshakes for each way of signing.
const HANDSHAKES: usize = 2_000;
/// Connections at a time.
const CONCURRENT: usize = 64;
/// Each way has its turn this often, so that a machine that slows down slows both.
const ROUNDS: usize = 4;

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

/// Returns the number of handshakes that were verified.
pub(super) fn run(devices: &Devices, interrupted: &Interrupted) -> Result<usize, Failure> {
    print(format_args!(
        "handshakes: full TLS 1.3 handshakes through the proxy, RSA-2048, one core each side"
    ))?;
    let directory = tempfile::Builder::new().prefix("warpcore-demo-").tempdir()?;
    let root = make_certificate(directory.path())?;
    let upstream = Machine::start(1, Devices::none(), |ready| {
        let listener = Listener::bind(Address::Tcp(([127, 0, 0, 1], 0).into()))?;
        let _ = ready.send((listener.local_addr()?, stopper()));
        Ok(async {
            serve_http(listener).await;
            Ok(())
        })
    })?;
    let config = |signing| {
        let certificate = CertificateConfig {
            chain: directory.path().join("certificate.pem"),
            key: directory.path().join("key.pem"),
        };
        let listen = Address::Tcp(([127, 0, 0, 1], 0).into());
        Config { signing, ..Config::single(listen, certificate, &upstream.address) }
    };
    let offloaded = start_proxy(&config(Signing::Offloaded), devices.clone())?;
    let in_place = start_proxy(&config(Signing::InPlace), Devices::none())?;

    let client = client_config(root)?;
    let mut elapsed = [Duration::ZERO; 2];
    let bar = progress("connecting", 2 * HANDSHAKES as u64, "handshakes");
    for _ in 0..ROUNDS {
        for (proxy, elapsed) in [&offloaded, &in_place].into_iter().zip(&mut elapsed) {
            interrupted.check()?;
            let started = Instant::now();
            connect_many(&client, &proxy.address, HANDSHAKES / ROUNDS)?;
            *elapsed += started.elapsed();
            bar.inc((HANDSHAKES / ROUNDS) as u64);
        }
    }
    bar.finish_and_clear();
    let offloaded = offloaded.stop()?;
    let in_place = in_place.stop()?;
    upstream.stop()?;

    let rates = elapsed.map(|elapsed| per_second(HANDSHAKES as u64, elapsed));
    let sign = *offloaded.queue.kernel(Kernel::RsaPrivate);
    row("offloaded", &format!("{:.0} handshakes/s, {CONCURRENT} connections at a time", rates[0]))?;
    row("", &format!("{} signatures in {} batches", sign.requests, sign.batches))?;
    row("", &format!("largest batch {}", sign.batch_len_max))?;
    row("in place", &format!("{:.0} handshakes/s, the synchronous twin", rates[1]))?;
    row("ratio", &format!("{:.2} to signing in place with the library", rates[0] / rates[1]))?;
    for (name, stats) in [("offloaded", &offloaded), ("in place", &in_place)] {
        if stats.handshakes != HANDSHAKES as u64 {
            let count = stats.handshakes;
            return Err(format!("{name}: the proxy counts {count}, not {HANDSHAKES}").into());
        }
    }
    if sign.requests != HANDSHAKES as u64 {
        return Err(format!("{} signatures for {HANDSHAKES} handshakes", sign.requests).into());
    }
    if devices.signs() {
        on_device("signatures", &sign)?;
    }
    if together(Kernel::RsaPrivate).is_none() {
        row("", "this processor has no AVX2 and FMA: without a device, one at a time")?;
    } else if sign.batch_len_max <= 1 {
        return Err("no two signatures were ever in one batch".into());
    }
    Ok(2 * HANDSHAKES)
}

/// A fresh key and its certificate, in files; returns the certificate.
fn make_certificate(directory: &Path) -> Result<CertificateDer<'static>, Failure> {
    let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048)?;
    let key = key.to_pkcs8_pem(LineEnding::LF)?;
    let pair = rcgen::KeyPair::from_pem(&key)?;
    let parameters = rcgen::CertificateParams::new(["localhost".to_owned()])?;
    let certificate = parameters.self_signed(&pair)?;
    let mut file = OpenOptions::new();
    let mut file = file.write(true).create_new(true).mode(0o600).open(directory.join("key.pem"))?;
    file.write_all(key.as_bytes())?;
    fs::write(directory.join("certificate.pem"), certificate.pem())?;
    Ok(certificate.der().clone())
}

/// A shard on a thread of its own, serving until it is stopped.
struct Machine<T> {
    address: Address,
    stopper: Stopper,
    thread: JoinHandle<Result<T, String>>,
}

impl<T: Send + 'static> Machine<T> {
    /// `start` runs on the shard and says where it listens.
    fn start<S, F>(core: usize, devices: Devices, start: S) -> Result<Self, Failure>
    where
        S: FnOnce(mpsc::Sender<(Address, Stopper)>) -> Result<F, Failure> + Send + 'static,
        F: Future<Output = Result<T, String>> + 'static,
    {
        let (send, ready): (_, Receiver<(Address, Stopper)>) = mpsc::channel();
        let thread = thread::spawn(move || {
            let start = Mutex::new(Some((start, send)));
            let builder = Builder::new().shards(1).first_core(core).devices(devices);
            let outputs = builder.run(|_| {
                let taken = start.lock().ok().and_then(|mut start| start.take());
                async move {
                    let (start, send) = taken.expect("one shard takes it once");
                    match start(send) {
                        Ok(serve) => serve.await,
                        Err(failure) => Err(failure.to_string()),
                    }
                }
            });
            let mut outputs = outputs.map_err(|error| error.to_string())?;
            outputs.pop().expect("one shard")
        });
        match ready.recv() {
            Ok((address, stopper)) => Ok(Self { address, stopper, thread }),
            Err(_) => match thread.join() {
                Ok(Err(failure)) => Err(failure.into()),
                _ => Err("a server ended before it started".into()),
            },
        }
    }

    fn stop(self) -> Result<T, Failure> {
        self.stopper.stop();
        match self.thread.join() {
            Ok(result) => Ok(result?),
            Err(_) => Err("a server panicked".into()),
        }
    }
}

fn start_proxy(config: &Config, devices: Devices) -> Result<Machine<Stats>, Failure> {
    let proxy = Arc::new(Proxy::new(config)?);
    Machine::start(0, devices, move |ready| {
        let address = proxy.addresses().remove(0);
        let _ = ready.send((address, stopper()));
        Ok(async move { proxy.serve().await.map_err(|error| error.to_string()) })
    })
}

/// Answers every request with the same few bytes.
async fn serve_http(mut listener: Listener) {
    let accept = spawn(async move {
        while let Ok(stream) = listener.accept().await {
            drop(spawn(async move {
                // The whole request is one small segment here.
                let (received, _) = stream.recv(Vec::with_capacity(4096)).await;
                if received.is_ok_and(|len| len > 0) {
                    let _ = stream.send_all(RESPONSE).await;
                }
            }));
        }
    });
    stopping().await;
    let _ = accept.cancel().await;
}

fn client_config(root: CertificateDer<'static>) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(root)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every handshake a full one.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Makes `count` requests, each on a connection of its own, and checks every answer.
fn connect_many(
    config: &Arc<ClientConfig>,
    address: &Address,
    count: usize,
) -> Result<(), Failure> {
    let (config, address) = (Arc::clone(config), address.clone());
    let outputs = Builder::new().shards(1).first_core(1).run(move |_| {
        let (config, address) = (Arc::clone(&config), address.clone());
        async move {
            let workers: Vec<_> = (0..CONCURRENT)
                .map(|worker| {
                    let (config, address) = (Arc::clone(&config), address.clone());
                    let share = count / CONCURRENT + usize::from(worker < count % CONCURRENT);
                    spawn(async move {
                        for _ in 0..share {
                            request(&config, &address).await?;
                        }
                        Ok::<(), io::Error>(())
                    })
                })
                .collect();
            for worker in workers {
                worker.await.map_err(io::Error::other)??;
            }
            Ok::<(), io::Error>(())
        }
    })?;
    for output in outputs {
        output.map_err(|error| format!("a connection failed: {error}"))?;
    }
    Ok(())
}

/// One connection: handshake, request, answer.
async fn request(config: &Arc<ClientConfig>, address: &Address) -> io::Result<()> {
    let name = ServerName::try_from("localhost").expect("a good name");
    let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    let stream = Stream::connect(address).await?;
    tls.writer().write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut received = BytesMut::new();
    loop {
        let mut records = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut records)?;
        }
        stream.send_all(records).await.0?;
        match tls.reader().read_to_end(&mut answer) {
            // close_notify: the answer is whole.
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        received.clear();
        received.reserve(16 * 1024);
        let (result, bytes) = stream.recv(received).await;
        received = bytes;
        let mut unread: &[u8] = &received;
        // An end without close_notify is told to rustls as an empty read.
        if result? == 0 {
            tls.read_tls(&mut unread)?;
        }
        while !unread.is_empty() {
            tls.read_tls(&mut unread)?;
            tls.process_new_packets().map_err(io::Error::other)?;
        }
    }
    if answer == RESPONSE { Ok(()) } else { Err(io::Error::other("another answer than was sent")) }
}
