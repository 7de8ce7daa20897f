//! Adapters: whose loop turns the queue.

mod thread;
