//! What a proxy is told, and the checks before it listens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{InconsistentKeys, NamedGroup, ServerConfig};
use warpcore_offload::{KeyError, PrivateKey};
use zeroize::{Zeroize, Zeroizing};

use crate::error::Error;
use crate::key_exchange::OFFLOADED_X25519;
use crate::signer::OffloadedKey;

/// One listener, one certificate, one upstream.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// PEM file with the chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// PEM file with the private key of that certificate.
    pub key: PathBuf,
    /// Where plain text goes.
    pub upstream: SocketAddr,
    /// Where signatures are made.
    pub signing: Signing,
    /// How long things may take.
    pub timeouts: Timeouts,
}

/// Where the signature of a handshake is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    /// In the rustls call, while the shard waits: the twin that offloading is measured against.
    InPlace,
    /// By the shard's offload queue, while the shard does other things. RSA only; other keys sign
    /// faster than they could be handed over.
    Offloaded,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From accept to the end of the handshake.
    pub handshake: Duration,
    /// To reach the upstream.
    pub connect: Duration,
    /// For open connections to end once the proxy is asked to stop.
    pub drain: Duration,
    /// Without a byte in either direction.
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
    /// Reads the files, checks that they belong together, and makes what rustls needs.
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, Error> {
        let chain = read_chain(&self.certificate)?;
        let key = read_key(&self.key)?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(Error::Mismatch {
                    certificate: self.certificate.clone(),
                    key: self.key.clone(),
                });
            }
            Err(cause) => {
                let path = self.certificate.clone();
                return Err(Error::Certificate { path, cause: cause.to_string() });
            }
        }
        let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(certified));
        let config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS12, &rustls::version::TLS13])
            .expect("ring has suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        Ok(Arc::new(config))
    }
}

/// ring's, with our X25519 first, as ring has it.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.kx_groups.retain(|group| group.name() != NamedGroup::X25519);
    provider.kx_groups.insert(0, &OFFLOADED_X25519);
    provider
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let fail = |cause: &str| Error::Certificate { path: path.to_owned(), cause: cause.to_owned() };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| fail("the PEM text is broken or cut short"))?;
    if chain.is_empty() {
        return Err(fail("no PEM section CERTIFICATE in it"));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<Arc<dyn SigningKey>, Error> {
    let pem = Zeroizing::new(read(path)?);
    match PrivateKey::from_pem(&pem) {
        // Software could not sign with it, and RFC 8446 peers would not accept it.
        Ok(key) if key.modulus_len_bytes() < 2048 / 8 => {
            let cause = KeyError::Size { modulus_bits: key.modulus_len_bytes() * 8 };
            Err(Error::Key { path: path.to_owned(), cause })
        }
        Ok(key) => Ok(Arc::new(OffloadedKey::new(key))),
        Err(KeyError::NotRsa(algorithm)) => {
            let cause = KeyError::NotRsa(algorithm);
            let der = PrivateKeyDer::from_pem_slice(&pem).ok();
            der.and_then(|mut der| {
                let key = ring::sign::any_supported_type(&der).ok();
                der.zeroize();
                key
            })
            .ok_or_else(|| Error::Key { path: path.to_owned(), cause })
        }
        Err(cause) => Err(Error::Key { path: path.to_owned(), cause }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}
