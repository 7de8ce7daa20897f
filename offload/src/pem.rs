//! Private keys in PEM text (RFC 7468). Libraries that read any section keep a key's base64 text in
//! memory that they free; here nothing is left but what is returned.

use base64ct::{Base64, Encoding};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

use crate::error::KeyError;

const BROKEN: KeyError = KeyError::Encoding("the PEM text is broken or cut short");

/// The first private key in PEM text that is not encrypted; other sections are passed over. The text is
/// the caller's to wipe, and so is the key (`Zeroize`).
///
/// # Errors
///
/// If there is none, or its text is broken.
pub fn private_key_from_pem(pem: &[u8]) -> Result<PrivateKeyDer<'static>, KeyError> {
    let mut lines = pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let mut none = KeyError::NoKey;
    while let Some(line) = lines.next() {
        match label(line, b"-----BEGIN ") {
            Some(b"ENCRYPTED PRIVATE KEY") => none = KeyError::Encrypted,
            Some(label @ (b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY")) => {
                match read(label, pem.len(), &mut lines) {
                    Err(KeyError::Encrypted) => none = KeyError::Encrypted,
                    read => return read,
                }
            }
            _ => {}
        }
    }
    Err(none)
}

/// The section under `label`, of which the first line has been taken; its text has `len_max` bytes at most.
fn read<'a>(
    label: &[u8],
    len_max: usize,
    lines: &mut impl Iterator<Item = &'a [u8]>,
) -> Result<PrivateKeyDer<'static>, KeyError> {
    // With all the room that it may need: it never moves, and leaves nothing behind.
    let mut text = Zeroizing::new(Vec::with_capacity(len_max));
    loop {
        let line = lines.next().ok_or(BROKEN)?;
        if line.starts_with(b"-----") {
            if self::label(line, b"-----END ") == Some(label) {
                break;
            }
            return Err(BROKEN);
        }
        if line.starts_with(b"Proc-Type: 4,ENCRYPTED") {
            // RFC 1421, section 4.6.1.1: as old versions of OpenSSL wrote it.
            return Err(KeyError::Encrypted);
        }
        text.extend(line.iter().filter(|byte| !byte.is_ascii_whitespace()));
    }
    let mut der = Zeroizing::new(vec![0; text.len()]);
    let len = Base64::decode(&text[..], &mut der).map_err(|_| BROKEN)?.len();
    der.truncate(len);
    let der = std::mem::take(&mut *der);
    Ok(match label {
        b"RSA PRIVATE KEY" => PrivatePkcs1KeyDer::from(der).into(),
        b"EC PRIVATE KEY" => PrivateSec1KeyDer::from(der).into(),
        _ => PrivatePkcs8KeyDer::from(der).into(),
    })
}

/// What stands between `start` and the dashes at the end of a line.
fn label<'a>(line: &'a [u8], start: &[u8]) -> Option<&'a [u8]> {
    line.strip_prefix(start)?.strip_suffix(b"-----")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "-----BEGIN PRIVATE KEY-----\r\nAQID\r\n BA==\r\n-----END PRIVATE KEY-----\r\n";

    #[test]
    fn the_first_key_that_can_be_read_is() {
        let other = "a comment\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\n????\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: A,B\n\nAAAA\n\
                   -----END RSA PRIVATE KEY-----\n";
        for text in [
            KEY.to_owned(),
            [other, KEY, encrypted].concat(),
            [encrypted, other, KEY, "garbage"].concat(),
            [old, KEY, KEY].concat(),
        ] {
            let key = private_key_from_pem(text.as_bytes()).expect("there is one");
            assert!(matches!(&key, PrivateKeyDer::Pkcs8(_)), "{text}");
            assert_eq!(key.secret_der(), [1, 2, 3, 4], "{text}");
        }
        let pkcs1 = KEY.replace("PRIVATE", "RSA PRIVATE");
        let read = private_key_from_pem(pkcs1.as_bytes()).expect("there is one");
        assert!(matches!(read, PrivateKeyDer::Pkcs1(_)));
        for encrypted in [encrypted, old] {
            let text = [other, encrypted].concat();
            assert_eq!(private_key_from_pem(text.as_bytes()), Err(KeyError::Encrypted));
        }
        assert_eq!(private_key_from_pem(other.as_bytes()), Err(KeyError::NoKey));
        for broken in [&KEY[..30], &KEY.replace("AQID", "AQI"), &KEY.replace("END", "FIN")] {
            assert_eq!(private_key_from_pem(broken.as_bytes()), Err(BROKEN), "{broken}");
        }
    }
}
