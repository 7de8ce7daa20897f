//! Where plain text goes: pools of upstreams that can take each other's place.

use std::collections::BTreeMap;
use std::io;
use std::net::ToSocketAddrs;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use warpcore_runtime::net::{Address, Stream};
use warpcore_runtime::{spawn, timeout};

use crate::config::{Balance, PoolConfig, ProxyProtocol};
use crate::connection::Cause;
use crate::error::Error;

/// By name.
pub(crate) type Pools = BTreeMap<String, Arc<Pool>>;

/// Those of a configuration. Upstreams that were there `before`, in the pool of the same name, are the same:
/// who is down and how many connections they have is known.
pub(crate) fn pools(
    configs: &BTreeMap<String, PoolConfig>,
    before: &Pools,
) -> Result<Pools, Error> {
    let make = |(name, config): (&String, &PoolConfig)| {
        let before = before.get(name).map_or(&[][..], |pool| &pool.upstreams);
        let pool = Pool::new(name, config, before);
        let pool = pool.map_err(|error| error.at_name(name).at("pool"))?;
        Ok((name.clone(), Arc::new(pool)))
    };
    configs.iter().map(make).collect()
}

/// Upstreams that can take each other's place. Counters are relaxed: they order nothing.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    pub(crate) proxy_protocol: ProxyProtocol,
    balance: Balance,
    check: Option<Duration>,
    /// Counts connections, for who is next.
    turn: AtomicUsize,
    /// When the next check is due, in milliseconds of [`now_ms`].
    check_due_ms: AtomicU64,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: Address,
    /// Connections of ours.
    open: AtomicUsize,
    /// Until when nobody is sent there, in milliseconds of [`now_ms`].
    down_until_ms: AtomicU64,
    /// Checks in a row that said the contrary of `down_until_ms`.
    contrary: AtomicU64,
    /// By the pool that is in use.
    is_checked: AtomicBool,
}

/// How long an upstream rests that could not be connected to.
const REST_MS: u64 = 2000;

/// Checks in a row until they are believed: one is a lost packet.
const CHECKS: u64 = 2;

/// Until a check says otherwise.
const FOR_EVER: u64 = u64::MAX;

/// A connection to an upstream, counted while it lives.
pub(crate) struct Lease {
    pool: Arc<Pool>,
    index: usize,
}

impl Lease {
    pub(crate) fn address(&self) -> &Address {
        &self.pool.upstreams[self.index].address
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.upstreams[self.index].open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(crate) fn new(
        name: &str,
        config: &PoolConfig,
        before: &[Arc<Upstream>],
    ) -> Result<Self, Error> {
        let mut upstreams = Vec::new();
        for (index, text) in config.upstreams.iter().enumerate() {
            let found = resolve(text).map_err(|error| error.at(&format!("upstreams.{index}")))?;
            upstreams.extend(found.into_iter().map(|address| {
                let known = before.iter().find(|upstream| upstream.address == address);
                known.map_or_else(
                    || Arc::new(Upstream::new(address, config.check.is_some())),
                    Arc::clone,
                )
            }));
        }
        if upstreams.is_empty() {
            return Err(Error::config("a pool has at least one upstream").at("upstreams"));
        }
        Ok(Self {
            name: name.to_owned(),
            upstreams,
            proxy_protocol: config.proxy_protocol,
            balance: config.balance,
            check: config.check,
            turn: AtomicUsize::new(0),
            check_due_ms: AtomicU64::new(0),
        })
    }

    /// Connections go here from now on. What checks have found is nothing to go by where there are none any
    /// more.
    pub(crate) fn put_in_use(&self) {
        for upstream in &self.upstreams {
            upstream.is_checked.store(self.check.is_some(), Ordering::Relaxed);
            if self.check.is_none() {
                upstream.is_checked_no_more();
            }
        }
    }

    /// Connects to the next upstream, or to another, each tried once, for at most `patience`.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Result<(Stream, Lease), Cause> {
        let mut last: Cause = "none is configured".into();
        for index in self.order() {
            let upstream = &self.upstreams[index];
            upstream.open.fetch_add(1, Ordering::Relaxed);
            let lease = Lease { pool: Arc::clone(self), index };
            let kept_off = upstream.keep_others_off(patience);
            match upstream.connect(patience).await {
                Ok(stream) => {
                    upstream.is_back();
                    return Ok((stream, lease));
                }
                Err(cause) => {
                    tracing::debug!("upstream {} of {}: {cause}", upstream.address, self.name);
                    upstream.rest(kept_off, is_ours(&cause));
                    last = format!("{}: {cause}", upstream.address).into();
                }
            }
        }
        Err(last)
    }

    /// All of them, those first that are up, in the order in which they are to be tried.
    fn order(&self) -> Vec<usize> {
        let len = self.upstreams.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<_> = (0..len).map(|index| (turn.wrapping_add(index)) % len).collect();
        let now = now_ms();
        // Once for each: other shards change it meanwhile.
        order.sort_by_cached_key(|index| {
            let upstream = &self.upstreams[*index];
            let open = match self.balance {
                Balance::RoundRobin => 0,
                Balance::LeastConnections => upstream.open.load(Ordering::Relaxed),
            };
            (!upstream.is_up(now), open)
        });
        order
    }

    /// Whether it is time to check; says so once.
    pub(crate) fn is_check_due(&self) -> bool {
        let Some(check) = self.check else { return false };
        let now = now_ms();
        let due = now >= self.check_due_ms.load(Ordering::Relaxed);
        if due {
            let check_ms = u64::try_from(check.as_millis()).unwrap_or(u64::MAX);
            self.check_due_ms.store(now.saturating_add(check_ms), Ordering::Relaxed);
        }
        due
    }

    /// Tries whether upstreams can be connected to: each by itself, for one may take all of `patience`.
    pub(crate) fn check(self: &Arc<Self>, patience: Duration) {
        for upstream in &self.upstreams {
            let (pool, upstream) = (Arc::clone(self), Arc::clone(upstream));
            drop(spawn(async move { upstream.check(&pool.name, patience).await }));
        }
    }
}

/// That others are kept off until the one who tries knows more: times as in `down_until_ms`.
struct KeptOff {
    before: u64,
    until: u64,
}

impl Upstream {
    fn new(address: Address, is_checked: bool) -> Self {
        Self {
            address,
            open: AtomicUsize::new(0),
            down_until_ms: AtomicU64::new(0),
            contrary: AtomicU64::new(0),
            is_checked: AtomicBool::new(is_checked),
        }
    }

    async fn connect(&self, patience: Duration) -> Result<Stream, Cause> {
        match timeout(patience, Stream::connect(&self.address)).await {
            Ok(connected) => Ok(connected?),
            Err(elapsed) => Err(elapsed.into()),
        }
    }

    /// Tries whether it can be connected to.
    async fn check(&self, pool: &str, patience: Duration) {
        let result = self.connect(patience).await;
        // A reload may have ended the checks meanwhile.
        let counts = self.is_checked.load(Ordering::Relaxed);
        if !counts || result.as_ref().is_err_and(is_ours) || !self.checked(result.is_ok()) {
            return;
        }
        match result {
            Ok(_) => tracing::info!("upstream {} of {pool} is up", self.address),
            Err(cause) => tracing::warn!("upstream {} of {pool} is down: {cause}", self.address),
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(crate) fn is_up(&self, now_ms: u64) -> bool {
        self.down_until_ms.load(Ordering::Relaxed) <= now_ms
    }

    /// It could not be connected to: others have their turn for a while. If the cause was `ours` it is as it
    /// was before.
    fn rest(&self, kept_off: Option<KeptOff>, ours: bool) {
        let until = now_ms() + REST_MS;
        match kept_off {
            Some(KeptOff { before, until: kept_off }) => {
                let until = if ours { before } else { until };
                let (was, is) = (Ordering::Relaxed, Ordering::Relaxed);
                let _ = self.down_until_ms.compare_exchange(kept_off, until, was, is);
            }
            None if ours => {}
            None => {
                self.down_until_ms.fetch_max(until, Ordering::Relaxed);
            }
        }
    }

    /// When it has rested, one connection finds out whether it is back: others might wait for `patience` too.
    fn keep_others_off(&self, patience: Duration) -> Option<KeptOff> {
        let before = self.down_until_ms.load(Ordering::Relaxed);
        if before == 0 || before == FOR_EVER {
            return None;
        }
        let tried = now_ms() + u64::try_from(patience.as_millis()).unwrap_or(u64::MAX / 2);
        let until = before.max(tried);
        let (was, is) = (Ordering::Relaxed, Ordering::Relaxed);
        let kept_off = self.down_until_ms.compare_exchange(before, until, was, is);
        kept_off.ok().map(|before| KeptOff { before, until })
    }

    /// It could be connected to.
    fn is_back(&self) {
        let until = self.down_until_ms.load(Ordering::Relaxed);
        if until != 0 && until != FOR_EVER {
            let (was, is) = (Ordering::Relaxed, Ordering::Relaxed);
            let _ = self.down_until_ms.compare_exchange(until, 0, was, is);
        }
    }

    /// Nobody would find that it is up again.
    fn is_checked_no_more(&self) {
        let down = FOR_EVER;
        let _ = self.down_until_ms.compare_exchange(down, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// What a check has found. True if it is believed from now on, and was not before.
    fn checked(&self, is_up: bool) -> bool {
        let was_up = self.down_until_ms.load(Ordering::Relaxed) != FOR_EVER;
        if was_up == is_up {
            self.contrary.store(0, Ordering::Relaxed);
            return false;
        }
        if self.contrary.fetch_add(1, Ordering::Relaxed) + 1 < CHECKS {
            return false;
        }
        self.contrary.store(0, Ordering::Relaxed);
        self.down_until_ms.store(if is_up { 0 } else { FOR_EVER }, Ordering::Relaxed);
        true
    }
}

/// Whether this process could not connect to anybody: that tells nothing of the upstream.
fn is_ours(cause: &Cause) -> bool {
    let error = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let ours = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.is_some_and(|error| ours.contains(&error))
}

/// Milliseconds since somebody asked first.
pub(crate) fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Every address of `HOST:PORT`, or a path.
fn resolve(text: &str) -> Result<Vec<Address>, Error> {
    if let Ok(address) = text.parse::<Address>() {
        return Ok(vec![address]);
    }
    match text.to_socket_addrs() {
        Ok(addresses) => Ok(addresses.map(Address::Tcp).collect()),
        Err(error) => {
            Err(Error::config(format!("`{text}` is neither HOST:PORT nor unix:PATH: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(balance: Balance) -> Pool {
        let upstreams = ["127.0.0.1:1", "127.0.0.1:2", "unix:/3"].map(str::to_owned).to_vec();
        let config = PoolConfig { upstreams, balance, ..PoolConfig::default() };
        Pool::new("web", &config, &[]).expect("good")
    }

    #[test]
    fn one_connection_finds_out_whether_an_upstream_is_back() {
        let pool = pool(Balance::RoundRobin);
        let upstream = &pool.upstreams[1];
        let is_up = || upstream.is_up(now_ms());
        upstream.keep_others_off(Duration::from_secs(60));
        assert!(is_up(), "it was never down");
        // It has rested.
        upstream.down_until_ms.store(1, Ordering::Relaxed);
        while now_ms() < 1 {}
        assert!(is_up());
        upstream.keep_others_off(Duration::from_secs(60));
        assert!(!is_up() && pool.order()[2] == 1, "others wait there too");
        upstream.is_back();
        assert!(is_up());
    }

    #[test]
    fn who_finds_that_it_is_not_back_lets_it_rest_no_longer_than_others() {
        let pool = pool(Balance::RoundRobin);
        let upstream = &pool.upstreams[0];
        for ours in [false, true] {
            upstream.down_until_ms.store(1, Ordering::Relaxed);
            while now_ms() < 1 {}
            let kept_off = upstream.keep_others_off(Duration::from_secs(60));
            assert!(!upstream.is_up(now_ms()));
            upstream.rest(kept_off, ours);
            assert_eq!(
                (upstream.is_up(now_ms()), upstream.is_up(now_ms() + REST_MS)),
                (ours, true)
            );
        }
    }

    #[test]
    fn what_is_known_of_an_upstream_outlives_a_reload() {
        let old = pool(Balance::LeastConnections);
        old.upstreams[0].open.store(3, Ordering::Relaxed);
        old.upstreams[1].down_until_ms.store(FOR_EVER, Ordering::Relaxed);
        let upstreams = ["unix:/new", "127.0.0.1:2", "127.0.0.1:1"].map(str::to_owned).to_vec();
        let check = Some(Duration::from_secs(1));
        let checked = PoolConfig { upstreams, check, ..PoolConfig::default() };
        let new = Pool::new("web", &checked, &old.upstreams).expect("good");
        let known = |pool: &Pool| {
            let all = pool.upstreams.iter();
            all.map(|one| (one.connections(), one.is_up(now_ms()))).collect::<Vec<_>>()
        };
        assert_eq!(known(&new), [(0, true), (0, false), (3, true)]);
        let unchecked = PoolConfig { check: None, ..checked };
        let new = Pool::new("web", &unchecked, &new.upstreams).expect("good");
        assert!(!new.upstreams[1].is_up(now_ms()), "it is not in use yet");
        new.put_in_use();
        assert_eq!(known(&new), [(0, true), (0, true), (3, true)]);
    }

    #[test]
    fn descriptors_that_run_out_are_no_fault_of_the_upstream() {
        let is_ours = |errno| is_ours(&io::Error::from_raw_os_error(errno).into());
        assert!(is_ours(libc::EMFILE) && !is_ours(libc::ECONNREFUSED));
    }

    #[test]
    fn each_has_its_turn_and_who_is_down_comes_last() {
        let pool = pool(Balance::RoundRobin);
        assert_eq!(pool.order(), [0, 1, 2]);
        assert_eq!(pool.order(), [1, 2, 0]);
        pool.upstreams[2].rest(None, false);
        assert_eq!(pool.order(), [0, 1, 2]);
        assert_eq!(pool.order(), [0, 1, 2]);
        assert_eq!(pool.order(), [1, 0, 2]);
    }

    #[test]
    fn the_one_with_the_fewest_connections_is_next() {
        let pool = pool(Balance::LeastConnections);
        pool.upstreams[0].open.store(2, Ordering::Relaxed);
        pool.upstreams[1].open.store(1, Ordering::Relaxed);
        assert_eq!(pool.order(), [2, 1, 0]);
        pool.upstreams[2].open.store(1, Ordering::Relaxed);
        // Of two alike, each in its turn.
        assert_eq!(pool.order(), [1, 2, 0]);
        assert_eq!(pool.order(), [2, 1, 0]);
    }

    #[test]
    fn one_check_is_not_believed() {
        let upstream = Upstream::new(Address::Unix("/1".into()), true);
        let believed = [false, true, false, false, true, false, true, true].map(|is_up| {
            let _ = upstream.checked(is_up);
            upstream.is_up(now_ms())
        });
        assert_eq!(believed, [true, true, true, false, false, false, false, true]);
    }
}
