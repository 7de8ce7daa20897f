//! A TCP echo server: one listener per core, every connection a task.
//!
//! `cargo run --release -p warpcore-examples --example echo -- 127.0.0.1:7777`, then `nc 127.0.0.1 7777`. Ctrl-C drains.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use warpcore_runtime::net::{Listener, Stream};
use warpcore_runtime::{Builder, spawn, until_stopped};

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("usage: echo ADDRESS:PORT")?;
    let address: SocketAddr = address.parse()?;
    let builder = Builder::new().stop_on_signals(true).drain(Duration::from_secs(5));
    let shards = builder.run(move |shard| serve(shard, address))?;
    let echoed = shards.into_iter().sum::<Result<u64, _>>()?;
    println!("{echoed} connections");
    Ok(())
}

async fn serve(shard: usize, address: SocketAddr) -> std::io::Result<u64> {
    let mut listener = Listener::bind(address)?;
    println!("shard {shard} listens on {}", listener.local_addr()?);
    let mut connections = 0;
    while let Some(stream) = until_stopped(listener.accept()).await {
        drop(spawn(echo(stream?)));
        connections += 1;
    }
    Ok(connections)
}

async fn echo(stream: Stream) {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let (received, bytes) = stream.recv(buffer).await;
        if !received.is_ok_and(|len| len > 0) {
            return;
        }
        let (sent, mut bytes) = stream.send_all(bytes).await;
        if sent.is_err() {
            return;
        }
        bytes.clear();
        buffer = bytes;
    }
}
