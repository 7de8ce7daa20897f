//! What is served under which names: certificates, protocols, who may come, and where to.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;
use x509_parser::num_bigint::BigUint;
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT as ISSUING_DISTRIBUTION_POINT;
use x509_parser::{parse_x509_certificate, parse_x509_crl};

use crate::certificates::{self, Certificate, Certificates, lookup};
use crate::config::{CertificateConfig, ClientCertificates, SiteConfig};
use crate::error::Error;
use crate::provider::provider;
use crate::ticket::{Masters, SealsOnly, Ticketer};
use crate::upstream::{Pool, Pools};

/// What is served under some names.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) tls: Arc<ServerConfig>,
    /// The same, but that no ticket opens. None: whoever comes may.
    pub(crate) afresh: Option<Arc<ServerConfig>>,
    certificates: Arc<Certificates>,
    pool: Arc<Pool>,
    pool_by_alpn: HashMap<Vec<u8>, Arc<Pool>>,
    revoked: Vec<RevocationList>,
}

/// Who has been revoked.
#[derive(Debug)]
pub(crate) struct RevocationList {
    pub(crate) path: PathBuf,
    /// Whose, and of which part of their certificates: the name and the extension in DER.
    of: (Vec<u8>, Option<Vec<u8>>),
    /// When, in seconds since 1970, and its number.
    made: (i64, BigUint),
    der: CertificateRevocationListDer<'static>,
    /// When the next one should have come, in seconds since 1970.
    pub(crate) expires: Option<i64>,
}

impl Site {
    fn new(config: &SiteConfig, pools: &Pools, masters: &Arc<Masters>) -> Result<Self, Error> {
        let certificates = Arc::new(Certificates::new(read_certificates(config)?));
        let pool = |name: &str| {
            let known = || pools.keys().cloned().collect::<Vec<_>>().join(", ");
            pools.get(name).cloned().ok_or_else(|| {
                Error::config(format!("no pool is called `{name}`; there is {}", known()))
            })
        };
        let mut pool_by_alpn = HashMap::new();
        for (protocol, name) in &config.pool_by_alpn {
            let at = |error: Error| error.at_name(protocol).at("pool_by_alpn");
            if !config.alpn.contains(protocol) {
                let cause = format!("`{protocol}` is never agreed on: it is not in `alpn`");
                return Err(at(Error::config(cause)));
            }
            let pool = pool(name).map_err(at)?;
            pool_by_alpn.insert(protocol.clone().into_bytes(), pool);
        }
        let clients = config.client_certificates.as_ref().map(Clients::read).transpose();
        let clients = clients.map_err(|error| error.at("client_certificates"))?;
        let mut tls = tls(config, clients.as_ref(), Arc::clone(&certificates))?;
        let policy = policy(config, certificates.all(), clients.as_ref());
        let ticketer = Arc::new(Ticketer { masters: Arc::clone(masters), policy });
        let afresh = clients.is_some().then(|| {
            let mut afresh = tls.clone();
            afresh.ticketer = Arc::new(SealsOnly(Arc::clone(&ticketer)));
            Arc::new(afresh)
        });
        tls.ticketer = ticketer;
        Ok(Self {
            tls: Arc::new(tls),
            afresh,
            certificates,
            pool: pool(&config.pool).map_err(|error| error.at("pool"))?,
            pool_by_alpn,
            revoked: clients.map(|clients| clients.revoked).unwrap_or_default(),
        })
    }

    /// Where a connection goes that has agreed on this application protocol.
    pub(crate) fn pool(&self, alpn: Option<&[u8]>) -> &Arc<Pool> {
        alpn.and_then(|alpn| self.pool_by_alpn.get(alpn)).unwrap_or(&self.pool)
    }

    pub(crate) fn certificates(&self) -> &[Certificate] {
        self.certificates.all()
    }

    pub(crate) fn revoked(&self) -> &[RevocationList] {
        &self.revoked
    }
}

/// The sites of a listener.
#[derive(Debug)]
pub(crate) struct Sites {
    all: Vec<Arc<Site>>,
    /// By name, those with `*.` too: numbers of `all`.
    by_name: HashMap<String, usize>,
    /// For who asks for another name, or for none.
    default: Option<usize>,
}

impl Sites {
    pub(crate) fn new(
        configs: &[SiteConfig],
        pools: &Pools,
        masters: &Arc<Masters>,
    ) -> Result<Self, Error> {
        let mut sites = Self { all: Vec::new(), by_name: HashMap::new(), default: None };
        for (index, config) in configs.iter().enumerate() {
            let at = |error: Error| error.at(&format!("site.{index}"));
            sites.all.push(Arc::new(Site::new(config, pools, masters).map_err(at)?));
            if config.names.is_empty() && sites.default.replace(index).is_some() {
                return Err(at(Error::config("a second site without names; one is enough")));
            }
            for name in &config.names {
                check_name(name).map_err(|error| at(error.at("names")))?;
                if sites.by_name.insert(name.to_ascii_lowercase(), index).is_some() {
                    let cause = format!("`{name}` is the name of another site too");
                    return Err(at(Error::config(cause).at("names")));
                }
            }
        }
        if sites.all.is_empty() {
            return Err(Error::config("a listener has at least one site"));
        }
        Ok(sites)
    }

    /// The site for the name that a client asks for.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<&Arc<Site>> {
        let named = name.and_then(|name| lookup(&self.by_name, name)).copied();
        named.or(self.default).map(|index| &self.all[index])
    }

    pub(crate) fn all(&self) -> &[Arc<Site>] {
        &self.all
    }
}

/// Labels, and a star at most as the first of them.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let labels = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(is_part)
    };
    if labels.len() <= 253 && labels.split('.').all(is_label) {
        return Ok(());
    }
    let cause = format!("`{name}` is no DNS name; other letters go as punycode (xn--...)");
    Err(Error::config(cause))
}

fn read_certificates(config: &SiteConfig) -> Result<Vec<Certificate>, Error> {
    let mut all = Vec::new();
    for (index, pair) in config.certificates.iter().enumerate() {
        let at = |error: Error| error.at(&format!("certificates.{index}"));
        all.push(Certificate::read(pair).map_err(at)?);
    }
    if let Some(directory) = &config.certificate_directory {
        let read = |pairs: Vec<CertificateConfig>| {
            pairs.iter().map(Certificate::read).collect::<Result<Vec<_>, _>>()
        };
        let found = certificates::pairs_in(directory).and_then(read);
        all.extend(found.map_err(|error| error.at("certificate_directory"))?);
    }
    if all.is_empty() {
        let cause = "a site needs `certificates` or `certificate_directory`";
        return Err(Error::config(cause));
    }
    Ok(all)
}

/// Where a ticket may be used: for the same names, by the same clients, of whom none was revoked since.
/// Certificates that are renewed, and keys, make no difference.
fn policy(
    config: &SiteConfig,
    certificates: &[Certificate],
    clients: Option<&Clients>,
) -> [u8; 32] {
    let mut names: Vec<_> = certificates.iter().flat_map(|one| &one.names).collect();
    names.extend(&config.names);
    names.sort_unstable();
    names.dedup();
    let mode = match &config.client_certificates {
        None => "anybody",
        Some(clients) if clients.optional => "optional",
        Some(_) => "required",
    };
    let parts = [mode.as_bytes()].into_iter();
    let clients = clients.into_iter();
    let parts =
        parts.chain(clients.clone().flat_map(|clients| &clients.authorities).map(|der| &der[..]));
    let parts = parts.chain([&b"revoked"[..]]);
    let parts = parts.chain(clients.flat_map(|clients| &clients.revoked).map(|list| &list.der[..]));
    let parts = parts.chain([&b"names"[..]]).chain(names.into_iter().map(String::as_bytes));
    Ticketer::policy(parts)
}

/// What the files of [`ClientCertificates`] say.
struct Clients {
    authorities: Vec<CertificateDer<'static>>,
    revoked: Vec<RevocationList>,
}

impl Clients {
    fn read(config: &ClientCertificates) -> Result<Self, Error> {
        let authorities = certificates::read_certificates(&config.authorities)?;
        let revoked = read_revoked(&config.revoked, &authorities)?;
        Ok(Self { authorities, revoked })
    }
}

/// The lists in the files: of each authority, and part of its certificates, the newest, for the others
/// would never be looked into, or it would not. One whose time is over counts all the same: refusing its
/// clients would be worse. It is said, and to be seen in the metrics.
fn read_revoked(
    paths: &[PathBuf],
    authorities: &[CertificateDer<'_>],
) -> Result<Vec<RevocationList>, Error> {
    let mut revoked: Vec<RevocationList> = Vec::new();
    for path in paths {
        let fail = |cause: &str| Error::Certificate { path: path.clone(), cause: cause.to_owned() };
        let pem = certificates::read(path)?;
        let mut is_empty = true;
        for der in CertificateRevocationListDer::pem_slice_iter(&pem) {
            is_empty = false;
            let der = der.map_err(|_| fail("the PEM text is broken or cut short"))?;
            let parsed = parse_x509_crl(&der);
            let (_, parsed) = parsed.map_err(|_| fail("an X509 CRL in it is broken"))?;
            let expires = parsed.next_update().map(|time| time.timestamp());
            if expires.is_some_and(|expires| expires < OffsetDateTime::now_utc().unix_timestamp()) {
                tracing::warn!(
                    "{}: this list of the revoked has expired (nextUpdate); it still counts",
                    path.display()
                );
            }
            let issuer = parsed.issuer().as_raw();
            let is_issuer = |authority: &CertificateDer<'_>| {
                parse_x509_certificate(authority)
                    .is_ok_and(|(_, authority)| authority.subject().as_raw() == issuer)
            };
            if !authorities.iter().any(is_issuer) {
                tracing::warn!(
                    "{}: a list of the revoked by {}, which is none of the authorities: it counts for \
                     certificates of an intermediate one of this name only",
                    path.display(),
                    parsed.issuer()
                );
            }
            let part = parsed.extensions().iter().find(|one| one.oid == ISSUING_DISTRIBUTION_POINT);
            let of = (issuer.to_vec(), part.map(|part| part.value.to_vec()));
            let number = parsed.crl_number().cloned().unwrap_or_default();
            let made = (parsed.last_update().timestamp(), number);
            let list = RevocationList { path: path.clone(), of, made, der: der.clone(), expires };
            let Some(other) = revoked.iter_mut().find(|other| other.of == list.of) else {
                revoked.push(list);
                continue;
            };
            let older = if other.made < list.made { std::mem::replace(other, list) } else { list };
            tracing::warn!(
                "{}: a list of the revoked that is left out: there is a newer one by {}",
                older.path.display(),
                parsed.issuer()
            );
        }
        if is_empty {
            return Err(fail("no PEM section X509 CRL in it"));
        }
    }
    Ok(revoked)
}

fn tls(
    config: &SiteConfig,
    clients: Option<&Clients>,
    certificates: Arc<Certificates>,
) -> Result<ServerConfig, Error> {
    let versions: &[_] = if config.tls13_only { &[&TLS13] } else { &[&TLS13, &TLS12] };
    let provider = provider();
    let verifier = match config.client_certificates.as_ref().zip(clients) {
        Some((config, clients)) => {
            let verifier = client_verifier(config, clients, &provider);
            verifier.map_err(|error| error.at("client_certificates"))?
        }
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("the provider has suites for both versions")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificates);
    tls.alpn_protocols = config.alpn.iter().map(|name| name.clone().into_bytes()).collect();
    // Sessions are in tickets, or nowhere: other shards and machines would not know them.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(tls)
}

fn client_verifier(
    config: &ClientCertificates,
    clients: &Clients,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut authorities = RootCertStore::empty();
    let path = &config.authorities;
    let fail =
        |error: &dyn Display| Error::Certificate { path: path.clone(), cause: error.to_string() };
    for certificate in &clients.authorities {
        authorities.add(certificate.clone()).map_err(|error| fail(&error))?;
    }
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(provider))
            .with_crls(clients.revoked.iter().map(|list| list.der.clone()))
            .allow_unknown_revocation_status();
    let builder = if config.optional { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(|error| fail(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_be_asked_for() {
        for good in ["example.org", "*.example.org", "localhost", "a_b.xn--bcher-kva.example"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "*", "*.", "a..b", ".a", "b*.example", "bücher.example", "a b", "*.*.a"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
