//! Tasks, timers, messages between shards, the offload queue in the turn, and the end of it all.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use warpcore_need::{Need, need};
use warpcore_offload::{Codec, Compress, KeyExchange};
use warpcore_runtime::{
    Builder, Error, JoinError, queue, send, shard, shards, sleep, spawn, stats, stop, stopping,
    timeout,
};

fn one() -> Builder {
    Builder::new().shards(1)
}

#[test]
fn a_task_gives_its_result_to_who_joins_it() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let outputs = one().run(|_| async {
        let tasks: Vec<_> = (0..100).map(|n| spawn(async move { n * 2 })).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.expect("no panic");
        }
        sum
    });
    assert_eq!(outputs.expect("runs"), [9900]);
}

/// And hurts nothing: the shard goes on.
#[test]
fn shards_on_a_shard_are_refused() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let outputs = one().run(|_| async {
        let refused = one().run(|_| async {}).expect_err("on a shard");
        sleep(Duration::from_millis(1)).await;
        refused.to_string()
    });
    let refused = outputs.expect("runs").remove(0);
    assert!(refused.contains("shards on a shard"), "{refused}");
}

#[test]
fn a_panic_in_a_task_is_told_and_hurts_nobody_else() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let outputs = one().run(|_| async {
        let bad = spawn(async { panic!("on purpose") });
        let good = spawn(async {
            sleep(Duration::from_millis(5)).await;
            7
        });
        assert_eq!(bad.await, Err::<(), _>(JoinError::Panicked("on purpose".to_owned())));
        assert_eq!(stats().panics, 1);
        good.await.expect("no panic")
    });
    assert_eq!(outputs.expect("runs"), [7]);
}

#[test]
fn a_panic_in_a_main_future_stops_the_other_shards() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let result = Builder::new().shards(2).run(|index| async move {
        if index == 0 {
            panic!("on purpose");
        }
        stopping().await;
    });
    assert!(matches!(result, Err(Error::Panicked { shard: 0 })), "{result:?}");
}

#[test]
fn timers_fire_in_order_and_not_early() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let outputs = one().run(|_| async {
        let started = Instant::now();
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        let tasks: Vec<_> = [30, 10, 20]
            .into_iter()
            .map(|ms| {
                let order = Rc::clone(&order);
                spawn(async move {
                    sleep(Duration::from_millis(ms)).await;
                    assert!(started.elapsed() >= Duration::from_millis(ms));
                    order.borrow_mut().push(ms);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        order.take()
    });
    assert_eq!(outputs.expect("runs"), [[10, 20, 30]]);
}

#[test]
fn a_timeout_drops_what_takes_too_long() {
    if !need(&[Need::IoUring]) {
        return;
    }
    struct SetsOnDrop(Rc<Cell<bool>>);
    impl Drop for SetsOnDrop {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    one()
        .run(|_| async {
            let dropped = Rc::new(Cell::new(false));
            let guard = SetsOnDrop(Rc::clone(&dropped));
            let slow = async move {
                let _guard = guard;
                pending::<()>().await;
            };
            assert!(timeout(Duration::from_millis(1), slow).await.is_err());
            assert!(dropped.get());
            assert_eq!(timeout(Duration::from_secs(60), async { 3 }).await, Ok(3));
        })
        .expect("runs");
}

#[test]
fn shards_talk_by_mailbox() {
    if !need(&[Need::IoUring]) {
        return;
    }
    static RECEIVED: AtomicUsize = AtomicUsize::new(0);
    let outputs = Builder::new().shards(2).run(|index| async move {
        assert_eq!((shard(), shards()), (index, 2));
        for _ in 0..1000 {
            assert!(send(1 - index, || {
                if RECEIVED.fetch_add(1, Ordering::Relaxed) == 1999 {
                    stop();
                }
            }));
        }
        stopping().await;
        RECEIVED.load(Ordering::Relaxed)
    });
    assert_eq!(outputs.expect("runs"), [2000, 2000]);
}

#[test]
fn a_foreign_thread_wakes_a_parked_shard() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            // The oneshot: a flag, and a waker that the other thread calls while we are parked.
            let shared = Arc::new(std::sync::Mutex::new((false, None::<std::task::Waker>)));
            let theirs = Arc::clone(&shared);
            let parks = stats().parks;
            let thread = std::thread::spawn(move || {
                loop {
                    let mut shared = theirs.lock().expect("not poisoned");
                    if let Some(waker) = shared.1.take() {
                        shared.0 = true;
                        waker.wake();
                        return;
                    }
                    drop(shared);
                    std::thread::yield_now();
                }
            });
            std::future::poll_fn(|cx| {
                let mut shared = shared.lock().expect("not poisoned");
                if shared.0 {
                    return std::task::Poll::Ready(());
                }
                shared.1 = Some(cx.waker().clone());
                std::task::Poll::Pending
            })
            .await;
            thread.join().expect("no panic");
            assert!(stats().parks >= parks);
        })
        .expect("runs");
}

#[test]
fn the_offload_queue_is_part_of_the_turn() {
    if !need(&[Need::IoUring]) {
        return;
    }
    let outputs = one().run(|_| async {
        let ops: Vec<_> = (0..600_usize)
            .map(|n| {
                let source = vec![u8::try_from(n % 256).expect("below 256"); 5000];
                let request =
                    Compress { codec: Codec::Zstd, level: 1, source, target: vec![0; 5000] };
                // More than the queue has slots: those behind wait in line.
                spawn(queue().submit(request))
            })
            .collect();
        for op in ops {
            op.await.expect("no panic").result.expect("compresses");
        }
        queue().stats().completed
    });
    assert_eq!(outputs.expect("runs"), [600]);
}

#[test]
fn a_task_that_is_always_ready_starves_nobody() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            let done = Rc::new(Cell::new(false));
            let busy = spawn({
                let done = Rc::clone(&done);
                async move {
                    while !done.get() {
                        std::future::poll_fn(|cx| {
                            cx.waker().wake_by_ref();
                            if done.get() {
                                std::task::Poll::Ready(())
                            } else {
                                std::task::Poll::Pending
                            }
                        })
                        .await;
                    }
                }
            });
            let request =
                Compress { codec: Codec::Store, level: 0, source: vec![1], target: vec![0] };
            assert_eq!(queue().submit(request).await.result, Ok(1));
            // One that waits for company: none comes, and the shard is never idle.
            let exchanged = queue().submit(KeyExchange::new([9; 32])).await;
            exchanged.expect("an honest key");
            sleep(Duration::from_millis(1)).await;
            done.set(true);
            busy.await.expect("no panic");
        })
        .expect("runs");
}

#[test]
fn tasks_drain_after_main_and_are_cancelled_at_the_deadline() {
    if !need(&[Need::IoUring]) {
        return;
    }
    static FINISHED: AtomicUsize = AtomicUsize::new(0);
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct CountsDrop;
    impl Drop for CountsDrop {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    one()
        .drain(Duration::from_millis(200))
        .run(|_| async {
            drop(spawn(async {
                sleep(Duration::from_millis(10)).await;
                FINISHED.fetch_add(1, Ordering::Relaxed);
            }));
            drop(spawn(async {
                let _counts = CountsDrop;
                pending::<()>().await;
            }));
        })
        .expect("runs");
    assert_eq!(FINISHED.load(Ordering::Relaxed), 1);
    assert_eq!(DROPPED.load(Ordering::Relaxed), 1);
}

#[test]
fn a_cancelled_task_is_gone_when_cancel_returns() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            let counted = Rc::new(());
            let theirs = Rc::clone(&counted);
            let task = spawn(async move {
                let _theirs = theirs;
                pending::<()>().await;
            });
            sleep(Duration::ZERO).await;
            assert_eq!(task.cancel().await, None);
            assert_eq!(Rc::strong_count(&counted), 1);
        })
        .expect("runs");
}

/// `async-task` ends the process when a future's drop panics; ours is caught before that.
#[test]
fn a_panic_in_the_drop_of_a_future_is_its_tasks_own() {
    if !need(&[Need::IoUring]) {
        return;
    }
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in a drop, on purpose");
        }
    }
    one()
        .run(|_| async {
            let ended = spawn(async {
                let bomb = Bomb;
                sleep(Duration::ZERO).await;
                std::mem::forget(bomb);
            });
            ended.await.expect("forgot it");
            let cancelled = spawn(async {
                let _bomb = Bomb;
                pending::<()>().await;
            });
            sleep(Duration::from_millis(1)).await;
            assert_eq!(cancelled.cancel().await, None);
            assert_eq!(stats().panics, 1);
        })
        .expect("runs");
}

#[test]
fn a_panic_in_a_sent_action_is_told_and_ends_there() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            assert!(send(0, || panic!("on purpose")));
            while stats().panics == 0 {
                sleep(Duration::from_micros(100)).await;
            }
        })
        .expect("runs");
}

/// A future that asks to be told of the end leaves nothing behind when it is dropped.
#[test]
fn a_dropped_wait_for_the_end_keeps_no_task_alive() {
    if !need(&[Need::IoUring]) {
        return;
    }
    one()
        .run(|_| async {
            let counted = Rc::new(());
            for _ in 0..100 {
                let counted = Rc::clone(&counted);
                let task = spawn(async move {
                    let _counted = counted;
                    let _ = timeout(Duration::ZERO, stopping()).await;
                });
                task.await.expect("no panic");
            }
            assert_eq!(Rc::strong_count(&counted), 1);
        })
        .expect("runs");
}
