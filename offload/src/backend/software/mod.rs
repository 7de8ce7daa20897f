//! The software accelerator: there on every machine.
//!
//! Work is executed by the queue's owner, one unit at a time, with contexts that are made once and
//! reused for each request.

use crate::backend::{Device, State};
use crate::codec::{Codec, Coders};
use crate::error::Error;
use crate::request::Work;
use crate::rsa::{Scheme, Signer};

/// The contexts of one queue.
pub(crate) struct Software {
    coders: Coders,
    signer: Signer,
    /// Where scattered sources are gathered, and what goes to scattered targets.
    gathered: Vec<u8>,
    scattered: Vec<u8>,
}

impl Software {
    pub(crate) fn new() -> Self {
        Self {
            coders: Coders::default(),
            signer: Signer::new(),
            gathered: Vec::new(),
            scattered: Vec::new(),
        }
    }

    /// Whether software does this kind of work at all.
    pub(crate) fn takes(work: &Work) -> bool {
        match work {
            Work::Compress { .. } | Work::Decompress { .. } | Work::Feed { .. } => true,
            Work::RsaPrivate { .. } | Work::RsaPublic { .. } => false,
            Work::Sign { key, .. } => key.pair().is_some(),
        }
    }

    /// Does `work` and returns the number of bytes written to its target.
    ///
    /// # Safety
    ///
    /// The bytes that `work` names are alive, and until this returns nobody writes its source or
    /// touches its target or its stream.
    pub(crate) unsafe fn execute(&mut self, work: &Work) -> Result<usize, Error> {
        let Self { coders, signer, gathered, scattered } = self;
        let (source, target) = match work {
            Work::Compress { source, target, .. }
            | Work::Decompress { source, target, .. }
            | Work::Feed { source, target, .. }
            | Work::Sign { message: source, target, .. } => (source, target),
            Work::RsaPrivate { .. } | Work::RsaPublic { .. } => return Err(Error::NoDevice),
        };
        // SAFETY: passed on from the caller.
        let source = unsafe { source.as_slice(gathered) };
        // SAFETY: passed on from the caller.
        unsafe {
            target.fill(scattered, |target| match work {
                Work::Compress { codec, level, .. } => {
                    coders.of(*codec).compress(*level, source, target)
                }
                Work::Decompress { codec, .. } => coders.of(*codec).decompress(source, target),
                Work::Feed { stream, end, .. } => stream.as_state().run(source, target, *end),
                Work::Sign { key, scheme, .. } => signer.sign(key, *scheme, source, target),
                Work::RsaPrivate { .. } | Work::RsaPublic { .. } => Err(Error::NoDevice),
            })
        }
    }
}

pub(super) fn device() -> Device {
    let codecs = Codec::ALL.map(Codec::name).join(", ");
    let schemes = Scheme::ALL.map(Scheme::name).join(", ");
    Device {
        name: "software".into(),
        does: vec![
            format!("compress, decompress: {codecs}"),
            format!("sign with RSA-2048, RSA-3072, RSA-4096, one at a time (ring): {schemes}"),
        ],
        state: State::Used,
    }
}
