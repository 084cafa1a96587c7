use std::path::{Path, PathBuf};

use headwater_proto::control::v1::{
    ApplyRequest, ChangeKind, DefinitionFile, HoldBefore, ReplayOptions,
};
use serde_json::json;

use super::{
    plan::{plan_json, print_plan},
    replay,
};
use crate::{
    cli::{ApplyArgs, HoldBeforePhase, Output, ReplayOptionArgs},
    client::{Server, request_id},
    failure::{Failure, Result},
    output,
};

impl From<ReplayOptionArgs> for ReplayOptions {
    fn from(args: ReplayOptionArgs) -> Self {
        Self {
            promote: args.promote,
            max_changed: args.max_changed,
            max_only_old: args.max_only_old,
            max_only_new: args.max_only_new,
            retain_ms: u64::try_from(args.retain.as_millis()).unwrap_or(u64::MAX),
            reason: args.reason,
            hold_before: match args.hold_before {
                None => HoldBefore::Unspecified,
                Some(HoldBeforePhase::Align) => HoldBefore::Align,
                Some(HoldBeforePhase::Diff) => HoldBefore::Diff,
                Some(HoldBeforePhase::Commit) => HoldBefore::Commit,
            }
            .into(),
        }
    }
}

pub(super) async fn run(server: &Server, args: ApplyArgs) -> Result {
    let mut files = Vec::new();
    for path in &args.files {
        for file in definition_files(path)? {
            let sql = std::fs::read_to_string(&file).map_err(|error| {
                Failure::usage(format!("cannot read {}: {error}", file.display()))
            })?;
            files.push(DefinitionFile { name: file.display().to_string(), sql });
        }
    }
    let request = ApplyRequest {
        files,
        dry_run: args.dry_run,
        request_id: request_id(),
        options: Some(args.options.into()),
    };
    let changes = server.catalog().apply(request).await?.into_inner().changes;
    let rows: Vec<_> = changes
        .iter()
        .map(|change| {
            let mut row = json!({
                "object": change.object,
                "name": change.name,
                "change": change_name(change.kind()),
                "generation": change.generation,
                "replay": change.replay_id,
            });
            if let (Some(plan), true) = (&change.plan, args.output != Output::Table) {
                row["plan"] = plan_json(plan);
            }
            row
        })
        .collect();
    output::objects(args.output, &["object", "name", "change", "generation", "replay"], &rows)?;
    for change in &changes {
        if let Some(plan) = &change.plan {
            print_plan(plan);
        }
        for note in &change.notes {
            eprintln!("{} {}: {note}", change.object, change.name);
        }
    }
    if args.dry_run {
        eprintln!("dry run: nothing was changed");
        return Ok(());
    }
    for change in changes.iter().filter(|change| change.kind() == ChangeKind::Replayed) {
        if args.wait {
            replay::wait(server, &change.replay_id, true).await?;
        } else {
            eprintln!("follow it: headwater replay watch {}", change.replay_id);
        }
    }
    Ok(())
}

/// The word for a change, as people and programs read it.
pub(super) fn change_name(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Unspecified => "unknown",
        ChangeKind::Unchanged => "unchanged",
        ChangeKind::Created => "created",
        ChangeKind::Extended => "extended",
        ChangeKind::Replayed => "replay",
        ChangeKind::Deleted => "deleted",
    }
}

/// The file itself, or the `*.sql` files of a directory in the order of their names.
fn definition_files(path: &Path) -> Result<Vec<PathBuf>> {
    let wrong = |error| Failure::usage(format!("cannot read {}: {error}", path.display()));
    if !std::fs::metadata(path).map_err(wrong)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(wrong)? {
        let file = entry.map_err(wrong)?.path();
        if file.extension().is_some_and(|extension| extension == "sql") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Failure::usage(format!("{} holds no *.sql file", path.display())));
    }
    files.sort();
    Ok(files)
}
