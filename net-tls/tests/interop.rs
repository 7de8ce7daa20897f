//! OpenSSL as the client, and what is refused before anybody can connect.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Identity, Running, echo, openssl, upstream};
use warpcore_need::{Need, need};
use warpcore_offload::Kernel;
use warpcore_tls::{CertificateConfig, Error, Proxy, Signing};

const NEEDS: [Need; 2] = [Need::Tool("openssl", "openssl"), Need::IoUring];

#[test]
fn openssl_shakes_hands_in_both_versions() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let proxy = Running::start(&identity.config(upstream(echo), Signing::Offloaded), 1);
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let mut child = Command::new("openssl")
            .args([
                "s_client",
                "-quiet",
                "-verify_return_error",
                version,
                "-servername",
                "localhost",
            ])
            .arg("-CAfile")
            .arg(identity.certificate())
            .args(["-connect", &proxy.address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("checked by need");
        let mut stdin = child.stdin.take().expect("piped");
        let mut stdout = child.stdout.take().expect("piped");
        stdin.write_all(b"hello\n").expect("sends");
        let mut answer = [0; 6];
        std::io::Read::read_exact(&mut stdout, &mut answer)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(&answer, b"hello\n", "{name}");
        drop((stdin, stdout));
        child.kill().expect("was running");
        child.wait().expect("ended");
    }
    assert_eq!(proxy.stop().handshakes, 2);
}

#[test]
fn a_key_that_is_not_rsa_is_served_too() {
    if !need(&NEEDS) {
        return;
    }
    let key =
        openssl(&["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    let identity = Identity::with_key(tempfile::tempdir().expect("a directory"), &key);
    let proxy = Running::start(&identity.config(upstream(echo), Signing::Offloaded), 1);
    let config = common::client_config(&identity, &rustls::version::TLS13);
    assert_eq!(common::exchange(&config, proxy.address, b"x").expect("answered"), b"x");
    let stats = proxy.stop();
    assert_eq!(stats.queue.kernel(Kernel::Sign).requests, 0);
    assert_eq!(stats.queue.kernel(Kernel::Ecdsa).requests, 1);
}

#[test]
fn bad_input_is_refused_with_its_reason() {
    if !need(&NEEDS) {
        return;
    }
    let identity = Identity::new();
    let other = Identity::new();
    let good = identity.config(([127, 0, 0, 1], 9).into(), Signing::Offloaded);

    let refused = |chain: PathBuf, key: PathBuf| {
        let mut config = good.clone();
        config.listeners[0].sites[0].certificates = vec![CertificateConfig { chain, key }];
        match Proxy::new(&config).expect_err("refused") {
            Error::At { key, source } => {
                assert_eq!(key.to_string(), "listener.0.site.0.certificates.0");
                *source
            }
            error => panic!("{error}"),
        }
    };
    let error = refused(identity.certificate(), other.key());
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    let error = refused(identity.key(), identity.key());
    assert!(matches!(error, Error::Certificate { .. }), "{error}");
    let error = refused(identity.certificate(), identity.certificate());
    assert!(matches!(error, Error::Key { .. }), "{error}");
    let error = refused(identity.certificate(), "/nonexistent".into());
    assert!(error.to_string().starts_with("cannot read /nonexistent"), "{error}");

    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let mut config = good.clone();
    config.listeners[0].address = taken.local_addr().expect("bound").into();
    let error = Proxy::new(&config).expect_err("refused");
    assert!(error.to_string().contains("ss -ltnp"), "{error}");

    let mut config = good;
    config.listeners[0].sites[0].pool = "elsewhere".to_owned();
    let error = Proxy::check(&config).expect_err("refused").to_string();
    let said = "listener.0.site.0.pool: no pool is called `elsewhere`; there is upstream";
    assert_eq!(error, said);
}
