//! Answers of the query service as plain values.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use headwater_proto::{
    common::v1::{Row, Value, value::Kind},
    query::v1::{Freshness, Provenance, QueryRequest, ScanRequest},
};
use tonic::Status;

use crate::{
    flights::{Hour, PARTITIONS, Punctuality, View},
    platform::Platform,
};

/// The rows of one answer, and where they come from.
#[derive(Clone, Debug)]
pub struct Answer {
    pub rows: View,
    pub provenance: Provenance,
}

impl Answer {
    /// Position by partition.
    pub fn positions(&self) -> Vec<u64> {
        let mut positions = vec![0; PARTITIONS as usize];
        for partition in &self.provenance.partitions {
            positions[partition.partition as usize] = partition.offset;
        }
        positions
    }

    /// 1 or 2: only the second has a column for cancelled flights.
    pub fn version(&self) -> u32 {
        if self.rows.values().any(|row| row.cancelled.is_some()) { 2 } else { 1 }
    }
}

/// Asks for an answer that has all events of these tokens.
pub fn after(tokens: &[String]) -> Freshness {
    Freshness { after: tokens.to_vec(), timeout_ms: 120_000, ..Freshness::default() }
}

/// The whole view `punctuality`, by `Scan`.
pub async fn punctuality(platform: &impl Platform, freshness: Freshness) -> Result<Answer, Status> {
    let request = ScanRequest {
        view: "punctuality".into(),
        freshness: Some(freshness),
        ..ScanRequest::default()
    };
    let mut parts = platform.query().scan(request).await?.into_inner();
    let (mut names, mut provenance, mut rows) = (Vec::new(), None, View::new());
    while let Some(part) = parts.message().await? {
        if let Some(first) = part.provenance {
            if provenance.replace(first).is_some() {
                return Err(Status::internal("an answer has two provenances"));
            }
            names = part.columns.into_iter().map(|column| column.name).collect();
        }
        for row in &part.rows {
            let (hour, row) =
                hour(&names, row).map_err(|error| Status::internal(error.to_string()))?;
            if rows.insert(hour, row).is_some() {
                return Err(Status::internal("an answer has a row twice"));
            }
        }
    }
    let provenance = provenance.ok_or_else(|| Status::internal("an answer without provenance"))?;
    Ok(Answer { rows, provenance })
}

fn hour(names: &[String], row: &Row) -> Result<(Hour, Punctuality)> {
    let values: BTreeMap<&str, Option<&Kind>> = names
        .iter()
        .map(String::as_str)
        .zip(row.values.iter().map(|value| value.kind.as_ref()))
        .collect();
    let integer = |name: &str| match values.get(name) {
        Some(Some(Kind::Integer(value))) => Some(*value),
        Some(_) | None => None,
    };
    let (Some(Some(Kind::Text(origin))), Some(Some(Kind::TimestampMicros(start)))) =
        (values.get("origin"), values.get("window_start"))
    else {
        anyhow::bail!("a row without its key: {values:?}");
    };
    let avg_delay = match values.get("avg_delay") {
        Some(Some(Kind::Double(value))) => Some(*value),
        Some(_) | None => None,
    };
    ensure!(
        names.iter().any(|name| name == "cancelled") == integer("cancelled").is_some(),
        "cancelled is NULL"
    );
    let row = Punctuality {
        departures: integer("departures").context("departures")?,
        cancelled: integer("cancelled"),
        on_time: integer("on_time").context("on_time")?,
        avg_delay,
        max_delay: integer("max_delay"),
    };
    Ok(((origin.clone(), *start), row))
}

/// The rows of an SQL query.
pub async fn sql(
    platform: &impl Platform,
    sql: &str,
    freshness: Freshness,
) -> Result<Vec<Vec<Value>>, Status> {
    let request =
        QueryRequest { sql: sql.into(), freshness: Some(freshness), ..QueryRequest::default() };
    let mut parts = platform.query().query(request).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(part) = parts.message().await? {
        rows.extend(part.rows.into_iter().map(|row| row.values));
    }
    Ok(rows)
}

/// The one integer that an SQL query answers with.
pub async fn count(platform: &impl Platform, statement: &str, freshness: Freshness) -> Result<i64> {
    let rows = sql(platform, statement, freshness).await?;
    match rows.first().and_then(|row| row.first()).and_then(|value| value.kind.clone()) {
        Some(Kind::Integer(value)) => Ok(value),
        other => anyhow::bail!("{statement}: {other:?}"),
    }
}

/// The answers that a reader has seen so far: none of it may be taken back.
#[derive(Debug, Default)]
pub struct Reader {
    positions: Vec<u64>,
    epoch: u64,
    generations: BTreeMap<u64, String>,
    pub answers: u64,
}

impl Reader {
    /// Checks an answer against the earlier ones: time and epochs do not run backwards, and an
    /// epoch belongs to one generation.
    pub fn take(&mut self, answer: &Answer) -> Result<()> {
        let positions = answer.positions();
        if self.positions.is_empty() {
            self.positions = vec![0; positions.len()];
        }
        for (partition, (before, now)) in self.positions.iter_mut().zip(&positions).enumerate() {
            ensure!(
                *now >= *before,
                "time ran backwards in partition {partition}: {before} before, {now} now"
            );
            *before = *now;
        }
        let (epoch, generation) = (answer.provenance.epoch, &answer.provenance.generation);
        ensure!(epoch >= self.epoch, "epoch {epoch} after epoch {}", self.epoch);
        self.epoch = epoch;
        let known = self.generations.entry(epoch).or_insert_with(|| generation.clone());
        ensure!(known == generation, "epoch {epoch} is of {known} and of {generation}");
        self.answers += 1;
        Ok(())
    }

    /// The epochs that were seen.
    pub fn epochs(&self) -> Vec<u64> {
        self.generations.keys().copied().collect()
    }
}
