//! X25519, alone and with ML-KEM, from inside rustls to the offload queue.
//!
//! In TLS 1.3 the client's key is there when ours is made, so that both multiplications are one
//! request (RFC 8446, section 4.2.8). In TLS 1.2 ours goes out first; the library does that.

use libcrux_ml_kem::mlkem768::{self, MlKem768PublicKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved, ProtocolVersion};
use warpcore_offload::{Exchanged, Kernel, together};
use zeroize::Zeroizing;

use crate::handshake::{Answer, Asked, suspend};
use crate::provider::base::kx_group::X25519;

/// As rustls sees it.
pub(crate) static OFFLOADED_X25519: &dyn SupportedKxGroup = &OffloadedX25519;

/// The hybrid that browsers offer first.
pub(crate) static OFFLOADED_X25519_MLKEM768: &dyn SupportedKxGroup = &OffloadedX25519MlKem768;

const INVALID_KEY_SHARE: Error = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);

/// Exchanges on the queue. None where nothing can be suspended, and where it would do what the library
/// does, only later: without lanes.
fn ask(peer: [u8; 32]) -> Option<Result<Exchanged, Error>> {
    together(Kernel::KeyExchange)?;
    let exchanged = match suspend(|| Asked::Exchange(peer))? {
        Answer::Exchanged(exchanged) => exchanged,
        _ => Err(warpcore_offload::Error::Closed),
    };
    Some(exchanged.map_err(|error| match error {
        warpcore_offload::Error::PeerKey => INVALID_KEY_SHARE,
        error => Error::General(error.to_string()),
    }))
}

/// X25519 on the queue where that gains something, else in place.
#[derive(Debug)]
struct OffloadedX25519;

impl SupportedKxGroup for OffloadedX25519 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        X25519.start()
    }

    fn start_and_complete(&self, peer: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let peer: [u8; 32] = peer.try_into().map_err(|_| INVALID_KEY_SHARE)?;
        let Some(exchanged) = ask(peer) else { return X25519.start_and_complete(&peer) };
        let exchanged = exchanged?;
        Ok(CompletedKeyExchange {
            group: self.name(),
            pub_key: exchanged.public.to_vec(),
            secret: SharedSecret::from(exchanged.shared.as_ref()),
        })
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

/// X25519 as above, and ML-KEM-768 (FIPS 203) in place: draft-ietf-tls-ecdhe-mlkem, section 4, where
/// ML-KEM's part comes first in keys and secrets.
#[derive(Debug)]
struct OffloadedX25519MlKem768;

impl SupportedKxGroup for OffloadedX25519MlKem768 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        // Of servers only those of TLS 1.2 make a key before they know the peer's.
        Err(Error::General("X25519MLKEM768 is for servers of TLS 1.3".to_owned()))
    }

    fn start_and_complete(&self, peer: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let Some((encapsulation_key, x25519)) = peer.split_last_chunk::<32>() else {
            return Err(INVALID_KEY_SHARE);
        };
        let key = MlKem768PublicKey::try_from(encapsulation_key).map_err(|_| INVALID_KEY_SHARE)?;
        // FIPS 203, section 7.2: the peer's key is checked before it is used.
        if !mlkem768::validate_public_key(&key) {
            return Err(INVALID_KEY_SHARE);
        }
        let exchanged = OffloadedX25519.start_and_complete(x25519)?;
        let mut random = [0; 32];
        let filled = SystemRandom::new().fill(&mut random);
        filled.map_err(|_| Error::FailedToGetRandomBytes)?;
        let (ciphertext, secret) = mlkem768::encapsulate(&key, random);
        let secret = Zeroizing::new(secret);
        let both = Zeroizing::new([&secret[..], exchanged.secret.secret_bytes()].concat());
        Ok(CompletedKeyExchange {
            group: self.name(),
            pub_key: [ciphertext.as_ref(), &exchanged.pub_key].concat(),
            secret: SharedSecret::from(&both[..]),
        })
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}
