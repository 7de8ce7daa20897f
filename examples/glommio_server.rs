//! A server on glommio that gzips and signs what it answers, both on an offload queue of its thread.
//!
//! `cargo run --release -p warpcore-examples --example glommio_server -- KEY.pem [ADDRESS]` (make a key with
//! `openssl genrsa -out KEY.pem 2048`), then `curl -i --compressed http://127.0.0.1:8080/some/path`.
//! The signature (RSA PSS, SHA-256) is of the compressed body, in hexadecimal, in the header
//! `signature`.

use std::error::Error;
use std::sync::Arc;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement, spawn_local};
use warpcore_examples::http::{Next, answer};
use warpcore_offload::host::Local;
use warpcore_offload::host::glommio::drive;
use warpcore_offload::{Devices, PrivateKey, Queue};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: glommio_server KEY.pem [ADDRESS]")?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let key = PrivateKey::from_pem(&std::fs::read(&path)?).map_err(|e| format!("{path}: {e}"))?;
    let queue = Queue::with_devices(256, &Devices::from_environment()?)?;
    // One executor: for several, one of these each; glommio's listeners share an address.
    let executor = LocalExecutorBuilder::new(Placement::Unbound).make()?;
    executor.run(serve(queue, Arc::new(key), &address))
}

async fn serve(queue: Queue, key: Arc<PrivateKey>, address: &str) -> Result<(), Box<dyn Error>> {
    let (local, driver) = Local::new(queue);
    spawn_local(drive(driver)).detach();
    let listener = TcpListener::bind(address).map_err(|e| format!("{address}: {e}"))?;
    println!("listening on http://{}", listener.local_addr().map_err(|e| e.to_string())?);
    loop {
        let client = listener.accept().await.map_err(|e| format!("accept: {e}"))?;
        let (local, key) = (local.clone(), Arc::clone(&key));
        spawn_local(async move {
            if let Err(error) = talk(client, &local, &key).await {
                eprintln!("a client: {error}");
            }
        })
        .detach();
    }
}

/// Answers one request after the other until the client hangs up.
async fn talk(
    mut client: TcpStream,
    local: &Local,
    key: &Arc<PrivateKey>,
) -> Result<(), Box<dyn Error>> {
    let mut received = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match Next::of(&mut received) {
            Next::More => match client.read(&mut piece).await? {
                0 => return Ok(()),
                len => received.extend_from_slice(&piece[..len]),
            },
            Next::Path(path) => client.write_all(&answer(&path, local, key).await?).await?,
            Next::Refuse(status) => return Ok(client.write_all(status).await?),
        }
    }
}
