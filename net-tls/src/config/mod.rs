//! What a proxy is told.

mod file;
mod text;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use warpcore_runtime::net::Address;

use crate::certificates;

/// Listeners, what is served on them, and where plain text goes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where clients connect.
    #[serde(rename = "listener")]
    pub listeners: Vec<ListenerConfig>,
    /// Where plain text goes, by name.
    #[serde(rename = "pool", default)]
    pub pools: BTreeMap<String, PoolConfig>,
    /// How long things may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// File with the keys of session tickets, for machines that share them: 64 hexadecimal digits in a
    /// line; the first seals, all open. None: tickets are good for this process only.
    pub ticket_keys: Option<PathBuf>,
    /// Where metrics are asked for: Prometheus's text, at `/metrics`.
    #[serde(default, deserialize_with = "text::maybe_parsed")]
    pub metrics: Option<Address>,
    /// File that gets a line of JSON for each connection that has ended.
    pub access_log: Option<PathBuf>,
    /// Whom the program becomes once it listens, if it is root. Files have to be readable by that user
    /// to be reloaded.
    pub user: Option<String>,
    /// Where signatures are made.
    #[serde(skip)]
    pub signing: Signing,
}

/// Where clients connect, and who may.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// An address, or a path.
    #[serde(deserialize_with = "text::parsed")]
    pub address: Address,
    /// What is served, by the name that the client asks for. Who asks for another, or for none, gets
    /// the one without names; without one, an alert.
    #[serde(rename = "site")]
    pub sites: Vec<SiteConfig>,
    /// Each connection begins with a PROXY header, of version 1 or 2, which says who the client is.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// How much at a time.
    #[serde(default)]
    pub limits: Limits,
}

/// What is served under some names.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    /// DNS names, `*.example.org` for all that have one label more. None: every name.
    #[serde(default)]
    pub names: Vec<String>,
    /// Chains and keys. Of several for one name the client's algorithms decide.
    #[serde(default)]
    pub certificates: Vec<CertificateConfig>,
    /// A directory with more of them: `NAME.pem` or `NAME.crt` beside `NAME.key`, or
    /// `NAME/fullchain.pem` beside `NAME/privkey.pem`.
    pub certificate_directory: Option<PathBuf>,
    /// Application protocols (ALPN), the preferred first. None: none is agreed on.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// TLS 1.3 only.
    #[serde(default)]
    pub tls13_only: bool,
    /// Clients need a certificate.
    pub client_certificates: Option<ClientCertificates>,
    /// Name of the pool that plain text goes to.
    pub pool: String,
    /// Pools for some application protocols, instead.
    #[serde(default)]
    pub pool_by_alpn: BTreeMap<String, String>,
}

/// A certificate's files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateConfig {
    /// PEM file with the chain.
    pub chain: PathBuf,
    /// PEM file with the private key of the chain's first certificate.
    pub key: PathBuf,
}

/// Whose certificates clients may have.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificates {
    /// PEM file with the authorities.
    pub authorities: PathBuf,
    /// PEM files with what those have revoked (CRLs). Of an authority without one nothing is; of several
    /// by one authority the newest counts.
    #[serde(default)]
    pub revoked: Vec<PathBuf>,
    /// Who has none is served too.
    #[serde(default)]
    pub optional: bool,
}

/// Upstreams that can take each other's place.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// `HOST:PORT` or `unix:PATH`. A host's name is looked up when the proxy starts or is reloaded.
    pub upstreams: Vec<String>,
    /// Which is next.
    #[serde(default)]
    pub balance: Balance,
    /// What each connection to an upstream begins with.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    /// How often it is tried whether each upstream can be connected to. None: never.
    #[serde(default, deserialize_with = "text::maybe_duration")]
    pub check: Option<Duration>,
}

/// Which upstream is next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Each in its turn.
    #[default]
    RoundRobin,
    /// The one with the fewest connections of ours.
    LeastConnections,
}

/// How an upstream is told who the client is: HAProxy's `proxy-protocol.txt`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// It is not told.
    #[default]
    None,
    /// A line of text.
    V1,
    /// Binary, with what TLS has agreed on.
    V2,
}

/// Where the signature of a handshake is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Signing {
    /// In the rustls call, while the shard waits: the twin that offloading is measured against.
    InPlace,
    /// By the shard's offload queue, while the shard does other things. RSA and ECDSA on P-256; other
    /// keys sign in place.
    #[default]
    Offloaded,
}

/// How much of a listener may be in use at a time. More is refused, and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections.
    pub connections: u64,
    /// Connections from one IP address.
    pub connections_per_client: u64,
    /// Handshakes that have not ended.
    pub handshakes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 100_000, connections_per_client: 100_000, handshakes: 10_000 }
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From accept to the end of the handshake.
    #[serde(deserialize_with = "text::duration")]
    pub handshake: Duration,
    /// To reach an upstream.
    #[serde(deserialize_with = "text::duration")]
    pub connect: Duration,
    /// For open connections to end once the proxy is asked to stop.
    #[serde(deserialize_with = "text::duration")]
    pub drain: Duration,
    /// Without a byte in either direction.
    #[serde(deserialize_with = "text::duration")]
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            drain: Duration::from_secs(30),
            idle: Duration::from_secs(300),
        }
    }
}

impl Config {
    /// One certificate on one listener, in front of one upstream.
    pub fn single(listen: Address, certificate: CertificateConfig, upstream: &Address) -> Self {
        const POOL: &str = "upstream";
        let site = SiteConfig {
            certificates: vec![certificate],
            pool: POOL.to_owned(),
            ..SiteConfig::default()
        };
        let listener = ListenerConfig {
            address: listen,
            sites: vec![site],
            proxy_protocol: false,
            limits: Limits::default(),
        };
        let upstreams = vec![upstream.to_string()];
        let pool = PoolConfig { upstreams, ..PoolConfig::default() };
        Self {
            listeners: vec![listener],
            pools: BTreeMap::from([(POOL.to_owned(), pool)]),
            ..Self::default()
        }
    }

    /// Every file and directory that is read when this is loaded.
    pub fn paths(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = self.ticket_keys.iter().cloned().collect();
        for site in self.listeners.iter().flat_map(|listener| &listener.sites) {
            let mut pairs = site.certificates.clone();
            if let Some(directory) = &site.certificate_directory {
                paths.push(directory.clone());
                pairs.extend(certificates::pairs_in(directory).unwrap_or_default());
            }
            paths.extend(pairs.into_iter().flat_map(|pair| [pair.chain, pair.key]));
            if let Some(clients) = &site.client_certificates {
                paths.push(clients.authorities.clone());
                paths.extend(clients.revoked.iter().cloned());
            }
        }
        paths
    }
}
