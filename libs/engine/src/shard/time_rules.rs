use headwater_types::{DataType, EventTime, Offset};

use crate::{
    Error,
    plan::{AggregateFunction, Tumble, ViewPlan},
};

/// 0000-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z: the range of RFC 3339.
const EARLIEST: i64 = -62_167_219_200_000_000;
const LATEST: i64 = 253_402_300_799_999_999;

/// The plan's rules about event time.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeRules {
    /// The index of the event time among the decoded columns.
    pub(super) event_time: usize,
    watermark_delay: i64,
    max_future: i64,
    window: Option<Tumble>,
    /// A record is late if the watermark is this far or further behind the end of its window, or
    /// behind its event time in a view without windows.
    late_behind: Option<i64>,
    retention: Option<i64>,
}

/// The result of the time rules for one record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordTime {
    pub(super) offset: Offset,
    pub(super) time: EventTime,
    /// The start of the record's window.
    pub(super) window_start: i64,
    /// The time that decides when the group's row expires: the window's end, or the event time.
    pub(super) row_time: EventTime,
    /// The watermark before and after the record.
    pub(super) before: EventTime,
    pub(super) after: EventTime,
    pub(super) late: bool,
}

impl TimeRules {
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
                return Err(wrong("it sums values that are not numbers"));
            } else if aggregate.argument.is_some() != aggregate.input_type.is_some()
                || (aggregate.argument.is_none()
                    && aggregate.function != AggregateFunction::CountStar)
            {
                return Err(wrong("an aggregate has no argument, or its argument no type"));
            }
        }
        // If a record is so late that its row would have expired, applying it would have no visible
        // effect.
        let late_behind = match plan.window {
            Some(_) => {
                let allowed = plan.allowed_lateness_micros.unwrap_or(0);
                Some(plan.retention_micros.map_or(allowed, |retention| allowed.min(retention)))
            }
            None => {
                // In a view without windows, a record exactly that late still counts.
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

    /// The horizon: rows with this time or an earlier one have expired.
    #[inline]
    pub(super) fn horizon(&self, watermark: EventTime) -> EventTime {
        match (watermark.known(), self.retention) {
            (Some(watermark), Some(retention)) => EventTime(watermark.0.saturating_sub(retention)),
            (None, _) | (_, None) => EventTime::MIN,
        }
    }

    /// Whether a row can expire before a record updates it. A window's row cannot: that record is
    /// late.
    pub(super) fn rows_renew(&self) -> bool {
        self.window.is_none() && self.retention.is_some()
    }

    pub(super) fn has_windows(&self) -> bool {
        self.window.is_some()
    }

    /// Applies the rules to one record. The error is the reason for a dead letter.
    #[inline]
    pub(super) fn record_time(
        &self,
        offset: Offset,
        timestamp_ms: i64,
        time: i64,
        before: EventTime,
        previous: Option<&RecordTime>,
    ) -> Result<RecordTime, InvalidTime> {
        if !(EARLIEST..=LATEST).contains(&time) {
            return Err(InvalidTime::OutOfRange);
        } else if time > timestamp_ms.saturating_mul(1_000).saturating_add(self.max_future) {
            return Err(InvalidTime::Future);
        }
        let (window_start, row_time) = match (self.window, previous) {
            (None, _) => (0, time),
            (Some(_), Some(same)) if same.window_start <= time && time < same.row_time.0 => {
                (same.window_start, same.row_time.0)
            }
            (Some(window), _) => window.window(time).ok_or(InvalidTime::NoWindow)?,
        };
        let late =
            self.late_behind.is_some_and(|behind| row_time.saturating_add(behind) <= before.0);
        let after = before.max(EventTime(time.saturating_sub(self.watermark_delay)));
        let (time, row_time) = (EventTime(time), EventTime(row_time));
        Ok(RecordTime { offset, time, window_start, row_time, before, after, late })
    }

    pub(super) fn max_future(&self) -> i64 {
        self.max_future
    }
}

/// Why an event time makes its record a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InvalidTime {
    OutOfRange,
    Future,
    NoWindow,
}
