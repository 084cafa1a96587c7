use tokio_util::sync::CancellationToken;

/// The signal to finish accepted work, take nothing new, and return. Every task gets a clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    begun: CancellationToken,
    urged: CancellationToken,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether shutdown has begun. A thread asks this between two pieces of work.
    pub fn is_cancelled(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Resolves when shutdown begins; at once if it has begun.
    pub async fn cancelled(&self) {
        self.begun.cancelled().await;
    }

    /// As [`Shutdown::cancelled`], without a borrow, as servers want it.
    pub fn cancelled_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        self.begun.clone().cancelled_owned()
    }

    /// Begins shutdown. Repeating it does nothing.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Resolves when most of the time for shutdown is over. A task that waits for others, such as
    /// for a log that does not answer, gives up then and tells its clients, while they can still be
    /// told.
    pub async fn urged(&self) {
        self.urged.cancelled().await;
    }

    /// Asks tasks to give up what they wait for.
    pub fn urge(&self) {
        self.urged.cancel();
    }

    /// The signal of a part of the process, which can also shut down earlier than the whole.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { begun: self.begun.child_token(), urged: self.urged.child_token() }
    }
}
