//! Certificates from files: each with its key, in the order that TLS wants, found by name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{CipherSuite, SignatureAlgorithm};
use warpcore_offload::{EcdsaKey, KeyError, PrivateKey, private_key_from_pem};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use crate::config::CertificateConfig;
use crate::error::Error;
use crate::provider::base;
use crate::signer::{OffloadedKey, QueueKey};

/// A chain with its key, checked.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    /// In lower case; `*.` in front of those that stand for many.
    pub(crate) names: Vec<String>,
    /// Until when it is valid, in seconds since 1970.
    pub(crate) expires: i64,
    pub(crate) chain: PathBuf,
    certified: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads both files, and checks that they belong together.
    pub(crate) fn read(pair: &CertificateConfig) -> Result<Self, Error> {
        let chain = read_certificates(&pair.chain)?;
        let key = read_key(&pair.key)?;
        let fail = |cause: String| Error::Certificate { path: pair.chain.clone(), cause };
        let parsed: Vec<_> = chain
            .iter()
            .zip(1..)
            .map(|(der, number)| match X509Certificate::from_der(der) {
                Ok((_, parsed)) => Ok(parsed),
                Err(error) => Err(fail(format!("certificate {number} in it is damaged: {error}"))),
            })
            .collect::<Result<_, _>>()?;
        let public = key.public_key().expect("keys of ours and of ring know it");
        let own = parsed.iter().position(|one| one.public_key().raw == public.as_ref());
        let own = own.ok_or_else(|| Error::Mismatch {
            certificate: pair.chain.clone(),
            key: pair.key.clone(),
        })?;
        let order = in_order(&parsed, own).map_err(fail)?;
        if !order.is_sorted() {
            tracing::info!("{}: served in the right order, which is another", pair.chain.display());
        }
        let names = names(&parsed[own]);
        let expires = parsed[own].validity().not_after.timestamp();
        let ordered = order.into_iter().map(|index| chain[index].clone()).collect();
        let certified = Arc::new(CertifiedKey::new(ordered, key));
        Ok(Self { names, expires, chain: pair.chain.clone(), certified })
    }
}

/// Each certified by the next, the server's `own` first (RFC 5246, section 7.4.2); one that is
/// there twice, once.
fn in_order(chain: &[X509Certificate<'_>], own: usize) -> Result<Vec<usize>, String> {
    let mut order = vec![own];
    let mut last = own;
    while chain[last].issuer().as_raw() != chain[last].subject().as_raw() {
        let issuer = chain[last].issuer().as_raw();
        let issuer = chain.iter().position(|one| one.subject().as_raw() == issuer);
        match issuer {
            Some(index) if !order.contains(&index) => {
                order.push(index);
                last = index;
            }
            // An authority that clients know themselves.
            _ => break,
        }
    }
    let bytes = |one: &X509Certificate<'_>| one.tbs_certificate.as_ref().to_vec();
    let is_used =
        |one: &X509Certificate<'_>| order.iter().any(|used| bytes(&chain[*used]) == bytes(one));
    match chain.iter().position(|one| !is_used(one)) {
        None => Ok(order),
        Some(index) => Err(format!(
            "certificate {} in it ({}) has certified none of the others; take it out",
            index + 1,
            chain[index].subject()
        )),
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

/// The pairs in a directory, by their names: see
/// [`SiteConfig::certificate_directory`](crate::SiteConfig::certificate_directory).
pub(crate) fn pairs_in(directory: &Path) -> Result<Vec<CertificateConfig>, Error> {
    let fail = |source| Error::Read { path: directory.to_owned(), source };
    let mut pairs = Vec::new();
    for entry in directory.read_dir().map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let beside = |end: &str| path.with_extension(end);
        let found = match path.extension().and_then(OsStr::to_str) {
            Some("pem" | "crt") => Some((path.clone(), beside("key"))),
            Some("key") if !is_there(&beside("crt"))? => Some((beside("pem"), path.clone())),
            _ => None,
        };
        let (chain, key) =
            found.unwrap_or_else(|| (path.join("fullchain.pem"), path.join("privkey.pem")));
        let pair = CertificateConfig { chain, key };
        match (is_there(&pair.chain)?, is_there(&pair.key)?) {
            (true, true) => pairs.push(pair),
            (false, false) => {}
            // Authorities and parameters lie beside pairs, too.
            (true, false) if is_of_a_server(&pair.chain)? => {
                return Err(half(&pair.chain, &pair.key));
            }
            (true, false) => {}
            (false, true) => return Err(half(&pair.key, &pair.chain)),
        }
    }
    if pairs.is_empty() {
        let cause = "no NAME.pem beside NAME.key in it, and no NAME/fullchain.pem".to_owned();
        return Err(Error::Certificate { path: directory.to_owned(), cause });
    }
    pairs.sort_by(|one, next| one.chain.cmp(&next.chain));
    // Chain and key have both led to it.
    pairs.dedup();
    Ok(pairs)
}

/// Also a link that leads nowhere: whoever reads it says so.
fn is_there(path: &Path) -> Result<bool, Error> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

/// Whether a file begins with a certificate that is no authority's, or that has names all the same.
fn is_of_a_server(path: &Path) -> Result<bool, Error> {
    let pem = read(path)?;
    let Some(Ok(first)) = CertificateDer::pem_slice_iter(&pem).next() else { return Ok(false) };
    let parsed = X509Certificate::from_der(&first);
    Ok(parsed.map_or(true, |(_, parsed)| !parsed.is_ca() || !names(&parsed).is_empty()))
}

fn half(path: &Path, missing: &Path) -> Error {
    let cause = format!("{} is missing beside it", missing.display());
    Error::Certificate { path: path.to_owned(), cause }
}

/// The certificates of a site.
#[derive(Debug)]
pub(crate) struct Certificates {
    all: Vec<Certificate>,
    /// By name, those with `*.` too.
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// For other names, and for none.
    default: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    /// ECDSA goes before RSA: it costs less. Else the order is kept.
    pub(crate) fn new(mut all: Vec<Certificate>) -> Self {
        all.sort_by_key(|one| one.certified.key.algorithm() == SignatureAlgorithm::RSA);
        let mut by_name: HashMap<_, Vec<_>> = HashMap::new();
        for certificate in &all {
            for name in &certificate.names {
                by_name.entry(name.clone()).or_default().push(Arc::clone(&certificate.certified));
            }
        }
        let default = all.iter().map(|one| Arc::clone(&one.certified)).collect();
        Self { all, by_name, default }
    }

    pub(crate) fn all(&self) -> &[Certificate] {
        &self.all
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let can_verify = |certified: &CertifiedKey| {
            let is_rsa = certified.key.algorithm() == SignatureAlgorithm::RSA;
            certified.key.choose_scheme(hello.signature_schemes()).is_some()
                && hello.cipher_suites().iter().any(|suite| suits(*suite, is_rsa))
        };
        let named = hello.server_name().and_then(|name| lookup(&self.by_name, name));
        let candidates = named.unwrap_or(&self.default);
        // Of a client that can verify none rustls says what it lacks, but only with one at hand.
        candidates.iter().find(|one| can_verify(one)).or_else(|| candidates.first()).cloned()
    }
}

/// Whether a suite can be used with a certificate: those of TLS 1.3 with any, those of TLS 1.2 say
/// with which; Ed25519 goes with ECDSA (RFC 8422, section 5.10).
fn suits(suite: CipherSuite, is_rsa: bool) -> bool {
    let Some(name) = suite.as_str() else { return false };
    name.starts_with("TLS13_") || name.starts_with("TLS_ECDHE_RSA_") == is_rsa
}

/// What there is for a name: under it, or under the `*.` that stands for it (RFC 6125, section 6.4.3:
/// one label, the first).
pub(crate) fn lookup<'a, T>(by_name: &'a HashMap<String, T>, name: &str) -> Option<&'a T> {
    let name = name.to_ascii_lowercase();
    let wild = || name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
    by_name.get(&name).or_else(|| by_name.get(&wild()?))
}

pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
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
    let pem = read_secret(path)?;
    let fail = |cause| Error::Key { path: path.to_owned(), cause };
    let key = match PrivateKey::from_pem(&pem) {
        // Software could not sign with it, and RFC 8446 peers would not accept it.
        Ok(key) if key.modulus_len_bytes() < 2048 / 8 => {
            return Err(fail(KeyError::Size { modulus_bits: key.modulus_len_bytes() * 8 }));
        }
        Ok(key) => Ok(QueueKey::Rsa(Arc::new(key))),
        // Of another curve than P-256 the library may have it.
        Err(KeyError::NotRsa(_)) => {
            EcdsaKey::from_pem(&pem).map(|key| QueueKey::Ecdsa(Arc::new(key)))
        }
        Err(cause) => return Err(fail(cause)),
    };
    let mut der = private_key_from_pem(&pem).map_err(fail)?;
    let in_place = base::sign::any_supported_type(&der);
    der.zeroize();
    match (key, in_place) {
        (Ok(key), Ok(in_place)) => Ok(Arc::new(OffloadedKey::new(key, in_place))),
        (Err(_), Ok(in_place)) => Ok(in_place),
        (Err(cause), Err(_)) => Err(fail(cause)),
        (Ok(_), Err(_)) => Err(fail(KeyError::Inconsistent("the TLS library refuses it"))),
    }
}

/// What nobody else should be able to read; says so if everybody is.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let bytes = read(path).map(Zeroizing::new)?;
    if path.metadata().is_ok_and(|metadata| metadata.mode() & 0o007 != 0) {
        tracing::warn!("every user of this machine may use {0}: `chmod o= {0}`", path.display());
    }
    Ok(bytes)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wild_name_stands_for_one_label() {
        let names = ["a.example", "*.example", "*.b.example"];
        let by_name: HashMap<_, _> = names.map(|name| (name.to_owned(), name)).into();
        for (asked, found) in [
            ("a.example", Some("a.example")),
            ("A.Example", Some("a.example")),
            ("c.example", Some("*.example")),
            ("d.b.example", Some("*.b.example")),
            ("d.c.example", None),
            ("example", None),
            ("", None),
        ] {
            assert_eq!(lookup(&by_name, asked).copied(), found, "{asked}");
        }
    }
}
