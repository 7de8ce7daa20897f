//! One client, from accept to close.

use std::io;
use std::net::Shutdown;

use bytes::BytesMut;
use rustls::ServerConnection;
use warpcore_offload::{KeyExchange, Sign};
use warpcore_runtime::net::TcpStream;
use warpcore_runtime::{Elapsed, queue, timeout};

use crate::config::Signing;
use crate::handshake::{Answer, Asked, Step, process};
use crate::listener::Proxy;
use crate::relay::relay;
use crate::signer::SignRequest;
use crate::stats::Counters;

/// Room for one read of a socket: the largest TLS record and its header.
pub(crate) const RECEIVE_LEN_BYTES: usize = 16 * 1024 + 256;

/// Why a connection ended early.
pub(crate) enum Failure {
    Handshake(Cause),
    Relay(Cause),
    Upstream(Cause),
}

/// Who is to blame, in words.
pub(crate) type Cause = Box<dyn std::error::Error>;

/// Shakes hands, connects to the upstream, relays.
pub(crate) async fn serve(
    proxy: &Proxy,
    client: TcpStream,
    counters: &Counters,
) -> Result<(), Failure> {
    let shaken = timeout(proxy.timeouts.handshake, shake_hands(proxy, &client)).await;
    let (tls, received) = within(shaken).map_err(Failure::Handshake)?;
    counters.count(|stats| stats.handshakes += 1);

    // If there is no upstream, the client is cut off without close_notify: it must not take
    // silence for an empty answer.
    let connected = timeout(proxy.timeouts.connect, TcpStream::connect(proxy.upstream)).await;
    let upstream = within(connected).map_err(Failure::Upstream)?;
    relay(tls, received, client, upstream, proxy.timeouts.idle).await.map_err(Failure::Relay)
}

/// Feeds rustls until the handshake is over. Bytes are received only while rustls wants some: a
/// client that talks on while its signature is in flight fills its own socket.
///
/// Also returns what was received behind the handshake and rustls has not seen.
async fn shake_hands(
    proxy: &Proxy,
    client: &TcpStream,
) -> Result<(Box<ServerConnection>, BytesMut), Cause> {
    let mut tls = Box::new(ServerConnection::new(proxy.tls())?);
    let mut received = BytesMut::with_capacity(RECEIVE_LEN_BYTES);
    // One signature a handshake, in the same call as the key exchange of TLS 1.3: what comes after
    // needs no coroutine.
    let mut signing = proxy.signing;
    loop {
        send_records(&mut tls, client).await?;
        if !tls.is_handshaking() {
            return Ok((tls, received));
        }
        received.reserve(RECEIVE_LEN_BYTES);
        let (result, bytes) = client.recv(received).await;
        received = bytes;
        if result? == 0 {
            return Err("the client hung up".into());
        }
        while !received.is_empty() && tls.is_handshaking() {
            read_records(&mut tls, &mut received)?;
            let mut step = process(signing, tls);
            let result;
            (tls, result) = loop {
                match step {
                    Step::Pending(request, suspended) => {
                        signing = Signing::InPlace;
                        let answer = match request {
                            Asked::Exchange(peer) => {
                                Answer::Exchanged(queue().submit(KeyExchange::new(peer)).await)
                            }
                            Asked::Sign(SignRequest { key, scheme, message }) => {
                                let signed = queue().submit(Sign::new(key, scheme, message)).await;
                                Answer::Signed(signed.result)
                            }
                        };
                        step = suspended.complete(answer);
                    }
                    Step::Processed(processed) => break processed,
                }
            };
            if let Err(error) = result {
                // rustls has queued the alert that says why.
                let _ = send_records(&mut tls, client).await;
                let _ = client.shutdown(Shutdown::Write).await;
                return Err(error.into());
            }
        }
    }
}

/// Gives received bytes to rustls, as many as it takes.
pub(crate) fn read_records(tls: &mut ServerConnection, received: &mut BytesMut) -> io::Result<()> {
    let mut unread: &[u8] = received;
    let taken = tls.read_tls(&mut unread)?;
    bytes::Buf::advance(received, taken);
    Ok(())
}

/// Sends what rustls has to send.
async fn send_records(tls: &mut ServerConnection, client: &TcpStream) -> io::Result<()> {
    let mut records = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut records)?;
    }
    client.send_all(records).await.0
}

/// A result within its time, or the reason why not.
fn within<T>(result: Result<Result<T, impl Into<Cause>>, Elapsed>) -> Result<T, Cause> {
    match result {
        Ok(result) => result.map_err(Into::into),
        Err(elapsed) => Err(elapsed.into()),
    }
}
