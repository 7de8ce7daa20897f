//! Who the client is, in front of what it says: HAProxy's `proxy-protocol.txt`, versions 1 and 2.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::ProxyProtocol;

/// Who connects to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// A header, and what it says: nothing if it was made for the sender's own sake (LOCAL, UNKNOWN).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) endpoints: Option<Endpoints>,
    /// Bytes that it takes.
    pub(crate) len: usize,
}

/// The longest line of version 1, its end included (section 2.1).
const V1_LEN_MAX: usize = 107;

/// What version 2 begins with (section 2.2).
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and protocol, length.
const V2_HEAD_LEN: usize = 16;

/// Addresses and additions of version 2 that are taken; senders say little.
const V2_REST_LEN_MAX: usize = 2048;

/// Reads a header. None: it is not whole yet.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    let begins = |with: &[u8]| {
        let len = bytes.len().min(with.len());
        bytes[..len] == with[..len]
    };
    if begins(&V2_SIGNATURE) {
        parse_v2(bytes)
    } else if begins(b"PROXY ") {
        parse_v1(bytes)
    } else {
        Err("no PROXY header")
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    const BROKEN: &str = "a broken PROXY line";
    let line = &bytes[..bytes.len().min(V1_LEN_MAX)];
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        return if bytes.len() < V1_LEN_MAX { Ok(None) } else { Err("an endless PROXY line") };
    };
    let line = std::str::from_utf8(&line[..end]).map_err(|_| BROKEN)?;
    let mut words = line.split(' ').skip(1);
    let mut word = || words.next().ok_or(BROKEN);
    let len = end + 2;
    let protocol = word()?;
    if protocol == "UNKNOWN" {
        return Ok(Some(Header { endpoints: None, len }));
    }
    let texts = [word()?, word()?, word()?, word()?];
    if words.next().is_some() {
        return Err(BROKEN);
    }
    let [source, destination, source_port, destination_port] = texts;
    let socket = |address: &str, port: &str| -> Result<SocketAddr, &'static str> {
        // No sign, no leading zero.
        let port = port.parse::<u16>().ok().filter(|number| number.to_string() == port);
        let port = port.ok_or(BROKEN)?;
        match protocol {
            "TCP4" => address.parse::<Ipv4Addr>().map(|ip| (ip, port).into()).map_err(|_| BROKEN),
            "TCP6" => address.parse::<Ipv6Addr>().map(|ip| (ip, port).into()).map_err(|_| BROKEN),
            _ => Err(BROKEN),
        }
    };
    let source = socket(source, source_port)?;
    let destination = socket(destination, destination_port)?;
    Ok(Some(Header { endpoints: Some(Endpoints { source, destination }), len }))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    let Some((head, rest)) = bytes.split_first_chunk::<V2_HEAD_LEN>() else { return Ok(None) };
    let [version_command, family, len_high, len_low] = head[12..].try_into().expect("16 bytes");
    let rest_len = usize::from(u16::from_be_bytes([len_high, len_low]));
    if rest_len > V2_REST_LEN_MAX {
        return Err("an oversized PROXY header");
    }
    let Some(rest) = rest.get(..rest_len) else { return Ok(None) };
    let endpoints = match (version_command, family) {
        (0x20, _) => None,
        (0x21, 0x11) => {
            let addresses: &[u8; 12] = rest.first_chunk().ok_or("a short PROXY header")?;
            let ip = |at: usize| -> [u8; 4] { addresses[at..at + 4].try_into().expect("4 bytes") };
            let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
            let socket = |ip: [u8; 4], port: u16| (Ipv4Addr::from(ip), port).into();
            let (source, destination) = (socket(ip(0), port(8)), socket(ip(4), port(10)));
            Some(Endpoints { source, destination })
        }
        (0x21, 0x21) => {
            let addresses: &[u8; 36] = rest.first_chunk().ok_or("a short PROXY header")?;
            let ip =
                |at: usize| -> [u8; 16] { addresses[at..at + 16].try_into().expect("16 bytes") };
            let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
            let socket = |ip: [u8; 16], port: u16| (Ipv6Addr::from(ip), port).into();
            let (source, destination) = (socket(ip(0), port(32)), socket(ip(16), port(34)));
            Some(Endpoints { source, destination })
        }
        // Unix sockets, datagrams, and what is not specified: section 2.2 has them passed over.
        (0x21, _) => None,
        _ => return Err("a PROXY header of unknown version or command"),
    };
    Ok(Some(Header { endpoints, len: V2_HEAD_LEN + rest_len }))
}

/// What TLS has agreed on, for version 2 (section 2.2.6, `PP2_TYPE_SSL` and others).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Agreed<'a> {
    pub(crate) server_name: Option<&'a str>,
    pub(crate) alpn: Option<&'a [u8]>,
    pub(crate) version: &'a str,
    pub(crate) suite: &'a str,
    /// Of who has shown a certificate.
    pub(crate) client: Option<CertifiedClient<'a>>,
}

/// A client with a certificate that is good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CertifiedClient<'a> {
    /// The certificate's common name, of [`NAME_LEN_MAX`] bytes at most.
    pub(crate) name: Option<&'a str>,
    /// It was shown earlier in the session, not on this connection.
    pub(crate) resumed: bool,
}

/// More than certificates may have (RFC 5280, `ub-common-name`), and less than a header can hold.
pub(crate) const NAME_LEN_MAX: usize = 255;

/// The header that an upstream is sent. Nothing is known of who connects by a Unix socket.
pub(crate) fn header(
    version: ProxyProtocol,
    endpoints: Option<Endpoints>,
    agreed: &Agreed<'_>,
) -> Vec<u8> {
    let endpoints = endpoints.map(same_family);
    match version {
        ProxyProtocol::None => Vec::new(),
        ProxyProtocol::V1 => match endpoints {
            None => b"PROXY UNKNOWN\r\n".to_vec(),
            Some(Endpoints { source, destination }) => {
                let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
                let (from, to) = (source.ip(), destination.ip());
                let (from_port, to_port) = (source.port(), destination.port());
                format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
            }
        },
        ProxyProtocol::V2 => header_v2(endpoints, agreed),
    }
}

/// Version 4 as version 6, if only one of them is that.
fn same_family(endpoints: Endpoints) -> Endpoints {
    let Endpoints { source, destination } = endpoints;
    if source.is_ipv4() == destination.is_ipv4() {
        return endpoints;
    }
    let mapped = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        v6 => v6,
    };
    Endpoints { source: mapped(source), destination: mapped(destination) }
}

fn header_v2(endpoints: Option<Endpoints>, agreed: &Agreed<'_>) -> Vec<u8> {
    const ALPN: u8 = 0x01;
    const AUTHORITY: u8 = 0x02;
    const SSL: u8 = 0x20;
    const SSL_VERSION: u8 = 0x21;
    const SSL_CN: u8 = 0x22;
    const SSL_CIPHER: u8 = 0x23;
    /// Bits of `client`: TLS is used; the client has shown a certificate on this connection, in this
    /// session.
    const CLIENT_SSL: u8 = 1;
    const CERT_CONN: u8 = 2;
    const CERT_SESS: u8 = 4;

    let (family, mut rest) = match endpoints {
        None => (0, Vec::new()),
        Some(Endpoints { source, destination }) => {
            let mut addresses = Vec::new();
            for address in [source, destination] {
                match address {
                    SocketAddr::V4(v4) => addresses.extend(v4.ip().octets()),
                    SocketAddr::V6(v6) => addresses.extend(v6.ip().octets()),
                }
            }
            addresses.extend(source.port().to_be_bytes());
            addresses.extend(destination.port().to_be_bytes());
            (if source.is_ipv4() { 0x11 } else { 0x21 }, addresses)
        }
    };
    if let Some(alpn) = agreed.alpn {
        put(&mut rest, ALPN, alpn);
    }
    if let Some(name) = agreed.server_name {
        put(&mut rest, AUTHORITY, name.as_bytes());
    }
    // `verify`: 0 if the certificate is good; one that is not never comes this far.
    let (certificate, verify) = match agreed.client {
        None => (0, 1_u32),
        Some(CertifiedClient { resumed: true, .. }) => (CERT_SESS, 0),
        Some(CertifiedClient { resumed: false, .. }) => (CERT_CONN | CERT_SESS, 0),
    };
    let mut ssl = vec![CLIENT_SSL | certificate];
    ssl.extend(verify.to_be_bytes());
    put(&mut ssl, SSL_VERSION, agreed.version.as_bytes());
    if let Some(name) = agreed.client.and_then(|client| client.name) {
        put(&mut ssl, SSL_CN, name.as_bytes());
    }
    put(&mut ssl, SSL_CIPHER, agreed.suite.as_bytes());
    put(&mut rest, SSL, &ssl);

    let len = u16::try_from(rest.len()).expect("names are of 255 bytes at most");
    let mut bytes = V2_SIGNATURE.to_vec();
    bytes.extend([0x21, family]);
    bytes.extend(len.to_be_bytes());
    bytes.extend(rest);
    bytes
}

/// Type, length, value.
fn put(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    bytes.push(kind);
    bytes.extend(u16::try_from(value.len()).expect("names and words").to_be_bytes());
    bytes.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(source: &str, destination: &str) -> Option<Endpoints> {
        let [source, destination] = [source, destination].map(|text| text.parse().expect("good"));
        Some(Endpoints { source, destination })
    }

    #[test]
    fn what_is_written_is_read_and_every_prefix_waits() {
        let agreed = Agreed {
            server_name: Some("example.org"),
            alpn: Some(b"h2"),
            version: "TLSv1.3",
            suite: "TLS_AES_128_GCM_SHA256",
            client: Some(CertifiedClient { name: Some("somebody"), resumed: false }),
        };
        for endpoints in [
            endpoints("192.0.2.1:1234", "198.51.100.7:443"),
            endpoints("[2001:db8::1]:65535", "[2001:db8::2]:1"),
            None,
        ] {
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let bytes = header(version, endpoints, &agreed);
                for len in 0..bytes.len() {
                    assert_eq!(parse(&bytes[..len]), Ok(None), "{len} bytes of {version:?}");
                }
                let len = bytes.len();
                let followed = [&bytes[..], b"\x16\x03\x01"].concat();
                assert_eq!(parse(&followed), Ok(Some(Header { endpoints, len })));
            }
        }
    }

    /// The last of the parts: type 0x20, its length, `client`, `verify`, and parts of its own.
    #[test]
    fn a_client_with_a_certificate_is_named() {
        let told = |client| {
            let agreed = Agreed { version: "TLSv1.3", suite: "TLS", client, ..Agreed::default() };
            let bytes = header(ProxyProtocol::V2, None, &agreed);
            bytes[V2_SIGNATURE.len() + 4..].to_vec()
        };
        let version = b"\x21\0\x07TLSv1.3";
        let nobody = [&b"\x20\0\x15\x01\0\0\0\x01"[..], version, b"\x23\0\x03TLS"].concat();
        assert_eq!(told(None), nobody);
        for (resumed, bits) in [(false, 7), (true, 5)] {
            let name = Some("me");
            let parts = [&[0x20, 0, 0x1A, bits, 0, 0, 0, 0][..], version, b"\x22\0\x02me"].concat();
            let named = [&parts[..], b"\x23\0\x03TLS"].concat();
            assert_eq!(told(Some(CertifiedClient { name, resumed })), named);
        }
    }

    #[test]
    fn families_are_not_mixed() {
        let mixed = endpoints("192.0.2.1:1", "[2001:db8::2]:2");
        let text = header(ProxyProtocol::V1, mixed, &Agreed::default());
        assert_eq!(text, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n");
    }

    /// As haproxy's document has it (section 2.1), and things that are not.
    #[test]
    fn lines_of_others() {
        let good = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
        let ends = "255.255.255.255:65535";
        assert_eq!(parse(good).expect("good").expect("whole").endpoints, endpoints(ends, ends));
        let unknown = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
        assert_eq!(parse(unknown), Ok(Some(Header { endpoints: None, len: unknown.len() })));
        for bad in [
            "GET / HTTP/1.1\r\n",
            "PROXY\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(&[b"PROXY TCP4 ", &[b'1'; 200][..]].concat()).is_err());
        let oversized = [&V2_SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        assert!(parse(&oversized).is_err());
        let short = [&V2_SIGNATURE[..], &[0x21, 0x11, 0, 4, 1, 2, 3, 4]].concat();
        assert!(parse(&short).is_err());
        let local = [&V2_SIGNATURE[..], &[0x20, 0, 0, 0]].concat();
        assert_eq!(parse(&local), Ok(Some(Header { endpoints: None, len: 16 })));
    }
}
