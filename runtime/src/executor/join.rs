//! The result of a task.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_task::{FallibleTask, Task};

type Outcome<T> = Result<T, String>;

/// Waits for a task. Dropping it lets the task run on alone.
pub struct JoinHandle<T> {
    /// None once detached or joined.
    task: Option<FallibleTask<Outcome<T>>>,
}

/// A task ended without a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinError {
    /// It was cancelled: by [`JoinHandle::cancel`] or at the end of its shard.
    Cancelled,
    /// It panicked with this message, which was reported when it happened.
    Panicked(String),
}

impl<T> JoinHandle<T> {
    pub(super) fn new(task: Task<Outcome<T>>) -> Self {
        Self { task: Some(task.fallible()) }
    }

    /// Cancels the task and waits until its future is dropped. `None`: it had no result yet.
    pub async fn cancel(mut self) -> Option<T> {
        let task = self.task.take().expect("held until joined, cancelled or dropped");
        task.cancel().await.and_then(Result::ok)
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let task = self.task.as_mut().expect("a handle is not polled after it gave its output");
        let outcome = match Pin::new(task).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(outcome) => outcome,
        };
        self.task = None;
        Poll::Ready(match outcome {
            Some(Ok(output)) => Ok(output),
            Some(Err(message)) => Err(JoinError::Panicked(message)),
            None => Err(JoinError::Cancelled),
        })
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.detach();
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinHandle")
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("the task was cancelled"),
            Self::Panicked(message) => write!(f, "the task panicked: {message}"),
        }
    }
}

impl std::error::Error for JoinError {}
