//! What this instance tells the others, and what it gives up when shards move.

use std::{sync::Arc, time::Duration};

use headwater_control::{STATUS_TOPIC, instance_key};
use headwater_log::{BatchBuilder, Log};
use headwater_proto::status::v1::InstanceStatus;
use headwater_service::{Node, Shutdown, follow::ControlView};
use headwater_types::{Clock, Name, Offset, PartitionId};
use prost::Message as _;

use crate::{Service, peers::pool::SERVICE};

/// The status topic has one partition.
const ONLY: PartitionId = PartitionId(0);
/// How often it is looked whether anything has to be said or closed.
const LOOK: Duration = Duration::from_millis(500);

/// Keeps this instance's status on the status topic for as long as it runs.
pub(crate) struct Announcement {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    control: ControlView,
    key: String,
    instance: String,
    address: Option<String>,
    /// What was said last, and where that record ends.
    said: Option<(InstanceStatus, Offset)>,
}

impl Announcement {
    pub(crate) fn new(node: &Node, control: ControlView) -> Self {
        Self {
            log: node.log.clone(),
            clock: node.clock.clone(),
            control,
            key: instance_key(SERVICE, &node.instance),
            instance: node.instance.clone(),
            address: node.advertise.clone(),
            said: None,
        }
    }

    /// Says where we are and which directory we share, unless that is on the board.
    async fn say(&mut self, directory: &str) -> anyhow::Result<()> {
        let Some(address) = self.address.clone().filter(|_| !directory.is_empty()) else {
            return Ok(());
        };
        let status = InstanceStatus {
            instance: self.instance.clone(),
            service: SERVICE.into(),
            address,
            directory: directory.into(),
        };
        if let Some((said, end)) = &self.said
            && *said == status
        {
            // One of the same name that ran before us may have taken back, late, what it had said.
            let board = self.control.wait_board(*end).await?;
            if board.instances(SERVICE).any(|other| other.instance == self.instance) {
                return Ok(());
            }
        }
        let end = self.append(Some(&status)).await?;
        tracing::info!(address = status.address, directory, "query instance announced");
        self.said = Some((status, end));
        Ok(())
    }

    /// Takes back what we said, unless another instance of our name has said something since.
    async fn take_back(&mut self) -> anyhow::Result<()> {
        let Some((said, _)) = self.said.take() else { return Ok(()) };
        let board = self.control.board();
        let mut present = board.instances(SERVICE).filter(|it| it.instance == self.instance);
        if present.any(|other| *other != said) {
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
        Ok(self.log.append(&topic, ONLY, batch).await?.end())
    }
}

impl Service {
    /// Runs until shutdown.
    pub(crate) async fn keep_neighbours(
        self: Arc<Self>,
        mut announcement: Announcement,
        shutdown: Shutdown,
    ) -> anyhow::Result<()> {
        let mut told = false;
        loop {
            let service = self.clone();
            let look = tokio::task::spawn_blocking(move || {
                let another = service.locator.read_directory();
                service.cache.close_moved(another);
                service.peers().keep_announced(&service.locator.board());
            });
            let say = async {
                look.await?;
                announcement.say(&self.locator.directory()).await
            };
            let said = tokio::select! {
                said = say => said,
                () = shutdown.cancelled() => break,
            };
            match said {
                Ok(()) => told = false,
                Err(error) if !told => {
                    told = true;
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
            taken_back = announcement.take_back() => taken_back,
            () = shutdown.urged() => anyhow::bail!(
                "the log did not take the end of this query instance in time: others try to reach it in vain now and then"
            ),
        }
    }
}
