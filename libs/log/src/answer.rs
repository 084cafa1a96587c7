//! Answers of the log: futures that need no runtime.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use futures::future::BoxFuture;

use crate::Error;

/// The answer of a log to a question. It borrows nothing and needs no particular runtime: a task
/// awaits it, a thread that may block passes it to [`block_on`].
pub type Answer<T> = BoxFuture<'static, Result<T, Error>>;

/// The answer of a log that knows it at once.
pub fn answered<T: Send + 'static>(answer: impl FnOnce() -> Result<T, Error>) -> Answer<T> {
    Box::pin(std::future::ready(answer()))
}

/// Runs a future to its end on this thread, which sleeps meanwhile. Calls may be nested.
///
/// It is for threads of their own: a task of a runtime awaits the future instead.
pub fn block_on<F: Future>(future: F) -> F::Output {
    /// Remembers that it was woken: a call inside this one may use up the thread's token.
    struct Unpark {
        thread: Thread,
        woken: AtomicBool,
    }
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.woken.store(true, Ordering::Release);
            self.thread.unpark();
        }
    }
    let unpark = Arc::new(Unpark { thread: thread::current(), woken: AtomicBool::new(false) });
    let waker = Waker::from(unpark.clone());
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        while !unpark.woken.swap(false, Ordering::Acquire) {
            thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::channel::oneshot;

    use super::*;

    #[test]
    fn a_thread_that_waits_is_woken_by_the_answer() {
        let (sender, receiver) = oneshot::channel();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            sender.send(7)
        });
        assert_eq!(block_on(async { block_on(receiver) }), Ok(7), "also from within another call");
        assert_eq!(other.join().unwrap(), Ok(()));
    }

    #[test]
    fn a_wake_that_comes_during_a_call_inside_is_not_lost() {
        let (first, mut waits) = oneshot::channel();
        let (second, inside) = oneshot::channel();
        let mut inside = Some(inside);
        let other = thread::spawn(move || {
            // The outer future is woken while the thread sleeps for the inner one.
            thread::sleep(Duration::from_millis(20));
            first.send(1).unwrap();
            thread::sleep(Duration::from_millis(20));
            second.send(2).unwrap();
        });
        let both = std::future::poll_fn(|context| {
            let outer = std::pin::Pin::new(&mut waits).poll(context);
            if let Some(inside) = inside.take() {
                assert_eq!(block_on(inside), Ok(2));
            }
            outer
        });
        assert_eq!(block_on(both), Ok(1));
        other.join().unwrap();
    }
}
