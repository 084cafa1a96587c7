//! A stack that is large enough for deep expression trees.

/// Runs `work` on a thread whose stack is large enough for every tree that
/// [`check_size`](crate::lexer::Cursor::check_size) allows.
pub(crate) fn with_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const STACK: usize = 64 << 20; // the kernel provides the memory only when it is used
    let mut work = Some(work);
    let mut done = None;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("definitions".into()).stack_size(STACK);
        let run = || done = work.take().map(|work| work());
        if let Ok(running) = thread.spawn_scoped(scope, run)
            && let Err(panic) = running.join()
        {
            std::panic::resume_unwind(panic);
        }
    });
    // If no thread can be started, the work runs here: nearly all definitions are small.
    done.or_else(|| work.take().map(|work| work())).expect("the work is done there or here")
}
