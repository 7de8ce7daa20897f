//! How much of a listener is in use, and who is refused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Limits;
use crate::error::Error;
use crate::stats::Refusal;

impl Limits {
    /// Refuses those that let nobody in.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let default = Self::default();
        for (key, max, default) in [
            ("connections", self.connections, default.connections),
            ("connections_per_client", self.connections_per_client, default.connections_per_client),
            ("handshakes", self.handshakes, default.handshakes),
        ] {
            if max == 0 {
                let cause =
                    format!("0 would refuse everybody; where it is left out it is {default}");
                return Err(Error::config(cause).at(key));
            }
        }
        Ok(())
    }
}

/// What is in use of a listener, by all shards.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    connections: AtomicU64,
    handshakes: AtomicU64,
    clients: Mutex<HashMap<IpAddr, u64>>,
}

/// Something in use, until it is dropped.
#[derive(Debug)]
pub(crate) struct InUse {
    usage: Arc<Usage>,
    what: What,
}

#[derive(Debug)]
enum What {
    Client(IpAddr),
    Connection,
    Handshake,
}

impl Usage {
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::Relaxed)
    }

    pub(crate) fn connection(self: &Arc<Self>, limits: &Limits) -> Result<InUse, Refusal> {
        let max = limits.connections;
        self.take(&self.connections, max, What::Connection, Refusal::Connections)
    }

    pub(crate) fn handshake(self: &Arc<Self>, limits: &Limits) -> Result<InUse, Refusal> {
        let max = limits.handshakes;
        self.take(&self.handshakes, max, What::Handshake, Refusal::Handshakes)
    }

    fn take(
        self: &Arc<Self>,
        count: &AtomicU64,
        max: u64,
        what: What,
        refusal: Refusal,
    ) -> Result<InUse, Refusal> {
        // Counted first: two who ask at once never both get the last. Relaxed: it is only a number.
        let taken = InUse { usage: Arc::clone(self), what };
        match count.fetch_add(1, Ordering::Relaxed) < max {
            true => Ok(taken),
            false => Err(refusal),
        }
    }

    /// A connection of this client. Of version 6 the first 64 bits are one client, who may choose
    /// the others (RFC 6177).
    pub(crate) fn client(
        self: &Arc<Self>,
        limits: &Limits,
        ip: IpAddr,
    ) -> Result<Option<InUse>, Refusal> {
        let max = limits.connections_per_client;
        if max >= limits.connections {
            return Ok(None);
        }
        let ip = match ip.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 => v4,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(ip).or_default();
        if *count >= max {
            return Err(Refusal::Client);
        }
        *count += 1;
        Ok(Some(InUse { usage: Arc::clone(self), what: What::Client(ip) }))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let usage = &self.usage;
        match self.what {
            What::Connection => _ = usage.connections.fetch_sub(1, Ordering::Relaxed),
            What::Handshake => _ = usage.handshakes.fetch_sub(1, Ordering::Relaxed),
            What::Client(ip) => {
                let mut clients = usage.clients.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(count) = clients.get_mut(&ip) {
                    *count -= 1;
                    if *count == 0 {
                        clients.remove(&ip);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_let_nobody_in_are_refused() {
        let good = Limits::default();
        good.check().expect("good");
        let said = Limits { connections_per_client: 0, ..good }.check().expect_err("nobody");
        assert!(said.to_string().starts_with("connections_per_client: 0 would"), "{said}");
    }

    const LIMITS: Limits = Limits { connections: 3, connections_per_client: 2, handshakes: 1 };

    #[test]
    fn what_is_refused_takes_nothing() {
        let usage = Arc::<Usage>::default();
        let all: Vec<_> = (0..3).map(|_| usage.connection(&LIMITS).expect("free")).collect();
        assert_eq!(usage.connection(&LIMITS).expect_err("full"), Refusal::Connections);
        assert_eq!(usage.connections(), 3);
        drop(all);
        assert_eq!(usage.connections(), 0);
        let one = usage.handshake(&LIMITS).expect("free");
        assert_eq!(usage.handshake(&LIMITS).expect_err("full"), Refusal::Handshakes);
        drop(one);
        assert!(usage.handshake(&LIMITS).is_ok());
    }

    #[test]
    fn a_client_is_an_address_or_a_network_of_version_6() {
        let usage = Arc::<Usage>::default();
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let client = |text: &str| usage.client(&LIMITS, ip(text));
        let one = [client("2001:db8::1"), client("2001:db8::ffff:1")];
        assert_eq!(client("2001:db8::2").expect_err("full"), Refusal::Client);
        assert!(client("2001:db8:0:1::1").is_ok());
        let other = [client("192.0.2.1"), client("::ffff:192.0.2.1")];
        assert_eq!(client("192.0.2.1").expect_err("full"), Refusal::Client);
        assert!(client("192.0.2.2").is_ok());
        drop((one, other));
        assert!(usage.clients.lock().expect("whole").is_empty());
    }
}
