//! On which cores the threads of a consumer run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::Placement;

/// Picks a core number (modulo the number of cores) for consumer `index` of the process `client`.
///
/// Consumers of a process get neighbouring cores, and so do processes whose names differ by one in
/// the last digit (FNV-1a has this property). A process id would not do: in containers it is the
/// same everywhere.
pub(super) fn core_for(client: &str, index: usize) -> usize {
    let hash = client.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash as usize).wrapping_add(index)
}

/// Binds this thread, and all threads that it starts later, to the core if the setting says so.
pub(super) fn bind(placement: Placement, core: usize) {
    match placement {
        Placement::AnyCore => {}
        Placement::OneCore => {
            let Ok(allowed) = sched_getaffinity(None) else { return };
            let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
            if cores.len() < 2 {
                return;
            }
            let mut own = CpuSet::new();
            own.set(cores[core % cores.len()]);
            // A system that forbids it lets the thread run anywhere.
            let _ = sched_setaffinity(None, &own);
        }
    }
}
