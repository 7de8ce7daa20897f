//! Many clients for a while, and the upstream that answers them: on the second core.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use warpcore_runtime::net::{Address, Listener, Stream};
use warpcore_runtime::{Builder, JoinHandle, sleep_until, spawn};

use super::client::{Client, Clients, REQUEST_LEN};
use crate::corpus::Random;
use crate::harness::Unit;

/// What clients do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Connect, ask for a few bytes, close, over and over.
    Connections,
    /// Ask for 1 KiB on a connection that stays, over and over.
    Requests,
    /// Ask for megabytes.
    Bulk,
}

impl Ask {
    pub(super) fn per_cpu(self) -> Unit {
        match self {
            Self::Connections | Self::Requests => Unit::PerCpuSecond,
            Self::Bulk => Unit::MbPerCpuSecond,
        }
    }

    pub(super) fn rate(self) -> Unit {
        match self {
            Self::Connections | Self::Requests => Unit::PerSecond,
            Self::Bulk => Unit::Mbps,
        }
    }

    fn clients(self) -> usize {
        match self {
            Self::Connections | Self::Requests => 64,
            Self::Bulk => 4,
        }
    }

    fn len(self) -> u32 {
        match self {
            Self::Connections => 16,
            Self::Requests => 1024,
            Self::Bulk => 16 << 20,
        }
    }
}

/// Clients of one server.
#[derive(Clone, Copy)]
pub(super) struct Load<'a> {
    pub(super) clients: &'a Clients,
    pub(super) address: SocketAddr,
    pub(super) ask: Ask,
    pub(super) span: Duration,
}

/// What they came to: connections, requests, or megabytes.
pub(super) struct Done {
    pub(super) count: f64,
    pub(super) elapsed: Duration,
}

const CORE: usize = 1;

impl Load<'_> {
    /// As many as the server serves.
    pub(super) fn run(&self) -> Result<Done, String> {
        let Self { ask, .. } = *self;
        let (clients, address, span) = (self.clients.clone(), self.address, self.span);
        on_shard(move || async move {
            let started = Instant::now();
            let workers: Vec<JoinHandle<io::Result<u64>>> = (0..ask.clients())
                .map(|_| {
                    let client = clients.one();
                    spawn(async move {
                        let mut count = 0;
                        let mut open = None;
                        while started.elapsed() < span {
                            let mut connection = match open.take() {
                                Some(connection) => connection,
                                None => Client::connect(&client, address).await?,
                            };
                            connection.request(ask.len()).await?;
                            match ask {
                                Ask::Connections => connection.close().await?,
                                Ask::Requests | Ask::Bulk => open = Some(connection),
                            }
                            count += 1;
                        }
                        Ok(count)
                    })
                })
                .collect();
            let mut count = 0;
            for worker in workers {
                count += worker.await.map_err(io::Error::other)??;
            }
            let count = match ask {
                Ask::Bulk => count as f64 * f64::from(ask.len()) / 1e6,
                _ => count as f64,
            };
            Ok(Done { count, elapsed: started.elapsed() })
        })
    }

    /// Clients that come when they come, so many a second on average: how long each had to wait.
    pub(super) fn arrivals(&self, per_second: f64) -> Result<Vec<Duration>, String> {
        let (client, address) = (self.clients.one(), self.address);
        let span = self.span;
        on_shard(move || async move {
            let took = Rc::new(RefCell::new(Vec::new()));
            let failure: Rc<Cell<Option<io::Error>>> = Rc::default();
            let mut random = Random::new(3);
            let started = Instant::now();
            let mut at = started;
            let mut under_way = Vec::new();
            while at < started + span {
                sleep_until(at).await;
                let (client, took) = (Arc::clone(&client), Rc::clone(&took));
                let failure = Rc::clone(&failure);
                under_way.push(spawn(async move {
                    match Client::connect(&client, address).await {
                        Ok(connection) => {
                            took.borrow_mut().push(at.elapsed());
                            let _ = connection.close().await;
                        }
                        Err(error) => failure.set(Some(error)),
                    }
                }));
                // Exponential gaps: nobody knows of the others.
                let even = (random.below(1 << 30) + 1) as f64 / f64::from(1 << 30);
                at += Duration::from_secs_f64(-even.ln() / per_second);
            }
            for one in under_way {
                one.await.map_err(io::Error::other)?;
            }
            match failure.take() {
                Some(error) => Err(error),
                None => Ok(took.take()),
            }
        })
    }

    /// Opens so many connections, and looks while they are idle.
    pub(super) fn idle<T: Send + 'static>(
        &self,
        count: usize,
        look: impl FnOnce() -> T,
    ) -> Result<T, String> {
        let (client, address) = (self.clients.one(), self.address);
        let (opened, is_open) = mpsc::channel();
        let (close, is_over) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let holding = scope.spawn(move || {
                on_shard(move || async move {
                    let mut all = Vec::with_capacity(count);
                    for _ in 0..count {
                        let mut connection = Client::connect(&client, address).await?;
                        connection.request(16).await?;
                        all.push(connection);
                    }
                    let _ = opened.send(());
                    // Nothing else is to happen on this shard.
                    let _ = is_over.recv();
                    Ok(())
                })
            });
            let looked = is_open.recv().map(|()| look());
            drop(close);
            let held = holding.join().map_err(|_| "a client panicked")?;
            held?;
            looked.map_err(|_| "the clients are gone".to_owned())
        })
    }
}

/// Runs `make`'s future on a shard of the clients' core.
fn on_shard<T, F, M>(make: M) -> Result<T, String>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>> + 'static,
    M: FnOnce() -> F + Send + 'static,
{
    let make = Mutex::new(Some(make));
    let outputs = Builder::new().shards(1).first_core(CORE).run(move |_| {
        let make = make.lock().ok().and_then(|mut make| make.take()).expect("one shard");
        make()
    });
    let mut outputs = outputs.map_err(|error| error.to_string())?;
    outputs.pop().expect("one shard").map_err(|error| format!("a client: {error}"))
}

/// Answers requests, on a thread that lives as long as the process.
pub(super) fn start_upstream() -> Result<SocketAddr, String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        on_shard(move || async move {
            let mut listener = Listener::bind(Address::Tcp(([127, 0, 0, 1], 0).into()))?;
            let _ = send.send(listener.local_addr()?);
            loop {
                let stream = listener.accept().await?;
                drop(spawn(async move {
                    let _ = answer(stream).await;
                }));
            }
            #[allow(unreachable_code, reason = "says what it would be")]
            Ok(())
        })
    });
    match receive.recv() {
        Ok(Address::Tcp(address)) => Ok(address),
        _ => Err("the upstream cannot listen".to_owned()),
    }
}

async fn answer(stream: Stream) -> io::Result<()> {
    const PART: usize = 256 * 1024;
    static ZEROS: [u8; PART] = [0; PART];
    let mut received = Vec::with_capacity(64);
    loop {
        while let Some((request, _)) = received.split_first_chunk::<REQUEST_LEN>() {
            let mut left = u32::from_le_bytes(*request) as usize;
            received.drain(..REQUEST_LEN);
            while left > 0 {
                let part = left.min(PART);
                stream.send_all(&ZEROS[..part]).await.0?;
                left -= part;
            }
        }
        let (result, buffer) = stream.recv(received).await;
        received = buffer;
        if result? == 0 {
            return Ok(());
        }
    }
}
