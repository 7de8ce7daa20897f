//! As much of HTTP/1.1 (RFC 9112) as the examples' servers need, and what they answer.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use warpcore_offload::host::Local;
use warpcore_offload::{Codec, Compress, PrivateKey, Scheme, Sign};

/// The longest head of a request.
const HEAD_LEN_BYTES_MAX: usize = 8 * 1024;

/// What a server does next with a client.
#[derive(Debug)]
pub enum Next {
    /// Receive more: no request is there as a whole.
    More,
    /// Answer a request for this path.
    Path(String),
    /// Say this, and hang up.
    Refuse(&'static [u8]),
}

impl Next {
    /// Takes the next request out of what was received.
    pub fn of(received: &mut Vec<u8>) -> Self {
        let end = received.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else {
            if received.len() > HEAD_LEN_BYTES_MAX {
                return Self::Refuse(b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n");
            }
            return Self::More;
        };
        let head: Vec<u8> = received.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head);
        match head.split_once(' ') {
            Some(("GET", rest)) => Self::Path(rest.split(' ').next().unwrap_or("/").to_owned()),
            _ => Self::Refuse(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n\r\n"),
        }
    }
}

/// The answer to a request: its body is compressed, and what that gives is signed. While this waits, other clients are served, and what they sign
/// meanwhile goes in the same vectors.
pub async fn answer(
    path: &str,
    local: &Local,
    key: &Arc<PrivateKey>,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let body = format!("You asked for {path}.\n").repeat(100).into_bytes();
    let target = vec![0; Codec::Gzip.bound(body.len())];
    let request = Compress { codec: Codec::Gzip, level: 6, source: body, target };
    let compressed = local.submit(request).await;
    let mut body = compressed.target;
    body.truncate(compressed.result?);
    let signed = local.submit(Sign::new(Arc::clone(key), Scheme::PssSha256, body)).await;
    let mut head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n".to_owned();
    write!(head, "Content-Length: {}\r\nsignature: ", signed.message.len())?;
    for byte in signed.result?.as_ref() {
        write!(head, "{byte:02x}")?;
    }
    head.push_str("\r\n\r\n");
    Ok([head.into_bytes(), signed.message].concat())
}
