//! Plans generations when they begin to serve, and closes those that are retired.

use std::sync::Arc;

use headwater_service::{Condition, Shutdown, follow::ControlView};

use crate::snapshot::generation_cache::GenerationCache;

/// The task that keeps the cache in step with the control plane.
pub(crate) struct GenerationFollower {
    pub control: ControlView,
    pub cache: Arc<GenerationCache>,
    /// Ready once the control topic has been read to its end.
    pub condition: Condition,
}

impl GenerationFollower {
    /// Runs until shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            outcome = self.follow() => outcome,
        }
    }

    async fn follow(self) -> anyhow::Result<()> {
        let Self { mut control, cache, condition } = self;
        let mut state = control.wait_current().await?;
        condition.ready();
        loop {
            cache.close_retired(&state);
            for view in state.views().values() {
                let Some(entry) = state.generations().get(&view.serving) else { continue };
                if let Err(error) = cache.generation(entry).await {
                    tracing::error!(
                        generation = %entry.id,
                        %error,
                        "a serving generation cannot be planned"
                    );
                }
            }
            control.control_changed().await;
            state = control.current();
        }
    }
}
