//! Group commit: one thread writes everything that waits with one batch and one fsync.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use futures::channel::oneshot;
use headwater_log::{Appended, EncodedBatch, Error};
use headwater_types::{Offset, PartitionId};
use rocksdb::{DB, WriteBatch};

use crate::{Shared, keys::BatchKey, partition::Topic, queue::Pending, store::Failure};

/// Where a partition will end once the group is durable.
struct Staged {
    topic: Arc<Topic>,
    partition: PartitionId,
    end: Offset,
    bytes: u64,
}

/// A batch that is part of the group.
struct Staying {
    topic: Arc<Topic>,
    key: BatchKey,
    batch: EncodedBatch,
    done: oneshot::Sender<Result<Appended, Error>>,
}

/// Commits group after group until the queue is closed and empty.
pub(crate) fn run(shared: &Shared) {
    while let Some(group) = shared.queue.take() {
        commit(shared, group);
    }
}

fn commit(shared: &Shared, group: Vec<Pending>) {
    // Nobody claims, trims or creates anything meanwhile.
    let claims = shared.claims.lock();
    let db = match shared.writable() {
        Ok(db) => db,
        Err(failure) => {
            return group
                .into_iter()
                .for_each(|pending| answer(pending.done, Err(failure.to_error())));
        }
    };
    let mut staying = Vec::with_capacity(group.len());
    let mut staged = HashMap::new();
    for pending in group {
        let outdated = pending.claim.as_deref().and_then(|claim| {
            claims.get(&claim.id).filter(|current| **current != claim.epoch)?;
            Some(Error::Fenced { writer: claim.id.clone(), ours: claim.epoch })
        });
        if let Some(fenced) = outdated {
            answer(pending.done, Err(fenced));
            continue;
        }
        let Pending { topic, partition, mut batch, done, .. } = pending;
        match stage(&mut staged, &topic, partition, &batch) {
            Ok(key) => {
                batch.assign(key.base);
                staying.push(Staying { topic, key, batch, done });
            }
            Err(error) => answer(done, Err(error)),
        }
    }
    if staying.is_empty() {
        return;
    }
    if let Err(failure) = write(shared, &db, &staying) {
        return staying.into_iter().for_each(|one| answer(one.done, Err(failure.to_error())));
    }
    for Staged { topic, partition, end, bytes } in staged.into_values() {
        if let Ok(partition) = topic.partition(partition) {
            partition.grow(end, bytes);
        }
    }
    // An append that has waited for the disk does not wait for housekeeping too.
    let mut superseding = Vec::new();
    for Staying { topic, key, batch, done } in staying {
        answer(done, Ok(Appended::consecutive(key.base, batch.records())));
        if topic.compacts() {
            superseding.push((topic, key, batch));
        }
    }
    for (topic, key, batch) in superseding {
        if let Err(error) = compact(shared, &db, &topic, &key, &batch) {
            tracing::warn!(topic = %topic.name, partition = key.partition, %error, "superseded records stay for now");
        }
    }
}

/// A future that was dropped does not get its answer.
fn answer(done: oneshot::Sender<Result<Appended, Error>>, answer: Result<Appended, Error>) {
    let _ = done.send(answer);
}

/// Gives the batch its place behind those of its partition that are staged already.
fn stage(
    staged: &mut HashMap<(u32, PartitionId), Staged>,
    topic: &Arc<Topic>,
    partition: PartitionId,
    batch: &EncodedBatch,
) -> Result<BatchKey, Error> {
    let stage = match staged.entry((topic.id, partition)) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let place = topic.partition(partition)?;
            let (end, bytes) = (place.ends().end, place.bytes());
            entry.insert(Staged { topic: topic.clone(), partition, end, bytes })
        }
    };
    let key = BatchKey {
        partition: partition.0,
        base: stage.end,
        records: batch.records(),
        before: stage.bytes,
    };
    stage.end = key.end();
    stage.bytes += batch.bytes().len() as u64;
    Ok(key)
}

fn write(shared: &Shared, db: &DB, staying: &[Staying]) -> Result<(), Failure> {
    let mut families = Vec::with_capacity(staying.len());
    for one in staying {
        families
            .push(one.topic.family(db).map_err(|error| Failure::unavailable(error.to_string()))?);
    }
    shared.store.write(db, || {
        let mut batch = WriteBatch::default();
        for (one, family) in staying.iter().zip(&families) {
            batch.put_cf(family, one.key.encode(), one.batch.bytes());
        }
        batch
    })
}

/// Removes what the batch has superseded.
fn compact(
    shared: &Shared,
    db: &DB,
    topic: &Topic,
    key: &BatchKey,
    batch: &EncodedBatch,
) -> Result<(), Error> {
    let partition = PartitionId(key.partition);
    let removable = topic.partition(partition)?.compaction.lock().learn(key.base, batch.walk())?;
    Ok(shared.store.remove(db, topic, partition, &removable)?)
}
