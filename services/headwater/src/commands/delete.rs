use headwater_proto::control::v1::{DeleteRequest, ObjectKind};
use serde_json::json;

use super::apply::change_name;
use crate::{
    cli::{DeleteArgs, Object},
    client::{Server, request_id},
    failure::{Exit, Failure, Result},
    output,
};

pub(super) async fn run(server: &Server, args: DeleteArgs) -> Result {
    let kind = match args.object {
        Object::Stream => ObjectKind::Stream,
        Object::View => ObjectKind::View,
    };
    let request = DeleteRequest {
        kind: kind.into(),
        name: args.name,
        if_exists: args.if_exists,
        dry_run: args.dry_run,
        reason: args.reason,
        request_id: request_id(),
    };
    let change = server.catalog().delete(request).await?.into_inner().change;
    let change =
        change.ok_or_else(|| Failure::new(Exit::Failed, "the server did not say what it did"))?;
    let row = json!({
        "object": change.object,
        "name": change.name,
        "change": change_name(change.kind()),
        "notes": change.notes,
    });
    output::objects(args.output, &["object", "name", "change"], &[row])?;
    for note in &change.notes {
        eprintln!("{} {}: {note}", change.object, change.name);
    }
    if args.dry_run {
        eprintln!("dry run: nothing was changed");
    }
    Ok(())
}
