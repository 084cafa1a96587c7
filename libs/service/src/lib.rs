//! What Headwater's binaries do alike, so that each service is only its duty.
//!
//! | to | use |
//! | --- | --- |
//! | run something for as long as the process lives | [`Tasks`]: named, supervised, waited for at the end |
//! | say that the process can or cannot serve | [`Health`]: named conditions behind gRPC health, `/healthz` and `/readyz` |
//! | count and measure | [`Metrics`]: one registry, every name begins with `headwater_` |
//! | read settings | [`config`]: defaults, then a file, then the environment, then flags |
//! | own a directory | [`DataDir`]: one process at a time, one format |
//! | log and trace | [`telemetry`] |
//! | try something again until it works | [`Outage`]: grows the waits, and says it once |
//! | answer with an error | [`status`], [`exit_code`] |
//! | follow the control plane | [`follow`] |
//! | be run by a process | [`Service`] |
//! | write a service's `main.rs` | [`service_main`] |
//! | serve gRPC and HTTP, and end in time | [`Servers`] |
//!
//! [`Node`] bundles what every service needs to start; it is handed down, never looked up.

pub mod admin;
pub mod config;
mod data_dir;
pub mod follow;
mod health;
mod late;
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
pub use tasks::{Backoff, Failure, OnFailure, StopReport, Tasks};
