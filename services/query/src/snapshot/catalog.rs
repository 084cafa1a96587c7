//! Views by their names: which generation answers a request, whatever is swapped meanwhile.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use headwater_control::ControlState;
use headwater_service::follow::ControlView;
use headwater_types::{Epoch, GenerationId, Name, Offset, PartitionId};

use crate::{
    error::Error,
    peers::shard_locator::ShardLocator,
    refresh::SharedRefresh,
    snapshot::{
        deletion,
        freshness::FreshnessRequest,
        generation::{Generation, is_readable},
        generation_cache::GenerationCache,
        pin::Pin,
    },
};

/// The views as the control plane has them.
pub(crate) struct ViewCatalog {
    control: ControlView,
    locator: Arc<ShardLocator>,
    cache: Arc<GenerationCache>,
    pub instance: Arc<str>,
    refresh: SharedRefresh,
}

impl ViewCatalog {
    pub(crate) fn new(
        control: ControlView,
        locator: Arc<ShardLocator>,
        cache: Arc<GenerationCache>,
        instance: Arc<str>,
    ) -> Self {
        Self { control, locator, cache, instance, refresh: SharedRefresh::default() }
    }

    /// The control plane as of now: it has every swap that was answered before this call. After
    /// this call the locator knows every move of a shard that the request has to see.
    pub(crate) async fn control(
        &self,
        freshness: &FreshnessRequest,
    ) -> Result<Arc<ControlState>, Error> {
        let control = self.refresh.since(Instant::now(), async {
            let current = self.control.wait_current().await;
            current.map(drop).map_err(|error| Error::Control(error.to_string()))
        });
        let both = async { tokio::try_join!(control, self.locator.refresh(freshness.since)) };
        match tokio::time::timeout_at(freshness.deadline.into(), both).await {
            Ok(outcome) => outcome.map(|_| self.control.current()),
            Err(_) => Err(Error::Control("its end was not reached in time".into())),
        }
    }

    /// Pins a view's generation, and checks that the tokens are for its stream.
    pub(crate) async fn pin(&self, view: &str, freshness: &FreshnessRequest) -> Result<Pin, Error> {
        let control = self.control(freshness).await?;
        let pin = self.pin_in(&control, view, freshness).await?;
        check_streams(freshness, std::slice::from_ref(&pin))?;
        Ok(pin)
    }

    /// As [`ViewCatalog::pin`], for one view of several: the caller checks the tokens with
    /// [`check_streams`].
    pub(crate) async fn pin_in(
        &self,
        control: &ControlState,
        view: &str,
        freshness: &FreshnessRequest,
    ) -> Result<Pin, Error> {
        let (name, entry) =
            control.views().get_key_value(view).ok_or_else(|| unknown_view(control, view))?;
        let id = match &freshness.generation {
            None => entry.serving,
            Some(text) => named_generation(control, name, text)?,
        };
        let unknown =
            || Error::UnknownGeneration { view: view.to_owned(), generation: id.to_string() };
        let generation =
            self.cache.generation(control.generations().get(&id).ok_or_else(unknown)?).await?;
        Ok(Pin {
            wanted: wanted_positions(freshness, &generation)?,
            wanted_by: "the token asks for",
            generation,
            epoch: if id == entry.serving { entry.epoch } else { Epoch(0) },
            served: freshness
                .generation
                .is_none()
                .then(|| self.cache.served(name, entry.first_ordinal)),
            since: freshness.since,
            deadline: freshness.deadline,
            instance: self.instance.clone(),
        })
    }

    /// The view to which a generation belongs or belonged.
    pub(crate) fn view_of(&self, generation: GenerationId) -> Option<Name> {
        let control = self.control.current();
        control.generations().get(&generation).map(|entry| entry.view.clone())
    }

    /// A generation by its id, whatever it is to its view, as long as it can be read.
    pub(crate) async fn generation(
        &self,
        id: GenerationId,
        deadline: Instant,
    ) -> Result<Option<Arc<Generation>>, Error> {
        let mut control = self.control.current();
        if !control.generations().contains_key(&id) {
            // The asker may have read more of the control topic than this instance.
            control = self.control(&FreshnessRequest::now(deadline)).await?;
        }
        let Some(entry) = control.generations().get(&id) else { return Ok(None) };
        if !is_readable(entry.role) {
            return Err(deletion::gone(&control, entry));
        }
        self.cache.generation(entry).await.map(Some)
    }
}

/// The positions that the tokens ask of a generation's shards.
fn wanted_positions(
    freshness: &FreshnessRequest,
    generation: &Generation,
) -> Result<BTreeMap<PartitionId, Offset>, Error> {
    let mut wanted = BTreeMap::new();
    for token in freshness.tokens.iter().filter(|token| token.stream == generation.stream.name) {
        for (&partition, &position) in &token.positions {
            if partition.0 as usize >= generation.shards.len() {
                return Err(Error::TokenPartition {
                    token: token.to_string(),
                    partition,
                    stream: token.stream.to_string(),
                    partitions: generation.shards.len(),
                });
            }
            let wanted: &mut Offset = wanted.entry(partition).or_default();
            *wanted = position.max(*wanted);
        }
    }
    Ok(wanted)
}

/// Checks that every token is for a stream that is read.
pub(crate) fn check_streams(freshness: &FreshnessRequest, pins: &[Pin]) -> Result<(), Error> {
    for token in &freshness.tokens {
        if !pins.iter().any(|pin| pin.generation.stream.name == token.stream) {
            let reads: Vec<String> = pins
                .iter()
                .map(|pin| {
                    format!("view {} reads {}", pin.generation.view, pin.generation.stream.name)
                })
                .collect();
            let reads =
                if reads.is_empty() { "no view is read".into() } else { reads.join(" and ") };
            return Err(Error::ForeignToken {
                token: token.to_string(),
                stream: token.stream.to_string(),
                reads,
            });
        }
    }
    Ok(())
}

pub(crate) fn unknown_view(control: &ControlState, view: &str) -> Error {
    if let Some(deleted) = control.deleted_views().get(view) {
        return Error::ViewDeleted { view: view.to_owned(), how: format!(" {deleted}") };
    }
    Error::UnknownView {
        view: view.to_owned(),
        known: control.views().keys().map(Name::to_string).collect(),
    }
}

fn named_generation(
    control: &ControlState,
    view: &Name,
    text: &str,
) -> Result<GenerationId, Error> {
    let unknown =
        || Error::UnknownGeneration { view: view.to_string(), generation: text.to_owned() };
    let id: GenerationId = text.parse().map_err(|_| unknown())?;
    let entry =
        control.generations().get(&id).filter(|entry| entry.view == *view).ok_or_else(unknown)?;
    if is_readable(entry.role) { Ok(id) } else { Err(deletion::gone(control, entry)) }
}
