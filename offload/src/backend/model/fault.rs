//! What goes wrong with a modelled device, as a script or a seed says.

use std::collections::VecDeque;

/// Something that goes wrong with one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is completed with this status (ZIP) or error number (HPRE), and no result.
    Status(u8),
    /// The kernel is told of a bad completion, and disables the queue.
    QueueError,
    /// The device is reset.
    Reset,
    /// The device is reset and taken out of service.
    Isolate,
    /// It is completed only after so many steps; others overtake it.
    Slow(u8),
    /// It is never completed.
    Hang,
    /// It is written only while its queue is stopped.
    Late,
    /// It is never completed, and writes to its targets for ever, whatever becomes of its queue.
    Runaway,
    /// Its result is wrong: lengths that cannot be (ZIP), another number (HPRE).
    Wrong,
    /// Its completion names the next descriptor, or if there is none, one that cannot be.
    Misreport,
}

/// A plan of what goes wrong.
#[derive(Debug, Clone)]
pub struct Faults(Plan);

#[derive(Debug, Clone)]
enum Plan {
    Script(VecDeque<Option<Fault>>),
    Seed { state: u64, per_mille: u16 },
}

impl Faults {
    /// The first descriptors fare as listed, later ones well.
    pub fn script(faults: impl IntoIterator<Item = Option<Fault>>) -> Self {
        Self(Plan::Script(faults.into_iter().collect()))
    }

    /// `per_mille` of the descriptors fare badly, in every way there is; which and how follows
    /// from `seed` and their order.
    pub fn seed(seed: u64, per_mille: u16) -> Self {
        Self(Plan::Seed { state: seed, per_mille })
    }

    /// How the next descriptor fares.
    pub(super) fn next(&mut self) -> Option<Fault> {
        match &mut self.0 {
            Plan::Script(faults) => faults.pop_front().flatten(),
            Plan::Seed { state, per_mille } => {
                let mut draw = |below: u64| splitmix(state) % below;
                if draw(1000) >= u64::from(*per_mille) {
                    return None;
                }
                let byte = u8::try_from(draw(256)).expect("below 256");
                Some(match draw(10) {
                    // Not "target too small": only the device can say that, so it is believed.
                    0 if byte == 0x0e => Fault::Status(0x0f),
                    0 => Fault::Status(byte.max(1)),
                    1 => Fault::QueueError,
                    2 => Fault::Reset,
                    3 => Fault::Isolate,
                    4 => Fault::Slow(byte % 16),
                    5 => Fault::Hang,
                    6 => Fault::Late,
                    7 => Fault::Runaway,
                    8 => Fault::Wrong,
                    _ => Fault::Misreport,
                })
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
