//! The software accelerator: there on every machine.
//!
//! Work is executed by the queue's owner, one unit at a time, with contexts that are made once and
//! reused for each request.

use crate::backend::Device;
use crate::codec::{Codec, Coders};
use crate::error::Error;
use crate::request::Work;
use crate::rsa::{Scheme, Signer};

/// The contexts of one queue.
pub(crate) struct Software {
    coders: Coders,
    signer: Signer,
}

impl Software {
    pub(crate) fn new() -> Self {
        Self { coders: Coders::default(), signer: Signer::new() }
    }

    /// Does `work` and returns the number of bytes written to its target.
    ///
    /// # Safety
    ///
    /// The bytes that `work` names are alive, and until this returns nobody writes its source or
    /// touches its target.
    pub(crate) unsafe fn execute(&mut self, work: Work) -> Result<usize, Error> {
        match work {
            Work::Compress { codec, level, source, target } => {
                // SAFETY: passed on from the caller.
                let (source, target) = unsafe { (source.as_slice(), target.as_slice()) };
                self.coders.of(codec).compress(level, source, target)
            }
            Work::Decompress { codec, source, target } => {
                // SAFETY: passed on from the caller.
                let (source, target) = unsafe { (source.as_slice(), target.as_slice()) };
                self.coders.of(codec).decompress(source, target)
            }
            Work::Sign { key, scheme, message, target } => {
                // SAFETY: passed on from the caller.
                let (message, target) = unsafe { (message.as_slice(), target.as_slice()) };
                self.signer.sign(&key, scheme, message, target)
            }
        }
    }
}

pub(super) fn device() -> Device {
    let codecs = Codec::ALL.map(Codec::name).join(", ");
    let schemes = Scheme::ALL.map(Scheme::name).join(", ");
    Device {
        name: "software",
        does: vec![
            format!("compress, decompress: {codecs}"),
            format!("sign with RSA-2048, RSA-3072, RSA-4096, one at a time (ring): {schemes}"),
        ],
        state: "used",
    }
}
