//! OpenSSL as the client, and what is refused before anybody can connect.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Identity, Running, echo, openssl, upstream};
use warpcore_need::{Need, need};
use warpcore_offload::{Kernel, together};
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
    assert_eq!(stats.queue.kernel(Kernel::RsaPrivate).requests, 0);
    let on_queue = together(Kernel::Ecdsa).is_some();
    assert_eq!(stats.queue.kernel(Kernel::Ecdsa).requests, u64::from(on_queue));
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

/// What agrees on HTTP/2 goes to the port that speaks it, unchanged.
#[test]
fn curl_reaches_nginx_by_both_versions_of_http() {
    let tools = [Need::Tool("curl", "curl"), Need::Tool("nginx", "nginx-light")];
    if !(need(&NEEDS) && need(&tools)) {
        return;
    }
    let identity = Identity::new();
    let place = identity.directory.path();
    let free = || TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr());
    let (http1, http2) = (free().expect("bound"), free().expect("bound"));
    let text = format!(
        "daemon off; worker_processes 1; pid {0}/pid; error_log stderr error;\n\
         events {{ }}\n\
         http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy;\n\
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         server {{ listen {http1}; listen {http2} http2; return 200 \"$server_protocol\"; }} }}\n",
        place.display()
    );
    std::fs::write(place.join("nginx.conf"), text).expect("written");
    let mut nginx = Command::new("nginx");
    nginx.arg("-e").arg("stderr").arg("-c").arg(place.join("nginx.conf"));
    let mut nginx = nginx.spawn().expect("checked by need");
    while std::net::TcpStream::connect(http1).is_err() {
        assert!(nginx.try_wait().expect("ours").is_none(), "nginx does not start");
        std::thread::yield_now();
    }

    let mut config = identity.config(http1, Signing::Offloaded);
    let mut other = config.pools["upstream"].clone();
    other.upstreams = vec![http2.to_string()];
    config.pools.insert("http2".to_owned(), other);
    let site = &mut config.listeners[0].sites[0];
    site.alpn = ["h2", "http/1.1"].map(str::to_owned).to_vec();
    site.pool_by_alpn.insert("h2".to_owned(), "http2".to_owned());
    let proxy = Running::start(&config, 1);
    let url = format!("https://localhost:{}/", proxy.address.port());
    for (version, expected) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--ipv4", "--noproxy", "*", version])
            .arg("--cacert")
            .arg(identity.certificate())
            .arg(&url)
            .output()
            .expect("checked by need");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{error}");
    }
    assert_eq!(proxy.stop().handshakes, 2);
    let id = nginx.id().to_string();
    Command::new("kill").args(["-QUIT", &id]).status().expect("procps");
    nginx.wait().expect("ours");
}

/// No old version, no weak suite, no renegotiation.
#[test]
fn scanners_find_nothing_weak() {
    if !(need(&NEEDS) && need(&[Need::Tool("sslscan", "sslscan")])) {
        return;
    }
    let identity = Identity::new();
    let proxy = Running::start(&identity.config(upstream(echo), Signing::Offloaded), 1);
    let output = Command::new("sslscan")
        .args(["--no-colour", "--sni-name=localhost", &proxy.address.to_string()])
        .output()
        .expect("checked by need");
    let said = String::from_utf8_lossy(&output.stdout);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<_> = said.lines().map(words).collect();
    for (version, state) in [
        ("SSLv2", "disabled"),
        ("SSLv3", "disabled"),
        ("TLSv1.0", "disabled"),
        ("TLSv1.1", "disabled"),
        ("TLSv1.2", "enabled"),
        ("TLSv1.3", "enabled"),
    ] {
        assert!(lines.contains(&vec![version.to_owned(), state.to_owned()]), "{version}: {said}");
    }
    let suites: Vec<_> = lines
        .iter()
        .filter(|line| matches!(line.first().map(String::as_str), Some("Preferred" | "Accepted")))
        .map(|line| line[4].clone())
        .collect();
    assert_eq!(suites.len(), 6, "{said}");
    for suite in suites {
        let is_strong = suite.contains("GCM") || suite.contains("CHACHA20");
        let is_forward_secret = suite.starts_with("TLS_") || suite.starts_with("ECDHE-");
        assert!(is_strong && is_forward_secret, "{suite}");
    }
    assert!(said.contains("Session renegotiation not supported"), "{said}");
    proxy.stop();
}

/// Of what has gone wrong in TLS servers before: compression, CCS injection, Heartbleed, ROBOT,
/// renegotiation, downgrades. What it says of tickets is left out: one that is renewed is none to it.
#[test]
fn scanners_find_no_known_attack() {
    if !(need(&NEEDS) && need(&[Need::Pip("sslyze")])) {
        return;
    }
    let identity = Identity::new();
    let proxy = Running::start(&identity.config(upstream(echo), Signing::Offloaded), 1);
    let report = identity.directory.path().join("report.json");
    let output = Command::new("sslyze")
        .args(["--compression", "--ems", "--fallback", "--heartbleed", "--openssl_ccs", "--reneg"])
        .args(["--resum", "--robot", "--mozilla_config=disable", "--json_out"])
        .arg(&report)
        .arg(format!("localhost:{}", proxy.address.port()))
        .output()
        .expect("checked by need");
    let said = String::from_utf8_lossy(&output.stdout);
    let report = std::fs::read(report).unwrap_or_else(|error| panic!("{error}: {said}"));
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    let scan = &report["server_scan_results"][0]["scan_result"];
    for (name, finding, expected) in [
        ("heartbleed", "is_vulnerable_to_heartbleed", "false"),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection", "false"),
        ("robot", "robot_result", "\"NOT_VULNERABLE_RSA_NOT_SUPPORTED\""),
        ("session_renegotiation", "client_renegotiations_success_count", "0"),
        ("session_renegotiation", "supports_secure_renegotiation", "true"),
        ("session_resumption", "session_id_resumption_result", "\"NOT_SUPPORTED\""),
        ("tls_compression", "supports_compression", "false"),
        ("tls_extended_master_secret", "supports_ems_extension", "true"),
        ("tls_fallback_scsv", "supports_fallback_scsv", "true"),
    ] {
        let found = scan[name]["result"][finding].to_string();
        assert_eq!(found, expected, "{name}.{finding}: {said}");
    }
    proxy.stop();
}
