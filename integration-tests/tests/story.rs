//! The story in one process, on the embedded log.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use headwater_integration_tests::{dev::Dev, story};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_is_corrected_replayed_compared_swapped_and_undone_while_events_flow() -> Result<()>
{
    let directory = tempfile::tempdir()?;
    let dev = Arc::new(Dev::start(&directory.path().join("data")).await?);
    story::tell(&dev).await?;
    let dev = Arc::into_inner(dev).context("somebody still uses the server")?;
    dev.terminate().await
}
