//! What a request reads: one generation of a view, however the view is swapped meanwhile, and how fresh
//! each of its shards has to be.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::ControlState;
use headwater_proto::query::v1::{Freshness, PartitionFreshness, Provenance};
use headwater_types::{Epoch, GenerationId, Name, Offset, PartitionId, Token};

use crate::{
    Service,
    error::Error,
    snapshot::generation_cache::{Generation, ServedPositions, is_readable},
    snapshot::shard_snapshot::{FreshnessGoal, ReadPlan, ShardSnapshot},
};

/// A request's freshness, checked and with its times fixed.
pub(crate) struct FreshnessRequest {
    tokens: Vec<Token>,
    generation: Option<String>,
    since: Instant,
    pub deadline: Instant,
}

/// The generation that answers one request.
pub(crate) struct Pin {
    pub generation: Arc<Generation>,
    /// 0 if it does not serve.
    epoch: Epoch,
    /// `None` when this generation was asked for by its id: such an answer is not part of what the view
    /// has served.
    served: Option<Arc<ServedPositions>>,
    tokens: BTreeMap<PartitionId, Offset>,
    since: Instant,
    deadline: Instant,
    instance: Arc<str>,
}

impl Service {
    pub(crate) fn wish(&self, freshness: Option<&Freshness>) -> Result<FreshnessRequest, Error> {
        let now = Instant::now();
        let mut wish = FreshnessRequest {
            tokens: Vec::new(),
            generation: None,
            since: now.checked_sub(self.config.max_staleness).unwrap_or(now),
            deadline: now + self.config.default_timeout,
        };
        if let Some(freshness) = freshness {
            wish.tokens =
                freshness.after.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
            wish.generation = Some(freshness.generation.clone()).filter(|id| !id.is_empty());
            if freshness.timeout_ms > 0 {
                let asked = Duration::from_millis(freshness.timeout_ms);
                wish.deadline = now + asked.min(self.config.max_timeout);
            }
        }
        Ok(wish)
    }

    /// Waits for all that there is now until a deadline that somebody else has set.
    pub(crate) fn wish_until(&self, deadline: Instant) -> FreshnessRequest {
        FreshnessRequest { tokens: Vec::new(), generation: None, since: Instant::now(), deadline }
    }

    /// The control plane as of now: a swap that was answered before this call is in it. And so is, for whoever
    /// looks at places from now on, each move of a shard that the wish has to see.
    pub(crate) async fn control(
        &self,
        wish: &FreshnessRequest,
    ) -> Result<Arc<ControlState>, Error> {
        let current =
            async { tokio::try_join!(self.locator.control(), self.locator.know(wish.since)) };
        match tokio::time::timeout_at(wish.deadline.into(), current).await {
            Ok(outcome) => outcome.map(|(state, ())| state),
            Err(_) => Err(Error::Control("its end was not reached in time".into())),
        }
    }

    /// Pins a view's generation and checks that the tokens are for its stream.
    pub(crate) async fn pin(&self, view: &str, wish: &FreshnessRequest) -> Result<Pin, Error> {
        let state = self.control(wish).await?;
        let pin = self.pin_in(&state, view, wish).await?;
        check_streams(wish, std::slice::from_ref(&pin))?;
        Ok(pin)
    }

    /// As [`Service::pin`], for one view of several: the caller checks the tokens.
    pub(crate) async fn pin_in(
        &self,
        state: &ControlState,
        view: &str,
        wish: &FreshnessRequest,
    ) -> Result<Pin, Error> {
        let (name, entry) =
            state.views().get_key_value(view).ok_or_else(|| unknown_view(state, view))?;
        let id = match &wish.generation {
            None => entry.serving,
            Some(text) => named_generation(state, name, text)?,
        };
        let unknown =
            || Error::UnknownGeneration { view: view.to_owned(), generation: id.to_string() };
        let generation =
            self.cache.generation(state.generations().get(&id).ok_or_else(unknown)?).await?;
        let mut tokens = BTreeMap::new();
        for token in wish.tokens.iter().filter(|token| token.stream == generation.stream.name) {
            for (&partition, &position) in &token.positions {
                if partition.0 as usize >= generation.shards.len() {
                    return Err(Error::TokenPartition {
                        token: token.to_string(),
                        partition,
                        stream: token.stream.to_string(),
                        partitions: generation.shards.len(),
                    });
                }
                let wanted: &mut Offset = tokens.entry(partition).or_default();
                *wanted = position.max(*wanted);
            }
        }
        Ok(Pin {
            generation,
            epoch: if id == entry.serving { entry.epoch } else { Epoch(0) },
            served: wish.generation.is_none().then(|| self.cache.served(name)),
            tokens,
            since: wish.since,
            deadline: wish.deadline,
            instance: self.instance.clone(),
        })
    }
}

/// Every token has to be for a stream that is read.
pub(crate) fn check_streams(wish: &FreshnessRequest, pins: &[Pin]) -> Result<(), Error> {
    for token in &wish.tokens {
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

pub(crate) fn unknown_view(state: &ControlState, view: &str) -> Error {
    Error::UnknownView {
        view: view.to_owned(),
        known: state.views().keys().map(Name::to_string).collect(),
    }
}

fn named_generation(state: &ControlState, view: &Name, text: &str) -> Result<GenerationId, Error> {
    let unknown =
        || Error::UnknownGeneration { view: view.to_string(), generation: text.to_owned() };
    let id: GenerationId = text.parse().map_err(|_| unknown())?;
    let entry =
        state.generations().get(&id).filter(|entry| entry.view == *view).ok_or_else(unknown)?;
    if is_readable(entry.role) {
        Ok(id)
    } else {
        Err(Error::GenerationGone {
            view: view.to_string(),
            generation: id,
            role: entry.role.as_str(),
        })
    }
}

impl Pin {
    /// Holds one shard, or all of them in the order of their partitions, each as fresh as was asked for.
    pub(crate) async fn hold(
        &self,
        only: Option<PartitionId>,
        reads: &ReadPlan,
    ) -> Result<Vec<ShardSnapshot>, Error> {
        let shards = &self.generation.shards;
        let one = match only {
            Some(partition) => shards.get(partition.0 as usize),
            None => shards.first().filter(|_| shards.len() == 1),
        };
        if let Some(shard) = one {
            return Ok(vec![shard.hold(self.wanted(shard.partition()), reads).await?]);
        }
        let reached = self.reach(reads).await?;
        self.hold_reached(reached, reads).await
    }

    /// Waits for each shard by itself, so that none of our own is held while another one is waited for. Those
    /// at peers are held from now on: that holds nobody up.
    pub(crate) async fn reach(
        &self,
        reads: &ReadPlan,
    ) -> Result<Vec<Option<ShardSnapshot>>, Error> {
        let each = self.generation.shards.iter().map(|shard| async {
            let held = shard.hold(self.wanted(shard.partition()), reads).await?;
            Ok(Some(held).filter(ShardSnapshot::is_elsewhere))
        });
        futures::future::try_join_all(each).await
    }

    /// Holds all shards, once each has been [`Pin::reach`]ed.
    pub(crate) async fn hold_reached(
        &self,
        reached: Vec<Option<ShardSnapshot>>,
        reads: &ReadPlan,
    ) -> Result<Vec<ShardSnapshot>, Error> {
        let mut all = Vec::with_capacity(reached.len());
        for (shard, reached) in self.generation.shards.iter().zip(reached) {
            let wanted = self.wanted(shard.partition());
            let held = match reached {
                // Another answer may have shown more in the meantime.
                Some(held) if held.position >= wanted.position => held,
                Some(_) | None => shard.hold(wanted, reads).await?,
            };
            all.push(held);
        }
        Ok(all)
    }

    fn wanted(&self, partition: PartitionId) -> FreshnessGoal {
        let token = self.tokens.get(&partition).copied().unwrap_or_default();
        let served = self.served.as_ref().map_or(Offset::ZERO, |served| served.position(partition));
        let (position, reason) = if served > token {
            (served, "an earlier answer had already shown")
        } else {
            (token, "the token asks for")
        };
        FreshnessGoal { since: self.since, position, reason, deadline: self.deadline }
    }

    /// Says where an answer comes from. From now on no answer of this view is older.
    pub(crate) fn provenance(&self, held: &[ShardSnapshot]) -> Provenance {
        let partitions = held
            .iter()
            .map(|held| {
                if let Some(served) = &self.served {
                    served.raise(held.partition, held.position);
                }
                PartitionFreshness {
                    partition: held.partition.0,
                    offset: held.position.0,
                    watermark_micros: held.watermark.known().map(|watermark| watermark.0),
                    served_by: held.served_by().unwrap_or_default().to_owned(),
                }
            })
            .collect();
        Provenance {
            view: self.generation.view.to_string(),
            generation: self.generation.id.to_string(),
            epoch: self.epoch.0,
            partitions,
            served_by: self.instance.to_string(),
        }
    }
}
