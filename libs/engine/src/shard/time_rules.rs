use headwater_types::{DataType, EventTime, Offset};

use crate::{
    Error,
    plan::{AggregateFunction, Tumble, ViewPlan},
};

/// 0000-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z: what RFC 3339 can say.
const EARLIEST: i64 = -62_167_219_200_000_000;
const LATEST: i64 = 253_402_300_799_999_999;

/// What a plan says about time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Place of the event time among the decoded columns.
    pub(super) event_time: usize,
    watermark_delay: i64,
    max_future: i64,
    window: Option<Tumble>,
    /// A record is late if this time or an earlier one is the watermark: how far it lies behind the
    /// record's event time, or behind its window's end.
    late_behind: Option<i64>,
    retention: Option<i64>,
}

/// What event time decides about one record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) offset: Offset,
    pub(super) time: EventTime,
    /// Start of its window.
    pub(super) window_start: i64,
    /// What the group's row compares for expiry: the window's end, or the event time.
    pub(super) row_time: EventTime,
    /// The watermark before the record, and with it.
    pub(super) before: EventTime,
    pub(super) after: EventTime,
    pub(super) late: bool,
}

impl Rules {
    pub(super) fn of(plan: &ViewPlan) -> Result<Self, Error> {
        let wrong = |detail: &str| Error::Plan { view: plan.view.clone(), detail: detail.into() };
        let event_time = plan.input.iter().position(|column| *column == plan.stream.event_time);
        let event_time = event_time.ok_or_else(|| wrong("it does not decode the event time"))?;
        if plan.window.is_some_and(|window| window.size_micros <= 0) {
            return Err(wrong("its windows have no size"));
        }
        for aggregate in &plan.aggregates {
            let adds =
                matches!(aggregate.function, AggregateFunction::Sum | AggregateFunction::Avg);
            let number = match aggregate.input_type {
                None => false,
                Some(DataType::Boolean | DataType::Varchar | DataType::Timestamp) => false,
                Some(
                    DataType::Integer
                    | DataType::BigInt
                    | DataType::Double
                    | DataType::Decimal { .. },
                ) => true,
            };
            if adds && !number {
                return Err(wrong("it adds what are no numbers"));
            } else if aggregate.argument.is_some() != aggregate.input_type.is_some()
                || (aggregate.argument.is_none()
                    && aggregate.function != AggregateFunction::CountStar)
            {
                return Err(wrong("an aggregate has no argument, or its argument no type"));
            }
        }
        // A record so late that its row would have expired changes nothing that anybody could see.
        let late_behind = match plan.window {
            Some(_) => {
                let allowed = plan.allowed_lateness_micros.unwrap_or(0);
                Some(plan.retention_micros.map_or(allowed, |retention| allowed.min(retention)))
            }
            None => {
                // Without a window a record exactly that late still counts.
                let allowed = plan.allowed_lateness_micros.map(|allowed| allowed.saturating_add(1));
                [allowed, plan.retention_micros].into_iter().flatten().min()
            }
        };
        Ok(Self {
            event_time,
            watermark_delay: plan.stream.watermark_delay_micros,
            max_future: plan.stream.max_future_micros,
            window: plan.window,
            late_behind,
            retention: plan.retention_micros,
        })
    }

    /// Rows whose time is this or earlier have expired.
    #[inline]
    pub(super) fn horizon(&self, watermark: EventTime) -> EventTime {
        match (watermark.known(), self.retention) {
            (Some(watermark), Some(retention)) => EventTime(watermark.0.saturating_sub(retention)),
            (None, _) | (_, None) => EventTime::MIN,
        }
    }

    /// A row can expire before a record touches it. A window's cannot: such a record is late.
    pub(super) fn rows_renew(&self) -> bool {
        self.window.is_none() && self.retention.is_some()
    }

    pub(super) fn has_windows(&self) -> bool {
        self.window.is_some()
    }

    /// What event time decides about a record. `Err`: why it is a dead letter.
    #[inline]
    pub(super) fn moment(
        &self,
        offset: Offset,
        timestamp_ms: i64,
        time: i64,
        before: EventTime,
        previous: Option<&Moment>,
    ) -> Result<Moment, Misplaced> {
        if !(EARLIEST..=LATEST).contains(&time) {
            return Err(Misplaced::OutOfRange);
        } else if time > timestamp_ms.saturating_mul(1_000).saturating_add(self.max_future) {
            return Err(Misplaced::Future);
        }
        let (window_start, row_time) = match (self.window, previous) {
            (None, _) => (0, time),
            (Some(_), Some(same)) if same.window_start <= time && time < same.row_time.0 => {
                (same.window_start, same.row_time.0)
            }
            (Some(window), _) => window.window(time).ok_or(Misplaced::NoWindow)?,
        };
        let late =
            self.late_behind.is_some_and(|behind| row_time.saturating_add(behind) <= before.0);
        let after = before.max(EventTime(time.saturating_sub(self.watermark_delay)));
        let (time, row_time) = (EventTime(time), EventTime(row_time));
        Ok(Moment { offset, time, window_start, row_time, before, after, late })
    }

    pub(super) fn max_future(&self) -> i64 {
        self.max_future
    }
}

/// Why an event time makes its record a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misplaced {
    OutOfRange,
    Future,
    NoWindow,
}
