//! One client, from accept to close.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use rustls::server::{Accepted, Acceptor};
use rustls::{CertificateError, CipherSuite, HandshakeKind, ProtocolVersion, ServerConnection};
use warpcore_offload::{EcdsaSign, Kernel, KeyExchange, Sign};
use warpcore_runtime::net::{Address, Stream};
use warpcore_runtime::{queue, timeout};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::config::Signing;
use crate::handshake::{Answer, Asked, Call, Refused, Step};
use crate::listener::{Listening, Proxy, Shard};
use crate::proxy_protocol::{self, Agreed, CertifiedClient, Endpoints, NAME_LEN_MAX};
use crate::relay::relay;
use crate::signer::SignRequest;
use crate::site::{Site, Sites};
use crate::stats::{Counter, Counters, Refusal};

/// Room for one read of a socket: the largest TLS record and its header.
pub(crate) const RECEIVE_LEN_BYTES: usize = 16 * 1024 + 256;

/// Who is to blame, in words.
pub(crate) type Cause = Box<dyn std::error::Error>;

/// Why a connection ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// More than may be at a time.
    Refused(Refusal),
    /// The client went before the handshake was over.
    HungUp(Cause),
    /// There was no PROXY header, or a broken one.
    ProxyHeader(&'static str),
    /// What the client said, or wanted, was refused.
    Protocol(Cause),
    /// The handshake took too long.
    Timeout,
    /// No upstream could be connected to.
    Upstream(Cause),
    /// Afterwards nothing has moved for this long.
    Idle(Duration),
    /// Afterwards.
    Relay(Cause),
    /// It was open when the time to drain was over.
    CutOff,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(Refusal::Client) => f.write_str("refused: too many of this client"),
            Self::Refused(Refusal::Connections) => f.write_str("refused: too many connections"),
            Self::Refused(Refusal::Handshakes) => f.write_str("refused: too many handshakes"),
            Self::HungUp(cause) => write!(f, "hung up during the handshake: {cause}"),
            Self::ProxyHeader(cause) => f.write_str(cause),
            Self::Protocol(cause) => write!(f, "handshake: {cause}"),
            Self::Timeout => f.write_str("the handshake took too long"),
            Self::Upstream(cause) => write!(f, "no upstream: {cause}"),
            Self::Idle(idle) => write!(f, "idle for {} s", idle.as_secs_f64()),
            Self::Relay(cause) => write!(f, "{cause}"),
            Self::CutOff => f.write_str("cut off when the proxy ended"),
        }
    }
}

/// What is known of a connection, as far as it came.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) accepted_at: Instant,
    pub(crate) endpoints: Option<Endpoints>,
    pub(crate) server_name: Option<String>,
    pub(crate) version: Option<ProtocolVersion>,
    pub(crate) suite: Option<CipherSuite>,
    pub(crate) alpn: Option<Vec<u8>>,
    pub(crate) resumed: bool,
    pub(crate) handshake: Option<Duration>,
    pub(crate) upstream: Option<Address>,
    pub(crate) traffic: Traffic,
}

/// Plain text that each side gave to relay, in bytes: what could not be delivered counts.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) received: Cell<u64>,
    pub(crate) sent: Cell<u64>,
}

/// Shakes hands, connects to the upstream, relays.
pub(crate) async fn serve(
    proxy: &Proxy,
    listening: &Listening,
    client: Stream,
    shard: &Shard,
    visit: &mut Visit,
) -> Result<(), Failure> {
    let active = proxy.active();
    let (limits, timeouts) = (active.limits[listening.number], active.timeouts);
    let _connection = listening.usage.connection(&limits).map_err(Failure::Refused)?;
    visit.endpoints = endpoints(&client);
    let one_of = |ip: IpAddr| listening.usage.client(&limits, ip).map_err(Failure::Refused);
    let mut _client = match visit.endpoints {
        Some(endpoints) if !listening.proxy_protocol => one_of(endpoints.source.ip())?,
        _ => None,
    };
    let pending = listening.usage.handshake(&limits).map_err(Failure::Refused)?;

    let shaken = timeout(timeouts.handshake, async {
        let mut received = BytesMut::with_capacity(RECEIVE_LEN_BYTES);
        if listening.proxy_protocol {
            let said;
            (said, received) = read_proxy_header(&client, received).await?;
            visit.endpoints = said.or(visit.endpoints);
            if let Some(endpoints) = said {
                _client = one_of(endpoints.source.ip())?;
            }
        }
        let sites = &active.sites[listening.number];
        shake_hands(proxy.config.signing, sites, &client, &shard.counters, received).await
    });
    let Shaken { tls, received, site } = shaken.await.unwrap_or(Err(Failure::Timeout))?;
    drop((pending, active));
    let took = visit.accepted_at.elapsed();
    visit.agreed(&tls, took);
    shard.counters.handshakes.add(took);
    visit.suite.iter().for_each(|suite| shard.counters.agreed(*suite));
    shard.counters.count(match (visit.version, visit.resumed) {
        (Some(ProtocolVersion::TLSv1_3), false) => Counter::Tls13Full,
        (Some(ProtocolVersion::TLSv1_3), true) => Counter::Tls13Resumed,
        (_, false) => Counter::Tls12Full,
        (_, true) => Counter::Tls12Resumed,
    });

    // If there is no upstream, the client is cut off without close_notify: it must not take
    // silence for an empty answer.
    let pool = Arc::clone(site.pool(visit.alpn.as_deref()));
    drop(site);
    let (upstream, lease) = pool.connect(timeouts.connect).await.map_err(Failure::Upstream)?;
    visit.upstream = Some(lease.address().clone());
    let name = client_name(&tls);
    let agreed = agreed(&tls, name.as_deref());
    let header = proxy_protocol::header(pool.proxy_protocol, visit.endpoints, &agreed);
    if !header.is_empty() {
        upstream.send_all(header).await.0.map_err(|error| Failure::Upstream(error.into()))?;
    }
    relay(tls, received, client, upstream, timeouts.idle, &visit.traffic).await
}

impl Visit {
    pub(crate) fn new() -> Self {
        Self {
            accepted_at: Instant::now(),
            endpoints: None,
            server_name: None,
            version: None,
            suite: None,
            alpn: None,
            resumed: false,
            handshake: None,
            upstream: None,
            traffic: Traffic::default(),
        }
    }

    /// What the handshake came to.
    fn agreed(&mut self, tls: &ServerConnection, took: Duration) {
        self.server_name = tls.server_name().map(str::to_owned);
        self.version = tls.protocol_version();
        self.suite = tls.negotiated_cipher_suite().map(|suite| suite.suite());
        self.alpn = tls.alpn_protocol().map(<[u8]>::to_vec);
        self.resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        self.handshake = Some(took);
    }
}

/// As an upstream is told. Versions are named as OpenSSL names them, which others look for.
fn agreed<'a>(tls: &'a ServerConnection, client_name: Option<&'a str>) -> Agreed<'a> {
    let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
    Agreed {
        server_name: tls.server_name(),
        alpn: tls.alpn_protocol(),
        version: version_name(tls.protocol_version()),
        suite: tls.negotiated_cipher_suite().and_then(|one| suite_name(one.suite())).unwrap_or(""),
        client: tls.peer_certificates().map(|_| CertifiedClient { name: client_name, resumed }),
    }
}

/// The common name in the client's certificate.
fn client_name(tls: &ServerConnection) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(tls.peer_certificates()?.first()?).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    (name.len() <= NAME_LEN_MAX).then(|| name.to_owned())
}

/// As IANA calls them.
pub(crate) fn suite_name(suite: CipherSuite) -> Option<&'static str> {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => Some("TLS_AES_128_GCM_SHA256"),
        CipherSuite::TLS13_AES_256_GCM_SHA384 => Some("TLS_AES_256_GCM_SHA384"),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some("TLS_CHACHA20_POLY1305_SHA256"),
        other => other.as_str(),
    }
}

pub(crate) fn version_name(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "",
    }
}

/// Both ends of a connection; none of a Unix socket.
fn endpoints(client: &Stream) -> Option<Endpoints> {
    match (client.peer_addr(), client.local_addr()) {
        (Ok(Address::Tcp(source)), Ok(Address::Tcp(destination))) => {
            Some(Endpoints { source, destination })
        }
        _ => None,
    }
}

/// Also returns what was received behind the header.
async fn read_proxy_header(
    client: &Stream,
    mut received: BytesMut,
) -> Result<(Option<Endpoints>, BytesMut), Failure> {
    loop {
        if let Some(header) = proxy_protocol::parse(&received).map_err(Failure::ProxyHeader)? {
            received.advance(header.len);
            return Ok((header.endpoints, received));
        }
        received = receive(client, received).await?;
    }
}

/// A connection that has shaken hands.
struct Shaken {
    tls: Box<ServerConnection>,
    /// What was received behind the handshake and rustls has not seen.
    received: BytesMut,
    site: Arc<Site>,
}

/// Feeds rustls until the handshake is over. Bytes are received only while rustls wants some: a
/// client that talks on while its signature is in flight fills its own socket.
async fn shake_hands(
    signing: Signing,
    sites: &Sites,
    client: &Stream,
    counters: &Counters,
    mut received: BytesMut,
) -> Result<Shaken, Failure> {
    let mut acceptor = Acceptor::default();
    let mut hello = Vec::new();
    let accepted = loop {
        if !received.is_empty() {
            hello.extend_from_slice(&received);
            feed(|bytes| acceptor.read_tls(bytes), &mut received)?;
            hello.truncate(hello.len() - received.len());
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) if received.is_empty() => received = receive(client, received).await?,
            Ok(None) => {}
            Err((error, mut records)) => {
                let mut alert = Vec::new();
                records.write_all(&mut alert).expect("to memory");
                return Err(refuse(client, Refused { error, alert }).await);
            }
        }
    };
    let name = accepted.client_hello().server_name().map(str::to_owned);
    let Some(site) = sites.find(name.as_deref()) else {
        let asked = match &name {
            Some(name) => format!("no site has the name `{name}`"),
            None => "the client has sent no server name, and no site is for all names".to_owned(),
        };
        let error = rustls::Error::General(asked);
        return Err(refuse(client, Refused { error, alert: UNRECOGNIZED_NAME.to_vec() }).await);
    };
    let site = Arc::clone(site);
    if site.afresh.is_none() {
        hello = Vec::new();
    }
    // A session that was taken up has been looked at.
    let mut is_checked = false;
    let mut has_answered = false;
    let mut call = Call::Accept(Box::new(accepted), Arc::clone(&site.tls));
    loop {
        let mut tls = match complete(call.start(signing), counters).await {
            Ok(tls) => tls,
            Err(refused) => return Err(refuse(client, refused).await),
        };
        let is_resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        if let Some(afresh) = &site.afresh
            && is_resumed
            && !is_checked
            && has_expired(&tls)
        {
            if has_answered {
                // It was asked for another key share, and cannot be asked twice.
                let error = rustls::Error::InvalidCertificate(CertificateError::Expired);
                return Err(refuse(client, Refused { error, alert: EXPIRED.to_vec() }).await);
            }
            // Its own certificate may be another by now, and is asked for again.
            let accepted = accept(&hello).ok_or_else(|| Failure::Protocol("not again".into()))?;
            call = Call::Accept(Box::new(accepted), Arc::clone(afresh));
            continue;
        }
        is_checked |= is_resumed;
        has_answered |= tls.wants_write();
        send_records(&mut tls, client).await.map_err(hung_up)?;
        if !tls.is_handshaking() {
            return Ok(Shaken { tls, received, site });
        }
        if received.is_empty() {
            received = receive(client, received).await?;
        }
        feed(|bytes| tls.read_tls(bytes), &mut received)?;
        call = Call::Process(tls);
    }
}

/// A fatal alert that no site has the name that was asked for (RFC 6066, section 3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A fatal alert that a certificate has expired (RFC 8446, section 6.2).
const EXPIRED: [u8; 7] = [21, 3, 3, 0, 2, 2, 45];

/// A ClientHello that was accepted before.
fn accept(mut hello: &[u8]) -> Option<Accepted> {
    let mut acceptor = Acceptor::default();
    while !hello.is_empty() {
        acceptor.read_tls(&mut hello).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted);
        }
    }
    None
}

/// Whether a certificate of a client's session, or one that it leads to, counts no more: tickets that are renewed
/// would let it in for ever.
fn has_expired(tls: &ServerConnection) -> bool {
    let chain = tls.peer_certificates().unwrap_or_default();
    chain.iter().any(|der| match X509Certificate::from_der(der) {
        Ok((_, one)) => one.validity().not_after < ASN1Time::now(),
        // Who cannot tell asks again.
        Err(_) => true,
    })
}

/// Answers what a call asks for, until it has returned.
async fn complete(mut step: Step, counters: &Counters) -> Result<Box<ServerConnection>, Refused> {
    loop {
        let (asked, suspended) = match step {
            Step::Processed(processed) => return processed,
            Step::Pending(asked, suspended) => (asked, suspended),
        };
        let asked_at = Instant::now();
        let (kernel, answer) = match asked {
            Asked::Exchange(peer) => {
                let exchanged = queue().submit(KeyExchange::new(peer)).await;
                (Kernel::KeyExchange, Answer::Exchanged(exchanged))
            }
            Asked::Sign(SignRequest::Ecdsa { key, message }) => {
                let signed = queue().submit(EcdsaSign::new(key, message)).await;
                (Kernel::Ecdsa, Answer::Signed(signed.result))
            }
            Asked::Sign(SignRequest::Rsa { key, scheme, message }) => {
                let signed = queue().submit(Sign::new(key, scheme, message)).await;
                (Kernel::RsaPrivate, Answer::Signed(signed.result))
            }
        };
        counters.asked(kernel).add(asked_at.elapsed());
        step = suspended.complete(answer);
    }
}

/// Tells the client why, as far as it listens.
async fn refuse(client: &Stream, refused: Refused) -> Failure {
    const RECEIVES_MAX: usize = 16;
    let _ = client.send_all(refused.alert).await;
    let _ = client.shutdown(Shutdown::Write);
    // What is not read when the socket is closed resets the connection, and the alert is lost.
    discard(client, RECEIVES_MAX).await;
    Failure::Protocol(refused.error.into())
}

/// Takes what the client had sent before it could know.
pub(crate) async fn discard(client: &Stream, receives_max: usize) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let rest = async {
        let mut rest = Vec::with_capacity(RECEIVE_LEN_BYTES);
        for _ in 0..receives_max {
            rest.clear();
            let result;
            (result, rest) = client.recv(rest).await;
            if !matches!(result, Ok(1..)) {
                return;
            }
        }
    };
    let _ = timeout(PATIENCE, rest).await;
}

/// Receives behind what is there already.
async fn receive(client: &Stream, mut received: BytesMut) -> Result<BytesMut, Failure> {
    received.reserve(RECEIVE_LEN_BYTES);
    let (result, received) = client.recv(received).await;
    match result {
        Ok(0) => Err(Failure::HungUp("the end of its stream".into())),
        Ok(_) => Ok(received),
        Err(error) => Err(hung_up(error)),
    }
}

fn hung_up(error: io::Error) -> Failure {
    Failure::HungUp(error.into())
}

/// Gives received bytes to rustls, as many as it takes.
fn feed(
    read_tls: impl FnOnce(&mut dyn io::Read) -> io::Result<usize>,
    received: &mut BytesMut,
) -> Result<(), Failure> {
    let mut unread: &[u8] = received;
    let taken = read_tls(&mut unread).map_err(|error| Failure::Protocol(error.into()))?;
    received.advance(taken);
    Ok(())
}

/// Sends what rustls has to send.
async fn send_records(tls: &mut ServerConnection, client: &Stream) -> io::Result<()> {
    let mut records = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut records)?;
    }
    client.send_all(records).await.0
}
