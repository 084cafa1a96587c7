use std::io::Write;

use headwater_proto::ingest::v1::{DeadLetter, ListDeadLettersRequest, ReplayDeadLettersRequest};
use headwater_types::EventTime;
use serde_json::json;

use crate::{
    cli::{DeadLettersCommand, SelectionArgs},
    client::Server,
    failure::{Exit, Failure, Result},
    output,
};

pub(super) async fn run(server: &Server, command: DeadLettersCommand) -> Result {
    match command {
        DeadLettersCommand::List { selection, limit, output } => {
            let letters =
                list(server, ListDeadLettersRequest { limit, ..selection.into() }).await?;
            let rows: Vec<_> = letters
                .iter()
                .map(|letter| {
                    json!({
                        "record": format!("{}:{}", letter.partition, letter.offset),
                        "stage": letter.stage,
                        "reason": letter.reason,
                        "view": letter.view,
                        "generation": letter.generation,
                        "topic": letter.topic,
                        "partition": letter.partition,
                        "offset": letter.offset,
                        "timestamp": EventTime::from_millis(letter.timestamp_ms).to_string(),
                        "bytes": letter.value.len(),
                        "value": String::from_utf8_lossy(&letter.value),
                    })
                })
                .collect();
            output::objects(output, &["record", "stage", "view", "reason", "bytes"], &rows)
        }
        DeadLettersCommand::Show { stream, record } => {
            let (partition, offset) = parse_record(&record)?;
            let request = ListDeadLettersRequest {
                stream: stream.clone(),
                partition: Some(partition),
                offset: Some(offset),
                limit: 1,
                ..ListDeadLettersRequest::default()
            };
            let letters = list(server, request).await?;
            let Some(letter) = letters.first() else {
                return Err(Failure::usage(format!(
                    "no dead letter of {stream} is record {record}; `headwater dead-letters list {stream}` has them"
                )));
            };
            eprintln!("{}: {}", letter.stage, letter.reason);
            let mut out = std::io::stdout().lock();
            out.write_all(&letter.value)?;
            Ok(out.flush()?)
        }
        DeadLettersCommand::Replay { selection, record } => {
            let mut selection = ListDeadLettersRequest::from(selection);
            if let Some(record) = record {
                let (partition, offset) = parse_record(&record)?;
                (selection.partition, selection.offset) = (Some(partition), Some(offset));
            }
            let request = ReplayDeadLettersRequest { selection: Some(selection) };
            let answer = server.dead_letters().replay(request).await?.into_inner();
            for reason in &answer.reasons {
                eprintln!("still refused: {reason}");
            }
            println!(
                "{}",
                json!({"accepted": answer.accepted, "rejected": answer.rejected, "token": answer.token})
            );
            match answer.rejected {
                0 => Ok(()),
                n => Err(Failure::new(
                    Exit::Failed,
                    format!("{n} dead letters are still refused by the schema"),
                )),
            }
        }
    }
}

async fn list(server: &Server, request: ListDeadLettersRequest) -> Result<Vec<DeadLetter>> {
    let mut answer = server.dead_letters().list(request).await?.into_inner();
    let mut letters = Vec::new();
    while let Some(letter) = answer.message().await? {
        letters.push(letter);
    }
    Ok(letters)
}

impl From<SelectionArgs> for ListDeadLettersRequest {
    fn from(args: SelectionArgs) -> Self {
        Self {
            stream: args.stream,
            stage: args.stage.unwrap_or_default(),
            view: args.view.unwrap_or_default(),
            ..Self::default()
        }
    }
}

fn parse_record(text: &str) -> Result<(u32, u64)> {
    text.split_once(':')
        .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)))
        .ok_or_else(|| {
            Failure::usage(format!("{text:?} is no record: write partition:offset, like 3:1042"))
        })
}
