//! The plan of a replay, for people and for programs.

use headwater_proto::control::v1::ReplayPlan;
use serde_json::json;

use crate::output::thousands;

/// Prints the plan in words to stderr, beside the table on stdout.
pub(super) fn print_plan(plan: &ReplayPlan) {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1_048_576.0);
    let time = match plan.seconds {
        seconds if seconds <= 0.0 => "unknown until rates are measured".to_owned(),
        seconds => format!("about {seconds:.1} s"),
    };
    eprintln!("replay of {} (now {}):", plan.view, plan.replaces);
    eprintln!("  reads  {} records, {}", thousands(plan.records), mib(plan.bytes));
    eprintln!("  disk   {} needed, {} free", mib(plan.disk_bytes), mib(plan.disk_free_bytes));
    eprintln!("  time   {time}");
    for difference in &plan.differences {
        eprintln!("  change {difference}");
    }
    for warning in &plan.warnings {
        eprintln!("  warning: {warning}");
    }
}

/// The plan as a JSON object.
pub(super) fn plan_json(plan: &ReplayPlan) -> serde_json::Value {
    json!({
        "view": plan.view,
        "replaces": plan.replaces,
        "records": plan.records,
        "bytes": plan.bytes,
        "disk_bytes": plan.disk_bytes,
        "disk_free_bytes": plan.disk_free_bytes,
        "seconds": plan.seconds,
        "differences": plan.differences,
        "warnings": plan.warnings,
    })
}
