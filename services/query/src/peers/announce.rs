//! Keeps this instance's status on the status topic, so that other instances find it.

use std::{sync::Arc, time::Duration};

use headwater_control::{STATUS_TOPIC, instance_key};
use headwater_log::{BatchBuilder, Log};
use headwater_proto::status::v1::InstanceStatus;
use headwater_service::{Node, Shutdown, follow::ControlView};
use headwater_types::{Clock, Name, Offset, PartitionId};
use prost::Message as _;

use crate::peers::{
    pool::{PeerPool, SERVICE},
    shard_locator::ShardLocator,
};

/// How often the announcer looks whether anything has changed.
const LOOK: Duration = Duration::from_millis(500);

/// The task that announces this instance, and takes the announcement back at the end.
pub(crate) struct Announcer {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    control: ControlView,
    locator: Arc<ShardLocator>,
    pool: Arc<PeerPool>,
    /// Called on a thread that may block, at every look; `true` if the data directory on this disk
    /// is another one than before.
    on_look: Arc<dyn Fn(bool) + Send + Sync>,
    key: String,
    instance: String,
    /// Where others reach this instance; `None` if they cannot.
    address: Option<String>,
    /// The last announcement, and where its record ends.
    announced: Option<(InstanceStatus, Offset)>,
}

impl Announcer {
    pub(crate) fn new(
        node: &Node,
        control: ControlView,
        locator: Arc<ShardLocator>,
        pool: Arc<PeerPool>,
        on_look: Arc<dyn Fn(bool) + Send + Sync>,
    ) -> Self {
        Self {
            log: node.log.clone(),
            clock: node.clock.clone(),
            control,
            locator,
            pool,
            on_look,
            key: instance_key(SERVICE, &node.instance),
            instance: node.instance.clone(),
            address: node.advertise.clone(),
            announced: None,
        }
    }

    /// Runs until shutdown.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut warned = false;
        loop {
            let announced = tokio::select! {
                announced = self.look() => announced,
                () = shutdown.cancelled() => break,
            };
            match announced {
                Ok(()) => warned = false,
                Err(error) if !warned => {
                    warned = true;
                    tracing::warn!(%error, "this query instance cannot announce itself, trying again");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = shutdown.cancelled() => break,
            }
        }
        tokio::select! {
            taken_back = self.take_back() => taken_back,
            () = shutdown.urged() => anyhow::bail!(
                "the log did not take the end of this query instance in time: other instances may \
                 try to reach it until it runs again"
            ),
        }
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let (locator, pool, on_look) =
            (self.locator.clone(), self.pool.clone(), self.on_look.clone());
        tokio::task::spawn_blocking(move || {
            on_look(locator.read_directory());
            pool.keep_announced(&locator.board());
        })
        .await?;
        let directory = self.locator.directory();
        self.announce(&directory).await
    }

    /// Announces the address and the shared directory, unless both are on the board.
    async fn announce(&mut self, directory: &str) -> anyhow::Result<()> {
        let Some(address) = self.address.clone().filter(|_| !directory.is_empty()) else {
            return Ok(());
        };
        let status = InstanceStatus {
            instance: self.instance.clone(),
            service: SERVICE.into(),
            address,
            directory: directory.into(),
        };
        if let Some((announced, end)) = &self.announced
            && *announced == status
        {
            // A former process with this instance's name may have taken its own announcement back
            // late, after this process wrote one.
            let board = self.control.wait_board(*end).await?;
            if board.instances(SERVICE).any(|other| other.instance == self.instance) {
                return Ok(());
            }
        }
        let end = self.append(Some(&status)).await?;
        tracing::info!(address = status.address, directory, "query instance announced");
        self.announced = Some((status, end));
        Ok(())
    }

    /// Takes the announcement back, unless another process with this instance's name has written
    /// one since.
    async fn take_back(&mut self) -> anyhow::Result<()> {
        let Some((announced, _)) = self.announced.take() else { return Ok(()) };
        let board = self.control.board();
        let mut present = board.instances(SERVICE).filter(|it| it.instance == self.instance);
        if present.any(|other| *other != announced) {
            return Ok(());
        }
        self.append(None).await.map(drop)
    }

    async fn append(&self, status: Option<&InstanceStatus>) -> anyhow::Result<Offset> {
        let value = status.map(InstanceStatus::encode_to_vec);
        let mut batch = BatchBuilder::new();
        batch.push(self.clock.now_millis(), Some(self.key.as_bytes()), value.as_deref(), &[]);
        let topic = Name::new(STATUS_TOPIC)?;
        let Some(batch) = batch.build() else { anyhow::bail!("a status without a record") };
        Ok(self.log.append(&topic, PartitionId::ONLY, batch).await?.end())
    }
}
