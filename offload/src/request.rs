//! What a caller asks for. A request owns its buffers and gives them back with the result.

use std::sync::Arc;

use crate::buffer::{Source, SourceSpan, Target, TargetSpan};
use crate::codec::Codec;
use crate::error::Error;
use crate::rsa::{PrivateKey, Scheme, Signature};
use crate::stats::Kernel;

/// Something the queue can do. Implemented by the types of this module only.
pub trait Request: sealed::Sealed + Send + Sized + 'static {
    /// What the caller gets, its buffers included.
    type Output;

    /// What a backend is told. It may point into `self`, which lies in its slot by now and neither
    /// moves nor is touched until the work is done.
    #[doc(hidden)]
    fn describe(&mut self) -> Work;

    /// Turns the request and its result into what the caller gets.
    #[doc(hidden)]
    fn finish(self, result: Result<usize, Error>) -> Self::Output;
}

/// Compress `source` into `target` as one frame.
///
/// A target of [`Codec::bound`] bytes is always large enough. A smaller one is a way to say "only
/// if it pays": the request then ends in [`Error::TargetTooSmall`].
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

/// A finished [`Compress`] or [`Decompress`].
#[derive(Debug, Clone)]
pub struct Done<S, T> {
    /// Bytes written to the start of `target`.
    pub result: Result<usize, Error>,
    /// The source, unchanged.
    pub source: S,
    /// The target; on error its contents mean nothing.
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

/// A finished [`Sign`].
#[derive(Debug, Clone)]
pub struct Signed<S> {
    /// The signature, as long as the key's modulus.
    pub result: Result<Signature, Error>,
    /// The message, unchanged.
    pub message: S,
}

mod sealed {
    /// Only this module's types are requests: a backend knows each of them.
    pub trait Sealed {}
}

impl<S, T> sealed::Sealed for Compress<S, T> {}
impl<S, T> sealed::Sealed for Decompress<S, T> {}
impl<S> sealed::Sealed for Sign<S> {}

impl<S: Source, T: Target> Request for Compress<S, T> {
    type Output = Done<S, T>;

    fn describe(&mut self) -> Work {
        Work::Compress {
            codec: self.codec,
            level: self.level,
            source: SourceSpan::of(&self.source),
            target: TargetSpan::of(self.target.target()),
        }
    }

    fn finish(self, result: Result<usize, Error>) -> Done<S, T> {
        Done { result, source: self.source, target: self.target }
    }
}

impl<S: Source, T: Target> Request for Decompress<S, T> {
    type Output = Done<S, T>;

    fn describe(&mut self) -> Work {
        Work::Decompress {
            codec: self.codec,
            source: SourceSpan::of(&self.source),
            target: TargetSpan::of(self.target.target()),
        }
    }

    fn finish(self, result: Result<usize, Error>) -> Done<S, T> {
        Done { result, source: self.source, target: self.target }
    }
}

impl<S: Source> Request for Sign<S> {
    type Output = Signed<S>;

    fn describe(&mut self) -> Work {
        Work::Sign {
            key: Arc::clone(&self.key),
            scheme: self.scheme,
            message: SourceSpan::of(&self.message),
            target: TargetSpan::of(self.signature.room(self.key.modulus_len_bytes())),
        }
    }

    fn finish(self, result: Result<usize, Error>) -> Signed<S> {
        Signed { result: result.map(|_| self.signature), message: self.message }
    }
}

/// A request as a backend sees it: numbers and spans. The slot that holds the request owns what
/// the spans name.
#[derive(Debug)]
pub enum Work {
    /// See [`Compress`].
    #[allow(missing_docs, reason = "the fields are those of the request")]
    Compress { codec: Codec, level: i32, source: SourceSpan, target: TargetSpan },
    /// See [`Decompress`].
    #[allow(missing_docs, reason = "the fields are those of the request")]
    Decompress { codec: Codec, source: SourceSpan, target: TargetSpan },
    /// See [`Sign`].
    #[allow(missing_docs, reason = "the fields are those of the request")]
    Sign { key: Arc<PrivateKey>, scheme: Scheme, message: SourceSpan, target: TargetSpan },
}

impl Work {
    /// The kernel this work is gathered for.
    pub(crate) fn kernel(&self) -> Kernel {
        match self {
            Self::Compress { .. } => Kernel::Compress,
            Self::Decompress { .. } => Kernel::Decompress,
            Self::Sign { .. } => Kernel::Sign,
        }
    }
}
