use std::collections::BTreeMap;

use headwater_proto::query::v1::{Freshness, Provenance, QueryRequest, ResultFormat};
use headwater_types::EventTime;

use crate::{cli::QueryArgs, client::Server, dev, failure::Result, output::Rows};

pub(super) async fn run(server: &Server, args: QueryArgs) -> Result {
    let request = QueryRequest {
        sql: args.sql,
        format: ResultFormat::Rows.into(),
        freshness: Some(Freshness {
            after: args.after,
            timeout_ms: u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX),
            generation: args.generation.unwrap_or_default(),
        }),
    };
    let mut answer = server.query().query(request).await?.into_inner();
    let mut rows: Option<Rows> = None;
    let mut provenance = Vec::new();
    while let Some(part) = answer.message().await? {
        if rows.is_none() {
            provenance = part.provenance;
            rows = Some(Rows::new(args.output, part.columns)?);
        }
        if let Some(rows) = &mut rows {
            for row in &part.rows {
                rows.push(&row.values)?;
            }
        }
    }
    if let Some(rows) = rows {
        let count = rows.finish()?;
        eprintln!("{count} row{}", if count == 1 { "" } else { "s" });
    }
    for one in &provenance {
        eprintln!("{}", describe(one));
    }
    Ok(())
}

/// The provenance of an answer in one line: view, generation, positions, watermark, instances.
pub(super) fn describe(provenance: &Provenance) -> String {
    let positions: u64 = provenance.partitions.iter().map(|p| p.offset).sum();
    let watermark = provenance.partitions.iter().filter_map(|p| p.watermark_micros).min();
    let watermark =
        watermark.map_or_else(|| "none yet".to_owned(), |micros| EventTime(micros).to_string());
    format!(
        "{} generation {} epoch {} · {positions} records in {} partition{} · watermark {watermark}{}",
        provenance.view,
        provenance.generation,
        provenance.epoch,
        provenance.partitions.len(),
        if provenance.partitions.len() == 1 { "" } else { "s" },
        answered(provenance),
    )
}

/// The instance that answered, and the instances that read shards for it.
fn answered(provenance: &Provenance) -> String {
    // `headwater dev` is the only instance.
    if provenance.served_by.is_empty() || provenance.served_by == dev::INSTANCE {
        return String::new();
    }
    let mut others: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for partition in &provenance.partitions {
        if !partition.served_by.is_empty() && partition.served_by != provenance.served_by {
            others.entry(&partition.served_by).or_default().push(partition.partition.to_string());
        }
    }
    let mut text = format!(" · answered by {}", provenance.served_by);
    for (instance, partitions) in others {
        let s = if partitions.len() == 1 { "" } else { "s" };
        text += &format!(", partition{s} {} by {instance}", partitions.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use headwater_proto::query::v1::PartitionFreshness;

    use super::*;

    #[test]
    fn an_answer_says_who_gave_it_and_who_helped() {
        let partition = |partition, served_by: &str| PartitionFreshness {
            partition,
            offset: 10,
            watermark_micros: Some(0),
            served_by: served_by.into(),
        };
        let mut provenance = Provenance {
            view: "spend".into(),
            generation: "aa".into(),
            epoch: 2,
            partitions: vec![
                partition(0, ""),
                partition(1, "query-2"),
                partition(2, "query-1"),
                partition(3, "query-2"),
            ],
            served_by: "query-1".into(),
        };
        let expected = "spend generation aa epoch 2 · 40 records in 4 partitions · watermark 1970-01-01T00:00:00Z · answered by query-1, partitions 1, 3 by query-2";
        assert_eq!(describe(&provenance), expected);
        provenance.partitions.truncate(1);
        assert!(
            describe(&provenance)
                .ends_with("in 1 partition · watermark 1970-01-01T00:00:00Z · answered by query-1")
        );
    }
}
