//! Terminates TLS in front of a plain TCP server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use warpcore_runtime::Builder;
use warpcore_tls::{Config, Proxy, Signing, Stats, Timeouts};

use crate::Failure;
use crate::devices::{self, Selection};

/// Terminate TLS in front of a plain TCP server
///
/// One listener on every core; RSA signatures go through the core's offload queue. SIGTERM and
/// Ctrl-C stop accepting and let open connections finish for up to 30 s.
///
/// Example:
///   warpcore proxy --listen 0.0.0.0:443 --cert chain.pem --key key.pem --upstream 127.0.0.1:8080
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Address and port that clients connect to
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Certificate chain in PEM, the server's own first
    #[arg(long, value_name = "PEM")]
    cert: PathBuf,
    /// Private key of that certificate in PEM
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
    /// Address and port that plain text goes to
    #[arg(long, value_name = "ADDR")]
    upstream: SocketAddr,
    #[command(flatten)]
    selection: Selection,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let proxy = Arc::new(Proxy::new(&Config {
        listen: arguments.listen,
        certificate: arguments.cert.clone(),
        key: arguments.key.clone(),
        upstream: arguments.upstream,
        signing: Signing::Offloaded,
        timeouts: Timeouts::default(),
    })?);
    let devices = arguments.selection.select()?;
    let shards = Builder::new().stop_on_signals(true).devices(devices).run({
        let proxy = Arc::clone(&proxy);
        move |shard| {
            let proxy = Arc::clone(&proxy);
            async move {
                let listener = proxy.listen().inspect_err(|_| warpcore_runtime::stop())?;
                if shard == 0 {
                    eprintln!("listening on {}", proxy.address());
                }
                Ok::<Stats, warpcore_tls::Error>(listener.serve().await)
            }
        }
    })?;
    let mut sum = Stats::default();
    for stats in shards {
        sum.add(&stats?);
    }
    eprintln!(
        "{} connections, {} handshakes, {} failed, {} cut off",
        sum.accepted, sum.handshakes, sum.handshakes_failed, sum.cut_off
    );
    devices::report(&sum.queue).iter().for_each(|line| eprintln!("{line}"));
    Ok(())
}
