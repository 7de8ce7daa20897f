//! Which certificate a client is shown, who may come in, whose tickets count, and what a reload changes.

#[macro_use]
mod common;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{LOOPBACK, Running, connect_to, echo, openssl, talk, upstream};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, ResolvesClientCert, Resumption,
    Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::kx_group::{MLKEM768, X25519};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ALL_VERSIONS, ClientConfig, NamedGroup, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
use tempfile::TempDir;
use warpcore_need::{Need, need};
use warpcore_tls::{
    CertificateConfig, ClientCertificates, Config, Error, Proxy, Signing, SiteConfig,
};

const NEEDS: [Need; 2] = [Need::Tool("openssl", "openssl"), Need::IoUring];

/// An authority, and a place for the files of what it certifies.
struct Authority {
    place: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a temporary directory");
        Self { place, issuer: authority("root") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), contents).expect("written");
        self.path(name)
    }

    /// A chain and a key for `names`, in `FILE.pem` and `FILE.key`.
    fn certify(&self, file: &str, names: &[&str], key: &KeyPair) -> CertificateConfig {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        self.issue(file, CertificateParams::new(names).expect("good names"), key)
    }

    fn issue(&self, file: &str, mut params: CertificateParams, key: &KeyPair) -> CertificateConfig {
        params.serial_number = Some(SerialNumber::from(file.as_bytes().to_vec()));
        let certificate = params.signed_by(key, &self.issuer).expect("signs");
        CertificateConfig {
            chain: self.write(&format!("{file}.pem"), certificate.pem()),
            key: self.write(&format!("{file}.key"), key.serialize_pem()),
        }
    }

    fn ecdsa(&self, file: &str, names: &[&str]) -> CertificateConfig {
        self.certify(file, names, &KeyPair::generate().expect("a key"))
    }

    fn rsa(&self, file: &str, names: &[&str]) -> CertificateConfig {
        let bits = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
        let pem = openssl(&[&["genpkey", "-quiet"][..], &bits].concat());
        let pem = String::from_utf8(pem).expect("PEM is ASCII");
        self.certify(file, names, &KeyPair::from_pem(&pem).expect("a good key"))
    }

    /// A list of those who are revoked, by the files of their certificates.
    fn revoked(&self, files: &[&str]) -> PathBuf {
        self.revoked_until("revoked.pem", time::OffsetDateTime::now_utc(), files)
    }

    /// As it was a day before `now`, in the file `name`.
    fn revoked_until(&self, name: &str, now: time::OffsetDateTime, files: &[&str]) -> PathBuf {
        let revoked = |file: &&str| RevokedCertParams {
            serial_number: SerialNumber::from(file.as_bytes().to_vec()),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - time::Duration::days(1),
            next_update: now + time::Duration::days(1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: files.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("signs").pem().expect("encodes");
        self.write(name, list)
    }

    fn client(&self) -> ClientConfig {
        self.client_of(ALL_VERSIONS, None)
    }

    fn client_with(&self, certificate: &CertificateConfig) -> ClientConfig {
        self.client_of(ALL_VERSIONS, Some(certificate))
    }

    fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        certificate: Option<&CertificateConfig>,
    ) -> ClientConfig {
        self.client_by(rustls::crypto::ring::default_provider(), versions, certificate)
    }

    fn client_by(
        &self,
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
        certificate: Option<&CertificateConfig>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a good root");
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .expect("supported")
            .with_root_certificates(roots);
        match certificate {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_file_iter(&pair.chain).expect("readable");
                let chain = chain.collect::<Result<_, _>>().expect("good");
                let key = PrivateKeyDer::from_pem_file(&pair.key).expect("good");
                builder.with_client_auth_cert(chain, key).expect("a good pair")
            }
        }
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(authority_params(name), key).expect("signs itself")
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn site(names: &[&str], certificates: &[CertificateConfig]) -> SiteConfig {
    SiteConfig {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        certificates: certificates.to_vec(),
        pool: "upstream".to_owned(),
        ..SiteConfig::default()
    }
}

fn config(signing: Signing, sites: Vec<SiteConfig>) -> Config {
    let nowhere = CertificateConfig { chain: PathBuf::new(), key: PathBuf::new() };
    let mut config = Config::single(LOOPBACK.into(), nowhere, &upstream(echo).into());
    config.listeners[0].sites = sites;
    config.signing = signing;
    config
}

/// Shakes hands as `name`, and says which certificate was shown: by its file.
fn shown(
    name: &'static str,
    client: &Arc<ClientConfig>,
    address: SocketAddr,
) -> std::io::Result<String> {
    let mut stream = connect_to(name, client, address);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let certificate = &stream.conn.peer_certificates().expect("shown")[0];
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).expect("ours");
    let file = String::from_utf8(parsed.raw_serial().to_vec()).expect("ASCII");
    assert_eq!(talk(stream, b"hello")?, b"hello");
    Ok(file)
}

both_ways! {
    clients_show_certificates_that_are_not_revoked => showing_certificates;
    tickets_outlive_a_reload => reloading;
    a_client_that_is_revoked_does_not_resume => revoking;
    the_newest_list_of_an_authority_counts => revoking_twice;
    a_client_that_has_expired_does_not_resume => expiring;
    a_ticket_counts_where_the_same_clients_do => moving_tickets;
    a_ticket_of_another_name_does_not_count => crossing_tickets;
}

#[test]
fn names_choose_the_site_and_the_certificate() {
    if !need(&NEEDS) {
        return;
    }
    let authority = Authority::new();
    let directory = authority.path("directory");
    fs::create_dir_all(directory.join("acme")).expect("a new directory");
    authority.ecdsa("directory/plain", &["plain.example"]);
    let acme = authority.ecdsa("acme", &["acme.example", "*.acme.example"]);
    fs::rename(acme.chain, directory.join("acme/fullchain.pem")).expect("moved");
    fs::rename(acme.key, directory.join("acme/privkey.pem")).expect("moved");
    let sites = vec![
        site(&["a.example"], &[authority.ecdsa("a", &["a.example"])]),
        site(&["*.b.example"], &[authority.ecdsa("b", &["*.b.example"])]),
        SiteConfig { certificate_directory: Some(directory), ..site(&[], &[]) },
    ];
    for signing in [Signing::Offloaded, Signing::InPlace] {
        let proxy = Running::start(&config(signing, sites.clone()), 1);
        let client = Arc::new(authority.client());
        for (name, file) in [
            ("a.example", "a"),
            ("A.Example", "a"),
            ("x.b.example", "b"),
            ("plain.example", "directory/plain"),
            ("acme.example", "acme"),
            ("y.acme.example", "acme"),
        ] {
            assert_eq!(shown(name, &client, proxy.address).expect("served"), file, "{name}");
        }
        proxy.stop();
    }
    // No default: a name that nobody has is told so.
    let proxy = Running::start(&config(Signing::Offloaded, sites[..2].to_vec()), 1);
    let client = Arc::new(authority.client());
    let error = shown("c.example", &client, proxy.address).expect_err("nobody's");
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    assert_eq!(proxy.stop().handshakes_failed, 1);
}

#[test]
fn the_clients_algorithms_choose_between_ecdsa_and_rsa() {
    if !need(&NEEDS) {
        return;
    }
    let authority = Authority::new();
    let pairs = [authority.rsa("rsa", &["a.example"]), authority.ecdsa("ecdsa", &["a.example"])];
    let proxy = Running::start(&config(Signing::Offloaded, vec![site(&[], &pairs)]), 1);
    let address = proxy.address.to_string();
    for (arguments, expected) in [
        (&["-tls1_3"][..], "ecdsa"),
        (&["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"], "rsa"),
        (&["-tls1_2"], "ecdsa"),
        (&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], "rsa"),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], "ecdsa"),
    ] {
        let s_client = ["s_client", "-connect", &address, "-servername", "a.example"];
        let mut command = std::process::Command::new("openssl");
        command.args([&s_client[..], arguments].concat()).stdin(std::process::Stdio::null());
        let said = command.output().expect("checked by need").stdout;
        let pem = CertificateDer::from_pem_slice(&said).expect("a certificate is shown");
        let (_, shown) = x509_parser::parse_x509_certificate(&pem).expect("ours");
        assert_eq!(shown.raw_serial(), expected.as_bytes(), "{arguments:?}");
    }
    proxy.stop();
}

#[test]
fn a_chain_is_put_in_order_or_refused() {
    if !need(&NEEDS) {
        return;
    }
    let authority = Authority::new();
    let key = KeyPair::generate().expect("a key");
    let params = authority_params("between");
    let between = CertifiedIssuer::signed_by(params, key, &authority.issuer).expect("signs");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["a.example".to_owned()]).expect("a good name");
    let own = params.signed_by(&key, &between).expect("signs");
    let key = authority.write("own.key", key.serialize_pem());
    let [own, between, root] = [own.pem(), between.pem(), authority.issuer.pem()];
    for (name, order) in [
        ("reversed", [&root[..], &between, &own].concat()),
        ("mixed", [&between[..], &own].concat()),
        ("twice", [&own[..], &between, &between].concat()),
    ] {
        let chain = authority.write(name, order);
        let pair = CertificateConfig { chain, key: key.clone() };
        let proxy = Running::start(&config(Signing::Offloaded, vec![site(&[], &[pair])]), 1);
        let client = Arc::new(authority.client());
        talk(connect_to("a.example", &client, proxy.address), b"x").expect(name);
        proxy.stop();
    }
    let stranger = crate::authority("stranger").pem();
    let chain = authority.write("stranger", [&own[..], &stranger].concat());
    let pair = CertificateConfig { chain, key };
    let error = Proxy::check(&config(Signing::Offloaded, vec![site(&[], &[pair])]))
        .expect_err("refused")
        .to_string();
    let said = "certificate 2 in it (CN=stranger) has certified none of the others; take it out";
    assert!(error.ends_with(said), "{error}");
}

fn showing_certificates(signing: Signing) {
    let authority = Authority::new();
    let [good, bad] = ["good", "bad"].map(|name| authority.ecdsa(name, &["client.example"]));
    let clients = ClientCertificates {
        authorities: authority.write("authorities.pem", authority.issuer.pem()),
        revoked: vec![authority.revoked(&["bad"])],
        optional: false,
    };
    let pairs = [authority.ecdsa("server", &["a.example"])];
    let required = SiteConfig { client_certificates: Some(clients), ..site(&[], &pairs) };
    let mut optional = required.clone();
    optional.client_certificates.as_mut().expect("set").optional = true;
    for version in ALL_VERSIONS {
        let clients = [None, Some(&good), Some(&bad)]
            .map(|certificate| Arc::new(authority.client_of(&[version], certificate)));
        for (site, expected) in
            [(&required, [false, true, false]), (&optional, [true, true, false])]
        {
            let proxy = Running::start(&config(signing, vec![site.clone()]), 1);
            let served = clients.each_ref().map(|client| shown("a.example", client, proxy.address));
            assert_eq!(served.each_ref().map(Result::is_ok), expected, "{version:?}: {served:?}");
            proxy.stop();
        }
    }
}

/// What a client was given before a reload counts after it, also where no file has the keys.
fn reloading(signing: Signing) {
    let authority = Authority::new();
    let pairs = [authority.ecdsa("server", &["a.example"])];
    let config = config(signing, vec![site(&[], &pairs)]);
    for version in ALL_VERSIONS {
        let proxy = Running::start(&config, 1);
        let client = Arc::new(authority.client_of(&[version], None));
        for _ in 0..3 {
            shown("a.example", &client, proxy.address).expect("served");
            proxy.proxy.reload(&config).expect("good");
        }
        let stats = proxy.stop();
        assert_eq!((stats.handshakes, stats.resumed), (3, 2), "{version:?}");
    }
}

/// Nor by a ticket from before.
fn revoking(signing: Signing) {
    let authority = Authority::new();
    let clients = ClientCertificates {
        authorities: authority.write("authorities.pem", authority.issuer.pem()),
        revoked: vec![authority.revoked(&["another"])],
        optional: false,
    };
    let pairs = [authority.ecdsa("server", &["a.example"])];
    let config = config(
        signing,
        vec![SiteConfig { client_certificates: Some(clients), ..site(&[], &pairs) }],
    );
    let proxy = Running::start(&config, 1);
    let client = authority.client_with(&authority.ecdsa("client", &["client.example"]));
    let client = Arc::new(client);
    for _ in 0..2 {
        shown("a.example", &client, proxy.address).expect("served");
    }
    let list = authority.revoked(&["client"]);
    proxy.proxy.reload(&config).expect("good");
    let due = time::OffsetDateTime::now_utc() + time::Duration::days(1);
    let line = format!("revocation_list_expires_seconds{{list=\"{}\"}} ", list.display());
    let text = proxy.proxy.metrics();
    let (_, seconds) = text.split_once(&line).unwrap_or_else(|| panic!("{text}"));
    let seconds: i64 = seconds.lines().next().and_then(|line| line.parse().ok()).expect("a number");
    assert!((due.unix_timestamp() - 60..=due.unix_timestamp()).contains(&seconds), "{seconds}");
    shown("a.example", &client, proxy.address).expect_err("revoked");
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.resumed, stats.handshakes_failed), (2, 1, 1));
}

/// Whatever the order of the files: rustls looks into one list of an authority.
fn revoking_twice(signing: Signing) {
    let authority = Authority::new();
    let now = time::OffsetDateTime::now_utc();
    let old = authority.revoked_until("old.pem", now - time::Duration::hours(1), &[]);
    let new = authority.revoked_until("new.pem", now, &["client"]);
    let pairs = [authority.ecdsa("server", &["a.example"])];
    for revoked in [vec![old.clone(), new.clone()], vec![new, old]] {
        let clients = ClientCertificates {
            authorities: authority.write("authorities.pem", authority.issuer.pem()),
            revoked,
            optional: false,
        };
        let config = config(
            signing,
            vec![SiteConfig { client_certificates: Some(clients), ..site(&[], &pairs) }],
        );
        let proxy = Running::start(&config, 1);
        let client = authority.client_with(&authority.ecdsa("client", &["client.example"]));
        shown("a.example", &Arc::new(client), proxy.address).expect_err("revoked");
        proxy.stop();
    }
}

/// Nor one whose certificate has expired since, however often its ticket was renewed.
fn expiring(signing: Signing) {
    let authority = Authority::new();
    let clients = ClientCertificates {
        authorities: authority.write("authorities.pem", authority.issuer.pem()),
        revoked: Vec::new(),
        optional: false,
    };
    let pairs = [authority.ecdsa("server", &["a.example"])];
    let config = config(
        signing,
        vec![SiteConfig { client_certificates: Some(clients), ..site(&[], &pairs) }],
    );
    let [ring, mut asked_again] =
        [rustls::crypto::ring::default_provider(), rustls::crypto::aws_lc_rs::default_provider()];
    // Its first key share is of a group that we have not (RFC 8446, section 4.1.4).
    asked_again.kx_groups = vec![MLKEM768, X25519];
    for (provider, version) in [(&ring, &TLS12), (&ring, &TLS13), (&asked_again, &TLS13)] {
        let proxy = Running::start(&config, 1);
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        let expires = time::OffsetDateTime::now_utc() + time::Duration::seconds(8);
        params.not_after = expires;
        let key = KeyPair::generate().expect("a key");
        let shown_by =
            Arc::new(Renewed(Mutex::new(certified(&authority.issue("client", params, &key)))));
        let mut client = authority.client_by(provider.clone(), &[version], None);
        client.client_auth_cert_resolver = Arc::clone(&shown_by) as Arc<dyn ResolvesClientCert>;
        client.resumption =
            Resumption::store(Arc::new(OneForAll(ClientSessionMemoryCache::new(9))));
        let client = Arc::new(client);
        for _ in 0..2 {
            shown("a.example", &client, proxy.address).expect("served");
        }
        // That it is over is what is asked; seconds are what certificates count in.
        while time::OffsetDateTime::now_utc().unix_timestamp() <= expires.unix_timestamp() {
            std::thread::park_timeout(std::time::Duration::from_millis(10));
        }
        let refused = shown("a.example", &client, proxy.address).expect_err("expired");
        assert!(refused.to_string().contains("CertificateExpired"), "{refused}");
        // With a new one it is served, whatever tickets it has: afresh first, then by a ticket again. Who had to
        // be asked for another share is not asked twice, and is refused as long as it has old tickets.
        *shown_by.0.lock().expect("whole") = certified(&authority.ecdsa("renewed", &[]));
        let mut tries = (0..9).map(|_| shown("a.example", &client, proxy.address));
        let refused = tries.by_ref().take_while(Result::is_err).count() as u64;
        assert_eq!(refused > 0, provider.kx_groups[0].name() == MLKEM768.name());
        tries.next().expect("tries are left").expect("served");
        let stats = proxy.stop();
        assert_eq!((stats.handshakes, stats.resumed), (4, 2));
        assert_eq!(stats.handshakes_failed, 1 + refused);
    }
}

/// The certificate of a client, which is another from time to time.
#[derive(Debug)]
struct Renewed(Mutex<Arc<CertifiedKey>>);

impl ResolvesClientCert for Renewed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.lock().expect("whole")))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(pair: &CertificateConfig) -> Arc<CertifiedKey> {
    let chain = CertificateDer::pem_file_iter(&pair.chain).expect("readable");
    let chain = chain.collect::<Result<_, _>>().expect("good");
    let key = PrivateKeyDer::from_pem_file(&pair.key).expect("good");
    let provider = rustls::crypto::ring::default_provider();
    Arc::new(CertifiedKey::from_der(chain, key, &provider).expect("a good pair"))
}

/// Of a directory: nothing that looks like a half of a pair is passed over.
#[test]
fn half_a_pair_is_refused() {
    if !need(&NEEDS) {
        return;
    }
    let authority = Authority::new();
    let whole = authority.ecdsa("whole", &["a.example"]);
    let directory = authority.path("pairs");
    let site = SiteConfig { certificate_directory: Some(directory.clone()), ..site(&[], &[]) };
    let check = || {
        Proxy::check(&config(Signing::Offloaded, vec![site.clone()]))
            .map_err(|error| error.to_string())
    };
    for (chain, key) in
        [("a.pem", "a.key"), ("a.crt", "a.key"), ("a/fullchain.pem", "a/privkey.pem")]
    {
        for (here, other, missing) in [(&whole.chain, chain, key), (&whole.key, key, chain)] {
            fs::create_dir_all(directory.join("a")).expect("made");
            fs::write(directory.join("README"), "of ACME clients").expect("written");
            // As lego does, and others.
            fs::write(directory.join("a.issuer.crt"), authority.issuer.pem()).expect("written");
            let parameters = "-----BEGIN DH PARAMETERS-----\nAA==\n-----END DH PARAMETERS-----\n";
            fs::write(directory.join("dhparam.pem"), parameters).expect("written");
            fs::copy(here, directory.join(other)).expect("written");
            let said = check().expect_err("half");
            let missing = missing.replace("a.crt", "a.pem");
            assert!(said.contains(&format!("{missing} is missing beside it")), "{said}");
            symlink("nowhere", directory.join(&missing)).expect("links");
            let said = check().expect_err("a link that leads nowhere");
            assert!(
                said.contains(&format!("cannot read {}", directory.join(&missing).display())),
                "{said}"
            );
            fs::remove_file(directory.join(&missing)).expect("was there");
            let there = if here == &whole.chain { &whole.key } else { &whole.chain };
            fs::copy(there, directory.join(missing)).expect("written");
            check().expect("whole");
            fs::remove_dir_all(&directory).expect("was there");
        }
    }
}

/// What a reload cannot change is refused, and keys of tickets that no file has any more open nothing.
#[test]
fn a_reload_passes_nothing_over() {
    if !need(&NEEDS) {
        return;
    }
    let authority = Authority::new();
    let config =
        config(Signing::Offloaded, vec![site(&[], &[authority.ecdsa("server", &["a.example"])])]);
    let keys = authority.write("tickets", format!("{}\n", "42".repeat(32)));
    let started = Config { ticket_keys: Some(keys), ..config.clone() };
    let proxy = Running::start(&started, 1);
    for (key, changed) in [
        ("metrics", Config { metrics: Some(LOOPBACK.into()), ..started.clone() }),
        ("access_log", Config { access_log: Some(authority.path("log")), ..started.clone() }),
        ("user", Config { user: Some("nobody".to_owned()), ..started.clone() }),
    ] {
        let said = proxy.proxy.reload(&changed).expect_err(key).to_string();
        assert!(said.starts_with(&format!("{key}: ")) && said.contains("SIGUSR2"), "{said}");
    }
    let client = Arc::new(authority.client());
    for _ in 0..2 {
        shown("a.example", &client, proxy.address).expect("served");
    }
    proxy.proxy.reload(&config).expect("good");
    shown("a.example", &client, proxy.address).expect("served");
    let stats = proxy.stop();
    assert_eq!((stats.handshakes, stats.resumed), (3, 1));
}

/// A client keeps tickets by name. Two machines of one name, with the same keys: what one has given the
/// other takes, unless other clients count there (CVE-2025-23419 of nginx).
fn moving_tickets(signing: Signing) {
    let authority = Authority::new();
    let keys = authority.write("tickets", format!("{}\n", "42".repeat(32)));
    let clients = ClientCertificates {
        authorities: authority.write("authorities.pem", authority.issuer.pem()),
        revoked: Vec::new(),
        optional: true,
    };
    let open = site(&["a.example"], &[authority.ecdsa("one", &["a.example"])]);
    // Renewed, with another key.
    let renewed = site(&["a.example"], &[authority.ecdsa("other", &["a.example"])]);
    let guarded = SiteConfig { client_certificates: Some(clients), ..renewed.clone() };
    let start = |site: SiteConfig, ticket_keys: Option<&Path>| {
        let ticket_keys = ticket_keys.map(Path::to_owned);
        Running::start(&Config { ticket_keys, ..config(signing, vec![site]) }, 1)
    };
    for version in ALL_VERSIONS {
        let client = Arc::new(authority.client_of(&[version], None));
        let resumed = |proxy: Running| {
            shown("a.example", &client, proxy.address).expect("served");
            proxy.stop().resumed
        };
        assert_eq!(resumed(start(open.clone(), Some(&keys))), 0, "the first");
        assert_eq!(resumed(start(renewed.clone(), Some(&keys))), 1, "the same policy");
        assert_eq!(resumed(start(guarded.clone(), Some(&keys))), 0, "other clients count");
        assert_eq!(resumed(start(open.clone(), None)), 0, "other keys");
    }
}

/// A client that shows the tickets of every name to every other, and does not learn which groups they have.
#[derive(Debug)]
struct OneForAll(ClientSessionMemoryCache);

impl OneForAll {
    fn name() -> ServerName<'static> {
        ServerName::try_from("all").expect("a good name")
    }
}

impl ClientSessionStore for OneForAll {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(Self::name(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&Self::name())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&Self::name());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(Self::name(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&Self::name())
    }
}

/// Two names of one listener, one of which asks who the client is: no ticket of the other lets it in.
fn crossing_tickets(signing: Signing) {
    let authority = Authority::new();
    let clients = ClientCertificates {
        authorities: authority.write("authorities.pem", authority.issuer.pem()),
        revoked: Vec::new(),
        optional: false,
    };
    // One certificate for both: to the client they are the same.
    let pairs = [authority.ecdsa("both", &["open.example", "guarded.example"])];
    let guarded =
        SiteConfig { client_certificates: Some(clients), ..site(&["guarded.example"], &pairs) };
    let config = config(signing, vec![site(&["open.example"], &pairs), guarded]);
    for version in ALL_VERSIONS {
        let proxy = Running::start(&config, 1);
        let mut client = authority.client_of(&[version], None);
        client.resumption =
            Resumption::store(Arc::new(OneForAll(ClientSessionMemoryCache::new(9))));
        let client = Arc::new(client);
        for _ in 0..2 {
            shown("open.example", &client, proxy.address).expect("served");
        }
        shown("guarded.example", &client, proxy.address).expect_err("who is it?");
        let stats = proxy.stop();
        assert_eq!((stats.handshakes, stats.resumed), (2, 1), "{version:?}");
        assert_eq!(stats.handshakes_failed, 1);
    }
}

/// Ends threads that look at it, also when what they are there for fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Under load, each client sees either the one certificate or the other, and none fails. What is wrong
/// changes nothing.
#[test]
fn a_reload_is_whole_or_nothing_and_nobody_fails() {
    if !need(&NEEDS) {
        return;
    }
    let authority = Authority::new();
    let keys = authority.write("tickets", format!("{}\n", "42".repeat(32)));
    let configs = ["one", "other"].map(|file| {
        let site = site(&[], &[authority.rsa(file, &["a.example"])]);
        Config { ticket_keys: Some(keys.clone()), ..config(Signing::Offloaded, vec![site]) }
    });
    let proxy = Running::start(&configs[0], 2);
    let mut client = authority.client();
    client.resumption = Resumption::disabled();
    let client = Arc::new(client);
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = SetOnDrop(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    shown("a.example", &client, proxy.address).expect("served");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 1..=10 {
            let before = served.load(Ordering::Relaxed);
            while served.load(Ordering::Relaxed) < before + 10 {
                std::thread::yield_now();
            }
            proxy.proxy.reload(&configs[round % 2]).expect("good");
            let file = shown("a.example", &client, proxy.address).expect("served");
            assert_eq!(file, ["one", "other"][round % 2]);
        }
        let mut mismatched = configs[1].clone();
        mismatched.listeners[0].sites[0].certificates[0].key = authority.path("one.key");
        let error = proxy.proxy.reload(&mismatched).expect_err("refused");
        assert!(error.to_string().contains("their public keys differ"), "{error}");
        let mut elsewhere = configs[1].clone();
        elsewhere.listeners.push(elsewhere.listeners[0].clone());
        let error = proxy.proxy.reload(&elsewhere).expect_err("refused");
        assert!(matches!(error, Error::At { .. }) && error.to_string().contains("SIGUSR2"));
        assert_eq!(shown("a.example", &client, proxy.address).expect("served"), "one");
    });
    let stats = proxy.stop();
    assert_eq!(stats.handshakes_failed, 0);
}
