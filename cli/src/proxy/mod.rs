//! Terminates TLS in front of plain servers.

mod hand_over;
mod reload;
mod user;

use std::path::PathBuf;
use std::sync::Arc;

use rustix::thread::sched_getaffinity;
use warpcore_runtime::net::Address;
use warpcore_runtime::{Builder, spawn, stopper, stopping};
use warpcore_tls::{CertificateConfig, Config, Error, GivenSocket, Proxy, Stats};

use hand_over::HandOver;

use crate::devices::{self, Selection};
use crate::{Failure, note, print, systemd};

/// Terminate TLS in front of plain servers
///
/// Every core accepts; RSA, ECDSA and X25519 work goes through the core's offload queue. SIGTERM and
/// Ctrl-C stop accepting and let open connections finish for a while (`timeouts.drain`, 30 s). SIGHUP
/// reads the configuration and certificates again, as a change of their files does; if anything is
/// wrong with them, nothing changes and the log says what. SIGUSR2 starts the program anew, as it is on
/// disk now, which takes over the listeners without refusing anybody; once it serves, this one drains. If
/// it never does, another SIGUSR2 ends it and starts the next.
///
/// Examples:
///   warpcore proxy --listen 0.0.0.0:443 --cert chain.pem --key key.pem --upstream 127.0.0.1:8080
///   warpcore proxy --config /etc/warpcore/proxy.toml --check
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
#[command(after_long_help = concat!("A configuration:\n\n", include_str!("../../../contrib/proxy.toml")))]
pub(crate) struct Arguments {
    /// TOML file that says everything
    #[arg(long, value_name = "FILE", conflicts_with_all = ["listen", "cert", "key", "upstream"])]
    config: Option<PathBuf>,
    /// Say what is wrong with the configuration, and end
    #[arg(long, requires = "config")]
    check: bool,
    /// Address and port, or unix:PATH, that clients connect to
    #[arg(long, value_name = "ADDR", required_unless_present = "config")]
    listen: Option<Address>,
    /// Certificate chain in PEM
    #[arg(long, value_name = "PEM", required_unless_present = "config")]
    cert: Option<PathBuf>,
    /// Private key of that certificate in PEM
    #[arg(long, value_name = "PEM", required_unless_present = "config")]
    key: Option<PathBuf>,
    /// Address and port, or unix:PATH, that plain text goes to
    #[arg(long, value_name = "ADDR", required_unless_present = "config")]
    upstream: Option<Address>,
    #[command(flatten)]
    selection: Selection,
}

impl Arguments {
    /// The configuration as it is now.
    fn read(&self) -> Result<Config, Error> {
        if let Some(path) = &self.config {
            return Config::read(path);
        }
        let said = "required without a configuration";
        let certificate = CertificateConfig {
            chain: self.cert.clone().expect(said),
            key: self.key.clone().expect(said),
        };
        let (listen, upstream) = (self.listen.clone().expect(said), self.upstream.as_ref());
        Ok(Config::single(listen, certificate, upstream.expect(said)))
    }

    /// Says in which line of the configuration an error is.
    fn locate(&self, error: Error) -> Error {
        match &self.config {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    // What changes from here on is loaded again.
    let mut seen = reload::look(&arguments, None);
    let config = arguments.read()?;
    seen = reload::look(&arguments, Some(&config)).into_iter().chain(seen).collect();
    if arguments.check {
        Proxy::check(&config).map_err(|error| arguments.locate(error))?;
        config.user.as_deref().map(user::find).transpose()?;
        let path = arguments.config.expect("required by --check");
        return print(format_args!("{}: good", path.display()));
    }
    let kept = systemd::sockets().into_iter();
    let mut sockets: Vec<_> = kept.map(|socket| GivenSocket { socket, is_kept: true }).collect();
    sockets.extend(hand_over::sockets());
    let proxy = Proxy::with_sockets(&config, sockets).map_err(|error| arguments.locate(error))?;
    let proxy = Arc::new(proxy);
    if let Some(user) = &config.user {
        user::become_user(&user::find(user)?, &proxy)?;
        // What that user cannot see never changes.
        let now = reload::look(&arguments, arguments.read().as_ref().ok());
        let is_seen = |(path, state): (PathBuf, Option<_>)| {
            let before = seen.get(&path).copied().flatten();
            (path, state.map(|now| before.unwrap_or(now)))
        };
        seen = now.into_iter().map(is_seen).collect();
    }
    let devices = arguments.selection.select()?;
    let arguments = Arc::new(arguments);
    let hand_over = Arc::new(HandOver::new(Arc::clone(&proxy)));
    // Each shard takes one of them.
    let cpus = sched_getaffinity(None)?;
    let shards = Builder::new().stop_on_signals(true).devices(devices).run({
        let proxy = Arc::clone(&proxy);
        move |shard| {
            let (proxy, arguments) = (Arc::clone(&proxy), Arc::clone(&arguments));
            let (hand_over, seen) = (Arc::clone(&hand_over), seen.clone());
            async move {
                if shard == 0 {
                    let (proxy, stopping_for) = (Arc::clone(&proxy), Arc::clone(&hand_over));
                    let replaced = Arc::clone(&hand_over);
                    reload::start(arguments, seen, proxy, replaced, stopper(), cpus)?;
                    drop(spawn(async move {
                        stopping().await;
                        // The service goes on in the next process, and would be stopped as a whole.
                        if !stopping_for.stop() {
                            systemd::notify("STOPPING=1");
                        }
                    }));
                }
                let served = proxy.serve_and_tell(|| {
                    tell(&proxy);
                    hand_over.serves();
                });
                let served = served.await.inspect_err(|_| warpcore_runtime::stop());
                served.map_err(|error| error.to_string())
            }
        }
    })?;
    let mut sum = Stats::default();
    for stats in shards {
        sum.add(&stats?);
    }
    note(format_args!(
        "{} connections, {} handshakes, {} failed, {} cut off",
        sum.accepted, sum.handshakes, sum.handshakes_failed, sum.cut_off
    ));
    devices::report(&sum.queue).iter().for_each(note);
    Ok(())
}

/// Tells everybody that it serves.
fn tell(proxy: &Proxy) {
    for address in proxy.addresses() {
        note(format_args!("listening on {address}"));
    }
    systemd::notify(&format!("READY=1\nMAINPID={}", std::process::id()));
    hand_over::ready();
}
