use std::collections::{BTreeMap, BTreeSet};

use headwater_control::{ControlState, LogEnds, ReplayEntry, StatusBoard, replay_status};
use headwater_service::Metrics;
use headwater_types::Name;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ViewLabels {
    view: String,
}

type ByView<N, A> = Family<ViewLabels, Gauge<N, A>>;
type Floats = ByView<f64, std::sync::atomic::AtomicU64>;
type Integers = ByView<i64, std::sync::atomic::AtomicI64>;

/// The control plane in `/metrics`: the newest replay of each view.
pub(crate) struct CoordinatorMetrics {
    phase: Integers,
    progress: Floats,
    rate: Floats,
    eta: Floats,
    epoch: Integers,
    position: Gauge,
    leading: Gauge,
    /// The views that are shown.
    shown: Mutex<BTreeSet<Name>>,
}

impl CoordinatorMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            phase: metrics.register(
                "coordinator_replay_phase",
                "Phase of the newest replay: 1 replay, 2 align, 3 diff, 4 hold, 5 commit, 6 retain, 7 undone, \
                 8 retired, 9 aborted, 10 failed",
                Family::default(),
            ),
            progress: metrics.register(
                "coordinator_replay_progress_ratio",
                "Share of the records that the newest replay has read",
                Family::default(),
            ),
            rate: metrics.register(
                "coordinator_replay_records_per_second",
                "Records that the newest replay reads per second, all shards together",
                Family::default(),
            ),
            eta: metrics.register(
                "coordinator_replay_eta_seconds",
                "Seconds until the newest replay has caught up; infinite if it never will at this rate",
                Family::default(),
            ),
            epoch: metrics.register(
                "coordinator_view_epoch",
                "Which generation of the view serves, counted by swaps from 1",
                Family::default(),
            ),
            position: metrics.register(
                "coordinator_control_records",
                "Records in the control topic",
                Gauge::default(),
            ),
            leading: metrics.register(
                "coordinator_leading",
                "Whether this coordinator leads: 1, or stands by: 0",
                Gauge::default(),
            ),
            shown: Mutex::default(),
        }
    }

    pub(crate) fn start_leading(&self) {
        self.leading.set(1);
    }

    /// The next leader shows the replays from now on.
    pub(crate) fn stop_leading(&self) {
        self.leading.set(0);
        self.phase.clear();
        self.progress.clear();
        self.rate.clear();
        self.eta.clear();
        self.epoch.clear();
    }

    /// The view has had no replay.
    fn hide_replay(&self, labels: &ViewLabels) {
        self.phase.remove(labels);
        self.progress.remove(labels);
        self.rate.remove(labels);
        self.eta.remove(labels);
    }

    pub(crate) fn show(&self, state: &ControlState, board: &StatusBoard, ends: &LogEnds) {
        self.position.set(i64::try_from(state.position().0).unwrap_or(i64::MAX));
        let mut newest: BTreeMap<&Name, &ReplayEntry> = BTreeMap::new();
        let present = |replay: &&ReplayEntry| state.view_of(replay.new).is_some();
        for replay in state.replays().values().filter(present) {
            let entry = newest.entry(&replay.view).or_insert(replay);
            if entry.started < replay.started {
                *entry = replay;
            }
        }
        let mut shown = self.shown.lock();
        for deleted in shown.extract_if(.., |name| !state.views().contains_key(name)) {
            let labels = ViewLabels { view: deleted.to_string() };
            self.epoch.remove(&labels);
            self.hide_replay(&labels);
        }
        for (name, view) in state.views() {
            shown.insert(name.clone());
            let labels = ViewLabels { view: name.to_string() };
            self.epoch.get_or_create(&labels).set(i64::try_from(view.epoch.0).unwrap_or(i64::MAX));
            let Some(replay) = newest.get(name) else {
                self.hide_replay(&labels);
                continue;
            };
            let replay = replay_status(state, board, ends, replay);
            self.phase.get_or_create(&labels).set(i64::from(replay.phase));
            let share = match replay.records_total {
                0 => 1.0,
                total => replay.records_done as f64 / total as f64,
            };
            self.progress.get_or_create(&labels).set(share);
            self.rate.get_or_create(&labels).set(replay.records_per_second);
            self.eta.get_or_create(&labels).set(replay.eta_seconds.unwrap_or(f64::INFINITY));
        }
    }
}
