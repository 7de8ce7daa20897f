//! A server on tokio that gzips and signs what it answers, both on an offload queue of its thread.
//!
//! `cargo run --release -p warpcore-examples --example tokio_server -- KEY.pem [ADDRESS]` (make a key with
//! `openssl genrsa -out KEY.pem 2048`), then `curl -i --compressed http://127.0.0.1:8080/some/path`.
//! The signature (RSA PSS, SHA-256) is of the compressed body, in hexadecimal, in the header
//! `signature`.

use std::error::Error;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};
use warpcore_examples::http::{Next, answer};
use warpcore_offload::host::Local;
use warpcore_offload::host::tokio::drive;
use warpcore_offload::{Devices, PrivateKey, Queue};

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
        match Next::of(&mut received) {
            Next::More => {
                if client.read_buf(&mut received).await? == 0 {
                    return Ok(());
                }
            }
            Next::Path(path) => client.write_all(&answer(&path, local, key).await?).await?,
            Next::Refuse(status) => return Ok(client.write_all(status).await?),
        }
    }
}
