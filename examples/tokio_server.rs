//! A server on tokio that gzips and signs what it answers, both on an offload queue of its thread.
//!
//! `cargo run --release --example tokio_server -- KEY.pem [ADDRESS]` (make a key with
//! `openssl genrsa -out KEY.pem 2048`), then `curl -i --compressed http://127.0.0.1:8080/some/path`.
//! The signature (RSA PSS, SHA-256) is of the compressed body, in hexadecimal, in the header
//! `signature`.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};
use warpcore_offload::host::Local;
use warpcore_offload::host::tokio::drive;
use warpcore_offload::{Codec, Compress, Devices, PrivateKey, Queue, Scheme, Sign};

/// The longest head of a request.
const HEAD_LEN_BYTES_MAX: usize = 8 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: tokio_server KEY.pem [ADDRESS]")?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let key = PrivateKey::from_pem(&std::fs::read(&path)?).map_err(|e| format!("{path}: {e}"))?;
    // One thread: for several, one of these each, with `SO_REUSEPORT`.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let queue = Queue::with_devices(256, &Devices::from_environment()?)?;
    LocalSet::new().block_on(&runtime, serve(queue, Arc::new(key), &address))
}

async fn serve(queue: Queue, key: Arc<PrivateKey>, address: &str) -> Result<(), Box<dyn Error>> {
    let (local, driver) = Local::new(queue);
    drop(spawn_local(drive(driver)));
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let (client, _) = listener.accept().await?;
        let (local, key) = (local.clone(), Arc::clone(&key));
        drop(spawn_local(async move {
            if let Err(error) = talk(client, &local, &key).await {
                eprintln!("a client: {error}");
            }
        }));
    }
}

/// Answers one request after the other until the client hangs up.
async fn talk(
    mut client: TcpStream,
    local: &Local,
    key: &Arc<PrivateKey>,
) -> Result<(), Box<dyn Error>> {
    let mut received = Vec::new();
    loop {
        let Some(len) = head_len(&received) else {
            if received.len() > HEAD_LEN_BYTES_MAX {
                client.write_all(b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n").await?;
                return Ok(());
            }
            if client.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head = String::from_utf8_lossy(&received[..len]).into_owned();
        received.drain(..len);
        let path = match head.split_once(' ') {
            Some(("GET", rest)) => rest.split(' ').next().unwrap_or("/"),
            _ => {
                client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n\r\n").await?;
                return Ok(());
            }
        };
        let body = format!("You asked for {path}.\n").repeat(100).into_bytes();
        let answer = answer(body, local, key).await?;
        client.write_all(&answer).await?;
    }
}

/// Where the head of a request ends, once it is all there.
fn head_len(received: &[u8]) -> Option<usize> {
    received.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The body, compressed and signed. While this waits, other clients are served, and what they sign
/// meanwhile goes in the same vectors.
async fn answer(
    body: Vec<u8>,
    local: &Local,
    key: &Arc<PrivateKey>,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let target = vec![0; Codec::Gzip.bound(body.len())];
    let request = Compress { codec: Codec::Gzip, level: 6, source: body, target };
    let compressed = local.submit(request).await;
    let mut body = compressed.target;
    body.truncate(compressed.result?);
    let signed = local.submit(Sign::new(Arc::clone(key), Scheme::PssSha256, body)).await;
    let mut head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n".to_owned();
    write!(head, "Content-Length: {}\r\nsignature: ", signed.message.len())?;
    for byte in signed.result?.as_ref() {
        write!(head, "{byte:02x}")?;
    }
    head.push_str("\r\n\r\n");
    Ok([head.into_bytes(), signed.message].concat())
}
