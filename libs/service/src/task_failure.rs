use headwater_types::Remedy;

/// The failure of a task that ended the process.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{task} failed: {reason}")]
pub struct TaskFailure {
    pub task: String,
    /// The whole chain of causes, in one line.
    pub reason: String,
    /// What would help, if a cause says so.
    pub remedy: Option<Remedy>,
}
