//! Accepts on every shard and makes a task of each connection.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use async_lock::Semaphore;
use warpcore_runtime::net::{self, Address, Listener, Stream};
use warpcore_runtime::{
    Holders, queue, shard, shards, shards_possible, sleep, spawn, timeout, until_stopped,
};

use crate::access_log::AccessLog;
use crate::config::{Config, Limits, Timeouts};
use crate::connection::{self, Failure, Visit};
use crate::error::Error;
use crate::limits::Usage;
use crate::metrics;
use crate::site::Sites;
use crate::stats::{Counter, Counters, Refusal, Snapshot, Stats};
use crate::ticket::{self, Masters};
use crate::upstream::{self, Pools};

/// A configured proxy, shared by the shards that serve it.
#[derive(Debug)]
pub struct Proxy {
    pub(crate) listening: Vec<Arc<Listening>>,
    active: RwLock<Arc<Active>>,
    masters: Arc<Masters>,
    /// Of every shard that serves.
    pub(crate) counters: Mutex<Vec<Arc<Counters>>>,
    /// Shards that serve, or have.
    serving: AtomicUsize,
    access_log: Option<AccessLog>,
    /// Where metrics are asked for, until the machine is asked to stop.
    metrics: Mutex<Option<OwnedFd>>,
    /// As it was started.
    pub(crate) config: Config,
}

/// What connecting takes, after the first packet, to nearly everybody.
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// How often there is a look at what is done now and then.
const EVERY: Duration = Duration::from_millis(250);

/// For signatures that nobody waits for any more.
const ORPHANS_PATIENCE: Duration = Duration::from_secs(1);

/// For the last lines of the access log.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// What a reload replaces.
#[derive(Debug)]
pub(crate) struct Active {
    /// By listener, as limits.
    pub(crate) sites: Vec<Sites>,
    pub(crate) limits: Vec<Limits>,
    pub(crate) pools: Pools,
    pub(crate) timeouts: Timeouts,
}

/// One listener of all shards.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) number: usize,
    pub(crate) address: Address,
    pub(crate) proxy_protocol: bool,
    pub(crate) usage: Arc<Usage>,
    /// One for each shard of an IP address, one for all of a path. Empty once nobody is to connect any
    /// more.
    sockets: Mutex<Vec<OwnedFd>>,
    /// A service manager keeps them.
    is_kept: bool,
    /// Another process may have them too: one that was started to take over, or, until this one serves, the
    /// one that has started it.
    is_lent: AtomicBool,
}

/// A socket that listens already.
#[derive(Debug)]
pub struct GivenSocket {
    /// Bound, and listening.
    pub socket: OwnedFd,
    /// A service manager keeps it too: who connects when nobody serves any more, waits.
    pub is_kept: bool,
}

impl Proxy {
    /// Checks the configuration: files, their fit, and that the addresses are free; listens on them.
    /// Port 0 becomes a free port.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Self::with_sockets(config, Vec::new())
    }

    /// As [`Proxy::new`], with sockets that listen already, of a service manager or of a process that
    /// hands them over: each is used where its address is asked for.
    pub fn with_sockets(config: &Config, sockets: Vec<GivenSocket>) -> Result<Self, Error> {
        let mut given: Vec<_> = sockets
            .into_iter()
            .filter_map(|given| Some((net::local_addr(&given.socket).ok()?, given)))
            .collect();
        let masters = masters(config)?;
        let active = Active::new(config, &masters, &Pools::new())?;
        let access_log = config.access_log.as_deref().map(AccessLog::open).transpose();
        let access_log = access_log.map_err(|error| error.at("access_log"))?;
        let mut listening = Vec::new();
        for (number, listener) in config.listeners.iter().enumerate() {
            let given = take(&mut given, &listener.address);
            let is_kept = given.iter().any(|given| given.is_kept);
            let is_lent = AtomicBool::new(!given.is_empty());
            let listen = match given {
                given if given.is_empty() => listen(&listener.address),
                given => Ok((
                    listener.address.clone(),
                    given.into_iter().map(|given| given.socket).collect(),
                )),
            };
            let (address, sockets) =
                listen.map_err(|error| error.at(&format!("listener.{number}.address")))?;
            listening.push(Arc::new(Listening {
                number,
                address,
                proxy_protocol: listener.proxy_protocol,
                usage: Arc::default(),
                sockets: Mutex::new(sockets),
                is_kept,
                is_lent,
            }));
        }
        let metrics = config.metrics.as_ref().map(|address| {
            let fail = |source| Error::Listen { address: address.clone(), source };
            let given = take(&mut given, address).pop();
            given.map_or_else(|| net::bind(address, false).map_err(fail), |given| Ok(given.socket))
        });
        let metrics = metrics.transpose().map_err(|error| error.at("metrics"))?;
        for (address, _) in given {
            tracing::warn!("nothing is configured for the socket that was given for {address}");
        }
        Ok(Self {
            listening,
            active: RwLock::new(Arc::new(active)),
            masters,
            counters: Mutex::default(),
            serving: AtomicUsize::new(0),
            access_log,
            metrics: Mutex::new(metrics),
            config: config.clone(),
        })
    }

    /// The sockets that it listens on, for another process to go on with: see
    /// [`Proxy::with_sockets`]. None, once it has been asked to stop.
    pub fn sockets(&self) -> std::io::Result<Vec<GivenSocket>> {
        let mut sockets = Vec::new();
        for listening in &self.listening {
            // Relaxed: it is looked at by shards that are asked to stop later, by a message.
            listening.is_lent.store(true, Ordering::Relaxed);
            for socket in &*lock(&listening.sockets) {
                let socket = socket.try_clone()?;
                sockets.push(GivenSocket { socket, is_kept: listening.is_kept });
            }
        }
        if let Some(metrics) = lock(&self.metrics).as_ref().filter(|_| !sockets.is_empty()) {
            sockets.push(GivenSocket { socket: metrics.try_clone()?, is_kept: false });
        }
        Ok(sockets)
    }

    /// The process that was given [`Proxy::sockets`] has ended, whatever it has done to them.
    pub fn take_back(&self) {
        for listening in &self.listening {
            listening.is_lent.store(false, Ordering::Relaxed);
            for socket in &*lock(&listening.sockets) {
                net::hear_new(socket);
            }
        }
    }

    /// Makes the access log somebody's, if there is one: who is root now, and will be that.
    pub fn give_log(&self, uid: u32, gid: u32) -> std::io::Result<()> {
        self.access_log.as_ref().map_or(Ok(()), |log| log.give(uid, gid))
    }

    /// Checks the configuration as [`Proxy::new`] does, and listens nowhere.
    pub fn check(config: &Config) -> Result<(), Error> {
        let masters = masters(config)?;
        Active::new(config, &masters, &Pools::new())?;
        let log = config.access_log.as_deref().map(AccessLog::check).transpose();
        log.map_err(|error| error.at("access_log")).map(drop)
    }

    /// Takes another configuration for connections that come from now on: sites, certificates, pools,
    /// limits, timeouts, ticket keys. When it fails, nothing has changed.
    ///
    /// Listeners, where metrics and the access log are, and the user stay what they are: others are
    /// refused, and take a new process. The log goes on in a new file if the old one was moved away.
    pub fn reload(&self, config: &Config) -> Result<(), Error> {
        let listeners = |config: &Config| {
            let listeners = config.listeners.iter();
            listeners.map(|one| (one.address.clone(), one.proxy_protocol)).collect::<Vec<_>>()
        };
        for (key, is_same) in [
            ("listener", listeners(config) == listeners(&self.config)),
            ("metrics", config.metrics == self.config.metrics),
            ("access_log", config.access_log == self.config.access_log),
            ("user", config.user == self.config.user),
        ] {
            if !is_same {
                let cause = "not what it was, which takes a new process (SIGUSR2)";
                return Err(Error::config(cause).at(key));
            }
        }
        let active = Active::new(config, &self.masters, &self.active().pools)?;
        let keys = config.ticket_keys.as_deref().map(ticket::read).transpose();
        let keys = keys.map_err(|error| error.at("ticket_keys"))?;
        if let Some(log) = &self.access_log {
            log.reopen().map_err(|error| error.at("access_log"))?;
        }
        // Nothing fails from here on.
        match keys {
            Some(keys) => self.masters.replace(keys),
            None => self.masters.draw_our_own(),
        }
        active.pools.values().for_each(|pool| pool.put_in_use());
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(active);
        Ok(())
    }

    /// The addresses clients connect to, in the order of the configuration.
    pub fn addresses(&self) -> Vec<Address> {
        self.listening.iter().map(|listening| listening.address.clone()).collect()
    }

    /// What it does, for Prometheus: its text format, version 0.0.4.
    pub fn metrics(&self) -> String {
        metrics::text(self)
    }

    /// Serves on the current shard until the machine is asked to stop, then waits for the open
    /// connections, at most for the configured time. What is open after that is cut off. Every shard of
    /// the machine has to call it.
    pub async fn serve(self: &Arc<Self>) -> Result<Stats, Error> {
        self.serve_and_tell(|| {}).await
    }

    /// As [`Proxy::serve`]; the shard that is the last to serve calls `serves` then.
    pub async fn serve_and_tell(self: &Arc<Self>, serves: impl FnOnce()) -> Result<Stats, Error> {
        let shard = Rc::new(Shard::new());
        lock(&self.counters).push(Arc::clone(&shard.counters));
        let mut accepting = Vec::new();
        for listening in &self.listening {
            for socket in listening.listeners_of_shard()? {
                let (proxy, listening) = (Arc::clone(self), Arc::clone(listening));
                accepting.push(spawn(proxy.accept(listening, socket, Rc::clone(&shard))));
            }
        }
        let is_first = warpcore_runtime::shard() == 0;
        if let Some(metrics) = lock(&self.metrics).as_ref().filter(|_| is_first) {
            let metrics = metrics.try_clone().map_err(Error::Descriptor)?;
            drop(spawn(metrics::serve(Arc::clone(self), Listener::from(metrics))));
        }
        let over = Rc::new(Semaphore::new(0));
        let is_logged = self.access_log.is_some();
        let log = is_logged.then(|| spawn(Arc::clone(self).write_log(Rc::clone(&over))));
        // Relaxed: what was done before is this shard's.
        if self.serving.fetch_add(1, Ordering::Relaxed) + 1 == shards() {
            // Whoever has handed them over stops now.
            for listening in &self.listening {
                listening.is_lent.store(false, Ordering::Relaxed);
            }
            serves();
        }
        self.keep(&shard).await;
        // The next process may ask for the address.
        lock(&self.metrics).take();
        for accepting in accepting {
            if accepting.await.is_err() {
                tracing::error!("a listener has panicked; see above");
            }
        }
        let stats = shard.drain(self.active().timeouts.drain).await;
        over.add_permits(1);
        if let Some(log) = log
            && timeout(LOG_PATIENCE, log).await.is_err()
        {
            tracing::error!("access log: cannot be written to; its last lines are lost");
        }
        Ok(stats)
    }

    /// Until the shard's last connection is `over`.
    async fn write_log(self: Arc<Self>, over: Rc<Semaphore>) {
        let Some(log) = &self.access_log else { return };
        while timeout(EVERY, over.acquire()).await.is_err() {
            log.write().await;
        }
        log.write().await;
    }

    async fn accept(
        self: Arc<Self>,
        listening: Arc<Listening>,
        mut socket: Listener,
        shard: Rc<Shard>,
    ) {
        while let Some(accepted) = until_stopped(socket.accept()).await {
            match accepted {
                Ok(client) => self.visited(&listening, client, &shard),
                Err(error) => {
                    // Most likely descriptors have run out: connections wait in the backlog
                    // meanwhile, and some end.
                    let address = &listening.address;
                    shard.counters.count(Counter::Paused);
                    shard.pauses.warn(format_args!("cannot accept on {address}: {error}; pausing"));
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // Who is connecting is still let in; who connects from here on is refused, unless another process
        // has the socket too.
        let is_ours = !listening.is_kept && !listening.is_lent.load(Ordering::Relaxed);
        if is_ours && socket.ignore_new().is_ok() {
            let _ = timeout(ROUND_TRIP, async {
                while let Ok(client) = socket.accept().await {
                    self.visited(&listening, client, &shard);
                }
            })
            .await;
        }
        lock(&listening.sockets).clear();
        for client in socket.close().await {
            self.visited(&listening, client, &shard);
        }
    }

    /// Serves a client in a task of its own.
    fn visited(self: &Arc<Self>, listening: &Arc<Listening>, client: Stream, shard: &Rc<Shard>) {
        shard.counters.count(Counter::Accepted);
        let (proxy, listening) = (Arc::clone(self), Arc::clone(listening));
        let (shard, open) = (Rc::clone(shard), shard.open.enter());
        drop(spawn(async move {
            let _open = open;
            let mut visit = Visit::new();
            let serving = connection::serve(&proxy, &listening, client, &shard, &mut visit);
            let failure = shard.until_cut_off(serving).await.err();
            shard.ended(&listening, &visit, failure.as_ref());
            if let Some(log) = &proxy.access_log {
                log.ended(&listening.address.to_string(), &visit, failure.as_ref());
            }
        }));
    }

    /// What is done now and then, until the machine is asked to stop.
    async fn keep(&self, shard: &Shard) {
        while until_stopped(sleep(EVERY)).await.is_some() {
            let panics = warpcore_runtime::stats().panics;
            shard.counters.publish(Snapshot { queue: queue().stats(), panics });
            if warpcore_runtime::shard() == 0 {
                self.masters.rotate(Instant::now());
                let active = self.active();
                for pool in active.pools.values().filter(|pool| pool.is_check_due()) {
                    pool.check(active.timeouts.connect);
                }
            }
        }
    }

    pub(crate) fn active(&self) -> Arc<Active> {
        Arc::clone(&self.active.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn masters(config: &Config) -> Result<Arc<Masters>, Error> {
    let masters = match &config.ticket_keys {
        Some(path) => {
            Masters::of_file(ticket::read(path).map_err(|error| error.at("ticket_keys"))?)
        }
        None => Masters::random(),
    };
    Ok(Arc::new(masters))
}

/// Refuses an address that is asked for twice. Port 0 is another one each time.
fn check_addresses(config: &Config) -> Result<(), Error> {
    let mut taken = BTreeMap::new();
    let listeners = config.listeners.iter().enumerate();
    let listeners =
        listeners.map(|(number, one)| (format!("listener.{number}.address"), &one.address));
    let metrics = config.metrics.iter().map(|address| ("metrics".to_owned(), address));
    for (key, address) in listeners.chain(metrics) {
        let is_any = matches!(address, Address::Tcp(address) if address.port() == 0);
        if let Some(before) = taken.insert(address, key.clone()).filter(|_| !is_any) {
            return Err(Error::config(format!("{address} is {before} too")).at(&key));
        }
    }
    Ok(())
}

/// Those of the given sockets that have this address.
fn take(given: &mut Vec<(Address, GivenSocket)>, address: &Address) -> Vec<GivenSocket> {
    given.extract_if(.., |(of, _)| of == address).map(|(_, given)| given).collect()
}

/// Sockets for every shard.
fn listen(wanted: &Address) -> Result<(Address, Vec<OwnedFd>), Error> {
    let bind = || {
        let address = net::check_free(wanted)?;
        let count = match address {
            Address::Tcp(_) => shards_possible(),
            Address::Unix(_) => 1,
        };
        let sockets: Result<_, _> = (0..count).map(|_| net::bind(&address, true)).collect();
        Ok((address, sockets?))
    };
    bind().map_err(|source| Error::Listen { address: wanted.clone(), source })
}

impl Active {
    /// `before`: the pools that are in use.
    fn new(config: &Config, masters: &Arc<Masters>, before: &Pools) -> Result<Self, Error> {
        check_addresses(config)?;
        let pools = upstream::pools(&config.pools, before)?;
        let mut sites = Vec::new();
        for (number, listener) in config.listeners.iter().enumerate() {
            let made = Sites::new(&listener.sites, &pools, masters);
            sites.push(made.map_err(|error| error.at(&format!("listener.{number}")))?);
        }
        if sites.is_empty() {
            return Err(Error::config("there is no [[listener]]"));
        }
        for (number, listener) in config.listeners.iter().enumerate() {
            let checked = listener.limits.check();
            checked.map_err(|error| error.at(&format!("listener.{number}.limits")))?;
        }
        let limits = config.listeners.iter().map(|listener| listener.limits).collect();
        Ok(Self { sites, limits, pools, timeouts: config.timeouts })
    }
}

impl Listening {
    /// The sockets that the current shard is to accept from: each has one shard at least, and each
    /// shard one socket.
    fn listeners_of_shard(&self) -> Result<Vec<Listener>, Error> {
        let sockets = lock(&self.sockets);
        let count = sockets.len();
        let listener = if count < shards() { Listener::shared } else { Listener::from };
        let of_shard = |index: &usize| {
            index % shards() == shard() || count < shards() && *index == shard() % count
        };
        let cloned = (0..count).filter(of_shard).map(|index| sockets[index].try_clone());
        cloned.map(|socket| socket.map(listener).map_err(Error::Descriptor)).collect()
    }
}

/// One shard's part of a proxy.
pub(crate) struct Shard {
    pub(crate) counters: Arc<Counters>,
    open: Holders,
    /// A permit is given for each connection that is to end.
    cut_off: Semaphore,
    refusals: Rare,
    upstreams: Rare,
    pauses: Rare,
}

impl Shard {
    fn new() -> Self {
        Self {
            counters: Arc::default(),
            open: Holders::default(),
            cut_off: Semaphore::new(0),
            refusals: Rare::default(),
            upstreams: Rare::default(),
            pauses: Rare::default(),
        }
    }

    /// What `serving` a connection comes to, or that it was cut off.
    async fn until_cut_off(
        &self,
        serving: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        let (mut serving, mut cut_off) = (pin!(serving), pin!(self.cut_off.acquire()));
        poll_fn(|cx| match cut_off.as_mut().poll(cx) {
            Poll::Ready(permit) => {
                permit.forget();
                Poll::Ready(Err(Failure::CutOff))
            }
            Poll::Pending => serving.as_mut().poll(cx),
        })
        .await
    }

    /// Counts how a connection ended, and says so.
    fn ended(&self, listening: &Listening, visit: &Visit, failure: Option<&Failure>) {
        self.counters.add(Counter::Received, visit.traffic.received.get());
        self.counters.add(Counter::Sent, visit.traffic.sent.get());
        let Some(failure) = failure else { return };
        self.counters.count(match failure {
            Failure::Refused(Refusal::Client) => Counter::RefusedClient,
            Failure::Refused(Refusal::Connections) => Counter::RefusedConnections,
            Failure::Refused(Refusal::Handshakes) => Counter::RefusedHandshakes,
            Failure::HungUp(_) => Counter::FailedHungUp,
            Failure::ProxyHeader(_) => Counter::FailedProxyHeader,
            Failure::Protocol(_) => Counter::FailedProtocol,
            Failure::Timeout => Counter::FailedTimeout,
            Failure::Upstream(_) => Counter::UpstreamFailed,
            Failure::Idle(_) => Counter::Idle,
            Failure::Relay(_) => Counter::RelayFailed,
            Failure::CutOff => Counter::CutOff,
        });
        let line = format_args!("{}: {}{failure}", listening.address, Client(visit));
        match failure {
            Failure::Refused(_) => self.refusals.warn(line),
            Failure::Upstream(_) => self.upstreams.warn(line),
            _ => tracing::debug!("{line}"),
        }
    }

    async fn drain(&self, patience: Duration) -> Stats {
        if timeout(patience, self.open.none()).await.is_err() {
            let (cut_off, seconds) = (self.open.count(), patience.as_secs_f64());
            tracing::warn!("{cut_off} connections were still open after {seconds} s; cut off");
            self.cut_off.add_permits(usize::try_from(cut_off).expect("tasks"));
            self.open.none().await;
        }
        // What was cut off may still be worked on, in software for a fraction of a millisecond. A device that
        // does not answer is stopped as the queue ends.
        let worked_on = async {
            while queue().orphans() > 0 {
                sleep(Duration::from_micros(100)).await;
            }
        };
        if timeout(ORPHANS_PATIENCE, worked_on).await.is_err() {
            tracing::warn!(
                "{} requests are not answered; the device is stopped",
                queue().orphans()
            );
        }
        Stats { queue: queue().stats(), ..self.counters.stats() }
    }
}

/// Who it was, if that is known.
struct Client<'a>(&'a Visit);

impl Display for Client<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.endpoints {
            Some(endpoints) => write!(f, "client {}: ", endpoints.source),
            None => Ok(()),
        }
    }
}

/// A line of the log that many may cause: once a second is enough.
#[derive(Default)]
struct Rare {
    said_at: Cell<Option<Instant>>,
    left_out: Cell<u64>,
}

impl Rare {
    /// Says it, if it is to be said.
    fn warn(&self, line: impl Display) {
        if let Some(others) = self.due() {
            tracing::warn!("{line} ({others} more since the last line of this)");
        }
    }

    /// How many were left out since it was said last, if it is to be said again.
    fn due(&self) -> Option<u64> {
        let now = Instant::now();
        let said_at = self.said_at.get();
        if said_at.is_some_and(|said_at| now.duration_since(said_at) < Duration::from_secs(1)) {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.said_at.set(Some(now));
        Some(self.left_out.replace(0))
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
