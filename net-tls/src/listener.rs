//! Accepts on every shard and makes a task of each connection.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use warpcore_runtime::net::{self, TcpListener};
use warpcore_runtime::{Holders, queue, sleep, spawn, timeout, until_stopped};

use crate::config::{Config, Signing, Timeouts};
use crate::connection::{self, Failure};
use crate::error::Error;
use crate::stats::{Counters, Stats};

/// A configured proxy, shared by the shards that serve it.
#[derive(Debug)]
pub struct Proxy {
    tls: Arc<ServerConfig>,
    address: SocketAddr,
    pub(crate) upstream: SocketAddr,
    pub(crate) signing: Signing,
    pub(crate) timeouts: Timeouts,
}

impl Proxy {
    /// Checks the configuration: files, their fit, and that the address is free. Port 0 becomes a
    /// free port.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let tls = config.load()?;
        let listen = |source| Error::Listen { address: config.listen, source };
        let address = net::check_free(config.listen).map_err(listen)?;
        Ok(Self {
            tls,
            address,
            upstream: config.upstream,
            signing: config.signing,
            timeouts: config.timeouts,
        })
    }

    /// The address clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens on the current shard, with a socket of its own.
    pub fn listen(self: &Arc<Self>) -> Result<Listener, Error> {
        let listen = |source| Error::Listen { address: self.address, source };
        let socket = TcpListener::bind(self.address).map_err(listen)?;
        Ok(Listener { proxy: Arc::clone(self), socket })
    }

    pub(crate) fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tls)
    }

    fn report(&self, failure: &Failure, counters: &Counters) {
        match failure {
            Failure::Handshake(cause) => {
                counters.count(|stats| stats.handshakes_failed += 1);
                tracing::debug!("handshake failed: {cause}");
            }
            Failure::Relay(cause) => tracing::debug!("connection ended: {cause}"),
            Failure::Upstream(cause) => {
                counters.count(|stats| stats.upstream_failed += 1);
                tracing::warn!("upstream {} cannot be reached: {cause}", self.upstream);
            }
        }
    }
}

/// One shard's part of a proxy.
#[derive(Debug)]
pub struct Listener {
    proxy: Arc<Proxy>,
    socket: TcpListener,
}

impl Listener {
    /// Serves until the machine is asked to stop, then waits for the open connections, at most for
    /// the configured time. What is open after that is cut off when the shard ends.
    pub async fn serve(mut self) -> Stats {
        let counters = Rc::new(Counters::default());
        let open = Holders::default();
        while let Some(accepted) = until_stopped(self.socket.accept()).await {
            match accepted {
                Ok(client) => {
                    counters.count(|stats| stats.accepted += 1);
                    let (proxy, counters) = (Arc::clone(&self.proxy), Rc::clone(&counters));
                    let opened = open.enter();
                    drop(spawn(async move {
                        let _opened = opened;
                        if let Err(failure) = connection::serve(&proxy, client, &counters).await {
                            proxy.report(&failure, &counters);
                        }
                    }));
                }
                Err(error) => {
                    // Most likely descriptors have run out: connections wait in the backlog
                    // meanwhile, and some end.
                    tracing::warn!("cannot accept on {}: {error}; pausing", self.proxy.address);
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // Nobody is accepted any more.
        drop(self.socket);
        let drain = self.proxy.timeouts.drain;
        let drained = timeout(drain, open.none()).await;
        let mut stats = counters.read();
        if drained.is_err() {
            stats.cut_off = open.count();
            let (cut_off, seconds) = (stats.cut_off, drain.as_secs_f64());
            tracing::warn!("{cut_off} connections were still open after {seconds} s; cut off");
        }
        // What was cut off may still be worked on, for a fraction of a millisecond in software, for
        // as long as its deadline on a device that does not answer.
        while queue().orphans() > 0 {
            sleep(Duration::from_micros(100)).await;
        }
        stats.queue = queue().stats();
        stats
    }
}
