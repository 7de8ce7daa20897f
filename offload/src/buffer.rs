//! Owned memory that a request lends to the queue.
//!
//! A device reads and writes these bytes while the value that owns them may be moved about, so the
//! bytes must not lie inside the value. They may lie in several [`Parts`]: a device is told where
//! each of them is, software puts them together.

use std::iter::once;

use bytes::{Bytes, BytesMut};

/// Memory a request reads.
///
/// # Safety
///
/// Until the value is dropped or handed out mutably, every call names the same addresses and
/// lengths, wherever the value was moved in between, and nobody writes those bytes. `parts` neither
/// panics nor uses the queue: it is called by whoever turns it.
pub unsafe trait Source: Send + 'static {
    /// The bytes to read, in order.
    fn parts(&self) -> impl Iterator<Item = &[u8]>;
}

/// Memory a request writes. Its length bounds the result.
///
/// # Safety
///
/// Until the value is dropped, every call names the same addresses and lengths, wherever the value
/// was moved in between, and nobody else reads or writes those bytes. Forgetting the value leaves
/// them allocated. No method panics or uses the queue.
pub unsafe trait Target: Sized + Send + 'static {
    /// The bytes to write, in order.
    fn parts(&mut self) -> impl Iterator<Item = &mut [u8]>;

    /// An empty value, given back instead of one that a device keeps: see
    /// [`Error::DeviceLost`](crate::Error::DeviceLost).
    fn lost() -> Self;

    /// A value of the same length, to take the place of one that a device keeps, so that software
    /// can do the request over. None, which it is unless told: the request is lost.
    fn another(&self) -> Option<Self> {
        None
    }
}

/// Bytes that lie in several pieces, as a chain of received packets does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts<B>(pub Vec<B>);

// SAFETY: the heap block of a Vec neither moves nor changes while the Vec is only moved.
unsafe impl Source for Vec<u8> {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        once(self.as_slice())
    }
}

// SAFETY: as above; a Vec is the sole owner of its block.
unsafe impl Target for Vec<u8> {
    fn parts(&mut self) -> impl Iterator<Item = &mut [u8]> {
        once(self.as_mut_slice())
    }

    fn lost() -> Self {
        Self::new()
    }

    fn another(&self) -> Option<Self> {
        Some(vec![0; self.len()])
    }
}

// SAFETY: shared, immutable and counted; the bytes stay while one handle lives.
unsafe impl Source for Bytes {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        once(&self[..])
    }
}

// SAFETY: the block of a BytesMut does not move unless the BytesMut is grown.
unsafe impl Source for BytesMut {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        once(&self[..])
    }
}

// SAFETY: as above; a BytesMut is the sole owner of its part of the block.
unsafe impl Target for BytesMut {
    fn parts(&mut self) -> impl Iterator<Item = &mut [u8]> {
        once(&mut self[..])
    }

    fn lost() -> Self {
        Self::new()
    }

    fn another(&self) -> Option<Self> {
        Some(Self::zeroed(self.len()))
    }
}

// SAFETY: static memory.
unsafe impl Source for &'static [u8] {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        once(*self)
    }
}

// SAFETY: each part upholds it, and the Vec that lists them is only moved as a whole.
unsafe impl<B: Source> Source for Parts<B> {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().flat_map(Source::parts)
    }
}

// SAFETY: as above.
unsafe impl<B: Target> Target for Parts<B> {
    fn parts(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.0.iter_mut().flat_map(Target::parts)
    }

    fn lost() -> Self {
        Self(Vec::new())
    }

    fn another(&self) -> Option<Self> {
        self.0.iter().map(Target::another).collect::<Option<_>>().map(Self)
    }
}

/// Address and length of one piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: *mut u8,
    pub(crate) len_bytes: usize,
}

/// Where the bytes of a buffer lie; the slot that names them owns the buffer.
#[derive(Debug, Clone)]
pub(crate) enum Span {
    /// In one piece.
    Flat(Piece),
    /// In several.
    Scattered(Box<[Piece]>),
}

impl Span {
    fn collect(mut pieces: impl Iterator<Item = Piece>) -> Self {
        let first = pieces.next();
        match (first, pieces.next()) {
            (None, _) => Self::Flat(Piece { start: std::ptr::dangling_mut::<u8>(), len_bytes: 0 }),
            (Some(first), None) => Self::Flat(first),
            (Some(first), Some(second)) => {
                Self::Scattered([first, second].into_iter().chain(pieces).collect())
            }
        }
    }

    /// The pieces, in order.
    pub(crate) fn pieces(&self) -> &[Piece] {
        match self {
            Self::Flat(piece) => std::slice::from_ref(piece),
            Self::Scattered(pieces) => pieces,
        }
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.pieces().iter().map(|piece| piece.len_bytes).sum()
    }
}

/// Where the bytes to read lie.
#[derive(Debug)]
pub struct SourceSpan(pub(crate) Span);

// SAFETY: a span is addresses; who follows them promises what it takes (`as_slice`).
unsafe impl Send for SourceSpan {}

impl SourceSpan {
    pub(crate) fn of(source: &impl Source) -> Self {
        Self(Span::collect(
            source
                .parts()
                .map(|part| Piece { start: part.as_ptr().cast_mut(), len_bytes: part.len() }),
        ))
    }

    /// The bytes: where they lie, or gathered into `room`.
    ///
    /// # Safety
    ///
    /// The [`Source`] must outlive `'a`, and not be handed out mutably during it.
    pub(crate) unsafe fn as_slice<'a>(&self, room: &'a mut Vec<u8>) -> &'a [u8] {
        // SAFETY: `of` took both from a live slice; the caller keeps its owner alive.
        let slice = |piece: &Piece| unsafe {
            std::slice::from_raw_parts::<'a>(piece.start, piece.len_bytes)
        };
        match &self.0 {
            Span::Flat(piece) => slice(piece),
            Span::Scattered(pieces) => {
                room.clear();
                pieces.iter().for_each(|piece| room.extend_from_slice(slice(piece)));
                room
            }
        }
    }
}

/// Where the bytes to write lie.
#[derive(Debug)]
pub struct TargetSpan(pub(crate) Span);

// SAFETY: as above.
unsafe impl Send for TargetSpan {}

impl TargetSpan {
    pub(crate) fn of(target: &mut impl Target) -> Self {
        Self(Span::collect(
            target.parts().map(|part| Piece { start: part.as_mut_ptr(), len_bytes: part.len() }),
        ))
    }

    pub(crate) fn of_bytes(bytes: &mut [u8]) -> Self {
        Self(Span::Flat(Piece { start: bytes.as_mut_ptr(), len_bytes: bytes.len() }))
    }

    /// Lets `write` fill the bytes: where they lie, or in `room`, from where they are scattered.
    /// It returns how many it wrote.
    ///
    /// # Safety
    ///
    /// The owner of the bytes is alive and nobody else touches them until this returns.
    pub(crate) unsafe fn fill<E>(
        &self,
        room: &mut Vec<u8>,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        // SAFETY: `of` took both from a live exclusive slice; the caller keeps it exclusive.
        let slice =
            |piece: &Piece| unsafe { std::slice::from_raw_parts_mut(piece.start, piece.len_bytes) };
        match &self.0 {
            Span::Flat(piece) => write(slice(piece)),
            Span::Scattered(pieces) => {
                // What the pieces hold may be part of the result: a stream has put it there before.
                room.clear();
                pieces.iter().for_each(|piece| room.extend_from_slice(slice(piece)));
                let written = write(room)?;
                let mut left = &room[..written];
                for piece in pieces {
                    let (now, later) = left.split_at(left.len().min(piece.len_bytes));
                    slice(piece)[..now.len()].copy_from_slice(now);
                    left = later;
                }
                Ok(written)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_is_as_long() {
        let parts = Parts(vec![BytesMut::from(&b"ab"[..]), BytesMut::new()]);
        assert_eq!(parts.another(), Some(Parts(vec![BytesMut::zeroed(2), BytesMut::new()])));
        assert_eq!(vec![7; 5].another(), Some(vec![0; 5]));
    }

    #[test]
    fn parts_are_gathered_and_scattered_in_order() {
        let source = Parts(vec![b"ab".to_vec(), Vec::new(), b"cde".to_vec()]);
        let mut room = Vec::new();
        // SAFETY: `source` lives on.
        let gathered = unsafe { SourceSpan::of(&source).as_slice(&mut room) }.to_vec();
        assert_eq!(gathered, b"abcde");

        let mut target = Parts(vec![vec![0; 2], vec![0; 1], vec![0; 4]]);
        // SAFETY: `target` lives on and nobody else has it.
        let written = unsafe {
            TargetSpan::of(&mut target).fill(&mut room, |bytes| {
                assert_eq!(bytes.len(), 7);
                bytes[..5].copy_from_slice(&gathered);
                Ok::<_, ()>(5)
            })
        };
        assert_eq!(written, Ok(5));
        assert_eq!(target.0, [b"ab".to_vec(), b"c".to_vec(), b"de\0\0".to_vec()]);
    }
}
