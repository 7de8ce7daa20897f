//! Runs the rustls calls that may sign or exchange keys, so that either can be awaited.
//!
//! [`Call::start`] makes a call on a pooled coroutine. When rustls signs, or exchanges keys, our part
//! of it [`suspend`]s, and the caller gets [`Step::Pending`] with the request; [`Suspended::complete`]
//! goes on with the result. In place (the twin, and when no stack is left) the same call simply
//! runs through. rustls plans a state machine that pauses by itself (rustls issue 850); `Step` is
//! shaped so that it can take its place.
//!
//! # A suspended coroutine is never dropped
//!
//! corosensei would unwind it by force, a panic inside rustls's frames. The drop of [`Suspended`]
//! resumes it with an error instead, and rustls returns in its own way.
//!
//! # Nothing may be held across a suspension
//!
//! No `RefCell` borrow, lock or entered span: other handshakes run on this thread in between.
//! rustls holds no lock while it signs or exchanges keys; our part holds nothing.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;

use corosensei::{Coroutine, CoroutineResult, Yielder};
use rustls::server::Accepted;
use rustls::{ServerConfig, ServerConnection};
use warpcore_offload::{Error, Exchanged, Signature};

use crate::config::Signing;
use crate::signer::SignRequest;
use crate::stack::Stack;

/// What a suspended call asks for.
pub(crate) enum Asked {
    /// A fresh X25519 key, and what it shares with this one.
    Exchange([u8; 32]),
    /// A signature.
    Sign(SignRequest),
}

/// What it is answered.
#[allow(clippy::large_enum_variant, reason = "on its way from one stack to another")]
pub(crate) enum Answer {
    /// There will be none: it is to give up.
    Closed,
    Exchanged(Result<Exchanged, Error>),
    Signed(Result<Signature, Error>),
}

/// What a coroutine is resumed with; the first time, nothing.
type Resume = Option<Answer>;

/// A call that may suspend.
pub(crate) enum Call {
    /// Answer a ClientHello, as this configuration says.
    Accept(Box<Accepted>, Arc<ServerConfig>),
    /// Go on with what was received since.
    Process(Box<ServerConnection>),
}

/// The connection, or why there is none any more.
pub(crate) type Processed = Result<Box<ServerConnection>, Refused>;

/// rustls will have nothing to do with it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: rustls::Error,
    /// Records that tell the client.
    pub(crate) alert: Vec<u8>,
}

/// Where a call to rustls stands.
pub(crate) enum Step {
    /// It waits for this.
    Pending(Asked, Suspended),
    /// It has returned.
    Processed(Processed),
}

/// A call to rustls that waits.
pub(crate) struct Suspended {
    /// None only while it is being resumed.
    coroutine: Option<Coroutine<Resume, Asked, Processed, Stack>>,
}

impl Call {
    /// Makes the call.
    pub(crate) fn start(self, signing: Signing) -> Step {
        let stack = match signing {
            Signing::InPlace => None,
            Signing::Offloaded => Stack::take(),
        };
        let Some(stack) = stack else { return Step::Processed(self.make()) };
        let coroutine = Coroutine::with_stack(stack, move |yielder, _first: Resume| {
            let _published = Published::new(yielder);
            self.make()
        });
        Suspended { coroutine: Some(coroutine) }.resume(None)
    }

    fn make(self) -> Processed {
        let mut alert = Vec::new();
        match self {
            Self::Accept(accepted, config) => {
                accepted.into_connection(config).map(Box::new).map_err(|(error, mut records)| {
                    records.write_all(&mut alert).expect("to memory");
                    Refused { error, alert }
                })
            }
            Self::Process(mut connection) => match connection.process_new_packets() {
                Ok(_) => Ok(connection),
                Err(error) => {
                    while connection.wants_write() {
                        connection.write_tls(&mut alert).expect("to memory");
                    }
                    Err(Refused { error, alert })
                }
            },
        }
    }
}

impl Suspended {
    /// Goes on with what was asked for, or with the reason why there is none.
    pub(crate) fn complete(self, answer: Answer) -> Step {
        self.resume(Some(answer))
    }

    fn resume(mut self, with: Resume) -> Step {
        let mut coroutine = self.coroutine.take().expect("held while suspended");
        match coroutine.resume(with) {
            CoroutineResult::Yield(request) => {
                self.coroutine = Some(coroutine);
                Step::Pending(request, self)
            }
            CoroutineResult::Return(processed) => {
                coroutine.into_stack().put_back();
                Step::Processed(processed)
            }
        }
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        let Some(coroutine) = self.coroutine.take() else {
            return;
        };
        let mut suspended = Self { coroutine: Some(coroutine) };
        // Each round ends in an error for rustls, which gives up at the first.
        while let Step::Pending(_, again) = suspended.complete(Answer::Closed) {
            suspended = again;
        }
    }
}

thread_local! {
    /// The coroutine that runs on this thread now; null outside of coroutines.
    static RUNNING: Cell<*const Yielder<Resume, Asked>> = const { Cell::new(ptr::null()) };
}

/// Publishes a coroutine's yielder while the coroutine runs; also withdraws it on a panic.
struct Published;

impl Published {
    fn new(yielder: &Yielder<Resume, Asked>) -> Self {
        debug_assert!(RUNNING.get().is_null(), "coroutines do not nest");
        RUNNING.set(yielder);
        Self
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        RUNNING.set(ptr::null());
    }
}

/// Suspends the running coroutine with a request and returns what it is resumed with. None, and
/// `request` is not called, outside of a coroutine.
pub(crate) fn suspend(request: impl FnOnce() -> Asked) -> Option<Answer> {
    let yielder = RUNNING.get();
    if yielder.is_null() {
        return None;
    }
    let request = request();
    // Others run on this thread until we are resumed.
    RUNNING.set(ptr::null());
    // SAFETY: only `Published` sets the pointer, to the yielder of the coroutine on whose stack it
    // lives, and every suspension and every way out of the coroutine resets it. So it is ours: we
    // run on that stack, and the yielder lives until the coroutine returns.
    let resumed = unsafe { &*yielder }.suspend(request);
    debug_assert!(RUNNING.get().is_null(), "whoever ran in between has withdrawn");
    RUNNING.set(yielder);
    Some(resumed.unwrap_or(Answer::Closed))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::pin::Pin;

    use rustls::client::Resumption;
    use rustls::pki_types::ServerName;
    use rustls::server::Acceptor;
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use warpcore_need::{Need, need};
    use warpcore_offload::{EcdsaSign, Kernel, KeyExchange, Queue, Sign, together};

    use super::*;
    use crate::config::{CertificateConfig, SiteConfig};
    use crate::site::Sites;
    use crate::stack;
    use crate::ticket::Masters;
    use crate::upstream::{self, Pools};

    /// Xorshift: any numbers, the same each time.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % bound as u64).expect("below a usize")
        }
    }

    /// A name for each kind of key; the first is of the kind that is exchanged and signed on the queue.
    const NAMES: [&str; 6] = [
        "rsa2048.example",
        "p256.example",
        "p384.example",
        "ed25519.example",
        "rsa3072.example",
        "rsa4096.example",
    ];

    /// A site for each name, and clients of every kind that trust all.
    fn sites_and_clients() -> (Sites, Vec<Arc<ClientConfig>>) {
        let place = tempfile::tempdir().expect("a temporary directory");
        let mut roots = RootCertStore::empty();
        let mut sites = Vec::new();
        for name in NAMES {
            let made = |kind| rcgen::KeyPair::generate_for(kind).expect("a key").serialize_pem();
            let pem = match name {
                "p256.example" => made(&rcgen::PKCS_ECDSA_P256_SHA256),
                "p384.example" => made(&rcgen::PKCS_ECDSA_P384_SHA384),
                "ed25519.example" => made(&rcgen::PKCS_ED25519),
                name => rsa_key(&name[3..7]),
            };
            let key = rcgen::KeyPair::from_pem(&pem).expect("a good key");
            let params = rcgen::CertificateParams::new([name.to_owned()]).expect("a good name");
            let certificate = params.self_signed(&key).expect("signs itself");
            roots.add(certificate.der().clone()).expect("a good root");
            let [chain, key] = ["pem", "key"].map(|end| place.path().join(format!("{name}.{end}")));
            std::fs::write(&chain, certificate.pem()).expect("written");
            std::fs::write(&key, pem).expect("written");
            sites.push(SiteConfig {
                names: vec![name.to_owned()],
                certificates: vec![CertificateConfig { chain, key }],
                pool: "pool".to_owned(),
                ..SiteConfig::default()
            });
        }
        let sites = Sites::new(&sites, &pools(), &Arc::new(Masters::random())).expect("good");
        // Some resume, others shake hands in full each time.
        let providers = [
            (rustls::crypto::ring::default_provider(), Resumption::default()),
            (rustls::crypto::aws_lc_rs::default_provider(), Resumption::disabled()),
        ];
        let mut clients = Vec::new();
        for (provider, resumption) in providers {
            for version in [&TLS12, &TLS13] {
                let mut client = ClientConfig::builder_with_provider(Arc::new(provider.clone()))
                    .with_protocol_versions(&[version])
                    .expect("supported")
                    .with_root_certificates(roots.clone())
                    .with_no_client_auth();
                client.resumption = resumption.clone();
                clients.push(Arc::new(client));
            }
        }
        (sites, clients)
    }

    fn pools() -> Pools {
        let upstreams = vec!["127.0.0.1:1".to_owned()];
        let pool = crate::config::PoolConfig { upstreams, ..Default::default() };
        let configs = BTreeMap::from([("pool".to_owned(), pool)]);
        upstream::pools(&configs, &Pools::new()).expect("good")
    }

    /// A fresh key in PEM, of so many bits.
    fn rsa_key(bits: &str) -> String {
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt"]);
        let made = openssl.arg(format!("rsa_keygen_bits:{bits}")).output();
        let made = made.expect("openssl is there");
        String::from_utf8(made.stdout).expect("PEM is ASCII")
    }

    /// Where the server's side of a handshake stands.
    enum Side {
        Hello(Box<Acceptor>),
        Waiting(Asked, Suspended),
        Asked(LocalBoxFuture<Answer>, Suspended),
        Tls(Box<ServerConnection>),
    }

    type LocalBoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;

    /// What was asked for, submitted.
    fn submit(asked: Asked, queue: &Queue) -> LocalBoxFuture<Answer> {
        match asked {
            Asked::Exchange(peer) => {
                let submitted = queue.submit(KeyExchange::new(peer));
                Box::pin(async { Answer::Exchanged(submitted.await) })
            }
            Asked::Sign(SignRequest::Ecdsa { key, message }) => {
                let submitted = queue.submit(EcdsaSign::new(key, message));
                Box::pin(async { Answer::Signed(submitted.await.result) })
            }
            Asked::Sign(SignRequest::Rsa { key, scheme, message }) => {
                let submitted = queue.submit(Sign::new(key, scheme, message));
                Box::pin(async { Answer::Signed(submitted.await.result) })
            }
        }
    }

    struct Talk {
        client: ClientConnection,
        signing: Signing,
        side: Side,
    }

    impl Talk {
        fn new(client: &Arc<ClientConfig>, name: &'static str, signing: Signing) -> Self {
            let name = ServerName::try_from(name).expect("a good name");
            let client = ClientConnection::new(Arc::clone(client), name).expect("good");
            Self { client, signing, side: Side::Hello(Box::default()) }
        }

        /// One step: what was asked for is submitted, or answered, or what the client has said is processed.
        /// None: both have shaken hands.
        fn step(self, sites: &Sites, queue: &Queue) -> Option<Self> {
            let Self { mut client, signing, side } = self;
            let mut said = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut said).expect("to memory");
            }
            let mut said = &said[..];
            let step = match side {
                Side::Waiting(asked, suspended) => {
                    let side = Side::Asked(submit(asked, queue), suspended);
                    return Some(Self { client, signing, side });
                }
                Side::Asked(answer, suspended) => suspended.complete(queue.run(answer)),
                Side::Hello(mut acceptor) => {
                    acceptor.read_tls(&mut said).expect("from memory");
                    match acceptor.accept().map_err(|(error, _)| error).expect("a good hello") {
                        None => {
                            let side = Side::Hello(acceptor);
                            return Some(Self { client, signing, side });
                        }
                        Some(accepted) => {
                            let name = accepted.client_hello().server_name().map(str::to_owned);
                            let site = sites.find(name.as_deref()).expect("one of them");
                            let tls = Arc::clone(&site.tls);
                            Call::Accept(Box::new(accepted), tls).start(signing)
                        }
                    }
                }
                Side::Tls(mut tls) => {
                    while !said.is_empty() {
                        tls.read_tls(&mut said).expect("from memory");
                    }
                    Call::Process(tls).start(signing)
                }
            };
            let mut tls = match step {
                Step::Pending(asked, suspended) => {
                    let side = Side::Waiting(asked, suspended);
                    return Some(Self { client, signing, side });
                }
                Step::Processed(processed) => processed.expect("a good client"),
            };
            let mut answer = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut answer).expect("to memory");
            }
            let mut answer = &answer[..];
            while !answer.is_empty() {
                client.read_tls(&mut answer).expect("from memory");
                client.process_new_packets().expect("a good server, and signature");
            }
            let is_over = !tls.is_handshaking() && !client.is_handshaking();
            let side = Side::Tls(tls);
            (!is_over || client.wants_write()).then_some(Self { client, signing, side })
        }
    }

    /// Many at a time, in both versions, with every kind of key and with the hybrid, on the queue and in
    /// place; what they ask for is submitted together and answered in any order, and some are dropped while
    /// they wait.
    #[test]
    fn handshakes_end_well_in_any_order() {
        const AT_A_TIME: usize = 64;
        if !need(&[Need::Tool("openssl", "openssl")]) {
            return;
        }
        let count = 10_000;
        let (sites, clients) = sites_and_clients();
        let queue = Queue::new(AT_A_TIME);
        let mut random = Random(0x5eed);
        let (mut begun, mut ended, mut dropped) = (0, 0, 0);
        let mut talks = Vec::new();
        while ended + dropped < count {
            if talks.len() < AT_A_TIME && begun < count && random.below(3) == 0 {
                // Few of the long ones.
                let kinds = if random.below(20) == 0 { NAMES.len() } else { 4 };
                let client = &clients[random.below(clients.len())];
                let in_place = random.below(4) == 0;
                let signing = if in_place { Signing::InPlace } else { Signing::Offloaded };
                talks.push(Talk::new(client, NAMES[random.below(kinds)], signing));
                begun += 1;
                continue;
            }
            if talks.is_empty() {
                continue;
            }
            let talk: Talk = talks.swap_remove(random.below(talks.len()));
            let waits = matches!(talk.side, Side::Waiting(..) | Side::Asked(..));
            if waits && random.below(50) == 0 {
                dropped += 1;
                continue;
            }
            match talk.step(&sites, &queue) {
                Some(talk) => talks.push(talk),
                None => ended += 1,
            }
        }
        assert!(ended > count / 2 && dropped > 0, "{ended} ended, {dropped} dropped");
        assert!((1..=AT_A_TIME).contains(&stack::free()), "{} stacks are back", stack::free());
        let stats = queue.stats();
        assert_eq!(stats.in_flight(), 0);
        let alone = together(Kernel::RsaPrivate).is_none();
        assert!(alone || stats.kernel(Kernel::RsaPrivate).batch_len_max > 1, "never together");
    }

    /// As a task's end drops those that it holds, also one that panics: each call ends in an error of
    /// rustls's, and its stack is back.
    #[test]
    fn hundreds_that_wait_are_dropped() {
        const COUNT: usize = 500;
        if !need(&[Need::Tool("openssl", "openssl")]) {
            return;
        }
        let (sites, clients) = sites_and_clients();
        let queue = Queue::new(8);
        let waiting = || -> Vec<Talk> {
            let all = clients.iter().cycle().take(COUNT).enumerate();
            let waits = |(n, client): (usize, _)| {
                let mut talk = Talk::new(client, NAMES[0], Signing::Offloaded);
                loop {
                    match &talk.side {
                        // Every other of those that do both waits for the second.
                        Side::Waiting(Asked::Exchange(_), _) if n % 8 < 4 => {}
                        Side::Waiting(..) => return talk,
                        _ => {}
                    }
                    talk = talk.step(&sites, &queue).expect("it has not shaken hands");
                }
            };
            all.map(waits).collect()
        };
        drop(waiting());
        assert_eq!(stack::free(), COUNT);
        let talks = waiting();
        assert_eq!(stack::free(), 0);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _talks = talks;
            std::panic::resume_unwind(Box::new("a task's"));
        }));
        let payload = panicked.expect_err("it has");
        assert_eq!(payload.downcast_ref(), Some(&"a task's"));
        assert_eq!(stack::free(), COUNT);
        // And whoever comes then shakes hands.
        let mut talk = Some(Talk::new(&clients[0], NAMES[0], Signing::Offloaded));
        while let Some(one) = talk {
            talk = one.step(&sites, &queue);
        }
        assert_eq!((stack::free(), queue.stats().in_flight()), (COUNT, 0));
    }
}
