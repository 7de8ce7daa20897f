//! Doors for the fuzz targets.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::Acceptor;
use warpcore_runtime::net::Address;

use crate::certificates::lookup;
use crate::config::{Config, Signing};
use crate::error::Error;
use crate::handshake::{Call, Step};
use crate::listener::Proxy;
use crate::proxy_protocol;
use crate::site::{Sites, check_name};
use crate::ticket::Masters;
use crate::upstream;

/// What a PROXY header takes is at most what is there, and it says the same whatever follows.
pub fn proxy_header(bytes: &[u8]) {
    if let Ok(Some(header)) = proxy_protocol::parse(bytes) {
        let again = proxy_protocol::parse(&bytes[..header.len]);
        assert_eq!(again, Ok(Some(header)));
    }
}

/// Who asks for the name on the first line gets the site of it, or else of the star that stands for it. The
/// other lines name sites; those that are no names are refused.
pub fn routing(text: &str) {
    let mut lines = text.lines();
    let Some(asked) = lines.next() else { return };
    let names: Vec<_> = lines.filter(|name| check_name(name).is_ok()).collect();
    let by_name: HashMap<_, _> =
        names.iter().map(|name| (name.to_ascii_lowercase(), name)).collect();
    let is_named = |name: &&&str| name.eq_ignore_ascii_case(asked);
    let is_starred = |name: &&&str| {
        let parent = asked.split_once('.').map(|(_, parent)| parent);
        name.strip_prefix("*.").zip(parent).is_some_and(|(of, at)| of.eq_ignore_ascii_case(at))
    };
    let wanted = names.iter().find(is_named).or_else(|| names.iter().find(is_starred));
    let found = lookup(&by_name, asked);
    assert_eq!(
        found.map(|name| name.to_ascii_lowercase()),
        wanted.map(|name| name.to_ascii_lowercase())
    );
}

/// A file is refused with its line, or checked as far as files that it names are not there. Names of
/// hosts are taken out: they would be looked up.
pub fn config(text: &str) {
    if let Ok(mut config) = toml::from_str::<Config>(text) {
        let pools = config.pools.values_mut();
        pools.for_each(|pool| pool.upstreams.retain(|one| one.parse::<Address>().is_ok()));
        let _ = Proxy::check(&config);
    }
}

/// A listener's sites, to talk to.
#[derive(Debug)]
pub struct Handshake(Sites);

impl Handshake {
    /// The first listener's of a configuration.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let pools = upstream::pools(&config.pools, &upstream::Pools::new())?;
        Ok(Self(Sites::new(&config.listeners[0].sites, &pools, &Arc::new(Masters::random()))?))
    }

    /// Everything that a client sends until it is refused, without waiting for answers.
    pub fn feed(&self, bytes: &[u8]) {
        let mut left = bytes;
        let mut acceptor = Acceptor::default();
        let accepted = loop {
            if acceptor.read_tls(&mut left).is_err() {
                return;
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => break accepted,
                Ok(None) if left.is_empty() => return,
                Ok(None) => {}
                Err(_) => return,
            }
        };
        let Some(site) = self.0.find(accepted.client_hello().server_name()) else { return };
        let mut call = Call::Accept(Box::new(accepted), Arc::clone(&site.tls));
        loop {
            let Step::Processed(Ok(mut tls)) = call.start(Signing::InPlace) else { return };
            if left.is_empty() || tls.read_tls(&mut left).is_err() {
                return;
            }
            call = Call::Process(tls);
        }
    }
}
