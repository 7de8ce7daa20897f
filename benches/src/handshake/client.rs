//! A client: rustls on our runtime, which verifies what it is shown.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, NamedGroup, RootCertStore,
    SupportedProtocolVersion,
};
use warpcore_runtime::net::{Address, Stream};

/// What a client wants.
#[derive(Clone, Copy)]
pub(super) struct ClientKind {
    pub(super) version: &'static SupportedProtocolVersion,
    /// It keeps tickets and comes back with them.
    pub(super) resumes: bool,
}

/// Makes what each client is told.
#[derive(Clone)]
pub(super) struct Clients {
    config: ClientConfig,
    resume: bool,
}

impl Clients {
    /// Of one who shares its tickets with nobody: how many handshakes are short must not depend on who
    /// is served when.
    pub(super) fn one(&self) -> Arc<ClientConfig> {
        let mut config = self.config.clone();
        if self.resume {
            config.resumption = Resumption::in_memory_sessions(4);
        }
        Arc::new(config)
    }
}

/// X25519 and AES-128-GCM, which every server has.
pub(super) fn clients(root: &CertificateDer<'static>, kind: ClientKind) -> Result<Clients, String> {
    let mut provider = ring::default_provider();
    provider.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    provider.cipher_suites.retain(|suite| {
        matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).map_err(|error| format!("our own certificate: {error}"))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[kind.version])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Clients { config, resume: kind.resumes })
}

/// Bytes of a request: how many to send back, little-endian.
pub(super) const REQUEST_LEN: usize = 4;

/// One connection.
pub(super) struct Client {
    tls: ClientConnection,
    stream: Stream,
    received: BytesMut,
    plain: Vec<u8>,
}

impl Client {
    /// Connects and shakes hands.
    pub(super) async fn connect(
        config: &Arc<ClientConfig>,
        address: SocketAddr,
    ) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").expect("a good name");
        let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        let stream = Stream::connect(Address::Tcp(address)).await?;
        let mut client = Self { tls, stream, received: BytesMut::new(), plain: vec![0; 64 * 1024] };
        client.send().await?;
        while client.tls.is_handshaking() {
            client.receive().await?;
            client.send().await?;
        }
        Ok(client)
    }

    /// Asks for so many bytes and waits for them.
    pub(super) async fn request(&mut self, len: u32) -> io::Result<()> {
        self.tls.writer().write_all(&len.to_le_bytes())?;
        self.send().await?;
        let mut left = len as usize;
        loop {
            match self.tls.reader().read(&mut self.plain) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => left -= len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.receive().await?;
                }
                Err(error) => return Err(error),
            }
            if left == 0 {
                return Ok(());
            }
        }
    }

    /// Says that no more will come.
    pub(super) async fn close(mut self) -> io::Result<()> {
        self.tls.send_close_notify();
        self.send().await
    }

    async fn send(&mut self) -> io::Result<()> {
        if !self.tls.wants_write() {
            return Ok(());
        }
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records)?;
        }
        self.stream.send_all(records).await.0
    }

    async fn receive(&mut self) -> io::Result<()> {
        if self.received.is_empty() {
            let mut received = std::mem::take(&mut self.received);
            received.reserve(64 * 1024);
            let (result, received) = self.stream.recv(received).await;
            self.received = received;
            if result? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let mut unread: &[u8] = &self.received;
        let taken = self.tls.read_tls(&mut unread)?;
        self.received.advance(taken);
        self.tls.process_new_packets().map_err(io::Error::other)?;
        Ok(())
    }
}
