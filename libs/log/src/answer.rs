//! Answers of the log: futures that need no runtime.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use futures::future::BoxFuture;

use crate::Error;

/// What a log answers to a question. It borrows nothing and needs no particular runtime: a task
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
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
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
}
