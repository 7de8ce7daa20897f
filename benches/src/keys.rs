//! Throw-away keys.

use std::process::Command;

use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

/// A fresh key, made by OpenSSL.
pub(crate) fn generate(
    algorithm: &str,
    option: &str,
) -> Result<PrivatePkcs8KeyDer<'static>, String> {
    let arguments = ["genpkey", "-quiet", "-algorithm", algorithm, "-pkeyopt", option];
    let output = Command::new("openssl").args(arguments).output();
    let output = output.map_err(|error| format!("openssl: {error}; `apt-get install openssl`"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    PrivatePkcs8KeyDer::from_pem_slice(&output.stdout)
        .map_err(|error| format!("openssl made no key in PKCS#8: {error}"))
}
