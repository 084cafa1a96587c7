//! Definitions: read from files, read again from control records, checked and planned.

use std::{collections::HashMap, fmt, sync::Arc};

use headwater_control::ControlState;
use headwater_proto::control::v1::{ChangeKind, DefinitionChange, DefinitionFile};
use headwater_sql::{Diagnostic, DropDefinition, Dropped, Statement, ViewDefinition};
use headwater_types::{Column, Name, Remedy, StreamDefinition};
use parking_lot::Mutex;
use tonic::Status;

/// Parsed streams by their normal form. Every decision needs them, and parsing costs more than
/// deciding.
#[derive(Default)]
pub(crate) struct StreamCache {
    parsed: Mutex<HashMap<String, Arc<StreamDefinition>>>,
}

impl StreamCache {
    /// The definition that a control record holds in its normal form.
    pub(crate) fn parse(&self, normal_sql: &str) -> Result<Arc<StreamDefinition>, Status> {
        if let Some(stream) = self.parsed.lock().get(normal_sql) {
            return Ok(stream.clone());
        }
        let stream =
            headwater_sql::parse_stream(normal_sql).map_err(|error| stored("stream", &error))?;
        let stream = Arc::new(stream);
        self.parsed.lock().insert(normal_sql.to_owned(), stream.clone());
        Ok(stream)
    }

    /// A declared stream.
    pub(crate) fn declared(
        &self,
        state: &ControlState,
        name: &Name,
    ) -> Result<Option<Arc<StreamDefinition>>, Status> {
        state.streams().get(name).map(|entry| self.parse(&entry.sql)).transpose()
    }
}

/// The view that a control record holds in its normal form.
pub(crate) fn parse_view(normal_sql: &str) -> Result<ViewDefinition, Status> {
    headwater_sql::parse_view(normal_sql).map_err(|error| stored("view", &error))
}

/// Plans a view as its shards will. Returns what is wrong with its definition.
pub(crate) async fn planning_error(
    view: &ViewDefinition,
    stream: &Arc<StreamDefinition>,
) -> Result<Option<Diagnostic>, Status> {
    let (view, stream) = (view.clone(), stream.clone());
    compute(move || headwater_sql::plan_view(&view, &stream).err()).await
}

/// Runs a computation that takes long enough to hold up the other tasks of a worker thread.
async fn compute<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Status::internal(format!("the request was not finished: {error}")))
}

/// The error for a definition that was accepted once and cannot be read now.
fn stored(object: &str, error: &dyn fmt::Display) -> Status {
    let message = format!(
        "the {object} as the control topic holds it is not one that this version reads ({error}): run the version that \
         accepted it"
    );
    headwater_service::status(Remedy::Repair, message)
}

/// A statement and the file it came from.
#[derive(Clone, Debug)]
pub(crate) struct FromFile<T> {
    pub(crate) file: String,
    pub(crate) definition: T,
}

/// The definitions in the files of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Definitions {
    pub(crate) streams: Vec<FromFile<StreamDefinition>>,
    pub(crate) views: Vec<FromFile<ViewDefinition>>,
    pub(crate) drops: Vec<FromFile<DropDefinition>>,
    /// The objects in the order of the statements.
    pub(crate) order: Vec<CatalogObject>,
}

/// A named thing in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CatalogObject {
    Stream(Name),
    View(Name),
}

impl CatalogObject {
    /// The object that a DROP statement names.
    pub(crate) fn of(drop: &DropDefinition) -> Self {
        match drop.dropped {
            Dropped::Stream => Self::Stream(drop.name.clone()),
            Dropped::View => Self::View(drop.name.clone()),
        }
    }

    /// A change as the state alone tells it, with the replay that is open.
    pub(crate) fn changed(&self, state: &ControlState, kind: ChangeKind) -> DefinitionChange {
        let (what, name) = match self {
            Self::Stream(name) => ("stream", name),
            Self::View(name) => ("view", name),
        };
        let view = match self {
            Self::Stream(_) => None,
            Self::View(name) => state.views().get(name),
        };
        DefinitionChange {
            kind: kind.into(),
            object: what.into(),
            name: name.to_string(),
            replay_id: view
                .and_then(|view| view.open_replay.as_ref())
                .map(ToString::to_string)
                .unwrap_or_default(),
            plan: None,
            generation: String::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl fmt::Display for CatalogObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(name) => write!(f, "stream {name}"),
            Self::View(name) => write!(f, "view {name}"),
        }
    }
}

impl Definitions {
    /// Reads all files. A mistake in one refuses them all, with every mistake in the message.
    pub(crate) async fn read(files: Vec<DefinitionFile>) -> Result<Self, Status> {
        compute(move || Self::parse(&files)).await?
    }

    fn parse(files: &[DefinitionFile]) -> Result<Self, Status> {
        let mut definitions = Self::default();
        let mut problems = Problems::default();
        let mut seen: HashMap<CatalogObject, (String, bool)> = HashMap::new();
        for file in files {
            let statements = match headwater_sql::parse(&file.sql) {
                Ok(statements) => statements,
                Err(error) => {
                    error.0.iter().for_each(|diagnostic| {
                        problems.wrong(format!("{}: {diagnostic}", file.name))
                    });
                    continue;
                }
            };
            for statement in statements {
                let file = file.name.clone();
                let object = match &statement {
                    Statement::Stream(stream) => CatalogObject::Stream(stream.name.clone()),
                    Statement::View(view) => CatalogObject::View(view.name.clone()),
                    Statement::Drop(drop) => CatalogObject::of(drop),
                };
                let drops = matches!(statement, Statement::Drop(_));
                if let Some((first, dropped)) = seen.insert(object.clone(), (file.clone(), drops)) {
                    let twice = match drops || dropped {
                        false => "is defined twice",
                        true => "is to be dropped and has another statement",
                    };
                    problems.wrong(format!(
                        "{file}: {object} {twice}, first in {first}; keep one of the two"
                    ));
                    continue;
                }
                definitions.order.push(object);
                match statement {
                    Statement::Stream(definition) => {
                        definitions.streams.push(FromFile { file, definition })
                    }
                    Statement::View(definition) => {
                        definitions.views.push(FromFile { file, definition })
                    }
                    Statement::Drop(definition) => {
                        definitions.drops.push(FromFile { file, definition })
                    }
                }
            }
        }
        problems.refuse()?;
        Ok(definitions)
    }
}

/// The reasons against a request, for one message.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    lines: Vec<String>,
    /// A reason lies in the request itself, not in the moment.
    wrong: bool,
}

impl Problems {
    /// The request must be corrected.
    pub(crate) fn wrong(&mut self, line: String) {
        self.wrong = true;
        self.lines.push(line);
    }

    /// The request does not fit the present state.
    pub(crate) fn untimely(&mut self, line: String) {
        self.lines.push(line);
    }

    pub(crate) fn refuse(&self) -> Result<(), Status> {
        match (self.lines.is_empty(), self.wrong) {
            (true, _) => Ok(()),
            (false, true) => Err(headwater_service::status(Remedy::Correct, self.lines.join("\n"))),
            (false, false) => Err(Status::failed_precondition(self.lines.join("\n"))),
        }
    }
}

/// Whether a declared stream can become this one in place; if not, the reason.
pub(crate) fn extension(old: &StreamDefinition, new: &StreamDefinition) -> Result<(), String> {
    let columns = |stream: &StreamDefinition, index: Option<usize>| {
        index
            .and_then(|index| stream.columns.get(index))
            .map_or_else(|| "none".into(), |column| column.name.clone())
    };
    let settings = [
        ("topic", old.topic.to_string(), new.topic.to_string()),
        ("partitions", old.partitions.to_string(), new.partitions.to_string()),
        ("key", columns(old, old.key), columns(new, new.key)),
        (
            "event-time column",
            columns(old, Some(old.event_time)),
            columns(new, Some(new.event_time)),
        ),
        (
            "watermark delay",
            format!("{} microseconds", old.watermark_delay_micros),
            format!("{} microseconds", new.watermark_delay_micros),
        ),
        (
            "max_future",
            format!("{} microseconds", old.max_future_micros),
            format!("{} microseconds", new.max_future_micros),
        ),
    ];
    if let Some((what, before, after)) =
        settings.into_iter().find(|(_, before, after)| before != after)
    {
        return Err(format!("its {what} would change from {before} to {after}"));
    }
    let spell = |column: &Column| {
        let null = if column.nullable { "" } else { " NOT NULL" };
        format!("{} {}{null}", column.name, column.data_type)
    };
    for (index, before) in old.columns.iter().enumerate() {
        match new.columns.get(index) {
            Some(after) if after == before => {}
            Some(after) => {
                return Err(format!("its column {} would become {}", spell(before), spell(after)));
            }
            None => return Err(format!("its column {} would vanish", spell(before))),
        }
    }
    match new.columns.iter().skip(old.columns.len()).find(|column| !column.nullable) {
        Some(column) => Err(format!(
            "the new column {} is NOT NULL, and the events that are there do not have it",
            spell(column)
        )),
        None => Ok(()),
    }
}
