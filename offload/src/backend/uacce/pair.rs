//! A queue pair: descriptors go in at the tail, completions come out in any order.

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use super::port::{Attributes, Port, QueueFile};
use super::qm::{
    Announce, CQE_LEN_BYTES, CQE_PHASE, CQE_SQ_HEAD, DEPTH_DEFAULT, PHASE_BIT, QueueInfo,
    RX_STATUS_FROM_END, TX_STATUS_FROM_END, Version,
};
use crate::batch::Token;
use crate::doorbell::{Doorbell, order_after_device};
use crate::region::Region;

/// Words of the longest SQE.
pub(crate) const SQE_WORDS_MAX: usize = 32;

/// A descriptor. Devices with shorter ones use the first words.
pub(crate) type Sqe = [u32; SQE_WORDS_MAX];

/// An open and started queue of a device.
pub(crate) struct Pair<F: QueueFile> {
    // The mappings go before the file that they are of.
    doorbell: F::Doorbell,
    queues: Region,
    file: F,
    version: Version,
    /// The device's number of this queue.
    number: u16,
    sqe_words: usize,
    /// By index in the SQ: whose descriptor is there, and since when, until its completion is
    /// taken. A slot is not written again before that, whatever finishes earlier.
    slots: Box<[Option<(Token, Instant)>]>,
    /// Slots taken.
    used: usize,
    /// The oldest slot that is taken; `tail` if none is.
    head: u16,
    /// Where the next descriptor goes.
    tail: u16,
    /// The tail that the device knows of.
    rung: u16,
    cq_depth: u16,
    /// Where the next completion comes, and its phase bit.
    cq_head: u16,
    phase: bool,
    /// Completions were taken that the device was not told of.
    cq_moved: bool,
    /// Completions taken since the kernel last looked for some: it has a head of its own.
    unpolled: u16,
    /// The next completion makes the file readable.
    armed: bool,
}

/// The device broke the rules of the wire: nothing it says can be relied upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

impl<F: QueueFile> Pair<F> {
    /// Opens a queue for `kind` of work, with descriptors of `sqe_words`.
    pub(crate) fn open<P: Port<File = F>>(
        port: &P,
        attributes: &Attributes,
        version: Version,
        kind: u16,
        sqe_words: usize,
    ) -> io::Result<Self> {
        let file = port.open()?;
        let (doorbell, queues, number, info) =
            Self::set_up(&file, attributes, version, kind, sqe_words)?;
        Ok(Self {
            doorbell,
            queues,
            file,
            version,
            number,
            sqe_words,
            slots: vec![None; info.sq_depth.into()].into(),
            used: 0,
            head: 0,
            tail: 0,
            rung: 0,
            cq_depth: info.cq_depth,
            cq_head: 0,
            phase: true,
            cq_moved: false,
            unpolled: 0,
            armed: false,
        })
    }

    fn set_up(
        file: &F,
        attributes: &Attributes,
        version: Version,
        kind: u16,
        sqe_words: usize,
    ) -> io::Result<(F::Doorbell, Region, u16, QueueInfo)> {
        let (dus, mmio) = (attributes.dus_len_bytes, attributes.mmio_len_bytes);
        if !dus.is_multiple_of(8) || mmio < version.doorbell_offset() + 8 {
            let message = format!("regions that cannot be: queues of {dus} bytes, MMIO of {mmio}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let queues = file.map_queues(attributes.dus_len_bytes)?;
        let doorbell = file.map_doorbell(attributes.mmio_len_bytes, version)?;
        let number = file.set_context(kind)?;
        let sqe_len_bytes = sqe_words * 4;
        let info = match file.info() {
            // Kernels before 5.18 do not know the call.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                QueueInfo { sqe_len_bytes, sq_depth: DEPTH_DEFAULT, cq_depth: DEPTH_DEFAULT }
            }
            info => info?,
        };
        let len_bytes = usize::from(info.sq_depth) * sqe_len_bytes
            + usize::from(info.cq_depth) * CQE_LEN_BYTES
            + RX_STATUS_FROM_END;
        if info.sqe_len_bytes != sqe_len_bytes
            || info.sq_depth < 2
            || info.cq_depth < info.sq_depth
            || len_bytes > queues.len_bytes()
        {
            let message = format!(
                "the kernel gives queues that cannot be: {info:?} in {} bytes",
                queues.len_bytes()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        file.start()?;
        Ok((doorbell, queues, number, info))
    }

    pub(crate) fn file(&self) -> &F {
        &self.file
    }

    /// One slot stays free, so that a full queue does not look empty.
    pub(crate) fn has_room(&self) -> bool {
        self.used < self.slots.len() - 1 && self.slots[usize::from(self.tail)].is_none()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.used
    }

    /// When the oldest descriptor in flight was submitted.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.slots[usize::from(self.head)].map(|(_, submitted)| submitted)
    }

    /// The kernel has taken the queue out of service: a reset, or an error of the queue.
    pub(crate) fn is_disabled(&self) -> bool {
        // Acquire: what the device wrote before it was stopped is seen after.
        [TX_STATUS_FROM_END, RX_STATUS_FROM_END].iter().any(|from_end| {
            let word = self.queues.atomic(self.queues.len_bytes() - from_end);
            word.load(Ordering::Acquire) != 0
        })
    }

    /// Writes a descriptor. The device does not know of it before [`Pair::ring`].
    pub(crate) fn submit(&mut self, token: Token, sqe: &Sqe, now: Instant) {
        assert!(self.has_room(), "submitted to a full queue pair");
        // Whenever the descriptors in flight are completed, the kernel is at most a round behind.
        if usize::from(self.unpolled) + self.used >= usize::from(self.cq_depth) {
            self.unpolled = 0;
            self.file.catch_up();
        }
        let start = usize::from(self.tail) * self.sqe_words * 4;
        self.queues.write_words(start, &sqe[..self.sqe_words]);
        self.slots[usize::from(self.tail)] = Some((token, now));
        self.used += 1;
        self.tail = self.after(self.tail);
    }

    /// One doorbell for all descriptors since the last, if there are any.
    pub(crate) fn ring(&mut self) {
        // A queue out of service must not be rung (UADK `hisi_qm_send`: `-WD_HW_EACCESS`); what
        // is in flight will be redone.
        if self.tail != self.rung && !self.is_disabled() {
            // The doorbell orders the descriptors before itself.
            self.doorbell.ring(Announce::Tail(self.tail).encode(self.version, self.number));
            self.rung = self.tail;
        }
    }

    /// The next completion: whose it is. The descriptor goes to `sqe` as the device left it.
    pub(crate) fn reap(&mut self, sqe: &mut Sqe) -> Result<Option<Token>, Broken> {
        if !self.has_completion() {
            return Ok(None);
        }
        order_after_device();
        let index = self.queues.read(self.completion() + CQE_SQ_HEAD) & 0xffff;
        let slot = usize::try_from(index).ok().and_then(|index| self.slots.get_mut(index));
        // An index outside, or of a slot that has nothing in flight.
        let (token, _) = slot.and_then(Option::take).ok_or(Broken)?;
        let start = usize::try_from(index).map_err(|_| Broken)? * self.sqe_words * 4;
        self.queues.read_words(start, &mut sqe[..self.sqe_words]);
        self.used -= 1;
        if self.used == 0 {
            self.head = self.tail;
        }
        // Not `head != tail`: they are the same too when the last free slot was taken.
        while self.used > 0 && self.slots[usize::from(self.head)].is_none() {
            self.head = self.after(self.head);
        }
        self.cq_head += 1;
        if self.cq_head == self.cq_depth {
            self.cq_head = 0;
            self.phase = !self.phase;
        }
        self.cq_moved = true;
        self.unpolled += 1;
        if std::mem::take(&mut self.armed) {
            self.file.woken();
        }
        Ok(Some(token))
    }

    /// One doorbell for all completions taken since the last, so that the device can reuse their
    /// places.
    pub(crate) fn release(&mut self) {
        if std::mem::take(&mut self.cq_moved) && !self.is_disabled() {
            self.announce_head(false);
        }
    }

    /// Makes sure that the next completion makes the file readable. False: one has come by now.
    pub(crate) fn arm(&mut self) -> bool {
        if !self.armed {
            self.armed = true;
            self.cq_moved = false;
            self.announce_head(true);
            // The device may have written a completion just before it saw the doorbell, and will
            // not wake us for that one: the look at the phase must not be done before the store.
            // The device looks at its CQ after it has seen the doorbell, so one of both sees it.
            fence(Ordering::SeqCst);
        }
        !self.has_completion()
    }

    /// Stops the queue and closes it. `finished` gets what was completed, also while it stopped;
    /// `lost` the rest, which the device may still work on.
    ///
    /// That it does not is not to be had from the kernel: `PUT_Q` is 0, and the status words are set,
    /// also if `hisi_qm_stop_qp` gave up draining the queue, or a reset failed or is yet to come
    /// (`qm_disable_qp`, `qm_controller_reset`). The memory of the queues is the kernel's, which
    /// frees it either way.
    pub(crate) fn stop(
        mut self,
        mut finished: impl FnMut(Token, &Sqe),
        mut lost: impl FnMut(Token),
    ) {
        if let Err(error) = self.file.put() {
            tracing::debug!("a queue is not stopped: {error}");
        }
        let mut sqe = [0; SQE_WORDS_MAX];
        while let Ok(Some(token)) = self.reap(&mut sqe) {
            finished(token, &sqe);
        }
        self.slots.iter().flatten().for_each(|(token, _)| lost(*token));
    }

    fn after(&self, index: u16) -> u16 {
        if usize::from(index) + 1 == self.slots.len() { 0 } else { index + 1 }
    }

    fn announce_head(&self, arm: bool) {
        let announce = Announce::Head { index: self.cq_head, arm };
        self.doorbell.ring(announce.encode(self.version, self.number));
    }

    /// Where the next completion comes.
    fn completion(&self) -> usize {
        self.slots.len() * self.sqe_words * 4 + usize::from(self.cq_head) * CQE_LEN_BYTES
    }

    /// A completion waits to be reaped.
    pub(crate) fn has_completion(&self) -> bool {
        // Acquire: the device writes the rest of the CQE and the SQE before the phase.
        let word = self.queues.atomic(self.completion() + CQE_PHASE).load(Ordering::Acquire);
        (u32::from_le(word) & PHASE_BIT != 0) == self.phase
    }
}
