use tokio_util::sync::CancellationToken;

/// "Finish what you accepted, take nothing new, and return." Every task gets one; clones say the same.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    begun: CancellationToken,
    urged: CancellationToken,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// For threads: ask between two pieces of work.
    pub fn is_cancelled(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// For tasks: resolves when shutdown begins, at once if it has begun.
    pub async fn cancelled(&self) {
        self.begun.cancelled().await;
    }

    /// As [`Shutdown::cancelled`], without a borrow: what servers take as their signal.
    pub fn cancelled_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        self.begun.clone().cancelled_owned()
    }

    /// Begins shutdown. Repeating it does nothing.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Resolves when most of the time for shutdown is over: whoever waits for others, such as for a log that
    /// does not answer, now gives up and says so, while there is still somebody to say it to.
    pub async fn urged(&self) {
        self.urged.cancelled().await;
    }

    /// Asks for what is not done yet to be given up.
    pub fn urge(&self) {
        self.urged.cancel();
    }

    /// A part of the process that can also end on its own, earlier than the whole.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { begun: self.begun.child_token(), urged: self.urged.child_token() }
    }
}
