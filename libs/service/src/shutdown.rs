use tokio_util::sync::CancellationToken;

/// "Finish what you accepted, take nothing new, and return." Every task gets one; clones say the same.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// For threads: ask between two pieces of work.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// For tasks: resolves when shutdown begins, at once if it has begun.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }

    /// As [`Shutdown::cancelled`], without a borrow: what servers take as their signal.
    pub fn cancelled_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }

    /// Begins shutdown. Repeating it does nothing.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// A part of the process that can also end on its own, earlier than the whole.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}
