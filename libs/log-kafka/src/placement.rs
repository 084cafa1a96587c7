//! On which cores threads run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::Placement;

/// Puts this thread, and those that it begins, where the setting says. `index` spreads the consumers of a
/// process, and the process's number the processes, over the cores that they may use.
pub(crate) fn apply(placement: Placement, index: usize) {
    match placement {
        Placement::AnyCore => {}
        Placement::OneCore => {
            let Ok(allowed) = sched_getaffinity(None) else { return };
            let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
            if cores.len() < 2 {
                return;
            }
            let mut own = CpuSet::new();
            own.set(cores[(std::process::id() as usize + index) % cores.len()]);
            // It runs anywhere if it may not choose.
            let _ = sched_setaffinity(None, &own);
        }
    }
}
