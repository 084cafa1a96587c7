//! The arguments of the command line. Verbs, machine output and exit codes are stable: people
//! script against them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Headwater keeps SQL views of event streams live, and rebuilds them from offset zero beside the
/// live ones when their logic changes.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub servers: ServerArgs,

    #[command(subcommand)]
    pub command: Command,
}

/// One address for everything, as `headwater dev` has it, or one per service.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Servers")]
pub struct ServerArgs {
    /// Address of the server
    #[arg(
        long,
        global = true,
        env = "HEADWATER_SERVER",
        default_value = "http://127.0.0.1:7400",
        value_name = "URL"
    )]
    pub server: String,
    /// Address of ingest, where it is a process of its own
    #[arg(long, global = true, env = "HEADWATER_INGEST_SERVER", value_name = "URL")]
    pub ingest_server: Option<String>,
    /// Address of the query service, where it is a process of its own
    #[arg(long, global = true, env = "HEADWATER_QUERY_SERVER", value_name = "URL")]
    pub query_server: Option<String>,
    /// Address of the coordinator, where it is a process of its own
    #[arg(long, global = true, env = "HEADWATER_COORDINATOR_SERVER", value_name = "URL")]
    pub coordinator_server: Option<String>,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed; 2 wrong usage or definition; 3 not available now, try again;
4 inconclusive, a person must decide.

Data goes to stdout, everything else to stderr.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process, on a log embedded in a directory
    Dev(DevArgs),
    /// Create what definition files describe; a changed view starts a replay, DROP deletes
    #[command(after_help = "\
Examples:
  headwater apply -f examples/flights/            create what is new, replay what changed
  headwater apply -f view.sql --dry-run           what would happen, and what it would cost
  headwater apply -f view.sql --wait --promote --max-changed 0.1")]
    Apply(ApplyArgs),
    /// Delete a stream or a view; refused while something depends on it
    #[command(after_help = "\
The state of a view is deleted soon afterwards. The topic of a stream and its topic of dead letters stay.
The same name may be created again. In definition files: DROP VIEW name; DROP STREAM name;

Examples:
  headwater delete view spend_per_minute --reason 'nobody reads it'
  headwater delete stream orders --if-exists")]
    Delete(DeleteArgs),
    /// List streams, views, generations or shards
    Get(GetArgs),
    /// Append events from a file or standard input to a stream
    #[command(after_help = "\
The file has one JSON object per line; gzip is recognised. The last line of output is
{\"accepted\":n,\"rejected\":n,\"token\":\"…\"}: `headwater query --after TOKEN` waits for these events.")]
    Ingest(IngestArgs),
    /// Ask a question in SQL over views
    Query(QueryArgs),
    /// Print a view's rows as they change
    Watch(WatchArgs),
    /// Rebuild a view beside the live one, compare, swap, undo
    #[command(subcommand)]
    Replay(ReplayCommand),
    /// Look at what could not be processed, and try it again
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Show lag, watermark, tallies and rates, per shard and in all
    Status(StatusArgs),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example: headwater completions bash > ~/.local/share/bash-completion/completions/headwater"
    )]
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub struct DevArgs {
    /// Directory that holds the log and everything derived from it
    #[arg(long, env = "HEADWATER_DATA", default_value = "headwater-data", value_name = "DIR")]
    pub data: PathBuf,
    /// Address of gRPC, all services
    #[arg(long, env = "HEADWATER_LISTEN", default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Address of HTTP: events in, /healthz, /readyz, /metrics
    #[arg(long, env = "HEADWATER_HTTP", default_value = "127.0.0.1:7401", value_name = "ADDR")]
    pub http: SocketAddr,
    /// Settings of the services, in TOML
    #[arg(long, env = "HEADWATER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns for people
    Table,
    /// One JSON array
    Json,
    /// One JSON object per line
    Ndjson,
    /// Comma-separated values with a header
    Csv,
}

#[derive(Debug, Args)]
pub struct ReplayOptionArgs {
    /// Promote without asking if the diff passes
    #[arg(long)]
    pub promote: bool,
    /// Pass if at most this share of rows changes (0.1 is a tenth)
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub max_changed: Option<f64>,
    /// Pass if at most this share of rows vanishes
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub max_only_old: Option<f64>,
    /// Pass if at most this share of rows appears
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub max_only_new: Option<f64>,
    /// How long the replaced generation stays ready for undo
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    pub retain: Duration,
    /// Hold the replay before this phase until `headwater replay resume`, also with --promote
    #[arg(long, value_name = "PHASE")]
    pub hold_before: Option<HoldBeforePhase>,
    /// Why, for the audit trail
    #[arg(long, default_value = "")]
    pub reason: String,
}

/// A phase before which a replay can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HoldBeforePhase {
    /// The new generation has caught up, and no fence is named yet
    Align,
    /// Both generations are at the fence, and nothing is compared yet
    Diff,
    /// The swap is decided on, and the old generation still serves
    Commit,
}

#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Files, or directories whose *.sql files are read in name order
    #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    /// Say what would happen, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Block until the replays are done or a person must decide
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub options: ReplayOptionArgs,
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Object {
    Stream,
    View,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    pub object: Object,
    pub name: String,
    /// It is no error that there is nothing of this name
    #[arg(long)]
    pub if_exists: bool,
    /// Say what would happen, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the audit trail
    #[arg(long, default_value = "")]
    pub reason: String,
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    Streams,
    Views,
    Generations,
    Shards,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    pub kind: Kind,
    /// Only this stream, view or generation
    pub name: Option<String>,
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct IngestArgs {
    pub stream: String,
    /// NDJSON, gzip recognised; `-` is standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Events per batch
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub batch: u32,
    /// At most so many events per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
}

#[derive(Debug, Args)]
pub struct QueryArgs {
    /// One SELECT over views
    pub sql: String,
    /// Wait until the events of this token are in the answer (repeatable)
    #[arg(long, value_name = "TOKEN")]
    pub after: Vec<String>,
    /// Read this generation instead of the serving one
    #[arg(long, value_name = "ID")]
    pub generation: Option<String>,
    /// How long to wait at most
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    pub view: String,
    /// Begin with all present rows
    #[arg(long, conflicts_with = "from")]
    pub initial: bool,
    /// Continue a former watch with the rows that changed since its token; all rows come if another
    /// generation serves
    #[arg(long, value_name = "TOKEN")]
    pub from: Option<String>,
    /// Print {"$resume_token":"TOKEN"} after the rows that a token covers, and
    /// {"$reset":"GENERATION"} before rows that replace all others and void all tokens; for -o
    /// ndjson
    #[arg(long)]
    pub progress: bool,
    #[arg(short, long, default_value = "ndjson")]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum ReplayCommand {
    /// What a replay would read, need and change
    Plan(ReplayPlanArgs),
    /// Build a view anew beside the live one
    Start(ReplayStartArgs),
    /// All replays, newest first
    List {
        /// Only this view's
        view: Option<String>,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// One replay, with its diff
    Get {
        /// Replay id, or view: its newest replay
        replay: String,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Follow a replay until it is done or a person must decide
    Watch {
        /// Replay id, or view: its newest replay
        replay: String,
    },
    /// Make the new generation serve
    Promote {
        /// Replay id, or view: its newest replay
        replay: String,
        /// Promote although the diff is outside the thresholds
        #[arg(long)]
        accept_failed: bool,
        #[command(flatten)]
        decision: DecisionArgs,
    },
    /// End a replay that was not promoted
    Abort {
        /// Replay id, or view: its newest replay
        replay: String,
        #[command(flatten)]
        decision: DecisionArgs,
    },
    /// Make the previous generation serve again
    Undo {
        /// Id of the replay that was promoted last, or its view
        replay: String,
        #[command(flatten)]
        decision: DecisionArgs,
    },
    /// Let a replay go on that is held before a phase (`start --hold-before`)
    Resume {
        /// Replay id, or view: its newest replay
        replay: String,
        #[command(flatten)]
        decision: DecisionArgs,
    },
    /// (not available yet) Let a replay stand still
    Pause(LaterArgs),
    /// (not available yet) Bound a replay's rate
    Throttle(LaterArgs),
    /// (not available yet) Compare again
    Verify(LaterArgs),
    /// (not available yet) Start a failed replay again
    Retry(LaterArgs),
}

#[derive(Debug, Args)]
pub struct LaterArgs {
    #[arg(num_args = 0.., trailing_var_arg = true, hide = true)]
    pub rest: Vec<String>,
}

#[derive(Debug, Args)]
pub struct DecisionArgs {
    /// Why, for the audit trail
    #[arg(long, default_value = "")]
    pub reason: String,
    /// Block until it is done
    #[arg(long)]
    pub wait: bool,
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ReplayPlanArgs {
    pub view: String,
    /// File with the new definition; without it the present one
    #[arg(short, long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ReplayStartArgs {
    pub view: String,
    /// File with the new definition; without it the present one
    #[arg(short, long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Block until it is done or a person must decide
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub options: ReplayOptionArgs,
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List dead letters, oldest first
    List {
        #[command(flatten)]
        selection: SelectionArgs,
        /// End the list after so many; 0 means all
        #[arg(long, default_value_t = 100)]
        limit: u64,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Write the original bytes of one dead letter to stdout
    Show {
        stream: String,
        /// Partition and offset of the source record, as `list` prints them: 3:1042
        record: String,
    },
    /// Append dead letters to their stream again, with their original bytes
    Replay {
        #[command(flatten)]
        selection: SelectionArgs,
        /// Only this source record: 3:1042
        #[arg(long)]
        record: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct SelectionArgs {
    pub stream: String,
    /// Only this stage: decode, time, filter, expression or late
    #[arg(long, value_parser = ["decode", "time", "filter", "expression", "late"])]
    pub stage: Option<String>,
    /// Only what this view refused
    #[arg(long)]
    pub view: Option<String>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[arg(short, long, default_value = "table")]
    pub output: Output,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        Ok(_) | Err(_) => Err("a share is a number from 0 to 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_share_is_between_zero_and_one() {
        assert_eq!(share("0.5"), Ok(0.5));
        for bad in ["1.1", "-0.1", "x", "NaN"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
