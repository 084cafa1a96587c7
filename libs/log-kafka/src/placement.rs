//! On which cores threads run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::Placement;

/// Spreads the consumers of a process, and the processes of a machine by their names, over its cores: names
/// that differ in the last digit alone, by one, are on neighbouring cores (FNV-1a does that). The number of a
/// process would not do: in containers all have the same.
pub(crate) fn spread(client: &str, index: usize) -> usize {
    let hash = client.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash as usize).wrapping_add(index)
}

/// Puts this thread, and those that it begins, where the setting says, onto the core that `spread` gives.
pub(crate) fn apply(placement: Placement, spread: usize) {
    match placement {
        Placement::AnyCore => {}
        Placement::OneCore => {
            let Ok(allowed) = sched_getaffinity(None) else { return };
            let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
            if cores.len() < 2 {
                return;
            }
            let mut own = CpuSet::new();
            own.set(cores[spread % cores.len()]);
            // It runs anywhere if it may not choose.
            let _ = sched_setaffinity(None, &own);
        }
    }
}
