//! The line of those for whom no slot is free.

use std::rc::Rc;
use std::task::Waker;

use super::Shared;
use crate::batch::Token;
use crate::request::Request;

/// Where an operation stands that has no result yet.
pub(crate) enum Waiting {
    /// The queue is gone.
    Closed,
    /// This is not the queue's process.
    Forked,
    /// In line, with this ticket.
    InLine(u64),
    /// Submitted.
    Reserved(Token),
}

impl Shared {
    /// Stands in line for a slot, or takes one if one is free for whoever has `ticket`.
    pub(crate) fn wait<R: Request>(
        &self,
        request: &mut Option<R>,
        ticket: Option<u64>,
        waker: &Waker,
    ) -> Waiting {
        let waker = Rc::new(waker.clone());
        if self.generation.is_past() {
            return Waiting::Forked;
        }
        let mut slots = self.slots.borrow_mut();
        if slots.closed {
            return Waiting::Closed;
        }
        let place = ticket
            .and_then(|ticket| slots.waiters.iter().position(|(other, _)| *other == ticket))
            .unwrap_or(slots.waiters.len());
        if slots.is_one_free_for(place) {
            let left = slots.waiters.remove(place);
            drop(slots);
            let request = request.take().expect("a waiting operation holds its request");
            let Ok(token) = self.reserve(request) else {
                unreachable!("a slot is free");
            };
            drop(left);
            return Waiting::Reserved(token);
        }
        if let Some((ticket, old)) = slots.waiters.get_mut(place) {
            let ticket = *ticket;
            let old = std::mem::replace(old, waker);
            drop((slots, old));
            return Waiting::InLine(ticket);
        }
        let ticket = slots.ticket_next;
        slots.ticket_next += 1;
        slots.waiters.push_back((ticket, waker));
        Waiting::InLine(ticket)
    }

    /// Leaves the line.
    pub(crate) fn leave(&self, ticket: u64) {
        let mut slots = self.slots.borrow_mut();
        let place = slots.waiters.iter().position(|(other, _)| *other == ticket);
        let had_slot = place.is_some_and(|place| slots.is_one_free_for(place));
        let left = place.and_then(|place| slots.waiters.remove(place));
        drop((slots, left));
        // The slot that was kept for this operation goes to the next in line.
        if had_slot {
            self.wake_waiter();
        }
    }

    /// Wakes the last of those in line for whom a slot is free; the others have been. Each keeps its place until
    /// it takes the slot.
    pub(super) fn wake_waiter(&self) {
        let slots = self.slots.borrow();
        let last = slots.free.len().checked_sub(1);
        let waiter = last.and_then(|last| slots.waiters.get(last));
        // To clone the waker itself is foreign code.
        let waker = waiter.map(|(_, waker)| Rc::clone(waker));
        drop(slots);
        if let Some(waker) = waker {
            waker.wake_by_ref();
        }
    }
}
