//! What a caller asks for. A request owns its buffers and gives them back with the result.

use std::ptr::NonNull;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::buffer::{Source, SourceSpan, Target, TargetSpan};
use crate::checksum::Checksum;
use crate::codec::Codec;
use crate::custom::CallSpan;
use crate::ecdsa::{ECDSA_LEN_BYTES_MAX, EcdsaKey};
use crate::error::Error;
use crate::kx::{EXCHANGED_LEN_BYTES, SharedSecret};
use crate::rsa::{PrivateKey, PublicKey, Scheme, Signature};
use crate::stats::Kernel;
use crate::stream::{Progress, State, Stream};

/// Something the queue can do. Implemented by the types of this module only.
pub trait Request: Sealed + Send + Sized + 'static {
    /// What the caller gets, its buffers included.
    type Output;

    /// What it is gathered with.
    #[doc(hidden)]
    fn kernel(&self) -> Kernel;

    /// What a backend is told; the same each time. It may point into `self`, which lies in its slot by now and neither
    /// moves nor is touched until the work is done.
    #[doc(hidden)]
    fn describe(&mut self) -> Work;

    /// Puts other memory in the place of what a device may still write to, which is forgotten. False:
    /// there is none.
    #[doc(hidden)]
    fn replace_target(&mut self) -> bool {
        false
    }

    /// Turns the request and how it ended into what the caller gets.
    #[doc(hidden)]
    fn finish(self, ending: Ending) -> Self::Output;
}

/// How a backend left a request.
#[derive(Debug)]
pub enum Ending {
    /// With this result; nobody touches its memory any more.
    Done(Result<usize, Error>),
    /// On a device that may write to the target for as long as the process lives, so the target is
    /// forgotten.
    Stranded,
}

impl Ending {
    fn settle<T: Target>(self, target: T) -> (Result<usize, Error>, T) {
        match self {
            Self::Done(result) => (result, target),
            Self::Stranded => {
                std::mem::forget(target);
                (Err(Error::DeviceLost), T::lost())
            }
        }
    }
}

fn replace<T: Target>(target: &mut T) -> bool {
    let Some(other) = target.another() else { return false };
    std::mem::forget(std::mem::replace(target, other));
    true
}

/// Compress `source` into `target` as one frame.
///
/// A target of [`Codec::bound`] bytes is always large enough. A smaller one is a way to say "only
/// if it pays": the request then ends in [`Error::TargetTooSmall`]. Software does not even try when
/// the target is smaller than the source and a sample of that looks random.
#[derive(Debug, Clone)]
pub struct Compress<S, T> {
    /// How.
    pub codec: Codec,
    /// The codec's own scale; [`Codec::Store`] ignores it.
    pub level: i32,
    /// Plain bytes.
    pub source: S,
    /// Room for the stored bytes.
    pub target: T,
}

/// Decompress `source` into `target`.
///
/// The target bounds the output: a frame that would be longer ends in [`Error::TargetTooSmall`].
#[derive(Debug, Clone)]
pub struct Decompress<S, T> {
    /// How `source` was made.
    pub codec: Codec,
    /// Stored bytes.
    pub source: S,
    /// Room for the plain bytes.
    pub target: T,
}

/// A finished [`Compress`], [`Decompress`], [`RsaPrivate`] or [`RsaPublic`].
#[derive(Debug, Clone)]
pub struct Done<S, T> {
    /// Bytes written to the start of `target`.
    pub result: Result<usize, Error>,
    /// The source, unchanged.
    pub source: S,
    /// The target; on error its contents mean nothing.
    pub target: T,
}

/// Compute a checksum of `source`.
#[derive(Debug, Clone)]
pub struct Check<S> {
    checksum: Checksum,
    source: S,
    sum: [u8; 8],
}

impl<S: Source> Check<S> {
    /// A request for a checksum of the whole of `source`.
    pub fn new(checksum: Checksum, source: S) -> Self {
        Self { checksum, source, sum: [0; 8] }
    }
}

/// A finished [`Check`].
#[derive(Debug, Clone)]
pub struct Checked<S> {
    /// The checksum.
    pub result: Result<u64, Error>,
    /// The source, unchanged.
    pub source: S,
}

/// The next piece of a stream.
///
/// Compression writes all that it consumed, up to a byte boundary, so that the reader can have it
/// (as zlib's `Z_SYNC_FLUSH`), as far as the target has room.
#[derive(Debug)]
pub struct Feed<S, T> {
    /// The stream; it comes back with the result.
    pub stream: Stream,
    /// What comes next: plain bytes to compress, stored bytes to decompress.
    pub source: S,
    /// Room for what comes out.
    pub target: T,
    /// `source` is the last of the stream.
    pub end: bool,
}

/// A finished [`Feed`].
#[derive(Debug)]
pub struct Fed<S, T> {
    /// How far it came. An error ends the stream: it is repeated from then on.
    pub result: Result<Progress, Error>,
    /// The stream.
    pub stream: Stream,
    /// The source, unchanged.
    pub source: S,
    /// The target.
    pub target: T,
}

/// Raise `source` to a key's private exponent: the bare operation (RSASP1 of RFC 8017, section
/// 5.2.1), without padding. The result is checked by the public exponent before it is given out.
///
/// In software it goes with signatures and takes lanes, see [`Error::NoDevice`].
#[derive(Debug, Clone)]
pub struct RsaPrivate<S, T> {
    /// With which key.
    pub key: Arc<PrivateKey>,
    /// A number below the modulus and as long, big-endian.
    pub source: S,
    /// Room for as many bytes.
    pub target: T,
}

/// Raise `source` to a key's public exponent (RSAVP1 of RFC 8017, section 5.2.2).
#[derive(Debug, Clone)]
pub struct RsaPublic<S, T> {
    /// With which key.
    pub key: Arc<PublicKey>,
    /// A number below the modulus and as long, big-endian.
    pub source: S,
    /// Room for as many bytes.
    pub target: T,
}

/// Sign `message` (hashed as the scheme says) with a private key.
#[derive(Debug, Clone)]
pub struct Sign<S> {
    key: Arc<PrivateKey>,
    scheme: Scheme,
    message: S,
    signature: Signature,
}

impl<S: Source> Sign<S> {
    /// A request to sign the whole of `message`.
    pub fn new(key: Arc<PrivateKey>, scheme: Scheme, message: S) -> Self {
        Self { key, scheme, message, signature: Signature::empty() }
    }
}

/// Sign the SHA-256 of `message` by ECDSA with a key of P-256. The signature is in DER (RFC 3279,
/// section 2.2.3), as TLS and X.509 have it.
///
/// No two signatures of a message are alike: nonces are derived from key, message and random bytes.
#[derive(Debug, Clone)]
pub struct EcdsaSign<S> {
    key: Arc<EcdsaKey>,
    message: S,
    signature: Signature,
}

impl<S: Source> EcdsaSign<S> {
    /// A request to sign the whole of `message`.
    pub fn new(key: Arc<EcdsaKey>, message: S) -> Self {
        Self { key, message, signature: Signature::empty() }
    }
}

/// A finished [`Sign`] or [`EcdsaSign`].
#[derive(Debug, Clone)]
pub struct Signed<S> {
    /// The signature: one of RSA is as long as the key's modulus.
    pub result: Result<Signature, Error>,
    /// The message, unchanged.
    pub message: S,
}

/// Make a fresh X25519 key, and what it shares with a peer's (RFC 7748).
#[derive(Debug)]
pub struct KeyExchange {
    peer: [u8; 32],
    /// On the heap: the slot that the request lies in is not wiped.
    exchanged: Box<Zeroizing<[u8; EXCHANGED_LEN_BYTES]>>,
}

impl KeyExchange {
    /// A request to exchange keys with whoever has the public key `peer`.
    pub fn new(peer: [u8; 32]) -> Self {
        Self { peer, exchanged: Box::new(Zeroizing::new([0; EXCHANGED_LEN_BYTES])) }
    }
}

/// A finished [`KeyExchange`].
#[derive(Debug)]
pub struct Exchanged {
    /// Our public key, for the peer.
    pub public: [u8; 32],
    /// What only both of us know.
    pub shared: SharedSecret,
}

pub(crate) use sealed::Sealed;

mod sealed {
    /// Only this module's types are requests: a backend knows each of them.
    pub trait Sealed {}
}

impl<S> Sealed for Check<S> {}
impl<S, T> Sealed for Compress<S, T> {}
impl<S, T> Sealed for Decompress<S, T> {}
impl<S, T> Sealed for Feed<S, T> {}
impl<S, T> Sealed for RsaPrivate<S, T> {}
impl<S, T> Sealed for RsaPublic<S, T> {}
impl<S> Sealed for Sign<S> {}
impl<S> Sealed for EcdsaSign<S> {}
impl Sealed for KeyExchange {}

impl<S: Source> Request for Check<S> {
    type Output = Checked<S>;

    fn kernel(&self) -> Kernel {
        Kernel::Check
    }

    fn describe(&mut self) -> Work {
        Work::Check {
            checksum: self.checksum,
            source: SourceSpan::of(&self.source),
            target: TargetSpan::of_bytes(&mut self.sum),
        }
    }

    fn finish(self, ending: Ending) -> Checked<S> {
        let result = match ending {
            Ending::Done(result) => result.map(|_| u64::from_le_bytes(self.sum)),
            // No device does this.
            Ending::Stranded => Err(Error::DeviceLost),
        };
        Checked { result, source: self.source }
    }
}

impl<S: Source, T: Target> Request for Compress<S, T> {
    type Output = Done<S, T>;

    fn kernel(&self) -> Kernel {
        Kernel::Compress
    }

    fn describe(&mut self) -> Work {
        Work::Compress {
            codec: self.codec,
            level: self.level,
            source: SourceSpan::of(&self.source),
            target: TargetSpan::of(&mut self.target),
        }
    }

    fn replace_target(&mut self) -> bool {
        replace(&mut self.target)
    }

    fn finish(self, ending: Ending) -> Done<S, T> {
        let (result, target) = ending.settle(self.target);
        Done { result, source: self.source, target }
    }
}

impl<S: Source, T: Target> Request for Decompress<S, T> {
    type Output = Done<S, T>;

    fn kernel(&self) -> Kernel {
        Kernel::Decompress
    }

    fn describe(&mut self) -> Work {
        Work::Decompress {
            codec: self.codec,
            source: SourceSpan::of(&self.source),
            target: TargetSpan::of(&mut self.target),
        }
    }

    fn replace_target(&mut self) -> bool {
        replace(&mut self.target)
    }

    fn finish(self, ending: Ending) -> Done<S, T> {
        let (result, target) = ending.settle(self.target);
        Done { result, source: self.source, target }
    }
}

impl<S: Source, T: Target> Request for Feed<S, T> {
    type Output = Fed<S, T>;

    fn kernel(&self) -> Kernel {
        if self.stream.is_compression() { Kernel::Compress } else { Kernel::Decompress }
    }

    fn describe(&mut self) -> Work {
        let source = SourceSpan::of(&self.source);
        Work::Feed {
            cost_ns: self.stream.state().cost_ns(source.0.len_bytes()),
            stream: StreamSpan(NonNull::from(self.stream.state())),
            source,
            target: TargetSpan::of(&mut self.target),
            end: self.end,
        }
    }

    fn replace_target(&mut self) -> bool {
        replace(&mut self.target)
    }

    fn finish(self, ending: Ending) -> Fed<S, T> {
        let (result, target) = ending.settle(self.target);
        let result = result.map(|_| self.stream.progress());
        let mut stream = self.stream;
        if let Err(error) = &result {
            stream.state().end_if_begun(error);
        }
        Fed { result, stream, source: self.source, target }
    }
}

impl<S: Source, T: Target> Request for RsaPrivate<S, T> {
    type Output = Done<S, T>;

    fn kernel(&self) -> Kernel {
        Kernel::RsaPrivate
    }

    fn describe(&mut self) -> Work {
        Work::RsaPrivate {
            key: Arc::clone(&self.key),
            source: SourceSpan::of(&self.source),
            target: TargetSpan::of(&mut self.target),
        }
    }

    fn finish(self, ending: Ending) -> Done<S, T> {
        let (result, target) = ending.settle(self.target);
        Done { result, source: self.source, target }
    }
}

impl<S: Source, T: Target> Request for RsaPublic<S, T> {
    type Output = Done<S, T>;

    fn kernel(&self) -> Kernel {
        Kernel::RsaPublic
    }

    fn describe(&mut self) -> Work {
        Work::RsaPublic {
            key: Arc::clone(&self.key),
            source: SourceSpan::of(&self.source),
            target: TargetSpan::of(&mut self.target),
        }
    }

    fn finish(self, ending: Ending) -> Done<S, T> {
        let (result, target) = ending.settle(self.target);
        Done { result, source: self.source, target }
    }
}

impl<S: Source> Request for Sign<S> {
    type Output = Signed<S>;

    fn kernel(&self) -> Kernel {
        Kernel::RsaPrivate
    }

    fn describe(&mut self) -> Work {
        Work::Sign {
            key: Arc::clone(&self.key),
            scheme: self.scheme,
            message: SourceSpan::of(&self.message),
            target: TargetSpan::of_bytes(self.signature.room(self.key.modulus_len_bytes())),
        }
    }

    fn finish(self, ending: Ending) -> Signed<S> {
        // A device writes signatures to memory of its driver, never to the request.
        let result = match ending {
            Ending::Done(result) => result.map(|_| self.signature),
            Ending::Stranded => Err(Error::DeviceLost),
        };
        Signed { result, message: self.message }
    }
}

impl<S: Source> Request for EcdsaSign<S> {
    type Output = Signed<S>;

    fn kernel(&self) -> Kernel {
        Kernel::Ecdsa
    }

    fn describe(&mut self) -> Work {
        Work::EcdsaSign {
            key: Arc::clone(&self.key),
            message: SourceSpan::of(&self.message),
            target: TargetSpan::of_bytes(self.signature.room(ECDSA_LEN_BYTES_MAX)),
        }
    }

    fn finish(self, ending: Ending) -> Signed<S> {
        let result = match ending {
            Ending::Done(result) => result.map(|len_bytes| self.signature.cut(len_bytes)),
            // No device does this.
            Ending::Stranded => Err(Error::DeviceLost),
        };
        Signed { result, message: self.message }
    }
}

impl Request for KeyExchange {
    type Output = Result<Exchanged, Error>;

    fn kernel(&self) -> Kernel {
        Kernel::KeyExchange
    }

    fn describe(&mut self) -> Work {
        let target = TargetSpan::of_bytes(&mut self.exchanged[..]);
        Work::KeyExchange { peer: self.peer, target }
    }

    fn finish(self, ending: Ending) -> Result<Exchanged, Error> {
        match ending {
            Ending::Done(result) => result?,
            // No device does this.
            Ending::Stranded => return Err(Error::DeviceLost),
        };
        let public = self.exchanged[..32].try_into().expect("half of 64 bytes");
        Ok(Exchanged { public, shared: SharedSecret::new(self.exchanged) })
    }
}

/// A request as a backend sees it: numbers and spans. The slot that holds the request owns what
/// the spans name.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are those of the request")]
pub enum Work {
    /// See [`Call`](crate::Call).
    Call(CallSpan),
    /// See [`Check`].
    Check { checksum: Checksum, source: SourceSpan, target: TargetSpan },
    /// See [`Compress`].
    Compress { codec: Codec, level: i32, source: SourceSpan, target: TargetSpan },
    /// See [`Decompress`].
    Decompress { codec: Codec, source: SourceSpan, target: TargetSpan },
    /// See [`EcdsaSign`].
    EcdsaSign { key: Arc<EcdsaKey>, message: SourceSpan, target: TargetSpan },
    /// See [`Feed`].
    Feed { stream: StreamSpan, source: SourceSpan, target: TargetSpan, end: bool, cost_ns: u64 },
    /// See [`KeyExchange`].
    KeyExchange { peer: [u8; 32], target: TargetSpan },
    /// See [`RsaPrivate`].
    RsaPrivate { key: Arc<PrivateKey>, source: SourceSpan, target: TargetSpan },
    /// See [`RsaPublic`].
    RsaPublic { key: Arc<PublicKey>, source: SourceSpan, target: TargetSpan },
    /// See [`Sign`].
    Sign { key: Arc<PrivateKey>, scheme: Scheme, message: SourceSpan, target: TargetSpan },
}

/// Where the state of a stream lies; the slot that names it owns the stream.
#[derive(Debug)]
pub struct StreamSpan(NonNull<State>);

// SAFETY: an address; who follows it promises what it takes (`as_state`).
unsafe impl Send for StreamSpan {}

impl StreamSpan {
    /// # Safety
    ///
    /// The stream must outlive `'a` and nobody else may touch it during it.
    pub(crate) unsafe fn as_state<'a>(&self) -> &'a mut State {
        // SAFETY: `describe` took it from a live stream; the caller keeps it exclusive.
        unsafe { &mut *self.0.as_ptr() }
    }
}

impl Work {
    /// Length of the modulus of a private operation's key.
    pub(crate) fn modulus_len_bytes(&self) -> usize {
        match self {
            Self::RsaPrivate { key, .. } | Self::Sign { key, .. } => key.modulus_len_bytes(),
            _ => 0,
        }
    }

    /// Whether software takes more than about a millisecond for it.
    pub(crate) fn is_long(&self) -> bool {
        let cost_ns = match self {
            Self::Compress { codec, level, source, .. } => {
                codec.cost_ns(*level, source.0.len_bytes())
            }
            Self::Feed { cost_ns, .. } => *cost_ns,
            _ => 0,
        };
        cost_ns > 1_000_000
    }
}
