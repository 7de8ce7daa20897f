//! A TCP echo server: one listener per core, every connection a task.
//!
//! `cargo run --release --example echo -- 127.0.0.1:7777`, then `nc 127.0.0.1 7777`. Ctrl-C drains.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use warpcore_runtime::net::{TcpListener, TcpStream};
use warpcore_runtime::{Builder, spawn, stopping};

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
    let mut listener = TcpListener::bind(address)?;
    println!("shard {shard} listens on {}", listener.local_addr()?);
    let mut connections = 0;
    let mut stop = pin!(stopping());
    loop {
        // Whichever comes first: the next connection, or the wish to stop.
        let accept = pin!(listener.accept());
        let Some(stream) = either(accept, stop.as_mut()).await else {
            return Ok(connections);
        };
        drop(spawn(echo(stream?)));
        connections += 1;
    }
}

async fn echo(stream: TcpStream) {
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

async fn either<T>(
    mut first: std::pin::Pin<&mut impl Future<Output = T>>,
    mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> Option<T> {
    std::future::poll_fn(|cx| match first.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => stop.as_mut().poll(cx).map(|()| None),
    })
    .await
}
