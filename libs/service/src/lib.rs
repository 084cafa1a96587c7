//! Parts that all of Headwater's binaries share: settings, tasks, health, servers,
//! shutdown.
//!
//! | to | use |
//! | --- | --- |
//! | write a service's `main.rs` | [`service_main`], `run.rs`: arguments, settings, exit code |
//! | see a process from start to end | `process.rs`: listen, connect, start, serve, drain |
//! | be run by a process | [`Service`] |
//! | serve gRPC and HTTP, and end in time | [`Servers`]; `deferred_routes.rs` while it starts |
//! | run something as long as the process lives | [`Tasks`]: named, supervised, awaited |
//! | see what a signal does | `tasks.rs` (`stop_on_signals`), `process.rs`, `serve.rs` (`drain`) |
//! | tell whether the process can serve | [`Health`]: conditions behind gRPC health and `/readyz` |
//! | count and measure | [`Metrics`]: one registry, every name begins with `headwater_` |
//! | read settings | [`config`]: defaults, then a file, then the environment, then flags |
//! | own a directory | [`DataDir`]: one process at a time, one format |
//! | log and trace | [`telemetry`] |
//! | try something again until it works | [`Outage`]: growing waits, one log line per outage |
//! | answer with an error | [`status`], [`exit_code`] |
//! | follow the control plane | [`follow`] |
//! | let a test stop a process at a named point | [`failpoint`], in debug builds only |
//!
//! [`Node`] bundles what every service needs to start. Each service gets it as an argument.

pub mod admin;
pub mod config;
mod data_dir;
mod deferred_routes;
pub mod failpoint;
pub mod follow;
mod health;
mod metrics;
mod node;
mod outage;
mod process;
mod remedy;
mod run;
mod serve;
mod service;
mod settings;
mod shutdown;
mod task_failure;
mod tasks;
pub mod telemetry;

pub use admin::admin_router;
pub use data_dir::{DataDir, DataDirError, directory_id};
pub use health::{Condition, Health};
pub use metrics::Metrics;
pub use node::Node;
pub use outage::Outage;
pub use remedy::{Refusal, exit_code, log_status, remedy_of, status};
pub use run::service_main;
pub use serve::{GRACE, Served, Servers};
pub use service::{Data, Service};
pub use settings::{BINARY_SECTIONS, CheckpointsConfig, OWN_SECTIONS, ServerConfig};
pub use shutdown::Shutdown;
pub use task_failure::TaskFailure;
pub use tasks::{Backoff, OnFailure, StopReport, Tasks};
