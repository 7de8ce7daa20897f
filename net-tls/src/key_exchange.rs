//! X25519, from inside rustls to the offload queue.
//!
//! In TLS 1.3 the client's key is there when ours is made, so that both multiplications are one
//! request (RFC 8446, section 4.2.8). In TLS 1.2 ours goes out first; ring does that.

use rustls::crypto::ring::kx_group::X25519;
use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved};

use crate::handshake::{Answer, Asked, suspend};

/// As rustls sees it.
pub(crate) static OFFLOADED_X25519: OffloadedX25519 = OffloadedX25519;

/// X25519 on the queue where the handshake can wait, else in place.
#[derive(Debug)]
pub(crate) struct OffloadedX25519;

impl SupportedKxGroup for OffloadedX25519 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        X25519.start()
    }

    fn start_and_complete(&self, peer: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let Ok(peer) = <[u8; 32]>::try_from(peer) else {
            return Err(PeerMisbehaved::InvalidKeyShare.into());
        };
        let exchanged = match suspend(|| Asked::Exchange(peer)) {
            None => return X25519.start_and_complete(&peer),
            Some(Answer::Exchanged(exchanged)) => exchanged,
            Some(_) => Err(warpcore_offload::Error::Closed),
        };
        match exchanged {
            Ok(exchanged) => Ok(CompletedKeyExchange {
                group: self.name(),
                pub_key: exchanged.public.to_vec(),
                secret: SharedSecret::from(exchanged.shared.as_ref()),
            }),
            Err(warpcore_offload::Error::PeerKey) => Err(PeerMisbehaved::InvalidKeyShare.into()),
            Err(error) => Err(Error::General(error.to_string())),
        }
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}
