//! The system's OpenSSL, as the other side.

use std::process::Command;

use warpcore_need::Need;

pub(crate) const OPENSSL: [Need; 1] = [Need::Tool("openssl", "openssl")];

pub(crate) fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output();
    let output = output.expect("checked by need");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A fresh key in PEM, PKCS#8.
pub(crate) fn generate(algorithm: &str, option: &str) -> Vec<u8> {
    openssl(&["genpkey", "-quiet", "-algorithm", algorithm, "-pkeyopt", option])
}
