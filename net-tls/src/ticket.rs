//! Session tickets: sealed under keys that shards and machines share, each for one policy only.
//!
//! A ticket's key is derived (HKDF, RFC 5869) from a master, the policy of its site and a salt of its
//! own, so that a ticket never opens where other certificates or clients count, and no nonce is ever
//! used twice:
//!
//! ```text
//!   master's id, 8 bytes | salt, 16 bytes | seconds since 1970, 8 bytes | sealed session | tag, 16 bytes
//! ```
//!
//! It counts for as long as clients are told, whoever keeps it and its master for longer.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

use crate::certificates;
use crate::error::Error;

/// How long a ticket counts, and how often a master of our own is replaced. It opens tickets for as
/// long again.
const LIFETIME: Duration = Duration::from_secs(6 * 3600);

const MASTER_LEN: usize = 32;
const ID_LEN: usize = 8;
const SALT_LEN: usize = 16;
const TIME_LEN: usize = 8;

/// What tickets are sealed under.
#[derive(Debug)]
pub(crate) struct Masters(RwLock<State>);

#[derive(Debug)]
struct State {
    /// The first seals, all open.
    masters: Vec<Master>,
    /// When the first was drawn; None: they are a file's, and replaced with it.
    drawn: Option<Instant>,
}

/// A secret that keys are derived from.
#[derive(Debug)]
pub(crate) struct Master {
    id: [u8; ID_LEN],
    key: Prk,
}

impl Master {
    fn new(secret: &[u8]) -> Self {
        let key = Salt::new(HKDF_SHA256, b"warpcore tickets 1").extract(secret);
        let mut id = [0; ID_LEN];
        let okm = key.expand(&[b"id"], IdLen).expect("short enough");
        okm.fill(&mut id).expect("as long as was said");
        Self { id, key }
    }

    fn random() -> Self {
        let mut secret = Zeroizing::new([0; MASTER_LEN]);
        SystemRandom::new().fill(&mut secret[..]).expect("the system has random numbers");
        Self::new(&secret[..])
    }
}

struct IdLen;

impl ring::hkdf::KeyType for IdLen {
    fn len(&self) -> usize {
        ID_LEN
    }
}

impl Masters {
    /// A master of our own: tickets are good for this process only.
    pub(crate) fn random() -> Self {
        let drawn = Some(Instant::now());
        Self(RwLock::new(State { masters: vec![Master::random()], drawn }))
    }

    /// Those of a file.
    pub(crate) fn of_file(masters: Vec<Master>) -> Self {
        Self(RwLock::new(State { masters, drawn: None }))
    }

    /// Those of a file, instead.
    pub(crate) fn replace(&self, masters: Vec<Master>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = State { masters, drawn: None };
    }

    /// No file has them any more: what it had opens nothing from now on.
    pub(crate) fn draw_our_own(&self) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if state.drawn.is_none() {
            *state = State { masters: vec![Master::random()], drawn: Some(Instant::now()) };
        }
    }

    /// Replaces a master of our own that is too old.
    pub(crate) fn rotate(&self, now: Instant) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if state.drawn.is_some_and(|drawn| now.duration_since(drawn) >= LIFETIME) {
            state.masters.insert(0, Master::random());
            state.masters.truncate(2);
            state.drawn = Some(now);
        }
    }
}

/// Masters from a file: one in a line, of 64 hexadecimal digits, the one that seals first. Lines that
/// begin with `#` are passed over.
pub(crate) fn read(path: &Path) -> Result<Vec<Master>, Error> {
    let bytes = certificates::read_secret(path)?;
    let fail = |line: usize, cause: &str| Error::File {
        path: path.to_owned(),
        line,
        cause: cause.to_owned(),
    };
    let mut masters = Vec::new();
    for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let secret = secret(line).ok_or_else(|| {
            fail(number, "not 64 hexadecimal digits; make some with `openssl rand -hex 32`")
        })?;
        masters.push(Master::new(&secret[..]));
    }
    if masters.is_empty() {
        return Err(fail(1, "no key in it; make one with `openssl rand -hex 32`"));
    }
    Ok(masters)
}

fn secret(line: &[u8]) -> Option<Zeroizing<[u8; MASTER_LEN]>> {
    let mut secret = Zeroizing::new([0; MASTER_LEN]);
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if line.len() != 2 * MASTER_LEN {
        return None;
    }
    for (byte, digits) in secret.iter_mut().zip(line.chunks_exact(2)) {
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(secret)
}

/// Seals and opens the tickets of one policy.
#[derive(Debug)]
pub(crate) struct Ticketer {
    pub(crate) masters: Arc<Masters>,
    /// A hash of who proves what to whom: [`Ticketer::policy`].
    pub(crate) policy: [u8; 32],
}

impl Ticketer {
    /// What must be the same where a ticket is used: given in parts, in their order.
    pub(crate) fn policy<'a>(parts: impl Iterator<Item = &'a [u8]>) -> [u8; 32] {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.finish().as_ref().try_into().expect("SHA-256")
    }

    fn key(&self, master: &Master, salt: &[u8]) -> LessSafeKey {
        let info = [&self.policy[..], salt];
        let okm = master.key.expand(&info, &AES_256_GCM).expect("short enough");
        LessSafeKey::new(UnboundKey::from(okm))
    }

    /// `now`: since 1970, here and below.
    fn seal(&self, plain: &[u8], now: Duration) -> Option<Vec<u8>> {
        let mut salt = [0; SALT_LEN];
        SystemRandom::new().fill(&mut salt).ok()?;
        let state = self.masters.0.read().unwrap_or_else(PoisonError::into_inner);
        let master = state.masters.first()?;
        let mut sealed = plain.to_vec();
        let head = [&master.id[..], &salt, &now.as_secs().to_be_bytes()].concat();
        let key = self.key(master, &salt);
        key.seal_in_place_append_tag(nonce(), Aad::from(&head), &mut sealed).ok()?;
        Some([head, sealed].concat())
    }

    fn open(&self, cipher: &[u8], now: Duration) -> Option<Vec<u8>> {
        let (head, sealed) = cipher.split_at_checked(ID_LEN + SALT_LEN + TIME_LEN)?;
        let (id, rest) = head.split_at(ID_LEN);
        let (salt, time) = rest.split_at(SALT_LEN);
        let state = self.masters.0.read().unwrap_or_else(PoisonError::into_inner);
        let master = state.masters.iter().find(|master| master.id == id)?;
        let mut sealed = sealed.to_vec();
        let plain = self.key(master, salt).open_in_place(nonce(), Aad::from(head), &mut sealed);
        let plain = plain.ok()?;
        // Clocks of machines differ: one that is ahead of ours makes young tickets.
        let sealed_at = u64::from_be_bytes(time.try_into().expect("its length"));
        let age = now.as_secs().saturating_sub(sealed_at);
        (age < LIFETIME.as_secs()).then(|| plain.to_vec())
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Each key seals once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(LIFETIME.as_secs()).expect("hours")
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, now())
    }
}

/// For a session that is to begin afresh.
#[derive(Debug)]
pub(crate) struct SealsOnly(pub(crate) Arc<Ticketer>);

impl ProducesTickets for SealsOnly {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticketer(masters: &Arc<Masters>, policy: &str) -> Ticketer {
        let policy = Ticketer::policy([policy.as_bytes()].into_iter());
        Ticketer { masters: Arc::clone(masters), policy }
    }

    #[test]
    fn a_ticket_opens_under_its_policy_only_and_undamaged() {
        let masters = Arc::new(Masters::random());
        let (one, other) = (ticketer(&masters, "one"), ticketer(&masters, "other"));
        let ticket = one.encrypt(b"session").expect("seals");
        assert_ne!(ticket, one.encrypt(b"session").expect("seals"));
        assert_eq!(one.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(other.decrypt(&ticket), None);
        for at in 0..ticket.len() {
            let mut damaged = ticket.clone();
            damaged[at] ^= 1;
            assert_eq!(one.decrypt(&damaged), None, "byte {at}");
            assert_eq!(one.decrypt(&ticket[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn parts_of_a_policy_do_not_run_together() {
        let policy =
            |parts: &[&'static str]| Ticketer::policy(parts.iter().copied().map(str::as_bytes));
        assert_ne!(policy(&["ab", "c"]), policy(&["a", "bc"]));
    }

    #[test]
    fn a_master_opens_for_as_long_again_as_it_seals() {
        let masters = Arc::new(Masters::random());
        let one = ticketer(&masters, "one");
        let ticket = one.encrypt(b"session").expect("seals");
        let now = Instant::now();
        masters.rotate(now);
        assert_eq!(masters.0.read().expect("whole").masters.len(), 1);
        masters.rotate(now + LIFETIME);
        assert!(one.decrypt(&ticket).is_some());
        masters.rotate(now + 2 * LIFETIME);
        assert!(one.decrypt(&ticket).is_none());
    }

    #[test]
    fn a_ticket_counts_for_its_lifetime() {
        let one = ticketer(&Arc::new(Masters::random()), "one");
        let ticket = one.seal(b"session", Duration::from_secs(1000)).expect("seals");
        let after = |seconds: u64| one.open(&ticket, Duration::from_secs(1000 + seconds));
        assert!(after(0).is_some() && after(LIFETIME.as_secs() - 1).is_some());
        assert_eq!(after(LIFETIME.as_secs()), None);
        assert!(one.open(&ticket, Duration::from_secs(900)).is_some(), "by a clock that is behind");
    }

    #[test]
    fn machines_with_the_same_file_open_each_others_tickets() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("keys");
        let [old, new] = ["a5".repeat(32), "5A".repeat(32)];
        std::fs::write(&path, format!("# old\n{old}\n")).expect("written");
        let one = Arc::new(Masters::of_file(read(&path).expect("good")));
        let ticket = ticketer(&one, "site").encrypt(b"session").expect("seals");
        std::fs::write(&path, format!("{new}\n\n {old} \n")).expect("written");
        let other = Arc::new(Masters::of_file(read(&path).expect("good")));
        assert!(ticketer(&other, "site").decrypt(&ticket).is_some());
        let newer = ticketer(&other, "site").encrypt(b"session").expect("seals");
        assert!(ticketer(&one, "site").decrypt(&newer).is_none());
        one.replace(read(&path).expect("good"));
        assert!(ticketer(&one, "site").decrypt(&newer).is_some());
        one.draw_our_own();
        assert!(ticketer(&one, "site").decrypt(&newer).is_none());
        let own = ticketer(&one, "site").encrypt(b"session").expect("seals");
        one.draw_our_own();
        assert!(ticketer(&one, "site").decrypt(&own).is_some(), "they were its own before");
        for (bad, line) in [("", 1), ("#\n\nabc", 3), (&format!("{old}\n{old}0")[..], 2)] {
            std::fs::write(&path, bad).expect("written");
            let error = read(&path).expect_err(bad).to_string();
            assert!(error.starts_with(&format!("{}:{line}: ", path.display())), "{error}");
        }
    }
}
