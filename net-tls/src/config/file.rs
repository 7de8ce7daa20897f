//! Configuration from a TOML file. Errors say which line, which key, and why.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use warpcore_runtime::net::Address;

use super::Config;
use crate::error::{Error, Key};

impl Config {
    /// Reads a TOML file. Paths in it are relative to its directory.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| line(&text, span.start));
            let cause = error.message().trim_end().to_owned();
            Error::File { path: path.to_owned(), line, cause }
        })?;
        config.resolve_paths(path.parent().unwrap_or_else(|| Path::new(".")));
        Ok(config)
    }

    fn resolve_paths(&mut self, directory: &Path) {
        let resolve = |path: &mut PathBuf| *path = directory.join(&*path);
        self.ticket_keys.iter_mut().chain(&mut self.access_log).for_each(resolve);
        let listeners = self.listeners.iter_mut().map(|listener| &mut listener.address);
        for address in listeners.chain(&mut self.metrics) {
            if let Address::Unix(path) = address {
                resolve(path);
            }
        }
        for upstream in self.pools.values_mut().flat_map(|pool| &mut pool.upstreams) {
            if let Ok(Address::Unix(mut path)) = upstream.parse() {
                resolve(&mut path);
                *upstream = Address::Unix(path).to_string();
            }
        }
        for site in self.listeners.iter_mut().flat_map(|listener| &mut listener.sites) {
            for pair in &mut site.certificates {
                resolve(&mut pair.chain);
                resolve(&mut pair.key);
            }
            site.certificate_directory.iter_mut().for_each(resolve);
            if let Some(clients) = &mut site.client_certificates {
                resolve(&mut clients.authorities);
                clients.revoked.iter_mut().for_each(resolve);
            }
        }
    }
}

impl Error {
    /// Names the line of `path` that has the key which is to blame.
    pub fn in_file(self, path: &Path) -> Self {
        let Self::At { key, source } = &self else { return self };
        let Ok(text) = std::fs::read_to_string(path) else { return self };
        let Ok(table) = DeTable::parse(&text) else { return self };
        let line = line(&text, offset(table.get_ref(), key).unwrap_or(0));
        Self::File { path: path.to_owned(), line, cause: format!("{key}: {source}") }
    }
}

/// Where the last part of `key` begins that the file has.
fn offset(table: &DeTable<'_>, key: &Key) -> Option<usize> {
    let mut found = None;
    let mut parts = key.parts();
    let mut value = table.get(parts.next()?)?;
    loop {
        found = Some(value.span().start).or(found);
        let Some(part) = parts.next() else { return found };
        let next = match value.get_ref() {
            DeValue::Table(table) => table.get(part),
            DeValue::Array(array) => part.parse().ok().and_then(|index: usize| array.get(index)),
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None => return found,
        }
    }
}

fn line(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("proxy.toml");
        std::fs::write(&path, text).expect("written");
        Config::read(&path).map_err(|error| {
            let said = error.to_string();
            said.strip_prefix(&format!("{}:", path.display())).expect("names the file").to_owned()
        })
    }

    const GOOD: &str = r#"
[timeouts]
idle = "90s"

[pool.web]
upstreams = ["127.0.0.1:8080", "unix:/run/web"]
balance = "least-connections"
proxy_protocol = "v2"
check = "5s"

[[listener]]
address = "[::]:443"
limits = { connections = 5 }

[[listener.site]]
certificates = [{ chain = "a.pem", key = "/keys/a.pem" }]
pool = "web"
"#;

    #[test]
    fn a_file_and_what_is_left_out() {
        let config = read(GOOD).expect("good");
        assert_eq!(config.timeouts.idle.as_secs(), 90);
        assert_eq!(config.timeouts.handshake.as_secs(), 10);
        let listener = &config.listeners[0];
        assert_eq!(listener.address.to_string(), "[::]:443");
        assert_eq!(listener.limits.connections, 5);
        let pair = &listener.sites[0].certificates[0];
        assert!(pair.chain.is_absolute() && pair.chain.ends_with("a.pem"), "{pair:?}");
        assert_eq!(pair.key, Path::new("/keys/a.pem"));
        assert_eq!(config.pools["web"].upstreams, ["127.0.0.1:8080", "unix:/run/web"]);
        let text = GOOD.replace("[::]:443", "unix:socket").replace("unix:/run/web", "unix:web");
        let config = read(&text).expect("good");
        let directory = pair.chain.parent().and_then(Path::parent).expect("of tests");
        for (address, name) in [
            (config.listeners[0].address.to_string(), "socket"),
            (config.pools["web"].upstreams[1].clone(), "web"),
        ] {
            let path = Path::new(address.strip_prefix("unix:").expect("a path"));
            assert!(path.starts_with(directory) && path.ends_with(name), "{address}");
        }
    }

    /// The example, the unit of its service and the socket of that go together.
    #[test]
    fn what_we_give_away_is_good() {
        let config = read(include_str!("../../../contrib/proxy.toml")).expect("good");
        let socket = include_str!("../../../contrib/warpcore-proxy.socket");
        let service = include_str!("../../../contrib/warpcore-proxy.service");
        let address = config.listeners[0].address.to_string();
        assert!(socket.contains(&format!("ListenStream={address}\n")), "{address}");
        let directory = config.listeners[0].sites[0].certificate_directory.clone();
        let directory = directory.expect("certificates of an ACME client");
        assert!(service.contains(&format!("{}/NAME", directory.display())), "{directory:?}");
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (good, bad, said) in [
            (
                "idle = \"90s\"",
                "idle = \"90\"",
                "3: `90` is not a duration: a number and ms, s, m or h",
            ),
            ("idle =", "idel =", "3: unknown field `idel`, expected one of `handshake`"),
            ("[::]:443", "nowhere", "12: `nowhere` is neither IP:PORT nor unix:PATH"),
            ("\"v2\"", "\"v3\"", "8: unknown variant `v3`"),
            ("pool = \"web\"", "", "15: missing field `pool`"),
            ("[timeouts]", "[timeouts", "2: "),
        ] {
            let error = read(&GOOD.replace(good, bad)).expect_err(bad);
            assert!(error.starts_with(said), "{bad}: {error}");
        }
    }

    #[test]
    fn a_key_is_found_in_its_line() {
        let table = DeTable::parse(GOOD).expect("good");
        for (key, expected) in [
            ("pool.web.upstreams.1", 6),
            ("listener.0.site.0.certificates.0.key", 16),
            ("listener.0.site.0.pool", 17),
            ("listener.0.site.0.nothing", 15),
        ] {
            let found = offset(table.get_ref(), &Key::from(key)).expect("some of it");
            assert_eq!(line(GOOD, found), expected, "{key}");
        }
    }
}
