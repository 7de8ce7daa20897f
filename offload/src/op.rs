//! One request as a future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::batch::Token;
use crate::error::Error;
use crate::queue::{Shared, Waiting};
use crate::request::{Ending, Request};

/// An operation: a request that waits for a slot or is in flight.
///
/// It may be awaited on any executor, on the thread that submitted it. Dropping it gives up the
/// result: what has not started is not started, what runs ends on its own, and in either case the
/// request's buffers live until nothing can touch them.
#[must_use = "dropping an operation gives up its result"]
pub struct Op<R: Request> {
    shared: Rc<Shared>,
    state: State<R>,
}

enum State<R> {
    InFlight(Token),
    /// The output was handed out.
    Taken,
    /// No slot yet.
    Waiting {
        request: Option<R>,
        ticket: Option<u64>,
    },
}

// Nothing in an operation is pinned: its request is moved into the slot before it is described.
impl<R: Request> Unpin for Op<R> {}

impl<R: Request> Op<R> {
    pub(crate) fn in_flight(shared: &Rc<Shared>, token: Token) -> Self {
        Self { shared: Rc::clone(shared), state: State::InFlight(token) }
    }

    pub(crate) fn waiting(shared: &Rc<Shared>, request: R) -> Self {
        Self {
            shared: Rc::clone(shared),
            state: State::Waiting { request: Some(request), ticket: None },
        }
    }
}

impl<R: Request> Future for Op<R> {
    type Output = R::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R::Output> {
        let this = self.get_mut();
        if let State::Waiting { request, ticket } = &mut this.state {
            match this.shared.wait(request, *ticket, cx.waker()) {
                ended @ (Waiting::Closed | Waiting::Forked) => {
                    let error = match ended {
                        Waiting::Forked => Error::Forked,
                        _ => Error::Closed,
                    };
                    let request = request.take().expect("a waiting operation holds its request");
                    this.state = State::Taken;
                    return Poll::Ready(request.finish(Ending::Done(Err(error))));
                }
                Waiting::InLine(place) => {
                    *ticket = Some(place);
                    return Poll::Pending;
                }
                Waiting::Reserved(token) => this.state = State::InFlight(token),
            }
        }
        let State::InFlight(token) = this.state else {
            panic!("an operation was polled after it gave its output");
        };
        // SAFETY: the token came from `reserve::<R>`, and leaves this state with its result.
        match unsafe { this.shared.poll::<R>(token, cx.waker()) } {
            Some(output) => {
                this.state = State::Taken;
                this.shared.release(token);
                Poll::Ready(output)
            }
            None => Poll::Pending,
        }
    }
}

impl<R: Request> Drop for Op<R> {
    fn drop(&mut self) {
        match self.state {
            // SAFETY: the token came from `reserve::<R>` and has given no result.
            State::InFlight(token) => unsafe { self.shared.abandon(token) },
            State::Waiting { ticket: Some(ticket), .. } => self.shared.leave(ticket),
            State::Taken | State::Waiting { ticket: None, .. } => {}
        }
    }
}

impl<R: Request> fmt::Debug for Op<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::InFlight(_) => "Op(in flight)",
            State::Taken => "Op(taken)",
            State::Waiting { .. } => "Op(waiting)",
        })
    }
}
